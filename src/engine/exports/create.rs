//! Gathering: sums become exports, written with all that they will ever say.

use std::collections::HashMap;

use sqlx::{Connection, PgConnection};
use uuid::Uuid;

use super::{Due, PROVIDER, exported};
use crate::engine::{Engine, EngineError};
use crate::store::exports::sums::{self, DueBucket};
use crate::store::exports::{ExportRow, NewExport};
use crate::store::{self, StoreError};
use metergate_domain::base::environment::Environment;
use metergate_domain::base::timestamp::Timestamp;
use metergate_domain::catalog::meter::{StoredMeter, StripeFormula, StripeMeter};
use metergate_domain::exports::{Bucket, ExportStatus, Units, settle};

/// Customers and meters whose exports are made in one transaction.
const PAIRS_MAX: i64 = 500;

/// What becomes of buckets of one transaction.
#[derive(Default)]
struct ExportWrites {
    made: Vec<NewExport>,
    exported_buckets: Vec<DueBucket>,
    /// Exports that are to be taken back at the provider.
    wanted_back: Vec<Uuid>,
    /// Exports that nobody has sent.
    withdrawn: Vec<Uuid>,
}

impl Engine {
    /// Makes exports of all that is due; how many.
    pub(super) async fn gather(
        &self,
        connection: &mut PgConnection,
        environment: Environment,
        due: Due,
    ) -> Result<u64, EngineError> {
        let mut created = 0;
        let meters = store::catalog::meters(&mut *connection, environment).await?;
        let addresses: HashMap<i32, (&StoredMeter, &StripeMeter)> = exported(&meters)
            .filter(|(_, stripe)| stripe.formula == StripeFormula::Sum)
            .map(|(stored, stripe)| (stored.id, (stored, stripe)))
            .collect();
        let ids: Vec<i32> = addresses.keys().copied().collect();
        loop {
            let mut transaction = connection.begin().await?;
            let now = self.inner.clock.now(environment, store::usage::now(&mut transaction).await?);
            let ended_by = match due {
                Due::Ended => now,
                Due::All => Timestamp::MAX,
            };
            let pairs = sums::due_pairs(&mut transaction, environment, ended_by, &ids, PAIRS_MAX).await?;
            if pairs.is_empty() {
                return Ok(created);
            }
            let mut remainders = sums::lock_remainders(&mut transaction, environment, &pairs).await?;
            let buckets = sums::lock_due(&mut transaction, &pairs, ended_by).await?;
            let mut settlement = ExportWrites::default();
            for bucket in buckets {
                let Some((_, stripe)) = addresses.get(&bucket.meter_id) else { continue };
                let remainder = remainders.entry((bucket.customer_id, bucket.meter_id)).or_default();
                if bucket.new.units.plus(*remainder).is_negative()
                    && self.take_back(&mut transaction, environment, &bucket, now, &mut settlement).await?
                {
                    continue;
                }
                self.make(bucket, remainder, stripe, now, &mut settlement);
            }
            let ExportWrites { made, exported_buckets, wanted_back, withdrawn } = settlement;
            store::exports::insert(&mut transaction, environment, PROVIDER, &made, now).await?;
            sums::mark_exported(&mut transaction, &exported_buckets).await?;
            sums::set_remainders(&mut transaction, &remainders).await?;
            store::exports::want_cancel(&mut transaction, &wanted_back, now).await?;
            store::exports::cancel(&mut transaction, &withdrawn).await?;
            transaction.commit().await?;
            created += made.len() as u64;
        }
    }

    /// Hands a bucket on: to exports, and to what is left.
    fn make(
        &self,
        bucket: DueBucket,
        remainder: &mut Units,
        stripe: &StripeMeter,
        now: Timestamp,
        settlement: &mut ExportWrites,
    ) {
        let settled = settle(&bucket.bucket, bucket.new, *remainder, now, self.inner.settings.late_grace);
        *remainder = settled.remainder;
        for draft in settled.drafts {
            let id = Uuid::now_v7();
            settlement.made.push(NewExport {
                id,
                customer_id: bucket.customer_id,
                meter_id: bucket.meter_id,
                bucket_from: bucket.bucket.span.from,
                event_name: stripe.event_name.clone(),
                customer_key: stripe.customer_key.clone(),
                value_key: stripe.value_key.clone(),
                value: draft.value,
                occurred_at: draft.timestamp,
                identifier: format!("mg_{id}"),
                carried_from: draft.carried_from,
            });
        }
        settlement.exported_buckets.push(bucket);
    }

    /// Of a bucket that has become less: whether exports of it are taken back, so that the corrected
    /// sum can be sent. Else what is too much is carried against usage to come.
    async fn take_back(
        &self,
        connection: &mut PgConnection,
        environment: Environment,
        bucket: &DueBucket,
        now: Timestamp,
        settlement: &mut ExportWrites,
    ) -> Result<bool, StoreError> {
        let Some(provider) = self.provider(environment) else { return Ok(false) };
        let cancels_for = provider.cancels_for();
        let rows = store::exports::of_bucket(
            connection,
            bucket.customer_id,
            bucket.meter_id,
            bucket.bucket.span.from,
        )
        .await?;
        let late_grace = self.inner.settings.late_grace;
        let mut missing = bucket.new.units;
        let mut takes_any = false;
        for row in rows {
            if !missing.is_negative() {
                break;
            }
            match how_to_take_back(&row, now, cancels_for) {
                TakeBack::Withdraw => settlement.withdrawn.push(row.id),
                TakeBack::Cancel => {
                    // an invoice that is made stays as it is: the rest would be billed a second time
                    let place = place_of(connection, &row, bucket).await?;
                    if !place.is_open(now, late_grace) {
                        continue;
                    }
                    settlement.wanted_back.push(row.id);
                }
                TakeBack::Impossible => continue,
            }
            takes_any = true;
            missing = missing.plus(Units::whole(row.value));
        }
        Ok(takes_any)
    }
}

/// Where an export of a bucket went: into it, or into the period that was the present one.
async fn place_of(
    connection: &mut PgConnection,
    row: &ExportRow,
    bucket: &DueBucket,
) -> Result<Bucket, StoreError> {
    if row.carried_from.is_none() {
        return Ok(bucket.bucket);
    }
    let cycles = sums::cycles(connection, &[row.customer_id]).await?;
    Ok(Bucket::of(row.occurred_at, cycles.get(&row.customer_id)))
}

pub(super) enum TakeBack {
    /// Nobody has sent it.
    Withdraw,
    /// At the provider, once it is known to be there.
    Cancel,
    Impossible,
}

pub(super) fn how_to_take_back(
    row: &ExportRow,
    now: Timestamp,
    cancels_for: std::time::Duration,
) -> TakeBack {
    if row.cancel_wanted.is_some() {
        return TakeBack::Impossible;
    }
    match row.status {
        ExportStatus::Pending if row.attempts == 0 => TakeBack::Withdraw,
        // refused, and surely never taken
        ExportStatus::Dead if row.delivered_at.is_none() && row.unknown_since.is_none() => TakeBack::Withdraw,
        ExportStatus::Pending => TakeBack::Cancel,
        ExportStatus::Delivered
            if row.delivered_at.is_some_and(|at| now < at.saturating_add(cancels_for)) =>
        {
            TakeBack::Cancel
        }
        ExportStatus::Delivered | ExportStatus::Canceled | ExportStatus::Dead => TakeBack::Impossible,
    }
}
