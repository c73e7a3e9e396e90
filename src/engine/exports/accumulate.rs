//! Accumulates customers' usage from folded batches in the sums and gauges that become exports.

use std::collections::BTreeMap;

use sqlx::PgConnection;

use crate::engine::usage::fold::FoldListener;
use crate::store::exports::gauges::{self, HourlyGauge};
use crate::store::exports::parts::{self, BucketPart, CustomerPart, ExportValue};
use crate::store::exports::sums::{self, HourlySum};
use crate::store::usage::fold::MeterBatches;
use crate::store::{Scope, StoreError};
use metergate_domain::base::Timestamp;
use metergate_domain::catalog::StripeFormula;
use metergate_domain::exports::Bucket;

/// A fold listener that accumulates usage for exports.
#[derive(Debug, Clone, Copy)]
pub(super) struct ExportAccumulator;

impl FoldListener for ExportAccumulator {
    async fn on_folded(
        &self,
        connection: &mut PgConnection,
        batches: MeterBatches<'_>,
    ) -> Result<(), StoreError> {
        match batches.stored.meter.stripe.as_ref().map(|stripe| stripe.formula) {
            None => Ok(()),
            Some(StripeFormula::Sum) => add_sums(connection, batches).await,
            Some(StripeFormula::Last) => keep_gauges(connection, batches).await,
        }
    }
}

async fn add_sums(connection: &mut PgConnection, batches: MeterBatches<'_>) -> Result<(), StoreError> {
    let sums: Vec<BucketPart<HourlySum>> = by_bucket(connection, batches).await?;
    if sums.is_empty() {
        return Ok(());
    }
    sums::add(&mut Scope::new(connection, batches.environment), batches.stored.id, &sums).await
}

async fn keep_gauges(connection: &mut PgConnection, batches: MeterBatches<'_>) -> Result<(), StoreError> {
    let MeterBatches { environment, stored, .. } = batches;
    let mut gauges: Vec<BucketPart<HourlyGauge>> = by_bucket(connection, batches).await?;
    let scope = &mut Scope::new(connection, environment);
    // the mark may be a voided value, so it is counted again
    for gauge in gauges.iter_mut().filter(|gauge| gauge.value.voided) {
        let (customer_id, span) = (gauge.customer_id, gauge.bucket.span);
        gauge.value.mark = gauges::recount(scope, stored, customer_id, span).await?;
    }
    gauges::keep(scope, stored.id, &gauges).await
}

/// Reads the values of batches by bucket, ordered by customer and time. An hour is read by instant if a
/// billing period of the customer ends in it.
async fn by_bucket<V: ExportValue>(
    connection: &mut PgConnection,
    batches: MeterBatches<'_>,
) -> Result<Vec<BucketPart<V>>, StoreError> {
    let hours: Vec<CustomerPart<V>> = parts::read(connection, batches, None).await?;
    if hours.is_empty() {
        return Ok(Vec::new());
    }
    let mut customers: Vec<i64> = hours.iter().map(|part| part.customer_id).collect();
    customers.sort_unstable();
    customers.dedup();
    let cycles = sums::cycles(connection, &customers).await?;
    let bucket = |part: &CustomerPart<V>| Bucket::of(part.at, cycles.get(&part.customer_id));
    let (split, mut parts): (Vec<_>, Vec<_>) =
        hours.into_iter().partition(|part| bucket(part).span != Bucket::of(part.at, None).span);
    if !split.is_empty() {
        let pairs: Vec<(i64, Timestamp)> = split.iter().map(|part| (part.customer_id, part.at)).collect();
        parts.extend(parts::read(connection, batches, Some(&pairs)).await?);
    }
    let mut buckets: BTreeMap<(i64, Timestamp), BucketPart<V>> = BTreeMap::new();
    for part in parts {
        let (customer_id, bucket) = (part.customer_id, bucket(&part));
        let key = (customer_id, bucket.span.from);
        if let Some(there) = buckets.get_mut(&key) {
            there.value.merge(part.value);
        } else {
            buckets.insert(key, BucketPart { customer_id, bucket, value: part.value });
        }
    }
    Ok(buckets.into_values().collect())
}
