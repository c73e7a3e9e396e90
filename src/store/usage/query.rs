//! Usage queries of the store: their scope, their bounds, and the rollups that can answer them.

use std::collections::{HashMap, HashSet};

use sqlx::{Postgres, QueryBuilder, Row};

use crate::store::StoreError;
use crate::store::scope::Scope;
use metergate_domain::base::{Environment, Span, Timestamp};
use metergate_domain::catalog::StoredMeter;
use metergate_domain::usage::{GroupBySubject, Reading, Rollups, UsageQuery, UsageSlice};

/// The ranges in which rollups agree with the events of a snapshot.
#[derive(Debug, Default)]
pub struct RollupCoverage {
    /// The hours that must not be read from rollups, by meter.
    pub gaps: HashMap<i32, Vec<Span>>,
    /// The end of the days with rollups, by meter.
    pub days_until: HashMap<i32, Timestamp>,
    /// The unfolded batches, by event name.
    pub tails: HashMap<i32, UnfoldedRange>,
}

/// The unfolded batches and the time range of their events.
#[derive(Debug, Clone)]
pub struct UnfoldedRange {
    pub(super) batch_ids: Vec<i64>,
    pub(super) within: Span,
}

impl RollupCoverage {
    /// Returns whether all usage of a meter is in its rollups.
    pub fn is_folded(&self, stored: &StoredMeter) -> bool {
        !self.gaps.contains_key(&stored.id) && !self.tails.contains_key(&stored.event_name_id)
    }

    /// Plans the sources of an answer. Usage of customers is read from events, because rollups do not
    /// contain customers.
    pub fn plan<'a>(&'a self, meter_query: &'a MeterQuery<'_>) -> PlannedQuery<'a> {
        let MeterQuery { stored, query, bounds, .. } = *meter_query;
        if matches!(meter_query.scope, UsageScope::Customer { .. }) {
            return PlannedQuery { meter_query, reading: Reading::of_events(query.span), tail: None };
        }
        let rollups = Rollups {
            gaps: self.gaps.get(&stored.id).map_or(&[][..], Vec::as_slice),
            days_until: self.days_until.get(&stored.id).copied(),
            subtract: !stored.meter.aggregation.is_order_statistic(),
        };
        let reading = Reading::plan(query.span, &query.edges(bounds), rollups);
        PlannedQuery { meter_query, reading, tail: self.tails.get(&stored.event_name_id) }
    }
}

/// Reads the coverage of rollups in a span, for one meter or for all.
pub async fn rollup_coverage(
    scope: &mut Scope<'_>,
    meter: Option<&StoredMeter>,
    span: Span,
) -> Result<RollupCoverage, StoreError> {
    let rows = sqlx::query(
        "select 'gap' as kind, meter_id as id, from_hour as first, to_hour as last, null::bigint[] as batch_ids
         from rollup_gaps
         where environment = $1 and meter_id = coalesce($4, meter_id) and from_hour < $3 and to_hour > $2
         union all
         select 'days', meter_id, until, until, null from summed_days
         where environment = $1 and meter_id = coalesce($4, meter_id)
         union all
         select 'tail', name, min(first_at), max(last_at), array_agg(batch_id)
         from unfolded cross join unnest(event_name_ids) name
         where environment = $1 and first_at < $3 and last_at >= $2 and name = coalesce($5, name)
         group by name",
    )
    .bind(scope.environment.code())
    .bind(span.from)
    .bind(span.to)
    .bind(meter.map(|stored| stored.id))
    .bind(meter.map(|stored| stored.event_name_id))
    .fetch_all(&mut *scope.connection)
    .await?;
    let mut rollup_coverage = RollupCoverage::default();
    for row in &rows {
        let id: i32 = row.try_get("id")?;
        let within = Span { from: row.try_get("first")?, to: row.try_get("last")? };
        match row.try_get::<&str, _>("kind")? {
            "gap" => rollup_coverage.gaps.entry(id).or_default().push(within),
            "days" => drop(rollup_coverage.days_until.insert(id, within.to)),
            _ => drop(
                rollup_coverage
                    .tails
                    .insert(id, UnfoldedRange { batch_ids: row.try_get("batch_ids")?, within }),
            ),
        }
    }
    Ok(rollup_coverage)
}

/// Returns the meters, of those given, that have rollups on some paths in a span.
pub async fn with_rollups(
    scope: &mut Scope<'_>,
    meter_ids: &[i32],
    paths: &[i64],
    span: Span,
) -> Result<HashSet<i32>, StoreError> {
    let found = sqlx::query_scalar(
        "select id from unnest($2::int[]) id
         where exists (select from rollups r where r.environment = $1 and r.meter_id = id and r.path_id = any($3)
                                               and r.hour >= $4 and r.hour < $5)
            or exists (select from rollup_members r where r.environment = $1 and r.meter_id = id and r.path_id = any($3)
                                                      and r.hour >= $4 and r.hour < $5)",
    )
    .bind(scope.environment.code())
    .bind(meter_ids)
    .bind(paths)
    .bind(span.from.hour_floor())
    .bind(span.to)
    .fetch_all(&mut *scope.connection)
    .await?;
    Ok(found.into_iter().collect())
}

/// The usage that a query may read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UsageScope<'a> {
    All,
    Paths(&'a [i64]),
    /// Events that were recorded for a customer, with their possible paths if these are known.
    Customer {
        customer_id: i64,
        paths: Option<&'a [i64]>,
    },
}

impl<'a> UsageScope<'a> {
    /// Returns the paths to read; none for all paths.
    pub(super) fn paths(self) -> Option<&'a [i64]> {
        match self {
            Self::All => None,
            Self::Paths(paths) => Some(paths),
            Self::Customer { paths, .. } => paths,
        }
    }

    /// Writes the scope as one more condition on events `e`.
    pub(super) fn push(self, sql: &mut QueryBuilder<Postgres>) {
        push_paths(sql, "e.path_id", self.paths());
        if let Self::Customer { customer_id, .. } = self {
            sql.push(" and e.customer_id = ").push_bind(customer_id);
        }
    }
}

/// Subjects and the paths of their usage, as pairs. Several subjects may share a path.
#[derive(Debug, Clone, Default)]
pub struct HolderColumns {
    pub paths: Vec<i64>,
    pub subject_ids: Vec<i64>,
}

/// A query of a meter within a scope, between bounds.
#[derive(Debug, Clone, Copy)]
pub struct MeterQuery<'a> {
    pub environment: Environment,
    pub stored: &'a StoredMeter,
    pub query: &'a UsageQuery,
    pub scope: UsageScope<'a>,
    /// The subjects that rows show, by number. None means the subjects of the query.
    pub holders: Option<&'a HolderColumns>,
    pub bounds: &'a [Timestamp],
    /// True if the query is frequent, so that its plan is kept.
    pub is_usual: bool,
}

impl<'a> MeterQuery<'a> {
    /// Creates a query that shows the subjects of `query`, without a kept plan.
    pub fn new(
        environment: Environment,
        stored: &'a StoredMeter,
        query: &'a UsageQuery,
        usage_scope: UsageScope<'a>,
        bounds: &'a [Timestamp],
    ) -> Self {
        Self { environment, stored, query, scope: usage_scope, holders: None, bounds, is_usual: false }
    }

    /// Returns whether rows distinguish paths.
    pub(super) fn is_by_path(&self) -> bool {
        self.holders.is_some() || self.query.whose != GroupBySubject::All
    }
}

/// A query, the sources of its parts, and the unfolded batches.
#[derive(Debug)]
pub struct PlannedQuery<'a> {
    pub meter_query: &'a MeterQuery<'a>,
    pub reading: Reading,
    pub tail: Option<&'a UnfoldedRange>,
}

impl PlannedQuery<'_> {
    /// Returns whether there is nothing to read.
    pub(super) fn is_empty(&self) -> bool {
        self.meter_query.scope.paths().is_some_and(<[i64]>::is_empty) || self.reading.is_empty()
    }
}

/// The dimensions in the column `members` of a relation, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Dimensions(Vec<String>);

impl Dimensions {
    /// Returns the dimensions that a query shows or filters by, without duplicates, groups first.
    pub(super) fn needed(query: &UsageQuery) -> Self {
        let mut needed = query.group_by.clone();
        for name in query.filter.keys().chain(query.slices.iter().flat_map(|slice| slice.filter.keys())) {
            if !needed.contains(name) {
                needed.push(name.clone());
            }
        }
        Self(needed)
    }

    pub(super) fn of(stored: &StoredMeter) -> Self {
        Self(stored.meter.dimensions.iter().map(ToString::to_string).collect())
    }

    pub(super) fn names(&self) -> &[String] {
        &self.0
    }

    /// Returns the position of a dimension in the column, counted from 1. A missing dimension is an
    /// error: the value of another dimension would lead to a wrong price.
    pub(super) fn place(&self, name: &str) -> Result<usize, StoreError> {
        let place = self.0.iter().position(|known| known == name).map(|place| place + 1);
        place.ok_or_else(|| {
            StoreError::internal(format!("the dimension `{name}` is missing; the relation has {:?}", self.0))
        })
    }

    /// Writes the conditions of a filter on its dimensions, each after ` and `.
    pub(super) fn push_filter<'f>(
        &self,
        sql: &mut QueryBuilder<Postgres>,
        filter: impl IntoIterator<Item = (&'f String, &'f Vec<String>)>,
    ) -> Result<(), StoreError> {
        for (name, allowed) in filter {
            sql.push(format!(" and members[{}] = any(", self.place(name)?));
            sql.push_bind(allowed.clone()).push(")");
        }
        Ok(())
    }

    /// Writes the index of the first slice that accepts the columns `at` and `members`.
    pub(super) fn push_slice(
        &self,
        sql: &mut QueryBuilder<Postgres>,
        slices: &[UsageSlice],
    ) -> Result<(), StoreError> {
        if slices.is_empty() {
            sql.push("null::int");
            return Ok(());
        }
        sql.push("case");
        for (place, slice) in slices.iter().enumerate() {
            sql.push(" when true");
            self.push_filter(sql, &slice.filter)?;
            if let Some(from) = slice.from {
                sql.push(" and at >= ").push_bind(from);
            }
            if let Some(to) = slice.to {
                sql.push(" and at < ").push_bind(to);
            }
            sql.push(format!(" then {place}"));
        }
        sql.push(" end");
        Ok(())
    }
}

/// Restricts a column to some paths.
pub(crate) fn push_paths(sql: &mut QueryBuilder<Postgres>, column: &str, paths: Option<&[i64]>) {
    match paths {
        None => {}
        Some([path]) => {
            sql.push(format!(" and {column} = ")).push_bind(*path);
        }
        Some(paths) => {
            sql.push(format!(" and {column} = any(")).push_bind(paths.to_vec()).push(")");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use metergate_domain::base::names::MeterKey;
    use metergate_domain::base::window::utc_month;

    fn query(group_by: &[&str], filter: &[&str]) -> UsageQuery {
        let meter = MeterKey::parse("calls").unwrap();
        let any = |name: &&str| ((*name).to_owned(), vec!["x".to_owned()]);
        UsageQuery {
            group_by: group_by.iter().map(|name| (*name).to_owned()).collect(),
            filter: filter.iter().map(any).collect(),
            ..UsageQuery::internal(&meter, utc_month(Timestamp::MIN))
        }
    }

    #[test]
    fn needed_dimensions_are_listed_once() {
        let dimensions = Dimensions::needed(&query(&["model", "region"], &["region", "tier"]));
        assert_eq!(dimensions.names(), ["model", "region", "tier"]);
        assert_eq!(dimensions.place("tier").unwrap(), 3);
    }

    #[test]
    fn a_missing_dimension_is_an_error() {
        let dimensions = Dimensions::needed(&query(&["model"], &[]));
        assert!(matches!(dimensions.place("tier"), Err(StoreError::Refused(_))));
        let mut sql = QueryBuilder::default();
        assert!(dimensions.push_filter(&mut sql, &query(&[], &["tier"]).filter).is_err());
        let filter = query(&[], &["tier"]).filter;
        let slices = [UsageSlice { filter, from: None, to: None }];
        assert!(dimensions.push_slice(&mut sql, &slices).is_err());
    }
}
