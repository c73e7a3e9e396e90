//! Reads usage in a snapshot, from rollups where possible and otherwise from events.

use sqlx::PgConnection;

use crate::engine::error::EngineError;
use crate::store::usage::{AggregatesByGroup, MeterQuery, RollupCoverage, UsageScope};
use crate::store::{self, Scope, StoreError};
use metergate_domain::base::{Span, Timestamp, Total};
use metergate_domain::catalog::StoredMeter;
use metergate_domain::usage::query::rows;
use metergate_domain::usage::{Subjects, UsageQuery, UsageRow};

/// The most queries in one statement.
const QUERIES_TOGETHER_MAX: usize = 16;

/// Returns the rows that answer a query.
pub(crate) async fn answer(
    scope: &mut Scope<'_>,
    stored: &StoredMeter,
    query: &UsageQuery,
) -> Result<Vec<UsageRow>, EngineError> {
    let paths = paths(scope, query).await?;
    let bounds = query.bounds()?;
    let meter_query =
        MeterQuery::new(scope.environment, stored, query, usage_scope(paths.as_deref()), &bounds);
    let found = read(scope.connection, &meter_query).await?;
    Ok(rows(query, stored.meter.aggregation, &bounds, found)?)
}

/// Returns the value of a query without windows and groups, or zero without usage.
pub(crate) async fn value(
    scope: &mut Scope<'_>,
    stored: &StoredMeter,
    query: &UsageQuery,
) -> Result<Total, StoreError> {
    let paths = paths(scope, query).await?;
    let bounds = [query.span.from, query.span.to];
    let meter_query =
        MeterQuery::new(scope.environment, stored, query, usage_scope(paths.as_deref()), &bounds);
    let found = read(scope.connection, &meter_query).await?.into_values().next().unwrap_or_default();
    Ok(found.value(stored.meter.aggregation).unwrap_or_default())
}

/// Returns the usage of a customer in adjacent windows, by their starts.
pub(crate) async fn customer_sums(
    scope: &mut Scope<'_>,
    stored: &StoredMeter,
    customer_id: i64,
    windows: &[Span],
) -> Result<Vec<(Timestamp, Total)>, StoreError> {
    let (Some(first), Some(last)) = (windows.first(), windows.last()) else { return Ok(Vec::new()) };
    let query = UsageQuery::internal(&stored.meter.key, Span { from: first.from, to: last.to });
    let bounds: Vec<Timestamp> = windows.iter().map(|window| window.from).chain([last.to]).collect();
    let usage = UsageScope::Customer { customer_id, paths: None };
    let meter_query = MeterQuery::new(scope.environment, stored, &query, usage, &bounds);
    let found = read(scope.connection, &meter_query).await?;
    let sums = found.into_iter().filter_map(|((index, _), found)| Some((*bounds.get(index)?, found.sum?)));
    Ok(sums.collect())
}

/// Returns whether a `unique_count` meter already counts a member within a query.
pub(crate) async fn has_member(
    scope: &mut Scope<'_>,
    stored: &StoredMeter,
    query: &UsageQuery,
    member: &str,
) -> Result<bool, StoreError> {
    let paths = paths(scope, query).await?;
    let meter_query = MeterQuery::new(scope.environment, stored, query, usage_scope(paths.as_deref()), &[]);
    store::usage::has_member(scope.connection, &meter_query, member).await
}

/// Answers a query, by window and group.
pub(crate) async fn read(
    snapshot: &mut PgConnection,
    meter_query: &MeterQuery<'_>,
) -> Result<AggregatesByGroup, StoreError> {
    let MeterQuery { environment, stored, query, .. } = *meter_query;
    let rollup_coverage =
        store::usage::rollup_coverage(&mut Scope::new(snapshot, environment), Some(stored), query.span)
            .await?;
    let answers = read_each(snapshot, &rollup_coverage, std::slice::from_ref(meter_query)).await?;
    Ok(answers.into_iter().next().unwrap_or_default())
}

/// Answers queries with the same groups, in their order.
pub(crate) async fn read_each(
    snapshot: &mut PgConnection,
    rollup_coverage: &RollupCoverage,
    meter_queries: &[MeterQuery<'_>],
) -> Result<Vec<AggregatesByGroup>, StoreError> {
    let mut answers = Vec::with_capacity(meter_queries.len());
    for meter_queries in meter_queries.chunks(QUERIES_TOGETHER_MAX) {
        let asked: Vec<_> =
            meter_queries.iter().map(|meter_query| rollup_coverage.plan(meter_query)).collect();
        answers.extend(store::usage::find(snapshot, &asked).await?);
    }
    Ok(answers)
}

/// Returns the paths of a query's subjects, or none for all subjects.
pub(crate) async fn paths(scope: &mut Scope<'_>, query: &UsageQuery) -> Result<Option<Vec<i64>>, StoreError> {
    let Subjects::Listed(names) = &query.subjects else { return Ok(None) };
    let found = store::subjects::subject::path_ids(scope, names.as_slice(), query.descendants);
    found.await.map(Some)
}

/// Returns the scope of the given paths, or of all paths if none are given.
pub(crate) fn usage_scope(paths: Option<&[i64]>) -> UsageScope<'_> {
    paths.map_or(UsageScope::All, UsageScope::Paths)
}
