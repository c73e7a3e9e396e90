//! The measures of a meter, in SQL: the quantities that it counts from events. Folding, reading and
//! verification share this definition, and `Meter::measure` implements it for a single event. An
//! event that is bound to a meter, because a commit recorded it, counts for that meter alone and with
//! its value.
//!
//! A relation of measures has these columns:
//! - `path_id`, `customer_id`, `at`, `sign`, `number`
//! - `members`: the values of the selected dimensions, in order
//! - `mark`: for `last`
//! - `member`: for `unique_count`, as text; rollups store its digest, computed once per distinct
//!   member
//! - `live`: whether the event is recorded and not voided

use sqlx::{Postgres, QueryBuilder};

use super::query::{Dimensions, MeterQuery, UsageScope};
use metergate_domain::base::{Environment, Span, Timestamp};
use metergate_domain::catalog::{Aggregation, Meter, StoredMeter};

/// The events to read.
#[derive(Debug, Clone)]
pub(crate) enum MeasureScope<'a> {
    /// Events of some batches, all within a span.
    Batches { batch_ids: &'a [i64], within: Span },
    /// Events of some batches that also lie in one of the spans.
    BatchesWithin { batch_ids: &'a [i64], within: Span, spans: &'a [Span] },
    /// Events within the spans.
    Spans(&'a [Span]),
    /// Events in a span that have been folded.
    Folded(Span),
}

/// The measures of a meter, with the events and dimensions to select.
#[derive(Debug, Clone)]
pub(crate) struct Measures<'a> {
    pub(crate) environment: Environment,
    pub(crate) stored: &'a StoredMeter,
    pub(crate) dimensions: &'a [String],
    pub(crate) usage: UsageScope<'a>,
    pub(crate) events: MeasureScope<'a>,
}

impl<'a> Measures<'a> {
    /// Selects the measures that a query may read.
    pub(super) fn of(
        meter_query: &MeterQuery<'a>,
        dimensions: &'a Dimensions,
        events: MeasureScope<'a>,
    ) -> Self {
        let MeterQuery { environment, stored, scope: usage, .. } = *meter_query;
        Self { environment, stored, dimensions: dimensions.names(), usage, events }
    }

    /// Writes `select …`.
    pub(crate) fn push(&self, sql: &mut QueryBuilder<Postgres>) {
        let meter = &self.stored.meter;
        sql.push("select * from (select e.path_id, e.customer_id, e.occurred_at as at, e.sign, array[");
        for (index, dimension) in self.dimensions.iter().enumerate() {
            sql.push(if index == 0 { "" } else { ", " });
            push_dimension(sql, dimension);
        }
        sql.push("]::text[] as members, ");
        if meter.aggregation == Aggregation::UniqueCount {
            push_member(sql, meter);
        } else {
            push_number(sql, meter);
            sql.push(" as number");
        }
        if meter.aggregation == Aggregation::Last {
            sql.push(", e.batch_id, e.ordinal");
        }
        if meter.aggregation.is_order_statistic() {
            sql.push(", ").push(LIVE).push(" as live");
        }
        match &self.events {
            // a separate look-up per span, so that each one uses the index
            MeasureScope::Spans(spans) if spans.len() > 1 => {
                let (from, to) = columns(spans);
                sql.push(" from unnest(").push_bind(from).push(", ").push_bind(to);
                sql.push(") as span (s, e) cross join lateral (select * from events e where ");
                self.push_identity(sql);
                sql.push(" and e.occurred_at >= span.s and e.occurred_at < span.e offset 0) e where true");
            }
            _ => {
                sql.push(" from events e where ");
                self.push_identity(sql);
            }
        }
        for (property, allowed) in meter.filter.iter() {
            sql.push(" and (e.meter_id is not null or dimension_value(e.properties -> ");
            sql.push_bind(property.to_owned()).push(") = any(").push_bind(allowed.to_vec()).push("))");
        }
        push_measure_scope(sql, &self.events);
        sql.push(") measure where number is not null");
    }

    fn push_identity(&self, sql: &mut QueryBuilder<Postgres>) {
        sql.push("e.environment = ").push_bind(self.environment.code());
        sql.push(" and e.event_name_id = ").push_bind(self.stored.event_name_id);
        sql.push(" and (e.meter_id is null or e.meter_id = ").push_bind(self.stored.id).push(")");
        self.usage.push(sql);
    }
}

/// The condition that an event `e` is recorded and not voided.
pub(super) const LIVE: &str =
    "e.sign = 1 and not exists (select from voids v where v.environment = e.environment and v.key = e.key)";

/// Writes the value of a dimension of an event `e`, as text.
pub(super) fn push_dimension(sql: &mut QueryBuilder<Postgres>, name: &str) {
    sql.push("dimension_value(e.properties -> ").push_bind(name.to_owned()).push(")");
}

/// Writes the quantity that a meter counts from an event `e`, or null. An event that is bound to a
/// meter provides its value.
pub(super) fn push_number(sql: &mut QueryBuilder<Postgres>, meter: &Meter) {
    let bindable = matches!(meter.aggregation, Aggregation::Sum | Aggregation::Count);
    sql.push(if bindable { "case when e.meter_id is not null then e.value else " } else { "" });
    match (meter.aggregation, meter.property()) {
        (Aggregation::Count, _) => sql.push("1::numeric"),
        (_, None) => sql.push("e.value"),
        (_, Some(property)) => {
            sql.push("quantity_value(e.properties -> ").push_bind(property.to_owned()).push(")")
        }
    };
    sql.push(if bindable { " end" } else { "" });
}

/// Writes the member that `unique_count` counts from an event `e`, and the number 1 for it.
fn push_member(sql: &mut QueryBuilder<Postgres>, meter: &Meter) {
    match meter.property() {
        None => drop(sql.push("1::numeric as number, trim_scale(e.value)::text as member")),
        Some(property) => {
            sql.push("case when ");
            push_dimension(sql, property);
            sql.push(" is not null then 1::numeric end as number, ");
            push_dimension(sql, property);
            sql.push(" as member");
        }
    }
}

/// The condition that the batch of an event `e` has been folded, after `and`.
pub(super) const NOT_UNFOLDED: &str =
    " and not exists (select from unfolded u where u.batch_id = e.batch_id)";

fn push_measure_scope(sql: &mut QueryBuilder<Postgres>, measure_scope: &MeasureScope<'_>) {
    match measure_scope {
        MeasureScope::Batches { batch_ids, within } => push_batches(sql, batch_ids, *within),
        MeasureScope::BatchesWithin { batch_ids, within, spans } => {
            push_batches(sql, batch_ids, *within);
            let (from, to) = columns(spans);
            sql.push(" and exists (select from unnest(").push_bind(from).push(", ").push_bind(to);
            sql.push(") as span (s, e) where e.occurred_at >= span.s and e.occurred_at < span.e)");
        }
        MeasureScope::Spans([span]) => push_span(sql, *span),
        // already joined
        MeasureScope::Spans(_) => {}
        MeasureScope::Folded(span) => {
            push_span(sql, *span);
            sql.push(NOT_UNFOLDED);
        }
    }
}

fn push_batches(sql: &mut QueryBuilder<Postgres>, batch_ids: &[i64], within: Span) {
    sql.push(" and e.batch_id = any(").push_bind(batch_ids.to_vec()).push(")");
    // both ends are inclusive, because they are times of events
    sql.push(" and e.occurred_at >= ").push_bind(within.from);
    sql.push(" and e.occurred_at <= ").push_bind(within.to);
}

fn push_span(sql: &mut QueryBuilder<Postgres>, span: Span) {
    sql.push(" and e.occurred_at >= ").push_bind(span.from).push(" and e.occurred_at < ").push_bind(span.to);
}

pub(super) fn columns(spans: &[Span]) -> (Vec<Timestamp>, Vec<Timestamp>) {
    spans.iter().map(|span| (span.from, span.to)).unzip()
}

/// Returns the rollup column that an aggregation fills in addition to `count`; none for members.
pub(crate) fn rollup_column(aggregation: Aggregation) -> Option<&'static str> {
    match aggregation {
        Aggregation::Sum | Aggregation::Count | Aggregation::Avg => Some("sum"),
        Aggregation::UniqueCount => None,
        Aggregation::Min => Some("min"),
        Aggregation::Max => Some("max"),
        Aggregation::Last => Some("last"),
    }
}

/// Returns the aggregate that computes a rollup column from measures with a `number`.
pub(crate) fn made_of(column: &str, number: &str) -> String {
    match column {
        "sum" => format!("sum(case when sign = 1 then {number} else -{number} end)"),
        "min" => format!("min({number}) filter (where live)"),
        "max" => format!("max({number}) filter (where live)"),
        _ => format!(
            "max(array[extract(epoch from at), batch_id, ordinal, {number}]) filter (where live and {number} is not null)"
        ),
    }
}

/// Returns two ways to combine rollup columns of the same name: an aggregate, and an update of a
/// `kept` row.
pub(crate) fn join_columns(column: &str) -> (&'static str, &'static str) {
    match column {
        "sum" => ("sum(sum)", "kept.sum + excluded.sum"),
        "min" => ("min(min)", "least(kept.min, excluded.min)"),
        "max" => ("max(max)", "greatest(kept.max, excluded.max)"),
        _ => ("max(last)", "greatest(kept.last, excluded.last)"),
    }
}
