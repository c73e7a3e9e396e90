//! Creates exports of accumulated usage. An export is written with its final content. Sums and gauges
//! differ in the due buckets and in the exported value; the other steps are the same.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use sqlx::{Connection, PgConnection};
use uuid::Uuid;

use super::exported_meters::exported;
use crate::engine::error::EngineError;
use crate::engine::services::Engine;
use crate::store::exports::gauges::{self, ChangedGauge};
use crate::store::exports::parts::MeterBucket;
use crate::store::exports::sums::{self, DueBucket};
use crate::store::exports::{ExportRow, NewExport};
use crate::store::{self, Scope, StoreError};
use metergate_domain::base::{Environment, Timestamp};
use metergate_domain::catalog::{Aggregation, StoredMeter, StripeFormula, StripeMeter};
use metergate_domain::exports::{Bucket, ExportDraft, ExportStatus, Units, level_draft, settle};

/// The name of the only provider.
const PROVIDER: &str = "stripe";
/// The most customer and meter pairs with sums that become exports in one transaction.
const PAIRS_MAX: i64 = 500;
/// The most gauges that become exports in one transaction.
const GAUGES_MAX: i64 = 500;

/// The usage that is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    /// Usage of buckets that are over.
    Ended,
    /// All usage, including the current hour.
    All,
}

/// The rules of one transaction.
struct Rules {
    environment: Environment,
    now: Timestamp,
    /// Buckets that ended by then are due.
    ended_by: Timestamp,
    late_grace: Duration,
    /// The time in which the provider cancels deliveries. None without a provider.
    cancels_for: Option<Duration>,
}

/// The rows that a transaction writes.
#[derive(Default)]
struct ExportWrites {
    created: Vec<NewExport>,
    /// Buckets with new usage that these exports contain.
    exported: Vec<DueBucket>,
    /// The unexported remainders, by customer and meter.
    remainders: BTreeMap<(i64, i32), Units>,
    /// Exports that the provider is asked to cancel.
    to_cancel: Vec<Uuid>,
    /// Unsent exports that are deleted.
    withdrawn: Vec<Uuid>,
}

impl ExportWrites {
    fn create(&mut self, place: &MeterBucket, stripe: &StripeMeter, draft: ExportDraft) {
        let id = Uuid::now_v7();
        self.created.push(NewExport {
            id,
            customer_id: place.customer_id,
            meter_id: place.meter_id,
            bucket_from: place.bucket.span.from,
            event_name: stripe.event_name.clone(),
            customer_key: stripe.customer_key.clone(),
            value_key: stripe.value_key.clone(),
            value: draft.value,
            occurred_at: draft.timestamp,
            identifier: format!("mg_{id}"),
            carried_from: draft.carried_from,
        });
    }

    async fn write(&self, connection: &mut PgConnection, rules: &Rules) -> Result<(), StoreError> {
        let Rules { environment, now, .. } = rules;
        let scope = &mut Scope::new(connection, *environment);
        store::exports::insert(scope, PROVIDER, &self.created, *now).await?;
        sums::mark_exported(connection, &self.exported).await?;
        sums::set_remainders(connection, &self.remainders).await?;
        store::exports::want_cancel(connection, &self.to_cancel, *now).await?;
        store::exports::cancel(connection, &self.withdrawn).await
    }
}

/// A kind of accumulated usage.
trait Accumulated {
    /// Locks some of the due usage, and returns the rows to write. Returns none if no usage is due.
    async fn settle_due(
        &self,
        connection: &mut PgConnection,
        rules: &Rules,
    ) -> Result<Option<ExportWrites>, StoreError>;
}

impl Engine {
    /// Creates exports of all due usage, and returns their number.
    pub(super) async fn create_exports(&self, scope: &mut Scope<'_>, due: Due) -> Result<u64, EngineError> {
        let meters = store::catalog::meters(scope).await?;
        let (sums, gauges): (Vec<_>, Vec<_>) =
            exported(&meters).partition(|(_, stripe)| stripe.formula == StripeFormula::Sum);
        let sums = SumExports(sums.into_iter().map(|(stored, stripe)| (stored.id, stripe)).collect());
        let mut created = self.create_from(scope, due, &sums).await?;
        for (stored, stripe) in gauges {
            let gauges = GaugeExports { stored, stripe };
            created += self.create_from(scope, due, &gauges).await?;
        }
        Ok(created)
    }

    async fn create_from(
        &self,
        scope: &mut Scope<'_>,
        due: Due,
        accumulated: &impl Accumulated,
    ) -> Result<u64, EngineError> {
        let cancels_for = self.provider(scope.environment).map(|provider| provider.cancels_for());
        let mut created = 0;
        loop {
            let mut transaction = scope.connection.begin().await?;
            let now = self.inner.clock.now(scope.environment, store::usage::now(&mut transaction).await?);
            let ended_by = match due {
                Due::Ended => now,
                Due::All => Timestamp::MAX,
            };
            let late_grace = self.inner.settings.late_grace;
            let rules = Rules { environment: scope.environment, now, ended_by, late_grace, cancels_for };
            let Some(writes) = accumulated.settle_due(&mut transaction, &rules).await? else {
                return Ok(created);
            };
            writes.write(&mut transaction, &rules).await?;
            transaction.commit().await?;
            created += writes.created.len() as u64;
        }
    }
}

/// Meters that are exported by their sum, by meter number.
struct SumExports<'a>(HashMap<i32, &'a StripeMeter>);

impl Accumulated for SumExports<'_> {
    async fn settle_due(
        &self,
        connection: &mut PgConnection,
        rules: &Rules,
    ) -> Result<Option<ExportWrites>, StoreError> {
        let ended_by = rules.ended_by;
        let scope = &mut Scope::new(connection, rules.environment);
        let ids: Vec<i32> = self.0.keys().copied().collect();
        let pairs = sums::due_pairs(scope, ended_by, &ids, PAIRS_MAX).await?;
        if pairs.is_empty() {
            return Ok(None);
        }
        let remainders = sums::lock_remainders(scope, &pairs).await?;
        let mut writes = ExportWrites { remainders, ..ExportWrites::default() };
        for due in sums::lock_due(connection, &pairs, ended_by).await? {
            let MeterBucket { customer_id, meter_id, bucket } = due.place;
            let Some(stripe) = self.0.get(&meter_id) else { continue };
            let remainder = writes.remainders.get(&(customer_id, meter_id)).copied().unwrap_or_default();
            if due.new.units.plus(remainder).is_negative()
                && take_back(connection, &due, rules, &mut writes).await?
            {
                continue;
            }
            let settled = settle(&bucket, due.new, remainder, rules.now, rules.late_grace);
            writes.remainders.insert((customer_id, meter_id), settled.remainder);
            for draft in settled.drafts {
                writes.create(&due.place, stripe, draft);
            }
            writes.exported.push(due);
        }
        Ok(Some(writes))
    }
}

/// Deletes or cancels exports of a bucket after its sum has decreased, so that the corrected sum can be
/// sent. Returns false if no export can be taken back; the excess is then subtracted from future usage.
async fn take_back(
    connection: &mut PgConnection,
    due: &DueBucket,
    rules: &Rules,
    writes: &mut ExportWrites,
) -> Result<bool, StoreError> {
    let Some(cancels_for) = rules.cancels_for else { return Ok(false) };
    let mut missing = due.new.units;
    let mut takes_any = false;
    for row in store::exports::of_bucket(connection, &due.place).await? {
        if !missing.is_negative() {
            break;
        }
        match how_to_take_back(&row, rules.now, cancels_for) {
            TakeBack::Withdraw => writes.withdrawn.push(row.id),
            TakeBack::Cancel => {
                // a final invoice is never corrected: the remaining usage would be billed a second time
                let target = bucket_billed(connection, &row, &due.place).await?;
                if !target.is_open(rules.now, rules.late_grace) {
                    continue;
                }
                writes.to_cancel.push(row.id);
            }
            TakeBack::Impossible => continue,
        }
        takes_any = true;
        missing = missing.plus(Units::whole(row.value));
    }
    Ok(takes_any)
}

/// Returns the bucket in which an export was billed: its own, or the bucket of the period that it was
/// carried to.
async fn bucket_billed(
    connection: &mut PgConnection,
    row: &ExportRow,
    place: &MeterBucket,
) -> Result<Bucket, StoreError> {
    if row.carried_from.is_none() {
        return Ok(place.bucket);
    }
    let cycles = sums::cycles(connection, &[row.customer_id]).await?;
    Ok(Bucket::of(row.occurred_at, cycles.get(&row.customer_id)))
}

/// A meter that is exported by its last or greatest value. Each changed value becomes an export with a
/// later time, which replaces the earlier one.
struct GaugeExports<'a> {
    stored: &'a StoredMeter,
    stripe: &'a StripeMeter,
}

impl Accumulated for GaugeExports<'_> {
    async fn settle_due(
        &self,
        connection: &mut PgConnection,
        rules: &Rules,
    ) -> Result<Option<ExportWrites>, StoreError> {
        let scope = &mut Scope::new(connection, rules.environment);
        let changed = gauges::take_changed(scope, self.stored, rules.ended_by, GAUGES_MAX).await?;
        if changed.is_empty() {
            return Ok(None);
        }
        let mut writes = ExportWrites::default();
        for gauge in &changed {
            let rows = store::exports::of_bucket(connection, &gauge.place).await?;
            self.settle(gauge, &rows, rules, &mut writes);
        }
        Ok(Some(writes))
    }
}

impl GaugeExports<'_> {
    fn settle(&self, gauge: &ChangedGauge, rows: &[ExportRow], rules: &Rules, writes: &mut ExportWrites) {
        let latest =
            rows.iter().find(|row| row.status != ExportStatus::Canceled && row.cancel_wanted != Some(true));
        let is_max = self.stored.meter.aggregation == Aggregation::Max;
        let shown = if is_max { gauge.greatest } else { gauge.level };
        let after = latest.map(|row| row.occurred_at);
        let draft = shown
            .filter(|_| gauge.level.is_some())
            .and_then(|shown| level_draft(&gauge.place.bucket, shown, after, rules.now, rules.late_grace));
        if draft.is_some_and(|draft| latest.is_some_and(|row| row.value == draft.value)) {
            return;
        }
        // takes back the latest export if it is unsent, has the same time, or the gauge has no value
        // any more
        if let (Some(row), Some(cancels_for)) = (latest, rules.cancels_for) {
            let gives_way =
                gauge.level.is_none() || draft.is_some_and(|draft| draft.timestamp <= row.occurred_at);
            match how_to_take_back(row, rules.now, cancels_for) {
                TakeBack::Withdraw => writes.withdrawn.push(row.id),
                TakeBack::Cancel if gives_way => writes.to_cancel.push(row.id),
                TakeBack::Cancel | TakeBack::Impossible => {}
            }
        }
        if let Some(draft) = draft {
            writes.create(&gauge.place, self.stripe, draft);
        }
    }
}

enum TakeBack {
    /// The export was never sent, so it is deleted.
    Withdraw,
    /// The provider cancels the export after its delivery is confirmed.
    Cancel,
    Impossible,
}

fn how_to_take_back(row: &ExportRow, now: Timestamp, cancels_for: Duration) -> TakeBack {
    if row.cancel_wanted.is_some() {
        return TakeBack::Impossible;
    }
    match row.status {
        ExportStatus::Pending if row.attempts == 0 => TakeBack::Withdraw,
        // the provider refused it and certainly never took it
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
