//! Dropping the counters of periods that are over: the job.

use crate::engine::error::EngineError;
use crate::engine::services::Engine;
use crate::store::{self, Scope};
use metergate_domain::base::Environment;
use sqlx::Connection;
use std::time::Duration;

/// The time that counters are kept after their reservations can no longer be extended.
pub(super) const KEPT_MAX: Duration = Duration::from_hours(24);

/// The most counters that one transaction drops.
pub(super) const DROPPED_MAX: i64 = 5_000;

impl Engine {
    /// Drops some counters of old periods without hold lines. Returns whether there may be more.
    pub async fn drop_old_counters(&self, environment: Environment) -> Result<bool, EngineError> {
        let mut connection = self.database().pool().acquire().await?;
        let now = self.inner.clock.now(environment, store::usage::now(&mut connection).await?);
        let before = now.saturating_sub(self.inner.settings.event_age_max + KEPT_MAX);
        if !store::gate::counters::has_old(&mut Scope::new(&mut connection, environment), before).await? {
            return Ok(false);
        }
        // A writer may be about to add to these counters, so the lock excludes all writers.
        let mut transaction = connection.begin().await?;
        let scope = &mut Scope::new(&mut transaction, environment);
        store::configuration::lock_alone(scope).await?;
        let dropped = store::gate::counters::delete_old(scope, before, DROPPED_MAX).await?;
        transaction.commit().await?;
        Ok(dropped >= DROPPED_MAX.unsigned_abs())
    }
}
