//! Usage on its way to a billing provider: gathered into exports, which are written before anything is
//! sent; handed over, at most one at a time for a customer and meter; and compared with what the
//! provider says it has. One process at a time hands over for an environment; if two ever do, what is
//! written and the provider's own memory of identifiers keep it right.

mod accumulate;
mod create;
mod delivery_lookup;
mod gauges;
mod rate_limit;
mod reconciliation;
mod sending;

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use sqlx::{Connection, PgConnection};
use uuid::Uuid;

pub(crate) use accumulate::note_folded;
pub use reconciliation::{Drift, Reconciled, ReconciledRow, ReconciliationQuery};

use super::{Engine, EngineError, Page, PageRequest, detached};
use crate::providers::{Failure, Provider};
use crate::store::exports::{Address, ExportCursor, ExportRow, Revival};
use crate::store::{self, StoreError};
use metergate_domain::base::environment::Environment;
use metergate_domain::base::timestamp::Timestamp;
use metergate_domain::catalog::Catalog;
use metergate_domain::catalog::meter::{StoredMeter, StripeMeter};
use metergate_domain::exports::{EXPORT_AGE_MAX, ExportFilter, ExportStatus};

/// An export as it is shown.
#[derive(Debug, Clone, Serialize)]
pub struct ExportView {
    pub id: Uuid,
    pub provider: String,
    pub customer: String,
    pub meter: String,
    pub event_name: String,
    pub value: i64,
    pub timestamp: Timestamp,
    pub identifier: String,
    pub status: ExportStatus,
    pub attempts: i32,
    pub last_error: Option<String>,
    /// When it was used, where its billing period was over for too long.
    pub carried_from: Option<Timestamp>,
    pub created_at: Timestamp,
    pub delivered_at: Option<Timestamp>,
}

impl From<ExportRow> for ExportView {
    fn from(row: ExportRow) -> Self {
        Self {
            id: row.id,
            provider: row.provider,
            customer: row.customer,
            meter: row.meter,
            event_name: row.event_name,
            value: row.value,
            timestamp: row.occurred_at,
            identifier: row.identifier,
            status: row.status,
            attempts: row.attempts,
            last_error: row.last_error,
            carried_from: row.carried_from,
            created_at: row.created_at,
            delivered_at: row.delivered_at,
        }
    }
}

/// What a run did, and what is left.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Ran {
    pub created: u64,
    pub delivered: u64,
    /// Of all there are.
    pub dead: i64,
    pub pending: i64,
}

/// Which usage is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// That of hours, and parts of hours, that are over.
    Ended,
    /// The running hour's too.
    All,
}

/// The name of the provider, until there is a second.
const PROVIDER: &str = "stripe";
/// Rounds of a run over what failed for the time being.
const ROUNDS_MAX: usize = 4;
/// How long a run that was asked for waits for another one.
const LOCK_WAIT_MAX: Duration = Duration::from_secs(25);
const LOCK_PAUSE: Duration = Duration::from_millis(100);

/// Meters that have a provider's address, by number.
fn exported(meters: &[StoredMeter]) -> impl Iterator<Item = (&StoredMeter, &StripeMeter)> {
    meters.iter().filter_map(|stored| Some((stored, stored.meter.stripe.as_ref()?)))
}

fn address(stripe: &StripeMeter) -> Address<'_> {
    Address {
        event_name: &stripe.event_name,
        customer_key: &stripe.customer_key,
        value_key: &stripe.value_key,
    }
}

impl Engine {
    fn provider(&self, environment: Environment) -> Option<Arc<dyn Provider>> {
        self.inner.services(environment).provider.clone()
    }

    /// Whether an account is set up for an environment.
    pub fn exports_somewhere(&self, environment: Environment) -> bool {
        self.provider(environment).is_some()
    }

    /// Hands over all that is due, the running hour too. Waits for another run.
    pub async fn run_exports(&self, environment: Environment) -> Result<Ran, EngineError> {
        let engine = self.clone();
        detached(async move {
            let mut connection = engine.database().connect_writer().await?;
            let deadline = tokio::time::Instant::now() + LOCK_WAIT_MAX;
            while !store::exports::try_lock(&mut connection, environment).await? {
                if tokio::time::Instant::now() > deadline {
                    return Err(EngineError::exports_running());
                }
                tokio::time::sleep(LOCK_PAUSE).await;
            }
            engine.run_locked(connection, environment, Due::All).await
        })
        .await
    }

    /// Hands over the usage of hours that are over; nothing where another replica is at it.
    pub async fn export_ended(&self, environment: Environment) -> Result<Ran, EngineError> {
        if self.provider(environment).is_none() {
            return Ok(Ran::default());
        }
        let mut connection = self.database().connect_writer().await?;
        if !store::exports::try_lock(&mut connection, environment).await? {
            connection.close().await.map_err(StoreError::from)?;
            return Ok(Ran::default());
        }
        self.run_locked(connection, environment, Due::Ended).await
    }

    /// The connection holds the lock, which goes with it whatever happens.
    async fn run_locked(
        &self,
        mut connection: PgConnection,
        environment: Environment,
        due: Due,
    ) -> Result<Ran, EngineError> {
        let ran = self.run_rounds(&mut connection, environment, due).await;
        if store::exports::unlock(&mut connection, environment).await.is_ok() {
            connection.close().await.ok();
        }
        ran
    }

    async fn run_rounds(
        &self,
        connection: &mut PgConnection,
        environment: Environment,
        due: Due,
    ) -> Result<Ran, EngineError> {
        let mut ran = Ran::default();
        self.fold_all(environment).await?;
        let Some(provider) = self.provider(environment) else {
            ran.created = self.gather_all(connection, environment, due).await?;
            return self.count_open(connection, environment, ran).await;
        };
        for round in 0..ROUNDS_MAX {
            ran.created += self.gather_all(connection, environment, due).await?;
            let asked = due == Due::All;
            let sent = self.send_due(connection, environment, &provider, (asked, asked && round > 0)).await?;
            ran.delivered += sent.delivered;
            // what was taken back is gathered anew; what failed for now may be taken the next time
            let goes_on = sent.canceled > 0 || (asked && sent.deferred > 0);
            if sent.is_stopped || !goes_on {
                break;
            }
        }
        self.count_open(connection, environment, ran).await
    }

    async fn gather_all(
        &self,
        connection: &mut PgConnection,
        environment: Environment,
        due: Due,
    ) -> Result<u64, EngineError> {
        let sums = self.gather(connection, environment, due).await?;
        Ok(sums + self.gather_levels(connection, environment, due).await?)
    }

    async fn count_open(
        &self,
        connection: &mut PgConnection,
        environment: Environment,
        ran: Ran,
    ) -> Result<Ran, EngineError> {
        let (pending, dead) = store::exports::open(connection, environment).await?;
        let gauge = |name: &'static str, count: i64| {
            metrics::gauge!(name, "environment" => environment.as_str())
                .set(f64::from(u32::try_from(count).unwrap_or(u32::MAX)));
        };
        gauge("metergate_exports_pending", pending);
        gauge("metergate_exports_dead", dead);
        Ok(Ran { dead, pending, ..ran })
    }

    /// Folds until nothing is left of what was recorded before.
    async fn fold_all(&self, environment: Environment) -> Result<(), EngineError> {
        while self.sweep(environment).await? {}
        let mut connection = self.database().pool().acquire().await?;
        let Some(last) = store::usage::fold::last_unfolded(&mut connection, environment).await? else {
            return Ok(());
        };
        let deadline = tokio::time::Instant::now() + LOCK_WAIT_MAX;
        while store::usage::fold::has_unfolded(&mut connection, environment, last).await? {
            let folded = self.fold_some(environment).await?;
            if folded.events == 0 {
                // another is at it
                if tokio::time::Instant::now() > deadline {
                    return Err(EngineError::unavailable("folding takes long"));
                }
                tokio::time::sleep(LOCK_PAUSE).await;
            }
        }
        Ok(())
    }

    /// A page of exports, the latest first.
    pub async fn list_exports(
        &self,
        environment: Environment,
        filter: &ExportFilter,
        page: &PageRequest,
    ) -> Result<Page<ExportView>, EngineError> {
        let after = page.place()?.map(|(created_at, id)| ExportCursor { created_at, id });
        let mut connection = self.database().pool().acquire().await?;
        let rows = store::exports::list(&mut connection, environment, filter, after, page.rows_max()).await?;
        Ok(Page::from_rows(rows, page.limit, |row| (row.created_at, row.id)).map(ExportView::from))
    }

    /// Makes a dead export pending again, under its meter's present names.
    pub async fn retry_export(&self, environment: Environment, id: Uuid) -> Result<ExportView, EngineError> {
        let mut transaction = self.database().pool().begin().await?;
        let now = self.inner.clock.now(environment, store::usage::now(&mut transaction).await?);
        let row = store::exports::lock(&mut transaction, environment, id).await?.ok_or_else(not_found)?;
        if row.status != ExportStatus::Dead {
            let detail = format!("only a dead export can be retried; this one is {}", row.status.as_str());
            return Err(EngineError::Conflict { code: "export_not_dead", detail });
        }
        let meters = store::catalog::meters(&mut transaction, environment).await?;
        let Some((_, stripe)) = exported(&meters).find(|(stored, _)| stored.id == row.meter_id) else {
            let detail = format!(
                "the meter `{}` has no `stripe` block; add one to the catalog before you retry",
                row.meter
            );
            return Err(EngineError::Conflict { code: "meter_not_exported", detail });
        };
        let (meter_id, only) = (row.meter_id, Some(row.id));
        let revival = revival(now, self.inner.settings.late_grace);
        store::exports::revive(&mut transaction, environment, meter_id, only, address(stripe), revival)
            .await?;
        let row = store::exports::lock(&mut transaction, environment, id).await?.ok_or_else(not_found)?;
        transaction.commit().await?;
        Ok(row.into())
    }

    /// Marks exports that the provider took and refused later: identifiers, codes and messages.
    pub async fn mark_exports_failed(
        &self,
        environment: Environment,
        failed: &[(String, Failure)],
    ) -> Result<u64, EngineError> {
        let refused: Vec<(String, String)> =
            failed.iter().map(|(identifier, failure)| (identifier.clone(), failure_text(failure))).collect();
        let mut connection = self.database().pool().acquire().await?;
        let now = self.inner.clock.now(environment, store::usage::now(&mut connection).await?);
        let count = store::exports::mark_refused(&mut connection, environment, &refused, now).await?;
        if count > 0 {
            tracing::error!(%environment, count, "the provider refused exports that it had taken");
        }
        Ok(count)
    }
}

fn revival(now: Timestamp, late_grace: Duration) -> Revival {
    let (oldest, closed_by) = (now.saturating_sub(EXPORT_AGE_MAX), now.saturating_sub(late_grace));
    Revival { now, oldest, closed_by }
}

/// After the catalog has changed: tries the dead exports of meters again whose address at the provider
/// is another one now, since that may have been the cause.
pub(crate) async fn revive_readdressed(
    connection: &mut PgConnection,
    environment: Environment,
    before: &Catalog,
    (now, late_grace): (Timestamp, Duration),
) -> Result<(), StoreError> {
    let meters = store::catalog::meters(connection, environment).await?;
    for (stored, stripe) in exported(&meters) {
        let old = before.meters.iter().find(|meter| meter.key == stored.meter.key);
        if old.is_some_and(|old| old.stripe.as_ref() != Some(stripe)) {
            let (address, revival) = (address(stripe), revival(now, late_grace));
            store::exports::revive(connection, environment, stored.id, None, address, revival).await?;
        }
    }
    Ok(())
}

/// The exports that an event went into.
pub(crate) async fn of_event(
    connection: &mut PgConnection,
    customer_id: i64,
    meter_id: i32,
    at: Timestamp,
) -> Result<Vec<ExportView>, StoreError> {
    let rows = store::exports::around(connection, customer_id, meter_id, at).await?;
    Ok(rows.into_iter().map(ExportView::from).collect())
}

fn failure_text(failure: &Failure) -> String {
    format!("{}: {}", failure.code, failure.message)
}

fn not_found() -> EngineError {
    EngineError::NotFound {
        code: "export_not_found",
        detail: "no export has this id; list exports to see their ids".to_owned(),
    }
}
