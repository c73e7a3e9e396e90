//! Recounts everything from the events, and compares the result with the derived tables.

use uuid::Uuid;

use crate::engine::error::EngineError;
use crate::engine::gate::counters::{self, CounterRequest};
use crate::engine::services::Engine;
use crate::store::subjects::subject::Which;
use crate::store::usage::verify::{Definition, Differences};
use crate::store::{self, Scope, StoreError};
use metergate_domain::base::{Environment, Timestamp};
use metergate_domain::gate::{ApplicableCap, CatalogIndex, CounterSource, PricedUsage};

/// The result of a recount.
#[derive(Debug, Default)]
pub struct Verdict {
    pub events: i64,
    pub rollups: i64,
    pub counters: i64,
    pub differences: i64,
    /// Descriptions of the first differences.
    pub shown: Vec<String>,
}

impl Engine {
    /// Recounts an environment in one snapshot. Recording and folding continue meanwhile.
    pub async fn verify(&self, environment: Environment) -> Result<Verdict, EngineError> {
        let mut snapshot = store::usage::snapshot(self.database().pool()).await?;
        let scope = &mut Scope::new(&mut snapshot, environment);
        store::usage::verify::allow_long(scope.connection).await?;
        let mut differences = Differences::default();
        let events = store::usage::verify::keys(scope, &mut differences).await?;
        let mut rollups = 0;
        for stored in store::catalog::meters(scope).await? {
            rollups += store::usage::verify::rollups(scope, &stored, &mut differences).await?;
        }
        let now = self.inner.clock.now(environment, store::usage::now(scope.connection).await?);
        let terms = crate::engine::environment_cache::catalog_index(scope).await?;
        let definitions = definitions(&terms);
        let mut counters = 0;
        for definition in &definitions {
            counters += store::usage::verify::counters(scope, definition, now, &mut differences).await?;
        }
        let known: Vec<Uuid> = definitions.iter().map(|definition| definition.id).collect();
        store::usage::verify::stray_counters(scope, &known, &mut differences).await?;
        counters += priced_usages(scope, &terms, now, &mut differences).await?;
        store::credits::verify::credits(scope, &mut differences).await?;
        snapshot.commit().await?;
        Ok(Verdict { events, rollups, counters, differences: differences.count, shown: differences.shown })
    }
}

/// The counters that are recounted together.
const RECOUNTED_TOGETHER: usize = 1_000;

/// Compares the counters of rated usage with the recorded events and the holds. Skips counters that a
/// change of plan, prices or parent has abandoned.
async fn priced_usages(
    scope: &mut Scope<'_>,
    terms: &CatalogIndex,
    now: Timestamp,
    differences: &mut Differences,
) -> Result<i64, StoreError> {
    let environment = scope.environment;
    let rows = store::gate::counters::of_prices(scope).await?;
    let mut compared = 0;
    for rows in rows.chunks(RECOUNTED_TOGETHER) {
        let mut names: Vec<String> = rows.iter().map(|(subject, _)| subject.clone()).collect();
        names.dedup();
        let paths = store::subjects::subject::paths(scope, Which::Of(&names)).await?;
        for (subject, row) in rows {
            let Some(path) = paths.iter().find(|path| path.subject() == subject) else { continue };
            let at = row.key.period_start;
            let applicable_caps = terms.applicable_caps(path, at).into_iter();
            let own = applicable_caps
                .filter(|applicable_cap| applicable_cap.member.subject_id == row.key.subject_id);
            let counts_it = |priced_usage: &PricedUsage<'_>| priced_usage.counter_at(at).key == row.key;
            let Some(priced_usage) = own.flat_map(ApplicableCap::priced_usages).find(counts_it) else {
                continue;
            };
            let need = CounterRequest {
                counter_source: CounterSource::PricedUsage(priced_usage),
                counter: priced_usage.counter_at(at),
            };
            let counted = counters::count(scope, terms, &need).await?.counter(now).level;
            let expired = store::gate::hold_lines::expired(scope.connection, &[*row], now).await?;
            let held = expired.iter().fold(row.level, |level, (_, line)| level.without_expired(line)).held;
            compared += 1;
            if (counted.used, counted.held) != (row.level.used, held) {
                let what = format!(
                    "{environment}: subject {subject}, period {at}, price {}: the events give {} used and {} held, the counter has {} and {held}",
                    priced_usage.slice.price.key, counted.used, counted.held, row.level.used
                );
                differences.note(1, what);
            }
        }
    }
    Ok(compared)
}

/// Returns the definitions of all limits that use counters, each once.
fn definitions(terms: &CatalogIndex) -> Vec<Definition<'_>> {
    let mut definitions: Vec<Definition<'_>> = Vec::new();
    for plan in &terms.catalog.plans {
        for limit in terms.limits_of(&plan.key).iter().filter(|limit| limit.uses_counter()) {
            let known = definitions.iter_mut().find(|known| known.id == limit.definition);
            if let Some(known) = known {
                known.plans.push(plan.key.to_string());
                continue;
            }
            let Some(stored) = terms.meter(&limit.limit.meter) else { continue };
            let plans = vec![plan.key.to_string()];
            definitions.push(Definition { id: limit.definition, stored, filter: &limit.limit.filter, plans });
        }
    }
    definitions
}
