//! Recounting: what the events say against what is kept beside them.

use uuid::Uuid;

use super::{Engine, EngineError};
use crate::domain::environment::Environment;
use crate::domain::gate::standing::Terms;
use crate::store::verify::{Definition, Differences};
use crate::store::{self};

/// What a recount found.
#[derive(Debug, Default)]
pub struct Verdict {
    pub events: i64,
    pub rollups: i64,
    pub counters: i64,
    pub differences: i64,
    /// The first differences, in words.
    pub shown: Vec<String>,
}

impl Engine {
    /// Recounts an environment in one snapshot; recording and folding go on meanwhile.
    pub async fn verify(&self, environment: Environment) -> Result<Verdict, EngineError> {
        let mut snapshot = store::usage::snapshot(self.database().pool()).await?;
        store::verify::allow_long(&mut snapshot).await?;
        let mut differences = Differences::default();
        let events = store::verify::keys(&mut snapshot, environment, &mut differences).await?;
        let mut rollups = 0;
        for stored in store::catalog::meters(&mut snapshot, environment).await? {
            rollups += store::verify::rollups(&mut snapshot, environment, &stored, &mut differences).await?;
        }
        let now = self.inner.clock.now(environment, store::usage::now(&mut snapshot).await?);
        let terms = super::configuration::terms(&mut snapshot, environment).await?;
        let definitions = definitions(&terms);
        let mut counters = 0;
        for definition in &definitions {
            counters +=
                store::verify::counters(&mut snapshot, environment, definition, now, &mut differences)
                    .await?;
        }
        let known: Vec<Uuid> = definitions.iter().map(|definition| definition.id).collect();
        store::verify::stray_counters(&mut snapshot, environment, &known, &mut differences).await?;
        snapshot.commit().await?;
        Ok(Verdict { events, rollups, counters, differences: differences.count, shown: differences.shown })
    }
}

/// The definitions of all limits that compare counters, each once.
fn definitions(terms: &Terms) -> Vec<Definition<'_>> {
    let mut definitions: Vec<Definition<'_>> = Vec::new();
    for plan in &terms.catalog.plans {
        for limit in terms.limits_of(&plan.key).iter().filter(|limit| limit.is_counted()) {
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
