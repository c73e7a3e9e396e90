//! Answering questions about usage, each from one snapshot.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;

use super::costs::{self, CostView};
use super::reading::answer;
use super::{Engine, EngineError};
use crate::domain::environment::Environment;
use crate::domain::fields::Violation;
use crate::domain::gate::book::Counter;
use crate::domain::gate::budget::Tally;
use crate::domain::gate::decision::{Level, LimitState};
use crate::domain::gate::standing::{CounterKey, Match, Terms};
use crate::domain::limits::EVENT_AHEAD_MAX;
use crate::domain::meter::StoredMeter;
use crate::domain::names::{ItemKey, MeterKey, PlanKey, SubjectId};
use crate::domain::plan::Enforcement;
use crate::domain::pricing::currency::Currency;
use crate::domain::pricing::list::PriceList;
use crate::domain::quantity::{Quantity, Total};
use crate::domain::subscription::Status;
use crate::domain::timestamp::Timestamp;
use crate::domain::usage::{UsageQuery, UsageRow, UsageState, Whose, percent};
use crate::domain::window::{Span, Zone, utc_month};
use crate::store;

/// The current period of a subject: its limits and meters.
#[derive(Debug, Serialize)]
pub struct Report {
    pub subject: String,
    /// None without a subscription.
    pub plan: Option<PlanView>,
    pub status: Option<Status>,
    pub period: Span,
    /// Those of its plan; empty without one.
    pub limits: Vec<LimitUsage>,
    pub meters: Vec<MeterUsage>,
    /// None where no plan on its path has prices.
    pub cost: Option<CostView>,
}

#[derive(Debug, Serialize)]
pub struct PlanView {
    pub key: PlanKey,
    pub name: String,
}

/// How far a limit is used.
#[derive(Debug, Serialize)]
pub struct LimitUsage {
    pub key: ItemKey,
    pub meter: MeterKey,
    pub unit: Option<String>,
    /// None: unlimited.
    pub quota: Option<Quantity>,
    pub used: Total,
    pub held: Total,
    pub remaining: Option<Total>,
    pub percent: Option<Total>,
    pub state: UsageState,
    pub enforcement: Enforcement,
    pub period_start: Timestamp,
    /// None: never.
    pub resets_at: Option<Timestamp>,
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
        let mut snapshot = self.settled_snapshot(environment).await?;
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

    /// The usage report of a subject, as `Viewer` sees it. A subject that was never heard of has used
    /// nothing.
    pub async fn report(
        &self,
        environment: Environment,
        subject: SubjectId,
        viewer: Viewer,
        currency: Option<Currency>,
    ) -> Result<Report, EngineError> {
        let mut sight = self.sight(environment).await?;
        let terms = Arc::clone(&sight.terms);
        let path = sight.standing(&subject).await?;
        let nearest = path.nearest();
        let period = nearest.map_or_else(
            || utc_month(sight.now),
            |(_, subscription)| subscription.cycle.billing_period(sight.now),
        );
        // an end user sees what is their own, and never what others above them use
        let shown = nearest
            .map(|(member, _)| member)
            .filter(|member| viewer == Viewer::Application || member.subject == subject.as_str());
        let limits = match shown {
            None => Vec::new(),
            Some(member) => {
                let counters = sight.counters(terms.of_member(member).map(Tally::Limit)).await?;
                let usage = |found: Match<'_>| limit_usage(&terms, &found, &counters, sight.now);
                terms.of_member(member).map(usage).collect()
            }
        };
        let mut meters = Vec::new();
        for stored in store::catalog::meters(&mut sight.snapshot, environment).await? {
            let query = UsageQuery {
                meter: stored.meter.key.clone(),
                span: period,
                window: None,
                zone: Zone::default(),
                subjects: vec![subject.clone()],
                descendants: viewer == Viewer::Application,
                whose: Whose::All,
                group_by: Vec::new(),
                filter: BTreeMap::new(),
                slices: Vec::new(),
                fill: false,
            };
            let rows = answer(&mut sight.snapshot, environment, &stored, &query).await?;
            // without a window and groups there is exactly one row
            let (value, event_count) = rows.first().map_or((None, 0), |row| (row.value, row.event_count));
            meters.push(MeterUsage { meter: stored.meter.key, unit: stored.meter.unit, value, event_count });
        }
        let prices = path.prices(&terms.catalog);
        let list = prices.as_deref().and_then(|prices| PriceList::nearest_to(prices, currency));
        let cost = match list {
            None => None,
            Some(list) => {
                let exchange_rate = list.exchanged_to(currency, &terms.rates, sight.now)?;
                let names = [subject.to_string()];
                let below = viewer == Viewer::Application;
                let paths =
                    store::subjects::path_ids(&mut sight.snapshot, environment, &names, below).await?;
                let so_far = Span { to: period.to.min(sight.now.saturating_add(EVENT_AHEAD_MAX)), ..period };
                let cost =
                    costs::lines(&mut sight.snapshot, environment, &terms, &list, &paths, so_far).await?;
                Some(CostView::of(cost, list.currency, exchange_rate))
            }
        };
        sight.snapshot.commit().await?;
        let plan = nearest.and_then(|(_, subscription)| terms.catalog.plan(&subscription.plan));
        Ok(Report {
            subject: subject.into_string(),
            plan: plan.map(|plan| PlanView { key: plan.key.clone(), name: plan.name.clone() }),
            status: nearest.map(|(_, subscription)| subscription.status),
            period,
            limits,
            meters,
            cost,
        })
    }
}

/// Who looks at a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Viewer {
    /// Sees all that stands below the subject, and whose limits meet it.
    Application,
    /// Sees itself alone.
    EndUser,
}

fn limit_usage(
    terms: &Terms,
    found: &Match<'_>,
    counters: &BTreeMap<CounterKey, Counter>,
    now: Timestamp,
) -> LimitUsage {
    let counter = found.counter_at(now).and_then(|counter| counters.get(&counter.key));
    let state = LimitState::of(found, counter.map_or(Level::default(), |counter| counter.level), now);
    let meter = terms.meter(&state.meter);
    LimitUsage {
        unit: meter.and_then(|stored| stored.meter.unit.clone()),
        percent: percent(state.used, state.quota),
        state: UsageState::of(state.used, state.quota),
        enforcement: found.terms.limit.enforcement,
        period_start: state.period.from,
        key: state.key,
        meter: state.meter,
        quota: state.quota,
        used: state.used,
        held: state.held,
        remaining: state.remaining,
        resets_at: state.resets_at,
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
