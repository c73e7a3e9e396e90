//! Folding: moves unfolded batches into rollups, and rebuilds rollups that no longer match their
//! events. One transaction folds an environment at a time, over all replicas, and does not block
//! recording.

use sqlx::{PgConnection, QueryBuilder, Row};

use crate::store::StoreError;
use crate::store::scope::Scope;
use crate::store::usage::measures::{MeasureScope, Measures, join_columns, made_of, rollup_column};
use crate::store::usage::rollup_resolution::RollupResolution;
use crate::store::usage::{UsageScope, daily_rollups};
use metergate_domain::base::limits::DIMENSION_SETS_PER_METER_MAX;
use metergate_domain::base::names::PropertyName;
use metergate_domain::base::timestamp::MICROS_PER_HOUR;
use metergate_domain::base::{Environment, Span, Timestamp};
use metergate_domain::catalog::{Aggregation, StoredMeter};

const LOCK: i32 = 0x4d47_0003;

/// The events that one transaction rebuilds. The last hour may exceed the limit.
const BUILD_EVENTS_MAX: i64 = 200_000;

/// Takes the fold lock of the environment until the transaction ends. Returns false if another
/// transaction holds the lock. Lifts the time limits of the transaction, because no caller waits for
/// it and a canceled fold would have to start again.
pub async fn try_lock(scope: &mut Scope<'_>) -> Result<bool, StoreError> {
    sqlx::raw_sql("set local statement_timeout = 0; set local work_mem = '64MB'")
        .execute(&mut *scope.connection)
        .await?;
    let locked = sqlx::query_scalar("select pg_try_advisory_xact_lock($1, $2)")
        .bind(LOCK)
        .bind(i32::from(scope.environment.code()))
        .fetch_one(&mut *scope.connection)
        .await?;
    Ok(locked)
}

/// Counts the events that are recorded but not folded.
pub async fn unfolded_events(scope: &mut Scope<'_>) -> Result<i64, StoreError> {
    let count = sqlx::query_scalar(
        "select coalesce(sum(event_count), 0)::bigint from unfolded where environment = $1",
    )
    .bind(scope.environment.code())
    .fetch_one(&mut *scope.connection)
    .await?;
    Ok(count)
}

/// Returns the latest unfolded batch.
pub async fn last_unfolded(scope: &mut Scope<'_>) -> Result<Option<i64>, StoreError> {
    let last = sqlx::query_scalar("select max(batch_id) from unfolded where environment = $1")
        .bind(scope.environment.code())
        .fetch_one(&mut *scope.connection)
        .await?;
    Ok(last)
}

/// Returns whether any batch up to a number is unfolded.
pub async fn has_unfolded(scope: &mut Scope<'_>, last: i64) -> Result<bool, StoreError> {
    let found =
        sqlx::query_scalar("select exists (select from unfolded where environment = $1 and batch_id <= $2)")
            .bind(scope.environment.code())
            .bind(last)
            .fetch_one(&mut *scope.connection)
            .await?;
    Ok(found)
}

/// Unfolded batches that this transaction has claimed.
#[derive(Debug, Default)]
pub struct ClaimedBatches {
    pub batch_ids: Vec<i64>,
    pub event_count: i64,
    pub event_name_ids: Vec<i32>,
    /// The times of the first and the last event, both inclusive.
    pub(crate) within: Option<Span>,
}

/// The claimed batches with events for one meter.
#[derive(Debug, Clone, Copy)]
pub struct MeterBatches<'a> {
    pub environment: Environment,
    pub stored: &'a StoredMeter,
    pub claimed: &'a ClaimedBatches,
}

/// Claims the oldest batches, up to a number of events.
pub async fn take(
    scope: &mut Scope<'_>,
    batches_max: i64,
    events_max: i64,
) -> Result<ClaimedBatches, StoreError> {
    let rows = sqlx::query(
        "delete from unfolded u using (
             select batch_id from (
                 select batch_id, sum(event_count) over (order by batch_id) - event_count as before
                 from (select batch_id, event_count from unfolded where environment = $1
                       order by batch_id limit $2) oldest) counted
             where before < $3) chosen
         where u.batch_id = chosen.batch_id
         returning u.batch_id, u.first_at, u.last_at, u.event_count, u.event_name_ids",
    )
    .bind(scope.environment.code())
    .bind(batches_max)
    .bind(events_max)
    .fetch_all(&mut *scope.connection)
    .await?;
    let mut taken = ClaimedBatches::default();
    for row in rows {
        let (first, last): (Timestamp, Timestamp) = (row.try_get("first_at")?, row.try_get("last_at")?);
        let count: i32 = row.try_get("event_count")?;
        let names: Vec<i32> = row.try_get("event_name_ids")?;
        taken.batch_ids.push(row.try_get("batch_id")?);
        taken.event_count += i64::from(count);
        taken.event_name_ids.extend(names);
        taken.within = Some(taken.within.map_or(Span { from: first, to: last }, |within| Span {
            from: within.from.min(first),
            to: within.to.max(last),
        }));
    }
    taken.event_name_ids.sort_unstable();
    taken.event_name_ids.dedup();
    Ok(taken)
}

/// Adds the claimed batches to the hourly rollups of a meter, and to the daily rollups that exist
/// already.
pub async fn fold_meter(
    connection: &mut PgConnection,
    batches: MeterBatches<'_>,
    days_until: Option<Timestamp>,
) -> Result<(), StoreError> {
    let MeterBatches { environment, stored, claimed } = batches;
    let Some(within) = claimed.within else { return Ok(()) };
    let batch_ids = &claimed.batch_ids;
    let measure_scope = MeasureScope::Batches { batch_ids, within };
    let scope = &mut Scope::new(connection, environment);
    add_to_rollups(scope, stored, RollupResolution::Hour, &measure_scope).await?;
    let summed = Span { from: within.from, to: days_until.unwrap_or(Timestamp::MIN) };
    if summed.is_empty() {
        return Ok(());
    }
    let measure_scope = MeasureScope::BatchesWithin { batch_ids, within, spans: &[summed] };
    add_to_rollups(scope, stored, RollupResolution::Day, &measure_scope).await
}

/// Adds the measures of a scope to the rollups.
async fn add_to_rollups(
    scope: &mut Scope<'_>,
    stored: &StoredMeter,
    resolution: RollupResolution,
    measure_scope: &MeasureScope<'_>,
) -> Result<(), StoreError> {
    let (table, start) = (resolution.rollups(), resolution.word());
    let dimensions = dimensions_of(stored);
    let aggregation = stored.meter.aggregation;
    let column = rollup_column(aggregation);

    let mut sql = QueryBuilder::new("with measures as (");
    let (environment, usage, events) = (scope.environment, UsageScope::All, measure_scope.clone());
    Measures { environment, stored, dimensions: &dimensions, usage, events }.push(&mut sql);
    let bucket = resolution.start_of("at");
    sql.push(format!(
        "), grouped as materialized (select path_id, {bucket} as {start}, members, sum(sign) as count"
    ));
    if let Some(name) = column {
        sql.push(format!(", {} as {name}", made_of(name, "number")));
    }
    sql.push(" from measures group by 1, 2, 3), sets as materialized (select members, text_digest(members::text) as digest from (select members from grouped group by members) few),");
    sql.push(" fresh as (insert into dimension_sets (environment, meter_id, digest, members) select ");
    sql.push_bind(scope.environment.code()).push(", ").push_bind(stored.id);
    sql.push(", digest, members from sets on conflict on constraint dimension_sets_digest do nothing returning id, members),");
    sql.push(" known as (select id, members from fresh union all select d.id, s.members from sets s join dimension_sets d on d.digest = s.digest and d.meter_id = ");
    sql.push_bind(stored.id);
    sql.push(format!(
        ") insert into {table} as kept (environment, meter_id, path_id, {start}, dimension_set_id, count"
    ));
    if let Some(name) = column {
        sql.push(format!(", {name}"));
    }
    sql.push(") select ").push_bind(scope.environment.code()).push(", ").push_bind(stored.id);
    sql.push(format!(", g.path_id, g.{start}, k.id, g.count"));
    if let Some(name) = column {
        sql.push(format!(", g.{name}"));
    }
    sql.push(format!(
        " from grouped g join known k on k.members = g.members order by g.path_id, g.{start}, k.id
         on conflict on constraint {table}_pk do update set count = kept.count + excluded.count"
    ));
    if let Some(name) = column {
        sql.push(format!(", {name} = {}", join_columns(name).1));
    }
    sql.build().persistent(false).execute(&mut *scope.connection).await?;

    if aggregation == Aggregation::UniqueCount {
        add_members(scope, stored, resolution, measure_scope).await?;
    }
    Ok(())
}

fn dimensions_of(stored: &StoredMeter) -> Vec<String> {
    stored.meter.dimensions.iter().cloned().map(PropertyName::into_string).collect()
}

async fn add_members(
    scope: &mut Scope<'_>,
    stored: &StoredMeter,
    resolution: RollupResolution,
    measure_scope: &MeasureScope<'_>,
) -> Result<(), StoreError> {
    let dimensions = dimensions_of(stored);
    let (table, start, bucket) = (resolution.members(), resolution.word(), resolution.start_of("at"));
    let mut sql = QueryBuilder::new("with measures as (");
    let (environment, usage, events) = (scope.environment, UsageScope::All, measure_scope.clone());
    Measures { environment, stored, dimensions: &dimensions, usage, events }.push(&mut sql);
    sql.push(format!("), grouped as (select path_id, {bucket} as {start}, members, member, sum(sign) as refs from measures group by 1, 2, 3, 4)"));
    sql.push(format!(" insert into {table} as kept (environment, meter_id, path_id, {start}, dimension_set_id, member, refs) select "));
    sql.push_bind(scope.environment.code()).push(", ").push_bind(stored.id);
    sql.push(format!(", g.path_id, g.{start}, d.id, text_digest(g.member), g.refs from grouped g join dimension_sets d on d.digest = text_digest(g.members::text) and d.meter_id = "));
    sql.push_bind(stored.id);
    sql.push(format!(" order by 3, 4, 5, 6 on conflict on constraint {table}_pk do update set refs = kept.refs + excluded.refs"));
    sql.build().persistent(false).execute(&mut *scope.connection).await?;
    Ok(())
}

/// Hours of a meter that must be rebuilt.
#[derive(Debug, Clone, Copy)]
pub struct Gap {
    pub id: i64,
    pub meter_id: i32,
    pub span: Span,
}

/// Returns the oldest gap that is not permanent.
pub async fn next_gap(scope: &mut Scope<'_>) -> Result<Option<Gap>, StoreError> {
    let row = sqlx::query(
        "select id, meter_id, from_hour, to_hour from rollup_gaps where environment = $1 and not permanent
         order by id limit 1",
    )
    .bind(scope.environment.code())
    .fetch_optional(&mut *scope.connection)
    .await?;
    row.map(|row| {
        let span = Span { from: row.try_get("from_hour")?, to: row.try_get("to_hour")? };
        Ok(Gap { id: row.try_get("id")?, meter_id: row.try_get("meter_id")?, span })
    })
    .transpose()
}

/// Rebuilds the first hours of a gap and removes them from the gap. They have at most
/// [`BUILD_EVENTS_MAX`] events, or are a single hour.
pub async fn build(
    scope: &mut Scope<'_>,
    stored: &StoredMeter,
    gap: &Gap,
    days_until: Option<Timestamp>,
) -> Result<(), StoreError> {
    let chunk = match nth_event(scope, gap.span, 0).await? {
        None => gap.span,
        Some(first) => {
            let hour = Timestamp::from_micros(first.hour_floor().micros() + MICROS_PER_HOUR);
            let least = hour.unwrap_or(Timestamp::MAX);
            let beyond = nth_event(scope, gap.span, BUILD_EVENTS_MAX).await?;
            let end = beyond.map_or(gap.span.to, |beyond| beyond.hour_floor().max(least));
            Span { from: gap.span.from, to: end.min(gap.span.to) }
        }
    };
    // read before the events, so that the rebuilt hours include the voids behind these marks
    let marks: Vec<i64> = sqlx::query_scalar(
        "select id from rollup_gaps
         where environment = $1 and meter_id = $2 and from_hour >= $3 and to_hour <= $4 and id <> $5",
    )
    .bind(scope.environment.code())
    .bind(stored.id)
    .bind(chunk.from)
    .bind(chunk.to)
    .bind(gap.id)
    .fetch_all(&mut *scope.connection)
    .await?;
    daily_rollups::delete(scope, stored, RollupResolution::Hour, chunk).await?;
    add_to_rollups(scope, stored, RollupResolution::Hour, &MeasureScope::Folded(chunk)).await?;
    let summed = chunk.to.day_ceil().min(days_until.unwrap_or(Timestamp::MIN));
    let days = Span { from: chunk.from.day_floor(), to: summed };
    if !days.is_empty() {
        // a day with an hour still in a gap is wrong until that hour is rebuilt, and is not read
        // until then
        daily_rollups::rebuild_days(scope, stored, days).await?;
    }
    sqlx::query("delete from rollup_gaps where id = any($1)")
        .bind(marks)
        .execute(&mut *scope.connection)
        .await?;
    let rest = Span { from: chunk.to, to: gap.span.to };
    if rest.is_empty() || nth_event(scope, rest, 0).await?.is_none() {
        sqlx::query("delete from rollup_gaps where id = $1")
            .bind(gap.id)
            .execute(&mut *scope.connection)
            .await?;
    } else {
        sqlx::query("update rollup_gaps set from_hour = $2 where id = $1")
            .bind(gap.id)
            .bind(rest.from)
            .execute(&mut *scope.connection)
            .await?;
    }
    Ok(())
}

/// Returns the time of the event with an index in a span, in order of time.
async fn nth_event(scope: &mut Scope<'_>, within: Span, n: i64) -> Result<Option<Timestamp>, StoreError> {
    let first = sqlx::query_scalar(
        "select occurred_at from events where environment = $1 and occurred_at >= $2 and occurred_at < $3
         order by occurred_at offset $4 limit 1",
    )
    .bind(scope.environment.code())
    .bind(within.from)
    .bind(within.to)
    .bind(n)
    .fetch_optional(&mut *scope.connection)
    .await?;
    Ok(first)
}

/// Drops the rollups of a meter permanently if it has too many combinations of dimension values.
/// Returns whether it did.
pub async fn drop_if_too_many_sets(scope: &mut Scope<'_>, stored: &StoredMeter) -> Result<bool, StoreError> {
    let sets: i64 = sqlx::query_scalar(
        "select count(*) from (select from dimension_sets where meter_id = $1 limit $2) s",
    )
    .bind(stored.id)
    .bind(DIMENSION_SETS_PER_METER_MAX + 1)
    .fetch_one(&mut *scope.connection)
    .await?;
    if sets <= DIMENSION_SETS_PER_METER_MAX {
        return Ok(false);
    }
    let kept =
        RollupResolution::ALL.into_iter().flat_map(|resolution| [resolution.rollups(), resolution.members()]);
    for table in kept.chain(["summed_days", "rollup_gaps", "dimension_sets"]) {
        let delete = format!("delete from {table} where meter_id = $1");
        sqlx::query(sqlx::AssertSqlSafe(delete)).bind(stored.id).execute(&mut *scope.connection).await?;
    }
    crate::store::catalog::insert_gap(scope, stored.id, true).await?;
    Ok(true)
}

/// Returns the meters with a permanent gap, which are not folded.
pub async fn permanent_gaps(scope: &mut Scope<'_>) -> Result<Vec<i32>, StoreError> {
    let ids = sqlx::query_scalar("select meter_id from rollup_gaps where environment = $1 and permanent")
        .bind(scope.environment.code())
        .fetch_all(&mut *scope.connection)
        .await?;
    Ok(ids)
}
