//! The list of exports, and changes from outside: retries, refusals and new addresses.

use std::time::Duration;

use sqlx::PgConnection;
use uuid::Uuid;

use super::exported_meters::exported;
use crate::engine::error::EngineError;
use crate::engine::page::{Page, PageRequest};
use crate::engine::services::Engine;
use crate::providers::Failure;
use crate::store::exports::{ExportCursor, ExportRow, Revival};
use crate::store::{self, Scope, StoreError};
use metergate_domain::base::{Environment, Timestamp};
use metergate_domain::catalog::{Catalog, StripeMeter};
use metergate_domain::exports::{EXPORT_AGE_MAX, ExportFilter, ExportStatus};

impl Engine {
    /// Returns a page of exports, the latest first.
    pub async fn list_exports(
        &self,
        environment: Environment,
        filter: &ExportFilter,
        page: &PageRequest,
    ) -> Result<Page<ExportRow>, EngineError> {
        let after = page.place()?.map(|(created_at, id)| ExportCursor { created_at, id });
        let mut connection = self.database().pool().acquire().await?;
        let rows = store::exports::list(
            &mut Scope::new(&mut connection, environment),
            filter,
            after,
            page.rows_max(),
        )
        .await?;
        Ok(Page::from_rows(rows, page.limit, |row| (row.created_at, row.id)))
    }

    /// Makes a dead export pending again, under the present names of its meter.
    pub async fn retry_export(&self, environment: Environment, id: Uuid) -> Result<ExportRow, EngineError> {
        let mut transaction = self.database().pool().begin().await?;
        let scope = &mut Scope::new(&mut transaction, environment);
        let now = self.inner.clock.now(environment, store::usage::now(scope.connection).await?);
        let row = store::exports::lock(scope, id).await?.ok_or_else(not_found)?;
        if row.status != ExportStatus::Dead {
            let detail = format!("only a dead export can be retried; this one is {}", row.status.as_str());
            return Err(EngineError::Conflict { code: "export_not_dead", detail });
        }
        let meters = store::catalog::meters(scope).await?;
        let Some((_, stripe)) = exported(&meters).find(|(stored, _)| stored.id == row.meter_id) else {
            let detail = format!(
                "the meter `{}` has no `stripe` block; add one to the catalog before you retry",
                row.meter
            );
            return Err(EngineError::Conflict { code: "meter_not_exported", detail });
        };
        let late_grace = self.inner.settings.late_grace;
        let revival = Revival { only: Some(row.id), ..revival(row.meter_id, stripe, now, late_grace) };
        store::exports::revive(scope, revival).await?;
        let row = store::exports::lock(scope, id).await?.ok_or_else(not_found)?;
        transaction.commit().await?;
        Ok(row)
    }

    /// Marks exports as dead that the provider took and refused later. Each entry has an identifier, a
    /// code and a message.
    pub async fn mark_exports_failed(
        &self,
        environment: Environment,
        failed: &[(String, Failure)],
    ) -> Result<u64, EngineError> {
        let refused: Vec<(String, String)> =
            failed.iter().map(|(identifier, failure)| (identifier.clone(), failure.to_string())).collect();
        let mut connection = self.database().pool().acquire().await?;
        let now = self.inner.clock.now(environment, store::usage::now(&mut connection).await?);
        let count =
            store::exports::mark_refused(&mut Scope::new(&mut connection, environment), &refused, now)
                .await?;
        if count > 0 {
            tracing::error!(%environment, count, "the provider refused exports that it had taken");
        }
        Ok(count)
    }
}

fn revival(meter_id: i32, stripe: &StripeMeter, now: Timestamp, late_grace: Duration) -> Revival<'_> {
    let (oldest, closed_by) = (now.saturating_sub(EXPORT_AGE_MAX), now.saturating_sub(late_grace));
    Revival { meter_id, only: None, stripe, now, oldest, closed_by }
}

/// Retries the dead exports of meters with a new address at the provider, after the catalog has
/// changed. The old address may have been the cause.
pub(crate) async fn revive_readdressed(
    scope: &mut Scope<'_>,
    before: &Catalog,
    now: Timestamp,
    late_grace: Duration,
) -> Result<(), StoreError> {
    let meters = store::catalog::meters(scope).await?;
    for (stored, stripe) in exported(&meters) {
        let old = before.meters.iter().find(|meter| meter.key == stored.meter.key);
        if old.is_some_and(|old| old.stripe.as_ref() != Some(stripe)) {
            let revival = revival(stored.id, stripe, now, late_grace);
            store::exports::revive(scope, revival).await?;
        }
    }
    Ok(())
}

/// Returns the exports that contain an event.
pub(crate) async fn of_event(
    connection: &mut PgConnection,
    customer_id: i64,
    meter_id: i32,
    at: Timestamp,
) -> Result<Vec<ExportRow>, StoreError> {
    store::exports::around(connection, customer_id, meter_id, at).await
}

fn not_found() -> EngineError {
    EngineError::NotFound {
        code: "export_not_found",
        detail: "no export has this id; list exports to see their ids".to_owned(),
    }
}
