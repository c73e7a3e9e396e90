//! Answers usage queries, each from one snapshot.

use super::reader::answer;
use crate::engine::error::EngineError;
use crate::engine::services::Engine;
use crate::store;
use crate::store::Scope;
use metergate_domain::base::fields::received;
use metergate_domain::base::{Environment, Violation};
use metergate_domain::catalog::StoredMeter;
use metergate_domain::usage::{UsageQuery, UsageRow};

impl Engine {
    /// Answers a usage query. The meter and its dimensions must be in the catalog.
    pub async fn usage(
        &self,
        environment: Environment,
        query: &UsageQuery,
    ) -> Result<Vec<UsageRow>, EngineError> {
        let mut snapshot = self.settled_snapshot(environment).await?;
        let scope = &mut Scope::new(&mut snapshot, environment);
        let stored = store::catalog::meter(scope, query.meter.as_str()).await?;
        let Some(stored) = stored else {
            let detail = format!("must be the key of a meter in the catalog; got `{}`", query.meter);
            return Err(EngineError::invalid(Violation::new("unknown_meter", detail).under("meter")));
        };
        check_dimensions(&stored, query)?;
        let rows = answer(scope, &stored, query).await?;
        snapshot.commit().await?;
        Ok(rows)
    }
}

fn check_dimensions(stored: &StoredMeter, query: &UsageQuery) -> Result<(), EngineError> {
    let known = |name: &str| stored.meter.dimensions.iter().any(|dimension| dimension.as_str() == name);
    let violation = |name: &str, parameter: &str| {
        let detail =
            format!("must name dimensions of the meter `{}`; got {}", stored.meter.key, received(name));
        Violation::new("unknown_dimension", detail).under(parameter)
    };
    let violations: Vec<Violation> = query
        .group_by
        .iter()
        .map(|name| (name, "group_by"))
        .chain(query.filter.keys().map(|name| (name, "filter")))
        .filter(|(name, _)| !known(name))
        .map(|(name, parameter)| violation(name, parameter))
        .collect();
    Ok(Violation::check_all(violations)?)
}
