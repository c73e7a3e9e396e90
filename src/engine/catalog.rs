//! Applies a catalog completely or not at all, and shows the current one.

use std::collections::HashSet;

use serde::Serialize;
use uuid::Uuid;

use super::exports;
use crate::engine::change::ChangeTransaction;
use crate::engine::error::EngineError;
use crate::engine::services::{Engine, detached};
use crate::store::{self, Scope, StoreError};
use metergate_domain::base::{Environment, Timestamp};
use metergate_domain::catalog::{Catalog, CatalogChange, CatalogUse, Limit};
use metergate_domain::credits;
use metergate_domain::credits::Unit;
use metergate_domain::gate::counted_prices;

/// The changes that applying a catalog made, or would make in a dry run.
#[derive(Debug, Clone, Serialize)]
pub struct Applied {
    pub dry_run: bool,
    /// The version in force after the change. It rises only if something changed.
    pub version: i64,
    pub changes: Vec<CatalogChange>,
}

/// The catalog in force.
#[derive(Debug, Clone, Serialize)]
pub struct CatalogView {
    pub version: i64,
    #[serde(flatten)]
    pub catalog: Catalog,
}

impl Engine {
    /// Applies a catalog, or computes the changes of a dry run. Refuses to remove used meters, plans
    /// and units.
    pub async fn apply_catalog(
        &self,
        environment: Environment,
        next: Catalog,
        dry_run: bool,
    ) -> Result<Applied, EngineError> {
        let (database, clock) = (self.database().clone(), self.inner.clock.clone());
        let wake = self.webhook_wake(environment);
        let late_grace = self.inner.settings.late_grace;
        detached(async move {
            let mut change = ChangeTransaction::begin(database.pool(), environment, &clock).await?;
            let (present, version) = change.catalog().await?;
            let now = change.now;
            let scope = &mut change.scope();
            let recorded = recorded_meters(scope, &present, &next).await?;
            let in_use = plans_in_use(scope, &present, &next).await?;
            let rates = store::pricing::exchange_rates::all(scope).await?;
            next.validate_caps(&rates, now)?;
            credits::catalog::validate_applied(&next)?;
            let granted = granted_units(scope, &present, &next).await?;
            let in_use = CatalogUse { meters: recorded, plans: in_use, granted_units: granted };
            let changes = present.changes_to(&next, &in_use)?;
            if dry_run || changes.is_empty() {
                change.transaction.rollback().await?;
                return Ok(Applied { dry_run, version, changes });
            }
            change_meters(scope, &present, &next).await?;
            let now = change.time_of_change().await?;
            let scope = &mut change.scope();
            change_limits(scope, &present, &next, now).await?;
            exports::revive_readdressed(scope, &present, now, late_grace).await?;
            store::catalog::insert_version(scope, version + 1, &next).await?;
            // the new catalog may contain their prices
            store::subjects::stripe_subscriptions::unsettle_without_plan(scope).await?;
            change.commit().await?;
            wake.notify_one();
            Ok(Applied { dry_run, version: version + 1, changes })
        })
        .await
    }

    /// Returns the catalog in force.
    pub async fn catalog(&self, environment: Environment) -> Result<CatalogView, EngineError> {
        let mut connection = self.database().pool().acquire().await?;
        let (catalog, version) =
            store::catalog::current(&mut Scope::new(&mut connection, environment)).await?;
        Ok(CatalogView { version, catalog })
    }
}

/// Returns the keys of removed meters that have events or holds.
async fn recorded_meters(
    scope: &mut Scope<'_>,
    present: &Catalog,
    next: &Catalog,
) -> Result<HashSet<String>, StoreError> {
    let mut recorded = HashSet::new();
    for stored in store::catalog::meters(scope).await? {
        let key = &stored.meter.key;
        let leaves = present.meter(key).is_some() && next.meter(key).is_none();
        if leaves
            && (store::catalog::has_events(scope, stored.event_name_id).await?
                || store::gate::reservations::has_meter(scope, key).await?)
        {
            recorded.insert(key.to_string());
        }
    }
    Ok(recorded)
}

/// Returns the keys of removed plans that have subscribers.
async fn plans_in_use(
    scope: &mut Scope<'_>,
    present: &Catalog,
    next: &Catalog,
) -> Result<HashSet<String>, StoreError> {
    let gone = present.plans.iter().filter(|plan| next.plan(&plan.key).is_none());
    let gone: Vec<String> = gone.map(|plan| plan.key.to_string()).collect();
    if gone.is_empty() {
        return Ok(HashSet::new());
    }
    Ok(store::subjects::subscriptions::plans_in_use(scope, &gone).await?.into_iter().collect())
}

/// Returns the removed units that have open grants.
async fn granted_units(
    scope: &mut Scope<'_>,
    present: &Catalog,
    next: &Catalog,
) -> Result<Vec<Unit>, StoreError> {
    let units = present.credit_units.iter().filter(|unit| next.credit_unit(&unit.key).is_none());
    let meters = present.meters.iter().filter(|meter| next.meter(&meter.key).is_none());
    let gone = units.map(|unit| Unit::CreditUnit(unit.key.clone()));
    let gone: Vec<Unit> = gone.chain(meters.map(|meter| Unit::Meter(meter.key.clone()))).collect();
    let mut granted = Vec::new();
    for unit in gone {
        if store::credits::grants::are_live(scope, &unit).await? {
            granted.push(unit);
        }
    }
    Ok(granted)
}

/// Stores the limits, prices and caps of all plans, and drops the counters of removed limits.
/// Counters stay if only a quota or an amount changed.
async fn change_limits(
    scope: &mut Scope<'_>,
    present: &Catalog,
    next: &Catalog,
    now: Timestamp,
) -> Result<(), StoreError> {
    let gone = present.plans.iter().filter(|plan| next.plan(&plan.key).is_none()).map(|plan| &plan.key);
    for plan in gone {
        store::catalog::set_plan_limits(scope, plan.as_str(), &[], now).await?;
    }
    for plan in &next.plans {
        let limits = plan.limits.iter().map(Limit::definition);
        let definitions: Vec<Uuid> =
            limits.chain(counted_prices::definitions(&plan.prices, &plan.spend_caps)).collect();
        let key = plan.key.as_str();
        let dropped = store::catalog::set_plan_limits(scope, key, &definitions, now).await?;
        if !dropped.is_empty() {
            store::gate::counters::delete_of_plan(scope, key, &dropped).await?;
        }
    }
    Ok(())
}

async fn change_meters(scope: &mut Scope<'_>, present: &Catalog, next: &Catalog) -> Result<(), StoreError> {
    let stored = store::catalog::meters(scope).await?;
    for old in stored.iter().filter(|old| next.meter(&old.meter.key).is_none()) {
        store::catalog::delete_meter(scope.connection, old.id).await?;
    }
    let known = store::catalog::known_event_names(scope).await?;
    for meter in &next.meters {
        if present.meter(&meter.key) == Some(meter) {
            continue;
        }
        if let Some(old) = stored.iter().find(|old| old.meter.key == meter.key) {
            store::catalog::update_meter(scope.connection, old.id, meter).await?;
            if old.meter.dimensions != meter.dimensions {
                // its rollups lack the new dimensions, or have them in another order
                store::catalog::insert_gap(scope, old.id, false).await?;
            }
        } else {
            let names = [meter.event_name.to_string()];
            let ids = store::catalog::event_name_ids(scope, &names).await?;
            let Some((_, event_name_id)) = ids.first() else { continue };
            let id = store::catalog::insert_meter(scope, *event_name_id, meter).await?;
            if known.contains(&names[0]) {
                // the meter also counts the events that are already recorded
                store::catalog::insert_gap(scope, id, false).await?;
            }
        }
    }
    Ok(())
}
