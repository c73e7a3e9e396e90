//! Reading usage in a snapshot: from rollups where it can be, from events where it must.

use std::collections::BTreeMap;

use sqlx::PgConnection;

use super::EngineError;
use crate::domain::environment::Environment;
use crate::domain::meter::StoredMeter;
use crate::domain::timestamp::Timestamp;
use crate::domain::usage::{Found, Group, Reading, UsageQuery, UsageRow, rows};
use crate::domain::window::Span;
use crate::store;

/// The rows that answer a question.
pub(super) async fn answer(
    snapshot: &mut PgConnection,
    environment: Environment,
    stored: &StoredMeter,
    query: &UsageQuery,
) -> Result<Vec<UsageRow>, EngineError> {
    let paths = if query.subjects.is_empty() {
        None
    } else {
        let names: Vec<String> = query.subjects.iter().map(ToString::to_string).collect();
        Some(store::subjects::path_ids(snapshot, environment, &names, query.descendants).await?)
    };
    answer_on(snapshot, environment, stored, query, paths.as_deref()).await
}

/// The same for usage on some paths; none for all.
pub(super) async fn answer_on(
    snapshot: &mut PgConnection,
    environment: Environment,
    stored: &StoredMeter,
    query: &UsageQuery,
    paths: Option<&[i64]>,
) -> Result<Vec<UsageRow>, EngineError> {
    let bounds = query.bounds()?;
    let found = found_on(snapshot, environment, stored, query, paths, &bounds).await?;
    Ok(rows(query, stored.meter.aggregation, &bounds, found)?)
}

/// What is found between bounds, by their number, and group.
pub(super) async fn found_on(
    snapshot: &mut PgConnection,
    environment: Environment,
    stored: &StoredMeter,
    query: &UsageQuery,
    paths: Option<&[i64]>,
    bounds: &[Timestamp],
) -> Result<BTreeMap<(usize, Group), Found>, EngineError> {
    if paths.is_some_and(<[i64]>::is_empty) {
        return Ok(BTreeMap::new());
    }
    let gaps: Vec<Span> = store::usage::gaps(snapshot, environment, stored.id, query.span).await?;
    let reading = Reading::plan(query.span, &query.edges(bounds), &gaps);
    Ok(store::usage::find(snapshot, environment, stored, query, paths, bounds, &reading).await?)
}

/// Whether a `unique_count` meter has counted a member already, within a question.
pub(super) async fn has_member(
    snapshot: &mut PgConnection,
    environment: Environment,
    stored: &StoredMeter,
    query: &UsageQuery,
    member: &str,
) -> Result<bool, EngineError> {
    let names: Vec<String> = query.subjects.iter().map(ToString::to_string).collect();
    let paths = store::subjects::path_ids(snapshot, environment, &names, query.descendants).await?;
    Ok(store::usage::has_member(snapshot, environment, stored, query, &paths, member).await?)
}
