//! Folds the unfolded backlog into rollups, and rebuilds rollups in gaps. Each call is one
//! transaction, so that a job or a test can repeat it until nothing is left.

use std::time::{Duration, Instant};

use sqlx::PgConnection;

use crate::engine::error::EngineError;
use crate::engine::services::Engine;
use crate::store::usage::fold;
use crate::store::usage::fold::MeterBatches;
use crate::store::{self, Scope, StoreError};
use metergate_domain::base::Environment;
use metergate_domain::base::limits::{DIMENSION_SETS_PER_METER_MAX, FOLD_BATCHES_MAX, FOLD_EVENTS_MAX};
use metergate_domain::catalog::StoredMeter;

/// The pause between the end of a day and its rollup, because most late events arrive within it.
const DAY_REST: Duration = Duration::from_hours(1);

/// The result of one folding transaction.
#[derive(Debug, Clone, Copy, Default)]
pub struct Folded {
    pub events: i64,
    /// True if the transaction reached its limit, so that there may be more to fold.
    pub is_full: bool,
}

/// A recipient of folded events, called in the transaction that folds them.
pub(crate) trait FoldListener: Sync {
    fn on_folded(
        &self,
        connection: &mut PgConnection,
        batches: MeterBatches<'_>,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;
}

impl Engine {
    /// Folds some of the oldest batches. Does nothing if there are none or another replica folds.
    pub(crate) async fn fold_batches(
        &self,
        environment: Environment,
        listener: &impl FoldListener,
    ) -> Result<Folded, EngineError> {
        let started = Instant::now();
        let mut transaction = self.database().pool().begin().await?;
        let scope = &mut Scope::new(&mut transaction, environment);
        if !fold::try_lock(scope).await? {
            return Ok(Folded::default());
        }
        let claimed = fold::take(scope, FOLD_BATCHES_MAX, FOLD_EVENTS_MAX).await?;
        if claimed.batch_ids.is_empty() {
            return Ok(Folded::default());
        }
        // read after the batches: a meter that is missing here has a gap that covers them
        let meters = store::catalog::meters(scope).await?;
        let not_kept = fold::permanent_gaps(scope).await?;
        let days = store::usage::daily_rollups::until(scope).await?;
        let mut concerned: Vec<&StoredMeter> =
            meters.iter().filter(|stored| claimed.event_name_ids.contains(&stored.event_name_id)).collect();
        for stored in concerned.iter().filter(|stored| !not_kept.contains(&stored.id)) {
            let days_until = days.get(&stored.id).copied();
            let batches = MeterBatches { environment, stored, claimed: &claimed };
            fold::fold_meter(scope.connection, batches, days_until).await?;
        }
        // export runs lock the same rows, so all lock them in this order
        concerned.sort_unstable_by_key(|stored| stored.id);
        for stored in concerned {
            let batches = MeterBatches { environment, stored, claimed: &claimed };
            listener.on_folded(scope.connection, batches).await?;
        }
        transaction.commit().await?;
        metrics::counter!("metergate_events_folded_total").increment(claimed.event_count.unsigned_abs());
        metrics::histogram!("metergate_fold_seconds").record(started.elapsed().as_secs_f64());
        let is_full = claimed.event_count >= FOLD_EVENTS_MAX / 2
            || i64::try_from(claimed.batch_ids.len()).is_ok_and(|batches| batches >= FOLD_BATCHES_MAX);
        Ok(Folded { events: claimed.event_count, is_full })
    }

    /// Rebuilds some hours of the oldest gap. Returns false without a gap, or if another replica
    /// folds.
    pub async fn build_some(&self, environment: Environment) -> Result<bool, EngineError> {
        let mut transaction = self.database().pool().begin().await?;
        let scope = &mut Scope::new(&mut transaction, environment);
        let Some(gap) = fold::next_gap(scope).await? else { return Ok(false) };
        if !fold::try_lock(scope).await? {
            return Ok(false);
        }
        // read again under the lock
        let Some(gap) = fold::next_gap(scope).await?.filter(|now| now.id == gap.id) else {
            return Ok(true);
        };
        let meters = store::catalog::meters(scope).await?;
        if let Some(stored) = meters.into_iter().find(|stored| stored.id == gap.meter_id) {
            let days = store::usage::daily_rollups::until(scope).await?;
            let days_until = days.get(&stored.id).copied();
            fold::build(scope, &stored, &gap, days_until).await?;
        }
        transaction.commit().await?;
        Ok(true)
    }

    /// Builds the next missing daily rollups of a meter. Returns false if none are missing or another
    /// replica folds.
    pub async fn sum_some_days(&self, environment: Environment) -> Result<bool, EngineError> {
        let mut transaction = self.database().pool().begin().await?;
        let scope = &mut Scope::new(&mut transaction, environment);
        let now = store::usage::now(scope.connection).await?;
        let over = self.inner.clock.now(environment, now).saturating_sub(DAY_REST).day_floor();
        if store::usage::daily_rollups::next_incomplete(scope, over).await?.is_none()
            || !fold::try_lock(scope).await?
        {
            return Ok(false);
        }
        // read again under the lock
        let Some(incomplete) = store::usage::daily_rollups::next_incomplete(scope, over).await? else {
            return Ok(true);
        };
        let meters = store::catalog::meters(scope).await?;
        if let Some(stored) = meters.into_iter().find(|stored| stored.id == incomplete.meter_id) {
            store::usage::daily_rollups::rebuild_next_days(scope, &stored, incomplete, over).await?;
        }
        transaction.commit().await?;
        Ok(true)
    }

    /// Drops the rollups of meters with too many combinations of dimension values. From then on,
    /// these meters are read from their events.
    pub async fn bound_dimensions(&self, environment: Environment) -> Result<(), EngineError> {
        let mut transaction = self.database().pool().begin().await?;
        let scope = &mut Scope::new(&mut transaction, environment);
        if !fold::try_lock(scope).await? {
            return Ok(());
        }
        for stored in store::catalog::meters(scope).await? {
            if fold::drop_if_too_many_sets(scope, &stored).await? {
                tracing::warn!(
                    meter = %stored.meter.key, %environment, limit = DIMENSION_SETS_PER_METER_MAX,
                    "a meter has too many combinations of dimension values; it is now read from its events, which is slow"
                );
            }
        }
        Ok(transaction.commit().await?)
    }

    /// Counts the unfolded backlog, and publishes the count to waiting writers.
    pub async fn count_tail(&self, environment: Environment) -> Result<i64, EngineError> {
        let mut connection = self.database().pool().acquire().await?;
        let events = fold::unfolded_events(&mut Scope::new(&mut connection, environment)).await?;
        self.tail(environment).set(events);
        metrics::gauge!("metergate_unfolded_events", "environment" => environment.as_str())
            .set(f64::from(u32::try_from(events).unwrap_or(u32::MAX)));
        Ok(events)
    }

    /// Creates the partitions of this month and the next.
    pub async fn make_partitions(&self) -> Result<(), EngineError> {
        let mut connection = self.database().connect_writer().await?;
        let now = store::usage::now(&mut connection).await?;
        for environment in Environment::ALL {
            let now = self.inner.clock.now(environment, now);
            for month in
                [Some(now), store::partitions::month_of(now).map(|month| month.to)].into_iter().flatten()
            {
                if let Some(month) = store::partitions::month_of(month) {
                    store::partitions::ensure(&mut connection, month).await?;
                }
            }
        }
        Ok(sqlx::Connection::close(connection).await?)
    }
}
