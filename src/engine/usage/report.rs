//! The usage report of a subject: its current period, day by day and with a forecast. One read per
//! meter, by day and by price, provides meters, cost, trend and forecast.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;

use crate::engine::error::EngineError;
use crate::engine::pricing::costs::{CostView, Look};
use crate::engine::services::Engine;
use crate::engine::snapshot::ReadSnapshot;
use crate::store;
use metergate_domain::base::names::{ItemKey, MeterKey, PlanKey, SubjectId};
use metergate_domain::base::window::utc_month;
use metergate_domain::base::{Environment, Quantity, Span, Timestamp, Total};
use metergate_domain::catalog::{Enforcement, StoredMeter};
use metergate_domain::gate::{
    ApplicableLimit, CatalogIndex, Counter, CounterKey, CounterSource, CounterState, LimitState,
};
use metergate_domain::pricing::price_book::nearest_to;
use metergate_domain::pricing::{
    Calendar, CostBasis, Currency, Day, Forecast, MeterTotal, Method, MinorUnits, PeriodCosts, PriceBook,
    RatedUsage,
};
use metergate_domain::subjects::subscription::SubscriptionStatus;
use metergate_domain::usage::UsageState;
use metergate_domain::usage::query::percent;

/// The current period of a subject: limits, meters, cost, trend and forecast.
#[derive(Debug, Serialize)]
pub struct Report {
    pub subject: String,
    /// None without a subscription.
    pub plan: Option<PlanView>,
    pub status: Option<SubscriptionStatus>,
    pub period: Span,
    /// The limits of its plan; empty without a plan.
    pub limits: Vec<LimitUsage>,
    pub meters: Vec<MeterUsage>,
    /// None if no plan on its path has prices.
    pub cost: Option<CostView>,
    /// The usage by day.
    pub trend: Vec<DayView>,
    /// The expected usage and cost at the end of the period.
    pub forecast: ForecastView,
}

/// The plan of a report.
#[derive(Debug, Serialize)]
pub struct PlanView {
    pub key: PlanKey,
    pub name: String,
}

/// The usage of a limit.
#[derive(Debug, Serialize)]
pub struct LimitUsage {
    pub key: ItemKey,
    pub meter: MeterKey,
    pub unit: Option<String>,
    /// None if the limit is unlimited.
    pub quota: Option<Quantity>,
    pub used: Total,
    pub held: Total,
    /// The part of `used` and `held` that credits pay for, if they extend the limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub covered: Option<Total>,
    pub remaining: Option<Total>,
    pub percent: Option<Total>,
    pub state: UsageState,
    pub enforcement: Enforcement,
    pub period_start: Timestamp,
    /// None if the period never ends.
    pub resets_at: Option<Timestamp>,
}

/// The usage of a meter in the period.
#[derive(Debug, Serialize)]
pub struct MeterUsage {
    pub meter: MeterKey,
    pub unit: Option<String>,
    pub value: Option<Total>,
    pub event_count: i64,
}

/// A UTC day of the period, cut to the period.
#[derive(Debug, Serialize)]
pub struct DayView {
    pub window_start: Timestamp,
    pub window_end: Timestamp,
    /// The meters with usage.
    pub meters: Vec<MeterValue>,
    /// The increase of the period's cost on this day, in the currency of the report.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost: Option<MinorUnits>,
}

/// The usage of a meter on one day.
#[derive(Debug, Serialize)]
pub struct MeterValue {
    pub meter: MeterKey,
    pub value: Option<Total>,
}

/// The expected values at the end of the period.
#[derive(Debug, Serialize)]
pub struct ForecastView {
    /// The meters with values that add up over time.
    pub meters: Vec<MeterForecast>,
    /// None if the report has no cost.
    pub cost: Option<CostForecast>,
}

/// The expected value of a meter, and the method that computed it.
#[derive(Debug, Serialize)]
pub struct MeterForecast {
    pub meter: MeterKey,
    pub value: Total,
    pub method: Method,
}

/// The expected cost, and the method that computed it.
#[derive(Debug, Serialize)]
pub struct CostForecast {
    pub currency: Currency,
    pub total: MinorUnits,
    pub method: Method,
}

/// The viewer of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Viewer {
    /// Sees all usage below the subject, and the limits of its ancestors.
    Application,
    /// Sees only the subject itself.
    EndUser,
}

impl Engine {
    /// Returns the usage report of a subject for a viewer, with costs in a given currency. A subject
    /// that does not exist has no usage.
    pub async fn report(
        &self,
        environment: Environment,
        subject: SubjectId,
        viewer: Viewer,
        currency: Option<Currency>,
    ) -> Result<Report, EngineError> {
        let mut snapshot = self.read_snapshot(environment).await?;
        let terms = Arc::clone(&snapshot.terms);
        let path = snapshot.subject_path(&subject).await?;
        let nearest = path.nearest();
        let period = nearest.map_or_else(
            || utc_month(snapshot.now),
            |(_, subscription)| subscription.cycle.billing_period(snapshot.now),
        );
        // an end user must never see the usage of others below its ancestors
        let shown = nearest
            .map(|(member, _)| member)
            .filter(|member| viewer == Viewer::Application || member.subject == subject);
        let limits = match shown {
            None => Vec::new(),
            Some(member) => {
                let counters = snapshot.counters(terms.of_member(member).map(CounterSource::Limit)).await?;
                let usage = |found: ApplicableLimit<'_>| limit_usage(&terms, &found, &counters, snapshot.now);
                terms.of_member(member).map(usage).collect()
            }
        };
        let book = nearest_to(terms.prices_on(&path), currency).map(|prices| &prices.book);
        let exchange_rate = match book {
            None => None,
            Some(book) => book.exchanged_to(currency, &terms.rates, snapshot.now)?,
        };
        let calendar = Calendar::of(period, snapshot.now);
        let names = [subject.to_string()];
        let below = viewer == Viewer::Application;
        let paths = store::subjects::subject::path_ids(&mut snapshot.scope(), &names, below).await?;
        let parts = parts(&mut snapshot, &terms, &calendar, book, &paths).await?;
        snapshot.snapshot.commit().await?;

        let statement = PeriodCosts::new(calendar, parts);
        let total = statement.total();
        let pricing = book.map(|book| CostBasis {
            book,
            rate: exchange_rate.as_ref(),
            commitment: terms.commitment_of(&path, book.currency),
        });
        let plan = nearest.and_then(|(_, subscription)| terms.catalog.plan(&subscription.plan));
        Ok(Report {
            subject: subject.into_string(),
            plan: plan.map(|plan| PlanView { key: plan.key.clone(), name: plan.name.clone() }),
            status: nearest.map(|(_, subscription)| subscription.status),
            period,
            limits,
            meters: terms.meters().map(|stored| meter_usage(stored, &total)).collect(),
            cost: pricing.map(|pricing| CostView::of(&statement, &total, pricing)),
            trend: statement.days(pricing).into_iter().map(DayView::from).collect(),
            forecast: forecast(&terms, &statement, pricing),
        })
    }
}

/// Returns the usage between the bounds of a calendar, for every meter with usage.
async fn parts<'a>(
    snapshot: &mut ReadSnapshot,
    terms: &'a CatalogIndex,
    calendar: &Calendar,
    book: Option<&'a PriceBook>,
    paths: &[i64],
) -> Result<Vec<RatedUsage<'a>>, EngineError> {
    let (scope, span) = (&mut snapshot.scope(), calendar.span());
    store::usage::keep_plans(scope.connection).await?;
    let rollup_coverage = store::usage::rollup_coverage(scope, None, span).await?;
    let ids: Vec<i32> = terms.meters().map(|stored| stored.id).collect();
    let seen = store::usage::with_rollups(scope, &ids, paths, span).await?;
    let counted = |stored: &&StoredMeter| seen.contains(&stored.id) || !rollup_coverage.is_folded(stored);
    let meters: Vec<&StoredMeter> = terms.meters().filter(counted).collect();
    let look = Look {
        environment: scope.environment,
        paths,
        holders: None,
        bounds: &calendar.bounds,
        levels_from: calendar.first,
        book,
        rollup_coverage: &rollup_coverage,
    };
    let mut found = look.parts(scope.connection, &meters).await?;
    Ok((1..calendar.bounds.len()).map(|bound| found.remove(&(None, bound - 1)).unwrap_or_default()).collect())
}

fn meter_usage(stored: &StoredMeter, total: &RatedUsage<'_>) -> MeterUsage {
    let taken = total.meters.get(&stored.meter.key);
    MeterUsage {
        meter: stored.meter.key.clone(),
        unit: stored.meter.unit.clone(),
        value: taken.map_or(stored.meter.aggregation.of_nothing(), MeterTotal::value),
        event_count: taken.map_or(0, |taken| taken.found.count),
    }
}

impl From<Day<'_, '_>> for DayView {
    fn from(day: Day<'_, '_>) -> Self {
        let value = |(meter, taken): (&&MeterKey, &MeterTotal)| MeterValue {
            meter: (*meter).clone(),
            value: taken.value(),
        };
        Self {
            window_start: day.span.from,
            window_end: day.span.to,
            meters: day.part.meters.iter().map(value).collect(),
            cost: day.cost,
        }
    }
}

fn forecast(
    terms: &CatalogIndex,
    statement: &PeriodCosts<'_>,
    pricing: Option<CostBasis<'_>>,
) -> ForecastView {
    let adding_up = terms.meters().filter(|stored| stored.meter.aggregation.is_reservable());
    let of_meter = |stored: &StoredMeter| {
        let Forecast { value, method } = statement.forecast_of(&stored.meter.key);
        MeterForecast { meter: stored.meter.key.clone(), value, method }
    };
    let of_cost = |pricing: CostBasis<'_>| {
        let Forecast { value, method } = statement.forecast_of_cost(pricing);
        CostForecast { currency: pricing.currency(), total: value, method }
    };
    ForecastView { meters: adding_up.map(of_meter).collect(), cost: pricing.map(of_cost) }
}

fn limit_usage(
    terms: &CatalogIndex,
    found: &ApplicableLimit<'_>,
    counters: &BTreeMap<CounterKey, Counter>,
    now: Timestamp,
) -> LimitUsage {
    let counter = found.counter_at(now).and_then(|counter| counters.get(&counter.key));
    let state = LimitState::of(found, counter.map_or(CounterState::default(), |counter| counter.level), now);
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
        covered: state.covered,
        remaining: state.remaining,
        resets_at: state.resets_at,
    }
}
