//! Runs of exports: fold, create and send, until no due export can be sent now.

use std::time::Duration;

use serde::Serialize;
use sqlx::{Connection, PgConnection};

use super::accumulate::ExportAccumulator;
use super::create::Due;
use super::sending::Sender;
use crate::engine::error::EngineError;
use crate::engine::services::{Engine, detached};
use crate::engine::usage::fold::Folded;
use crate::store::{self, Scope, StoreError};
use metergate_domain::base::Environment;

/// The result of a run, and the exports that remain.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Ran {
    pub created: u64,
    pub delivered: u64,
    /// All dead exports, not only those of this run.
    pub dead: i64,
    pub pending: i64,
}

/// The most rounds of a run that retries temporary failures.
const ROUNDS_MAX: usize = 4;
/// The longest wait for another run to end.
const LOCK_WAIT_MAX: Duration = Duration::from_secs(25);
const LOCK_PAUSE: Duration = Duration::from_millis(100);

impl Engine {
    /// Returns whether an environment has a provider account.
    pub fn exports_somewhere(&self, environment: Environment) -> bool {
        self.provider(environment).is_some()
    }

    /// Exports all due usage, including the current hour. Waits for another run to end.
    pub async fn run_exports(&self, environment: Environment) -> Result<Ran, EngineError> {
        let engine = self.clone();
        detached(async move {
            let mut connection = engine.database().connect_writer().await?;
            let deadline = tokio::time::Instant::now() + LOCK_WAIT_MAX;
            while !store::exports::try_lock(&mut Scope::new(&mut connection, environment)).await? {
                if tokio::time::Instant::now() > deadline {
                    return Err(EngineError::exports_running());
                }
                tokio::time::sleep(LOCK_PAUSE).await;
            }
            engine.run_locked(connection, environment, Due::All).await
        })
        .await
    }

    /// Exports the usage of past hours. Does nothing if another replica is running.
    pub async fn export_ended(&self, environment: Environment) -> Result<Ran, EngineError> {
        if self.provider(environment).is_none() {
            return Ok(Ran::default());
        }
        let mut connection = self.database().connect_writer().await?;
        if !store::exports::try_lock(&mut Scope::new(&mut connection, environment)).await? {
            connection.close().await.map_err(StoreError::from)?;
            return Ok(Ran::default());
        }
        self.run_locked(connection, environment, Due::Ended).await
    }

    /// Runs while `connection` holds the lock; its end releases the lock in any case.
    async fn run_locked(
        &self,
        mut connection: PgConnection,
        environment: Environment,
        due: Due,
    ) -> Result<Ran, EngineError> {
        let scope = &mut Scope::new(&mut connection, environment);
        let ran = self.run_rounds(scope, due).await;
        if store::exports::unlock(scope).await.is_ok() {
            connection.close().await.ok();
        }
        ran
    }

    async fn run_rounds(&self, scope: &mut Scope<'_>, due: Due) -> Result<Ran, EngineError> {
        self.fold_all(scope.environment).await?;
        let mut ran = Ran::default();
        let Some(provider) = self.provider(scope.environment) else {
            ran.created = self.create_exports(scope, due).await?;
            return self.count_open(scope, ran).await;
        };
        let mut sender = Sender::new(&self.inner.clock, scope.environment, provider);
        for round in 0..ROUNDS_MAX {
            ran.created += self.create_exports(scope, due).await?;
            if !sender.send_due(scope.connection, due, round).await? {
                break;
            }
        }
        ran.delivered = sender.delivered();
        self.count_open(scope, ran).await
    }

    async fn count_open(&self, scope: &mut Scope<'_>, ran: Ran) -> Result<Ran, EngineError> {
        let (pending, dead) = store::exports::open(scope).await?;
        let gauge = |name: &'static str, count: i64| {
            metrics::gauge!(name, "environment" => scope.environment.as_str())
                .set(f64::from(u32::try_from(count).unwrap_or(u32::MAX)));
        };
        gauge("metergate_exports_pending", pending);
        gauge("metergate_exports_dead", dead);
        Ok(Ran { dead, pending, ..ran })
    }

    /// Folds until all usage recorded before the call is folded.
    async fn fold_all(&self, environment: Environment) -> Result<(), EngineError> {
        while self.sweep(environment).await? {}
        let mut connection = self.database().pool().acquire().await?;
        let scope = &mut Scope::new(&mut connection, environment);
        let Some(last) = store::usage::fold::last_unfolded(scope).await? else {
            return Ok(());
        };
        let deadline = tokio::time::Instant::now() + LOCK_WAIT_MAX;
        while store::usage::fold::has_unfolded(scope, last).await? {
            let folded = self.fold_some(environment).await?;
            if folded.events == 0 {
                // another process is folding
                if tokio::time::Instant::now() > deadline {
                    return Err(EngineError::unavailable("folding did not finish in time"));
                }
                tokio::time::sleep(LOCK_PAUSE).await;
            }
        }
        Ok(())
    }

    /// Folds some of the oldest batches, and accumulates them for exports.
    pub async fn fold_some(&self, environment: Environment) -> Result<Folded, EngineError> {
        self.fold_batches(environment, &ExportAccumulator).await
    }
}
