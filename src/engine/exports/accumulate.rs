//! In the fold: what batches say of customers goes into the sums that exports are made of.

use std::collections::BTreeMap;

use sqlx::PgConnection;

use super::gauges;
use crate::store::StoreError;
use crate::store::exports::sums::{self, BucketAddition, HourlySum};
use crate::store::usage::fold::ClaimedBatches;
use metergate_domain::base::environment::Environment;
use metergate_domain::base::timestamp::Timestamp;
use metergate_domain::catalog::meter::{StoredMeter, StripeFormula};
use metergate_domain::exports::{Bucket, Units};

/// Adds what the taken batches say of a meter's customers, each hour parted where a billing period of
/// the customer ends in it.
pub(crate) async fn note_folded(
    connection: &mut PgConnection,
    environment: Environment,
    stored: &StoredMeter,
    taken: &ClaimedBatches,
) -> Result<(), StoreError> {
    let Some(stripe) = &stored.meter.stripe else { return Ok(()) };
    if stripe.formula == StripeFormula::Last {
        return gauges::note_folded(connection, environment, stored, taken).await;
    }
    let hours = sums::by_hour(connection, environment, stored, stripe.scale, taken).await?;
    if hours.is_empty() {
        return Ok(());
    }
    let mut customers: Vec<i64> = hours.iter().map(|part| part.customer_id).collect();
    customers.sort_unstable();
    customers.dedup();
    let cycles = sums::cycles(connection, &customers).await?;
    let bucket = |customer: i64, at: Timestamp| Bucket::of(at, cycles.get(&customer));
    let is_parted = |part: &HourlySum| {
        let first = bucket(part.customer_id, part.at);
        first.span != Bucket::of(part.at, None).span
    };
    let (parted, whole): (Vec<HourlySum>, Vec<HourlySum>) = hours.into_iter().partition(is_parted);
    let mut parts = whole;
    if !parted.is_empty() {
        let pairs: Vec<(i64, Timestamp)> = parted.iter().map(|part| (part.customer_id, part.at)).collect();
        parts.extend(sums::by_instant(connection, environment, stored, stripe.scale, taken, &pairs).await?);
    }
    let mut sums: BTreeMap<(i64, Timestamp), BucketAddition> = BTreeMap::new();
    for part in parts {
        let units = Units::parse(&part.units).ok_or_else(|| {
            StoreError::Refused(sqlx::Error::Decode(format!("a sum of usage: {}", part.units).into()))
        })?;
        let HourlySum { customer_id, at, last_at, .. } = part;
        let bucket = bucket(customer_id, at);
        let nothing = BucketAddition { customer_id, bucket, last_at, units: Units::default() };
        let sum = sums.entry((customer_id, bucket.span.from)).or_insert(nothing);
        sum.units = sum.units.plus(units);
        sum.last_at = sum.last_at.max(last_at);
    }
    let sums: Vec<BucketAddition> = sums.into_values().collect();
    sums::add(connection, environment, stored.id, &sums).await
}
