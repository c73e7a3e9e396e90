//! Answering questions about usage, each from one snapshot.

use std::collections::BTreeMap;

use serde::Serialize;
use sqlx::PgConnection;

use super::{Engine, EngineError};
use crate::domain::environment::Environment;
use crate::domain::fields::Violation;
use crate::domain::names::{MeterKey, SubjectId};
use crate::domain::quantity::Total;
use crate::domain::timestamp::Timestamp;
use crate::domain::usage::{Reading, UsageQuery, UsageRow, rows};
use crate::domain::window::{Span, Zone, utc_month};
use crate::store::{self, catalog::StoredMeter};

/// The current period of a subject: its limits and meters.
#[derive(Debug, Serialize)]
pub struct Report {
    pub subject: String,
    /// None without a subscription.
    pub plan: Option<PlanView>,
    pub status: Option<String>,
    pub period: Period,
    /// Empty without a plan.
    pub limits: Vec<serde_json::Value>,
    pub meters: Vec<MeterUsage>,
}

#[derive(Debug, Serialize)]
pub struct PlanView {
    pub key: String,
    pub name: String,
}

#[derive(Debug, Serialize)]
pub struct Period {
    pub start: Timestamp,
    pub end: Timestamp,
}

#[derive(Debug, Serialize)]
pub struct MeterUsage {
    pub meter: MeterKey,
    pub unit: Option<String>,
    pub value: Option<Total>,
    pub event_count: i64,
}

impl Engine {
    pub async fn usage(
        &self,
        environment: Environment,
        query: &UsageQuery,
    ) -> Result<Vec<UsageRow>, EngineError> {
        let mut snapshot = store::usage::snapshot(self.database().pool()).await?;
        let stored = store::catalog::meter(&mut snapshot, environment, query.meter.as_str()).await?;
        let Some(stored) = stored else {
            let detail = format!("there is no meter `{}`", query.meter);
            return Err(EngineError::invalid(Violation::new("unknown_meter", detail).under("meter")));
        };
        check_dimensions(&stored, query)?;
        let rows = answer(&mut snapshot, environment, &stored, query).await?;
        snapshot.commit().await?;
        Ok(rows)
    }

    /// The usage report of a subject; with `descendants` all that stands below it included. A
    /// subject that was never heard of has used nothing.
    pub async fn report(
        &self,
        environment: Environment,
        subject: SubjectId,
        descendants: bool,
    ) -> Result<Report, EngineError> {
        let mut snapshot = store::usage::snapshot(self.database().pool()).await?;
        let now = self.inner.clock.now(environment, store::usage::now(&mut snapshot).await?);
        let span = utc_month(now);
        let mut meters = Vec::new();
        for stored in store::catalog::meters(&mut snapshot, environment).await? {
            let query = UsageQuery {
                meter: stored.meter.key.clone(),
                span,
                window: None,
                zone: Zone::default(),
                subjects: vec![subject.clone()],
                descendants,
                group_by_subject: false,
                group_by: Vec::new(),
                filter: BTreeMap::new(),
                fill: false,
            };
            let rows = answer(&mut snapshot, environment, &stored, &query).await?;
            // without a window and groups there is exactly one row
            let (value, event_count) = rows.first().map_or((None, 0), |row| (row.value, row.event_count));
            meters.push(MeterUsage { meter: stored.meter.key, unit: stored.meter.unit, value, event_count });
        }
        snapshot.commit().await?;
        Ok(Report {
            subject: subject.into_string(),
            plan: None,
            status: None,
            period: Period { start: span.from, end: span.to },
            limits: Vec::new(),
            meters,
        })
    }
}

fn check_dimensions(stored: &StoredMeter, query: &UsageQuery) -> Result<(), EngineError> {
    let known = |name: &str| stored.meter.dimensions.iter().any(|dimension| dimension.as_str() == name);
    let flaw = |name: &str, parameter: &str| {
        let detail = format!("the meter `{}` has no dimension `{name}`", stored.meter.key);
        Violation::new("unknown_dimension", detail).under(parameter)
    };
    let flaws: Vec<Violation> = query
        .group_by
        .iter()
        .map(|name| (name, "group_by"))
        .chain(query.filter.keys().map(|name| (name, "filter")))
        .filter(|(name, _)| !known(name))
        .map(|(name, parameter)| flaw(name, parameter))
        .collect();
    if flaws.is_empty() { Ok(()) } else { Err(flaws.into()) }
}

async fn answer(
    snapshot: &mut PgConnection,
    environment: Environment,
    stored: &StoredMeter,
    query: &UsageQuery,
) -> Result<Vec<UsageRow>, EngineError> {
    let bounds = query.bounds()?;
    let paths = if query.subjects.is_empty() {
        None
    } else {
        let names: Vec<String> = query.subjects.iter().map(ToString::to_string).collect();
        Some(store::subjects::path_ids(snapshot, environment, &names, query.descendants).await?)
    };
    let found = if paths.as_ref().is_some_and(Vec::is_empty) {
        BTreeMap::new()
    } else {
        let gaps: Vec<Span> = store::usage::gaps(snapshot, environment, stored.id, query.span).await?;
        let reading = Reading::plan(query.span, &bounds, &gaps);
        store::usage::find(snapshot, environment, stored, query, paths.as_deref(), &bounds, &reading).await?
    };
    Ok(rows(query, stored.meter.aggregation, &bounds, found)?)
}
