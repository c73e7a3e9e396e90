//! Events of partial hours, which no rollup contains. Queries of the same events share one read,
//! which sums up the events before each query filters them.

use sqlx::{Postgres, QueryBuilder};

use super::measures::{LIVE, NOT_UNFOLDED, columns, made_of, push_dimension, push_number, rollup_column};
use super::query::{Dimensions, MeterQuery, PlannedQuery, UsageScope};
use crate::store::StoreError;
use metergate_domain::base::{Environment, Span, Timestamp};
use metergate_domain::catalog::{Aggregation, Meter};
use metergate_domain::usage::PartialHour;

/// The events that the queries read, by event name and scope.
#[derive(Debug, Default)]
pub(super) struct PartialHours<'a>(Vec<PartialHourSpan<'a>>);

/// The events of one name and scope in some spans, with the columns that the queries need.
#[derive(Debug)]
struct PartialHourSpan<'a> {
    environment: Environment,
    event_name_id: i32,
    scope: UsageScope<'a>,
    /// The spans in order, without duplicates.
    spans: Vec<Span>,
    /// The times at which queries split their rows. No query distinguishes times between two bounds.
    bounds: Vec<Timestamp>,
    texts: Vec<Text>,
    /// One meter for each aggregation and property.
    meters: Vec<&'a Meter>,
    by_path: bool,
    /// True if a query subtracts events from rollups, which contain only folded events.
    has_cuts: bool,
}

/// A text that events are grouped by.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Text {
    Property(String),
    /// The value of the event, in the format of members.
    Value,
}

impl Text {
    /// Returns the text of the member that a meter counts.
    fn member(meter: &Meter) -> Self {
        meter.property().map_or(Self::Value, |property| Self::Property(property.to_owned()))
    }

    fn push(&self, sql: &mut QueryBuilder<Postgres>) {
        match self {
            Self::Property(name) => push_dimension(sql, name),
            Self::Value => drop(sql.push("trim_scale(e.value)::text")),
        }
    }
}

fn is_unique(meter: &Meter) -> bool {
    meter.aggregation == Aggregation::UniqueCount
}

/// Returns whether two meters count the same quantities from events.
fn is_alike(one: &Meter, other: &Meter) -> bool {
    one.aggregation == other.aggregation && one.property() == other.property()
}

impl<'a> PartialHours<'a> {
    pub(super) fn of(asked: &[&'a PlannedQuery<'a>]) -> Self {
        let mut edges = Self::default();
        for asked in asked.iter().filter(|asked| has_some(asked)) {
            let place = edges.place(asked.meter_query).unwrap_or_else(|| {
                edges.0.push(PartialHourSpan::new(asked.meter_query));
                edges.0.len() - 1
            });
            edges.0[place].note(asked);
        }
        edges
    }

    /// Returns the index of the relation that a query reads.
    fn place(&self, meter_query: &MeterQuery<'_>) -> Option<usize> {
        let name = meter_query.stored.event_name_id;
        self.0.iter().position(|edge| edge.event_name_id == name && edge.scope == meter_query.scope)
    }

    /// Writes `with …` of the relations that [`PartialHours::push_part`] reads, or nothing without
    /// relations.
    pub(super) fn push(&self, sql: &mut QueryBuilder<Postgres>) {
        for (place, edge) in self.0.iter().enumerate() {
            sql.push(if place == 0 { "with " } else { ", " });
            sql.push(format!("edge_{place} as materialized ("));
            edge.push(sql);
            sql.push(") ");
        }
    }

    /// Writes the part of a query that comes from events, with the columns of every part. Writes
    /// nothing for a query without such a part.
    pub(super) fn push_part(
        &self,
        sql: &mut QueryBuilder<Postgres>,
        asked: &PlannedQuery<'_>,
        dimensions: &Dimensions,
        mut next_part: impl FnMut(&mut QueryBuilder<Postgres>),
    ) -> Result<(), StoreError> {
        let Some(place) = self.place(asked.meter_query) else { return Ok(()) };
        let (edge, meter) = (&self.0[place], &asked.meter_query.stored.meter);
        if !asked.reading.events.is_empty() {
            next_part(sql);
            sql.push("select path_id, at, ");
            edge.push_columns(sql, meter, dimensions, "")?;
            sql.push(format!(" from edge_{place} where n = any("));
            sql.push_bind(asked.reading.events.iter().map(|span| edge.number(*span)).collect::<Vec<_>>());
            sql.push(")");
            edge.push_conditions(sql, asked.meter_query)?;
        }
        if !asked.reading.partial_hours.is_empty() {
            next_part(sql);
            let rest = |cut: &PartialHour| {
                let at = cut.part.from;
                cut.complement().map(move |span| (edge.number(span), at))
            };
            let (numbers, at): (Vec<i64>, Vec<Timestamp>) =
                asked.reading.partial_hours.iter().flat_map(rest).unzip();
            sql.push("select path_id, cut.at as at, ");
            edge.push_columns(sql, meter, dimensions, "-")?;
            sql.push(format!(" from edge_{place} join unnest(")).push_bind(numbers).push(", ").push_bind(at);
            sql.push(") as cut (n, at) using (n) where is_folded");
            edge.push_conditions(sql, asked.meter_query)?;
        }
        Ok(())
    }
}

/// Returns whether a query reads events of partial hours.
fn has_some(asked: &PlannedQuery<'_>) -> bool {
    !asked.reading.events.is_empty() || !asked.reading.partial_hours.is_empty()
}

impl<'a> PartialHourSpan<'a> {
    fn new(meter_query: &MeterQuery<'a>) -> Self {
        Self {
            environment: meter_query.environment,
            event_name_id: meter_query.stored.event_name_id,
            scope: meter_query.scope,
            spans: Vec::new(),
            bounds: Vec::new(),
            texts: Vec::new(),
            meters: Vec::new(),
            by_path: false,
            has_cuts: false,
        }
    }

    /// Adds the spans, bounds, texts and meters of a query.
    fn note(&mut self, asked: &'a PlannedQuery<'a>) {
        let MeterQuery { stored, query, bounds, .. } = *asked.meter_query;
        let meter = &stored.meter;
        let spans = asked.reading.events.iter().copied();
        self.spans.extend(spans.chain(asked.reading.partial_hours.iter().flat_map(PartialHour::complement)));
        self.spans.sort_unstable_by_key(|span| (span.from, span.to));
        self.spans.dedup();
        self.bounds.extend(query.edges(bounds));
        self.bounds.sort_unstable();
        self.bounds.dedup();
        let filters = meter.filter.iter().map(|(property, _)| property.to_owned());
        for name in Dimensions::needed(query).names().iter().cloned().chain(filters) {
            add(&mut self.texts, Text::Property(name));
        }
        if is_unique(meter) {
            add(&mut self.texts, Text::member(meter));
        } else if !self.meters.iter().any(|known| is_alike(known, meter)) {
            self.meters.push(meter);
        }
        self.has_cuts |= !asked.reading.partial_hours.is_empty();
        self.by_path |= asked.meter_query.is_by_path();
    }

    /// Returns the number of a span, counted from 1.
    fn number(&self, span: Span) -> i64 {
        let place = self.spans.binary_search_by_key(&(span.from, span.to), |known| (known.from, known.to));
        place.map_or(0, |place| i64::try_from(place + 1).unwrap_or_default())
    }

    fn column_of(&self, meter: &Meter) -> Result<usize, StoreError> {
        let place = self.meters.iter().position(|known| is_alike(known, meter));
        place.ok_or_else(|| {
            StoreError::internal(format!("the relation has no column for the meter `{}`", meter.key))
        })
    }

    fn column_of_text(&self, text: &Text) -> Result<usize, StoreError> {
        let place = self.texts.iter().position(|known| known == text);
        place.ok_or_else(|| StoreError::internal(format!("the relation has no column for {text:?}")))
    }

    /// Writes `select …`.
    fn push(&self, sql: &mut QueryBuilder<Postgres>) {
        sql.push("select n, path_id, meter_id, min(at) as at, sum(sign)::bigint as count");
        let groups = self.groups();
        sql.push(&groups);
        for (place, meter) in self.meters.iter().enumerate() {
            let number = format!("number_{place}");
            sql.push(format!(
                ", coalesce(sum(sign) filter (where {number} is not null), 0)::bigint as count_{place}"
            ));
            if let Some(name) = rollup_column(meter.aggregation) {
                sql.push(format!(", {} as {name}_{place}", made_of(name, &number)));
            }
        }
        sql.push(" from (select n, e.occurred_at as at, e.sign, e.meter_id, e.batch_id, e.ordinal, ");
        sql.push(if self.by_path { "e.path_id" } else { "null::bigint as path_id" });
        if self.has_cuts {
            sql.push(", true").push(NOT_UNFOLDED).push(" as is_folded");
        }
        for (place, text) in self.texts.iter().enumerate() {
            sql.push(", ");
            text.push(sql);
            sql.push(format!(" as text_{place}"));
        }
        for (place, meter) in self.meters.iter().enumerate() {
            sql.push(", ");
            push_number(sql, meter);
            sql.push(format!(" as number_{place}"));
        }
        if self.meters.iter().any(|meter| meter.aggregation.is_order_statistic()) {
            sql.push(", ").push(LIVE).push(" as live");
        }
        if let [span] = self.spans[..] {
            sql.push(" from (select 1::bigint as n, * from events e");
            self.push_identity(sql);
            sql.push(" and e.occurred_at >= ").push_bind(span.from);
            sql.push(" and e.occurred_at < ").push_bind(span.to).push(") e) e");
        } else {
            // a separate look-up per span, so that each one uses the index
            let (from, to) = columns(&self.spans);
            sql.push(" from unnest(").push_bind(from).push(", ").push_bind(to);
            sql.push(") with ordinality as span (s, e, n) cross join lateral (select * from events e");
            self.push_identity(sql);
            sql.push(" and e.occurred_at >= span.s and e.occurred_at < span.e offset 0) e) e");
        }
        sql.push(" group by n, path_id, meter_id, width_bucket(at, ")
            .push_bind(self.bounds.clone())
            .push(")");
        sql.push(groups);
    }

    fn push_identity(&self, sql: &mut QueryBuilder<Postgres>) {
        sql.push(" where e.environment = ").push_bind(self.environment.code());
        sql.push(" and e.event_name_id = ").push_bind(self.event_name_id);
        self.scope.push(sql);
    }

    /// Returns the columns that rows are grouped by in addition to time, path and meter, each after a
    /// comma.
    fn groups(&self) -> String {
        let folded = self.has_cuts.then(|| ", is_folded".to_owned());
        folded.into_iter().chain((0..self.texts.len()).map(|place| format!(", text_{place}"))).collect()
    }

    /// Writes the columns of a part after `path_id` and `at`. `sign` is `-` for a subtraction.
    fn push_columns(
        &self,
        sql: &mut QueryBuilder<Postgres>,
        meter: &Meter,
        dimensions: &Dimensions,
        sign: &str,
    ) -> Result<(), StoreError> {
        let text =
            |name: &String| Ok(format!("text_{}", self.column_of_text(&Text::Property(name.clone()))?));
        let members: Result<Vec<String>, StoreError> = dimensions.names().iter().map(text).collect();
        sql.push(format!("array[{}]::text[] as members, ", members?.join(", ")));
        if is_unique(meter) {
            let member = self.column_of_text(&Text::member(meter))?;
            sql.push(format!("{sign}count, text_digest(text_{member})"));
            return Ok(());
        }
        let place = self.column_of(meter)?;
        sql.push(format!("{sign}count_{place}"));
        if let Some(name) = rollup_column(meter.aggregation) {
            sql.push(format!(", {sign}{name}_{place}"));
        }
        Ok(())
    }

    /// Writes the conditions on the rows that a query reads.
    fn push_conditions(
        &self,
        sql: &mut QueryBuilder<Postgres>,
        meter_query: &MeterQuery<'_>,
    ) -> Result<(), StoreError> {
        let MeterQuery { stored, .. } = *meter_query;
        sql.push(" and (meter_id is null or meter_id = ").push_bind(stored.id).push(")");
        for (property, allowed) in stored.meter.filter.iter() {
            let text = self.column_of_text(&Text::Property(property.to_owned()))?;
            sql.push(format!(" and (meter_id is not null or text_{text} = any("));
            sql.push_bind(allowed.to_vec()).push("))");
        }
        if is_unique(&stored.meter) {
            let member = self.column_of_text(&Text::member(&stored.meter))?;
            sql.push(format!(" and text_{member} is not null"));
        }
        Ok(())
    }
}

fn add<T: PartialEq>(known: &mut Vec<T>, one: T) {
    if !known.contains(&one) {
        known.push(one);
    }
}
