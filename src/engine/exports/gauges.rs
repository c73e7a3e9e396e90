//! Meters that are exported by their last or greatest value: in the fold their levels are kept by
//! customer and hour; a level that has changed becomes an export, which takes the place of an earlier
//! one by its later time.

use std::collections::BTreeMap;

use sqlx::{Connection, PgConnection};
use uuid::Uuid;

use super::create::{TakeBack, how_to_take_back};
use super::{Due, exported};
use crate::engine::{Engine, EngineError};
use crate::store::exports::NewExport;
use crate::store::exports::gauges::{self, BucketGauge, Changed, Mark};
use crate::store::exports::sums;
use crate::store::usage::fold::ClaimedBatches;
use crate::store::{self, StoreError};
use metergate_domain::base::environment::Environment;
use metergate_domain::base::timestamp::Timestamp;
use metergate_domain::catalog::meter::{Aggregation, StoredMeter, StripeFormula, StripeMeter};
use metergate_domain::exports::{Bucket, ExportStatus, level_draft};

/// Levels that are looked at in one transaction.
const LEVELS_MAX: i64 = 500;

/// Keeps what the taken batches say of a meter's customers.
pub(super) async fn note_folded(
    connection: &mut PgConnection,
    environment: Environment,
    stored: &StoredMeter,
    taken: &ClaimedBatches,
) -> Result<(), StoreError> {
    let hours = gauges::parts(connection, environment, stored, taken, None).await?;
    let mut customers: Vec<i64> = hours.iter().map(|part| part.customer_id).collect();
    customers.sort_unstable();
    customers.dedup();
    let cycles = sums::cycles(connection, &customers).await?;
    let bucket = |customer: i64, at: Timestamp| Bucket::of(at, cycles.get(&customer));
    let (parted, mut parts): (Vec<_>, Vec<_>) = hours
        .into_iter()
        .partition(|part| bucket(part.customer_id, part.at).span != Bucket::of(part.at, None).span);
    if !parted.is_empty() {
        let pairs: Vec<(i64, Timestamp)> = parted.iter().map(|part| (part.customer_id, part.at)).collect();
        parts.extend(gauges::parts(connection, environment, stored, taken, Some(&pairs)).await?);
    }
    let mut levels: BTreeMap<(i64, Timestamp), (Bucket, Option<Mark>, bool)> = BTreeMap::new();
    for part in parts {
        let bucket = bucket(part.customer_id, part.at);
        let level = levels.entry((part.customer_id, bucket.span.from)).or_insert((bucket, None, false));
        level.1 = level.1.take().max(part.mark);
        level.2 |= part.voided;
    }
    let mut kept = Vec::with_capacity(levels.len());
    for ((customer_id, _), (bucket, mark, replaces)) in levels {
        // what was taken back may have been the level
        let mark = if replaces {
            gauges::recount(connection, environment, stored, customer_id, bucket.span).await?
        } else {
            mark
        };
        kept.push(BucketGauge { customer_id, bucket, mark, replaces });
    }
    gauges::keep(connection, environment, stored.id, &kept).await
}

#[derive(Default)]
struct GaugeExportWrites {
    made: Vec<NewExport>,
    wanted_back: Vec<Uuid>,
    withdrawn: Vec<Uuid>,
}

impl Engine {
    /// Makes exports of levels that have changed; how many.
    pub(super) async fn gather_levels(
        &self,
        connection: &mut PgConnection,
        environment: Environment,
        due: Due,
    ) -> Result<u64, EngineError> {
        let meters = store::catalog::meters(&mut *connection, environment).await?;
        let mut created = 0;
        for (stored, stripe) in exported(&meters).filter(|(_, stripe)| stripe.formula == StripeFormula::Last)
        {
            loop {
                let mut transaction = connection.begin().await?;
                let now = self.inner.clock.now(environment, store::usage::now(&mut transaction).await?);
                let ended_by = if due == Due::Ended { now } else { Timestamp::MAX };
                let changed = gauges::take_changed(
                    &mut transaction,
                    environment,
                    stored.id,
                    stripe.scale,
                    ended_by,
                    LEVELS_MAX,
                )
                .await?;
                if changed.is_empty() {
                    break;
                }
                let mut settlement = GaugeExportWrites::default();
                for level in &changed {
                    self.settle_level(
                        &mut transaction,
                        environment,
                        (stored, stripe),
                        level,
                        now,
                        &mut settlement,
                    )
                    .await?;
                }
                let GaugeExportWrites { made, wanted_back, withdrawn } = settlement;
                store::exports::cancel(&mut transaction, &withdrawn).await?;
                store::exports::want_cancel(&mut transaction, &wanted_back, now).await?;
                store::exports::insert(&mut transaction, environment, super::PROVIDER, &made, now).await?;
                transaction.commit().await?;
                created += made.len() as u64;
            }
        }
        Ok(created)
    }

    async fn settle_level(
        &self,
        connection: &mut PgConnection,
        environment: Environment,
        (stored, stripe): (&StoredMeter, &StripeMeter),
        level: &Changed,
        now: Timestamp,
        settlement: &mut GaugeExportWrites,
    ) -> Result<(), StoreError> {
        let bucket_from = level.bucket.span.from;
        let rows =
            store::exports::of_bucket(connection, level.customer_id, level.meter_id, bucket_from).await?;
        let latest =
            rows.iter().find(|row| row.status != ExportStatus::Canceled && row.cancel_wanted != Some(true));
        let shown = if stored.meter.aggregation == Aggregation::Max { level.greatest } else { level.level };
        let after = latest.map(|row| row.occurred_at);
        let draft = shown
            .filter(|_| level.level.is_some())
            .and_then(|shown| level_draft(&level.bucket, shown, after, now, self.inner.settings.late_grace));
        if draft.is_some_and(|draft| latest.is_some_and(|row| row.value == draft.value)) {
            return Ok(());
        }
        // one that has not been sent, that has the same time, or of which nothing stands, gives way
        if let (Some(row), Some(provider)) = (latest, self.provider(environment)) {
            let gives_way =
                level.level.is_none() || draft.is_some_and(|draft| draft.timestamp <= row.occurred_at);
            match how_to_take_back(row, now, provider.cancels_for()) {
                TakeBack::Withdraw => settlement.withdrawn.push(row.id),
                TakeBack::Cancel if gives_way => settlement.wanted_back.push(row.id),
                TakeBack::Cancel | TakeBack::Impossible => {}
            }
        }
        let Some(draft) = draft else { return Ok(()) };
        let id = Uuid::now_v7();
        settlement.made.push(NewExport {
            id,
            customer_id: level.customer_id,
            meter_id: level.meter_id,
            bucket_from,
            event_name: stripe.event_name.clone(),
            customer_key: stripe.customer_key.clone(),
            value_key: stripe.value_key.clone(),
            value: draft.value,
            occurred_at: draft.timestamp,
            identifier: format!("mg_{id}"),
            carried_from: None,
        });
        Ok(())
    }
}
