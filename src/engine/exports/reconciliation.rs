//! Compares recorded usage, exports, and the provider's own sums.

use std::collections::BTreeMap;

use serde::{Serialize, Serializer};
use sqlx::Connection;

use super::exported_meters::exported;
use crate::engine::error::EngineError;
use crate::engine::services::Engine;
use crate::engine::usage::reader;
use crate::providers::{Provider, Summary, SummaryQuery, SummaryWindow};
use crate::store;
use crate::store::Scope;
use crate::store::exports::reconciliation::{Checked, Sums, UnitsAt};
use metergate_domain::base::fields::received;
use metergate_domain::base::limits::RECONCILED_WINDOWS_MAX;
use metergate_domain::base::timestamp::MICROS_PER_HOUR;
use metergate_domain::base::{Environment, Span, Timestamp, Violation};
use metergate_domain::catalog::StripeFormula;
use metergate_domain::exports::Units;

/// The parameters of a comparison by hours or days, in UTC.
#[derive(Debug, Clone)]
pub struct ReconciliationQuery {
    pub customer: String,
    pub meter: String,
    pub span: Span,
    pub by_day: bool,
}

/// A comparison in the provider's units.
#[derive(Debug, Clone, Serialize)]
pub struct Reconciled {
    pub customer: String,
    pub meter: String,
    pub from: Timestamp,
    pub to: Timestamp,
    pub window: &'static str,
    pub data: Vec<ReconciledRow>,
    pub total: Comparison,
}

/// The comparison of one hour or day.
#[derive(Debug, Clone, Serialize)]
pub struct ReconciledRow {
    pub window_start: Timestamp,
    pub window_end: Timestamp,
    #[serde(flatten)]
    pub comparison: Comparison,
}

/// Sums of one window at every stage of the export.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Comparison {
    /// The sum of the events.
    #[serde(serialize_with = "number")]
    pub events: Units,
    /// The sum that accumulated for exports.
    #[serde(serialize_with = "number")]
    pub recorded: Units,
    /// The sum of exports by their timestamps, without canceled ones.
    #[serde(serialize_with = "number")]
    pub exported: Units,
    /// The delivered part of `exported`.
    #[serde(serialize_with = "number")]
    pub delivered: Units,
    /// The sum of the provider's summaries; null without a configured account.
    #[serde(serialize_with = "number_or_null")]
    pub provider: Option<Units>,
    /// `exported` less `provider`.
    #[serde(serialize_with = "number_or_null")]
    pub difference: Option<Units>,
}

fn number<S: Serializer>(units: &Units, serializer: S) -> Result<S::Ok, S::Error> {
    let number: serde_json::Number = units.to_string().parse().map_err(serde::ser::Error::custom)?;
    number.serialize(serializer)
}

#[expect(clippy::ref_option, reason = "serde passes the field by reference")]
fn number_or_null<S: Serializer>(units: &Option<Units>, serializer: S) -> Result<S::Ok, S::Error> {
    match units {
        Some(units) => number(units, serializer),
        None => serializer.serialize_none(),
    }
}

impl Comparison {
    fn new(sums: &Sums, provider: Option<Units>) -> Self {
        Self {
            events: sums.events,
            recorded: sums.recorded,
            exported: sums.exported,
            delivered: sums.delivered,
            provider,
            difference: provider.map(|provider| sums.exported.minus(provider)),
        }
    }
}

/// A day on which the provider's sum differs from the exports.
#[derive(Debug, Clone)]
pub struct Drift {
    pub customer: String,
    pub meter: String,
    pub day: Timestamp,
    pub difference: Units,
}

/// The most customers and meters that are compared in an hour, because providers allow few reads.
const COMPARED_PER_HOUR_MAX: i64 = 12;
/// Hours after the end of a day in which its usage may still arrive.
const MARGIN_HOURS: i64 = 3;

impl Engine {
    /// Compares a customer's usage of a meter, by hour or by day.
    pub async fn reconcile(
        &self,
        environment: Environment,
        question: &ReconciliationQuery,
    ) -> Result<Reconciled, EngineError> {
        let hours = if question.by_day { 24 } else { 1 };
        let windows = windows(question.span, hours)?;
        let mut snapshot = self.settled_snapshot(environment).await?;
        let scope = &mut Scope::new(&mut snapshot, environment);
        let customer = store::exports::reconciliation::customer(scope, &question.customer).await?;
        let customer = customer.ok_or_else(|| EngineError::NotFound {
            code: "customer_not_found",
            detail: format!("no subject was ever mapped to the customer {}", received(&question.customer)),
        })?;
        let meters = store::catalog::meters(scope).await?;
        let Some((stored, stripe)) =
            exported(&meters).find(|(stored, _)| stored.meter.key.as_str() == question.meter)
        else {
            let detail = format!("must be a meter with a `stripe` block; got {}", received(&question.meter));
            return Err(EngineError::invalid(Violation::new("unknown_meter", detail).under("meter")));
        };
        if stripe.formula == StripeFormula::Last {
            let detail = "must be a meter that is exported as a sum; this one is exported by its last or largest value";
            return Err(EngineError::invalid(Violation::new("not_summed", detail).under("meter")));
        }
        let by_window = reader::customer_sums(scope, stored, customer, &windows).await?;
        let units = |(at, sum)| UnitsAt { at, units: Units::of(sum, stripe.scale) };
        let events: Vec<UnitsAt> = by_window.into_iter().map(units).collect();
        let recorded =
            store::exports::reconciliation::recorded(scope.connection, customer, stored.id, question.span)
                .await?;
        let sent =
            store::exports::reconciliation::exported(scope.connection, customer, stored.id, question.span)
                .await?;
        snapshot.commit().await?;

        let there = match self.provider(environment) {
            None => None,
            Some(provider) => {
                let grain = if question.by_day { SummaryWindow::Day } else { SummaryWindow::Hour };
                let (event_name, customer) = (stripe.event_name.as_str(), question.customer.as_str());
                let found = provider
                    .summaries(SummaryQuery { event_name, customer, span: question.span, grain })
                    .await
                    .map_err(|failure| EngineError::provider_unavailable(failure.to_string()))?;
                Some(found.unwrap_or_default())
            }
        };
        let amounts = Amounts { events, recorded, sent, provider: there };
        Ok(compare(question, &windows, &amounts))
    }

    /// Compares some of yesterday's deliveries with the provider's sums, and returns the differences.
    pub async fn check_exports(&self, environment: Environment) -> Result<Vec<Drift>, EngineError> {
        let Some(provider) = self.provider(environment) else { return Ok(Vec::new()) };
        let mut connection = self.database().connect_writer().await?;
        let scope = &mut Scope::new(&mut connection, environment);
        let drifts = if store::exports::reconciliation::try_lock(scope).await? {
            self.check_some(scope, provider.as_ref()).await
        } else {
            Ok(Vec::new())
        };
        connection.close().await.ok();
        drifts
    }

    async fn check_some(
        &self,
        scope: &mut Scope<'_>,
        provider: &dyn Provider,
    ) -> Result<Vec<Drift>, EngineError> {
        let now = self.inner.clock.now(scope.environment, store::usage::now(scope.connection).await?);
        let day = day_before(now);
        // counts the reads of other replicas, and of this one before a restart
        let an_hour_ago = Timestamp::from_micros(now.micros() - MICROS_PER_HOUR).unwrap_or(now);
        let compared = store::exports::reconciliation::checked_since(scope, an_hour_ago).await?;
        let limit = (COMPARED_PER_HOUR_MAX - compared).max(0);
        let due = store::exports::reconciliation::unchecked(scope, day, limit).await?;
        let mut drifts = Vec::new();
        for pair in due {
            let (event_name, customer) = (pair.event_name.as_str(), pair.customer.as_str());
            let query = SummaryQuery { event_name, customer, span: day, grain: SummaryWindow::Day };
            let there = provider.summaries(query).await;
            let there = there.map_err(|failure| EngineError::provider_unavailable(failure.to_string()))?;
            let there = sum(&there.unwrap_or_default());
            let difference = Units::whole(pair.exported).minus(there);
            if difference != Units::default() {
                tracing::error!(
                    environment = %scope.environment, customer = pair.customer, meter = pair.meter, day = %day.from, %difference,
                    "the provider's sum differs from the exports"
                );
                metrics::counter!("metergate_export_drifts_total", "environment" => scope.environment.as_str())
                    .increment(1);
                drifts.push(Drift {
                    customer: pair.customer.clone(),
                    meter: pair.meter.clone(),
                    day: day.from,
                    difference,
                });
            }
            let checked = Checked { day: day.from, provider: there, checked_at: now };
            store::exports::reconciliation::note_checked(scope, &pair, checked).await?;
        }
        Ok(drifts)
    }
}

const MICROS_PER_DAY: i64 = 24 * MICROS_PER_HOUR;

/// Returns the last UTC day with complete usage.
fn day_before(now: Timestamp) -> Span {
    let end = (now.micros() - MARGIN_HOURS * MICROS_PER_HOUR).div_euclid(MICROS_PER_DAY) * MICROS_PER_DAY;
    let at = |micros| Timestamp::from_micros(micros).unwrap_or(now);
    Span { from: at(end - MICROS_PER_DAY), to: at(end) }
}

fn windows(span: Span, hours: i64) -> Result<Vec<Span>, EngineError> {
    let length = hours * MICROS_PER_HOUR;
    for (at, name) in [(span.from, "from"), (span.to, "to")] {
        if at.micros().rem_euclid(length) != 0 {
            let detail = if hours == 1 { "must be a full hour" } else { "must be a UTC midnight" };
            return Err(EngineError::invalid(Violation::new("not_aligned", detail).under(name)));
        }
    }
    let count = usize::try_from((span.to.micros() - span.from.micros()) / length).unwrap_or_default();
    if count == 0 || count > RECONCILED_WINDOWS_MAX {
        let detail = format!("must be after `from`, by at most {RECONCILED_WINDOWS_MAX} windows");
        return Err(EngineError::invalid(Violation::new("invalid_range", detail).under("to")));
    }
    let bound = |n: usize| {
        let n = i64::try_from(n).unwrap_or_default();
        Timestamp::from_micros(span.from.micros() + n * length).unwrap_or(span.to)
    };
    Ok((0..count).map(|n| Span { from: bound(n), to: bound(n + 1) }).collect())
}

fn sum(summaries: &[Summary]) -> Units {
    summaries.iter().filter_map(|summary| Units::parse(&summary.value)).fold(Units::default(), Units::plus)
}

/// The amounts that are compared.
struct Amounts {
    events: Vec<UnitsAt>,
    recorded: Vec<UnitsAt>,
    /// Exports, each with whether it was delivered.
    sent: Vec<(UnitsAt, bool)>,
    provider: Option<Vec<Summary>>,
}

fn compare(question: &ReconciliationQuery, windows: &[Span], amounts: &Amounts) -> Reconciled {
    let Amounts { events, recorded, sent, provider: there } = amounts;
    let there = there.as_deref();
    let mut sums: BTreeMap<Timestamp, Sums> = BTreeMap::new();
    let mut total = Sums::default();
    let window_of = |at: Timestamp| windows[..windows.partition_point(|window| window.from <= at)].last();
    let mut add = |part: &UnitsAt, to: &dyn Fn(&mut Sums)| {
        if let Some(window) = window_of(part.at) {
            to(sums.entry(window.from).or_default());
            to(&mut total);
        }
    };
    for part in events {
        add(part, &|sums| sums.events = sums.events.plus(part.units));
    }
    for part in recorded {
        add(part, &|sums| sums.recorded = sums.recorded.plus(part.units));
    }
    for (part, is_delivered) in sent {
        add(part, &|sums| {
            sums.exported = sums.exported.plus(part.units);
            if *is_delivered {
                sums.delivered = sums.delivered.plus(part.units);
            }
        });
    }
    let data = windows
        .iter()
        .map(|window| {
            let provider = there.map(|summaries| {
                let within: Vec<Summary> = summaries
                    .iter()
                    .filter(|summary| window.contains(summary.window.from))
                    .cloned()
                    .collect();
                sum(&within)
            });
            let sums = sums.get(&window.from).copied().unwrap_or_default();
            ReconciledRow {
                window_start: window.from,
                window_end: window.to,
                comparison: Comparison::new(&sums, provider),
            }
        })
        .collect();
    Reconciled {
        customer: question.customer.clone(),
        meter: question.meter.clone(),
        from: question.span.from,
        to: question.span.to,
        window: if question.by_day { "day" } else { "hour" },
        data,
        total: Comparison::new(&total, there.map(sum)),
    }
}
