//! Reading usage: rollups for whole days and hours, events for the edges, for what is not folded, and
//! for hours whose rollups are not what the events say; all in one snapshot.

pub mod customer_usage;
pub mod daily_rollups;
pub mod event_list;
pub mod events;
pub mod fold;
pub mod measures;
pub mod partial_hours;
pub mod rollup_resolution;
pub mod verify;
pub mod voids;

use std::collections::{BTreeMap, HashMap, HashSet};

use sqlx::postgres::PgRow;
use sqlx::{PgConnection, PgPool, Postgres, QueryBuilder, Row, Transaction};

use super::StoreError;
use measures::{MeasureScope, columns, join_columns, made_of, push_measures, push_paths, rollup_column};
use metergate_domain::base::environment::Environment;
use metergate_domain::base::limits::USAGE_ROWS_MAX;
use metergate_domain::base::names::PropertyName;
use metergate_domain::base::quantity::Total;
use metergate_domain::base::timestamp::Timestamp;
use metergate_domain::base::window::Span;
use metergate_domain::catalog::meter::{Aggregation, StoredMeter};
use metergate_domain::usage::query::{Aggregate, Group, GroupBySubject, UsageQuery, UsageSlice};
use metergate_domain::usage::ranking::RankPageRequest;
use metergate_domain::usage::read_plan::{PartialHour, Reading};
use partial_hours::PartialHours;
use rollup_resolution::RollupResolution;

/// One snapshot of the database, in which several statements agree.
pub async fn snapshot(pool: &PgPool) -> Result<Transaction<'static, Postgres>, StoreError> {
    Ok(pool.begin_with("begin isolation level repeatable read, read only").await?)
}

/// What the clock of the database says.
pub async fn now(connection: &mut PgConnection) -> Result<Timestamp, StoreError> {
    Ok(sqlx::query_scalar("select clock_timestamp()").fetch_one(connection).await?)
}

/// What a snapshot has to know of rollups before it trusts them.
#[derive(Debug, Default)]
pub struct RollupCoverage {
    /// By meter: hours that are not to be read from rollups.
    pub gaps: HashMap<i32, Vec<Span>>,
    /// By meter: until when its days are summed up.
    pub days_until: HashMap<i32, Timestamp>,
    /// By event name: what is not in the rollups yet.
    pub tails: HashMap<i32, UnfoldedRange>,
}

/// Batches that are not folded, and where their events lie.
#[derive(Debug, Clone)]
pub struct UnfoldedRange {
    batch_ids: Vec<i64>,
    within: Span,
}

/// What is to be known of the rollups of a meter, or of all, in a span.
pub async fn rollup_coverage(
    connection: &mut PgConnection,
    environment: Environment,
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
    .bind(environment.code())
    .bind(span.from)
    .bind(span.to)
    .bind(meter.map(|stored| stored.id))
    .bind(meter.map(|stored| stored.event_name_id))
    .fetch_all(connection)
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

/// Which of some meters have rollups on some paths in a span.
pub async fn with_rollups(
    connection: &mut PgConnection,
    environment: Environment,
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
    .bind(environment.code())
    .bind(meter_ids)
    .bind(paths)
    .bind(span.from.hour_floor())
    .bind(span.to)
    .fetch_all(connection)
    .await?;
    Ok(found.into_iter().collect())
}

/// Who has what was recorded on paths: of each pair a path, and a subject; several may have one.
#[derive(Debug, Clone, Default)]
pub struct HolderColumns {
    pub paths: Vec<i64>,
    pub subject_ids: Vec<i64>,
}

/// A question as it is read: of a meter, on some paths, none for all, between bounds.
#[derive(Debug, Clone, Copy)]
pub struct MeterQuery<'a> {
    pub stored: &'a StoredMeter,
    pub query: &'a UsageQuery,
    pub paths: Option<&'a [i64]>,
    /// For whom it is asked, each by their number; none: as the query says.
    pub holders: Option<&'a HolderColumns>,
    pub bounds: &'a [Timestamp],
    /// Whether the same is asked again and again: then its plan is kept.
    pub is_usual: bool,
}

/// Within a transaction: has questions that are usual planned once for all that they may ask. They look
/// at one path or a few, by index, whatever they ask; planning them anew takes as long as answering.
pub async fn keep_plans(connection: &mut PgConnection) -> Result<(), StoreError> {
    sqlx::raw_sql("set local plan_cache_mode = force_generic_plan").execute(connection).await?;
    Ok(())
}

/// A question, where its parts are read, and what is not in the rollups yet.
#[derive(Debug)]
pub struct PlannedQuery<'a> {
    pub meter_query: &'a MeterQuery<'a>,
    pub reading: Reading,
    pub tail: Option<&'a UnfoldedRange>,
}

impl PlannedQuery<'_> {
    /// Whether there is nothing to read.
    fn is_empty(&self) -> bool {
        self.meter_query.paths.is_some_and(<[i64]>::is_empty) || self.reading.is_empty()
    }
}

/// What a question found, by window and group.
pub type AggregatesByGroup = BTreeMap<(usize, Group), Aggregate>;

/// What each of some questions finds, which have the same groups: in one statement, since each way to the
/// database and back takes its time. Of more rows than one answer may have: one too many.
pub async fn find(
    connection: &mut PgConnection,
    environment: Environment,
    asked: &[PlannedQuery<'_>],
) -> Result<Vec<AggregatesByGroup>, StoreError> {
    let mut answers = vec![AggregatesByGroup::new(); asked.len()];
    let mut sql = QueryBuilder::default();
    let some: Vec<&PlannedQuery<'_>> = asked.iter().filter(|asked| !asked.is_empty()).collect();
    let edges = PartialHours::of(&some);
    edges.push(&mut sql, environment);
    let mut beginning = "";
    for (place, asked) in asked.iter().enumerate().filter(|(_, asked)| !asked.is_empty()) {
        sql.push(format!("{beginning}select {place} as question, answer.* from ("));
        push_question(&mut sql, environment, asked, &edges);
        sql.push(" limit ").push_bind(i64::try_from(USAGE_ROWS_MAX + 1).unwrap_or(i64::MAX));
        sql.push(") answer");
        beginning = " union all ";
    }
    let Some(PlannedQuery { meter_query, .. }) = asked.first().filter(|_| !beginning.is_empty()) else {
        return Ok(answers);
    };
    let rows = sql.build().persistent(meter_query.is_usual).fetch_all(connection).await?;
    for row in &rows {
        let place: i32 = row.try_get("question")?;
        let Some(found) = usize::try_from(place).ok().and_then(|place| answers.get_mut(place)) else {
            continue;
        };
        let window: i32 = row.try_get("w")?;
        let slice: Option<i32> = row.try_get("slice")?;
        let slice = slice.and_then(|slice| usize::try_from(slice).ok());
        let mut group = Group { subject: row.try_get("subject")?, dimensions: Vec::new(), slice };
        for index in 0..meter_query.query.group_by.len() {
            group.dimensions.push(row.try_get(format!("g{index}").as_str())?);
        }
        // width_bucket counts from 1
        found.insert((usize::try_from(window - 1).unwrap_or_default(), group), read(row)?);
    }
    Ok(answers)
}

/// Some ranks of the subjects that a question finds, which asks for each subject and between two bounds:
/// the most first, and one more where there are more.
pub async fn top(
    connection: &mut PgConnection,
    environment: Environment,
    asked: &PlannedQuery<'_>,
    ranks: RankPageRequest,
) -> Result<Vec<(String, Aggregate)>, StoreError> {
    if asked.is_empty() {
        return Ok(Vec::new());
    }
    let mut sql = QueryBuilder::default();
    let edges = PartialHours::of(&[asked]);
    edges.push(&mut sql, environment);
    sql.push("select * from (");
    push_question(&mut sql, environment, asked, &edges);
    sql.push(") found");
    sql.push(match asked.meter_query.stored.meter.aggregation {
        Aggregation::Avg => " order by sum::numeric / count",
        Aggregation::Sum | Aggregation::Count => " order by sum::numeric",
        Aggregation::Min | Aggregation::Max | Aggregation::Last | Aggregation::UniqueCount => {
            " order by picked::numeric"
        }
    });
    sql.push(" desc nulls last, subject offset ").push_bind(i64::try_from(ranks.after).unwrap_or(i64::MAX));
    sql.push(" limit ").push_bind(i64::try_from(ranks.limit + 1).unwrap_or(i64::MAX));
    let rows = sql.build().persistent(false).fetch_all(connection).await?;
    rows.iter().map(|row| Ok((row.try_get("subject")?, read(row)?))).collect()
}

fn read(row: &PgRow) -> Result<Aggregate, StoreError> {
    let total = |name: &str| -> Result<Option<Total>, StoreError> {
        let text: Option<String> = row.try_get(name)?;
        text.map(|text| Total::from_decimal(&text))
            .transpose()
            .map_err(|why| StoreError::Refused(sqlx::Error::Decode(why.into())))
    };
    Ok(Aggregate { count: row.try_get("count")?, sum: total("sum")?, picked: total("picked")? })
}

/// Everything that a question asks but how many rows.
fn push_question(
    sql: &mut QueryBuilder<Postgres>,
    environment: Environment,
    asked: &PlannedQuery<'_>,
    edges: &PartialHours<'_>,
) {
    let PlannedQuery { meter_query, reading, tail } = asked;
    let dimensions = needed_dimensions(meter_query.query);
    sql.push("with parts as (");
    let mut parts = 0;
    let mut next_part = |sql: &mut QueryBuilder<Postgres>| {
        sql.push(if parts == 0 { "" } else { " union all " });
        parts += 1;
    };
    for (resolution, spans) in
        [(RollupResolution::Day, &reading.days), (RollupResolution::Hour, &reading.hours)]
    {
        if !spans.is_empty() {
            next_part(sql);
            push_rollups(sql, environment, meter_query, &dimensions, &Buckets::Whole(resolution, spans));
        }
    }
    if !reading.partial_hours.is_empty() {
        next_part(sql);
        push_rollups(sql, environment, meter_query, &dimensions, &Buckets::Cut(&reading.partial_hours));
    }
    let folded = reading.folded();
    if let Some(tail) = tail.filter(|_| !folded.is_empty()) {
        next_part(sql);
        push_tail(sql, environment, meter_query, &dimensions, tail, &folded);
    }
    edges.push_part(sql, asked, &dimensions, next_part);
    push_grouping(sql, meter_query, &dimensions);
}

/// Whether a `unique_count` meter has counted a member on some paths, within a question.
pub async fn has_member(
    connection: &mut PgConnection,
    environment: Environment,
    stored: &StoredMeter,
    query: &UsageQuery,
    paths: &[i64],
    member: &str,
) -> Result<bool, StoreError> {
    let dimensions = needed_dimensions(query);
    let spans = [query.span];
    let mut sql = QueryBuilder::new("select coalesce(sum(sign), 0) > 0 from (");
    push_measures(&mut sql, environment, stored, &dimensions, Some(paths), &MeasureScope::Spans(&spans));
    sql.push(") measures where member = ").push_bind(member.to_owned());
    for (index, allowed) in query.filter.values().enumerate() {
        sql.push(format!(" and members[{}] = any(", index + 1)).push_bind(allowed.clone()).push(")");
    }
    Ok(sql.build_query_scalar().persistent(false).fetch_one(connection).await?)
}

/// The dimensions that are shown or looked at, once each.
pub(super) fn needed_dimensions(query: &UsageQuery) -> Vec<String> {
    let mut needed = query.group_by.clone();
    for name in query.filter.keys().chain(query.slices.iter().flat_map(|slice| slice.filter.keys())) {
        if !needed.contains(name) {
            needed.push(name.clone());
        }
    }
    needed
}

/// The place of the first slice that admits what the columns `at` and `members` say.
pub(super) fn push_slice(sql: &mut QueryBuilder<Postgres>, slices: &[UsageSlice], dimensions: &[String]) {
    if slices.is_empty() {
        sql.push("null::int");
        return;
    }
    sql.push("case");
    for (place, slice) in slices.iter().enumerate() {
        sql.push(" when true");
        for (name, allowed) in &slice.filter {
            let position = dimensions.iter().position(|d| d == name).unwrap_or_default() + 1;
            sql.push(format!(" and members[{position}] = any(")).push_bind(allowed.clone()).push(")");
        }
        if let Some(from) = slice.from {
            sql.push(" and at >= ").push_bind(from);
        }
        if let Some(to) = slice.to {
            sql.push(" and at < ").push_bind(to);
        }
        sql.push(format!(" then {place}"));
    }
    sql.push(" end");
}

/// Which rollups are looked at.
#[derive(Debug)]
enum Buckets<'a> {
    /// Those that lie in the spans.
    Whole(RollupResolution, &'a [Span]),
    /// Those of hours, as if they were of their larger parts alone.
    Cut(&'a [PartialHour]),
}

/// Columns of a part: `path_id`, `at`, `members`, `count`, the rollup columns of the aggregation, and
/// for `unique_count` `member`. What lies between two edges is one to whoever asks: it is added up
/// before dimensions and members are looked at, which cost more than adding.
fn push_rollups(
    sql: &mut QueryBuilder<Postgres>,
    environment: Environment,
    meter_query: &MeterQuery<'_>,
    dimensions: &[String],
    buckets: &Buckets<'_>,
) {
    let MeterQuery { stored, query, paths, holders, bounds, .. } = *meter_query;
    let unique = stored.meter.aggregation == Aggregation::UniqueCount;
    let position = |name: &String| {
        stored.meter.dimensions.iter().map(PropertyName::as_str).position(|d| d == name).unwrap_or_default()
            + 1
    };
    sql.push("select r.path_id, r.at, ");
    if dimensions.is_empty() {
        sql.push("'{}'::text[] as members");
    } else {
        let members: Vec<String> =
            dimensions.iter().map(|name| format!("d.members[{}]", position(name))).collect();
        sql.push(format!("array[{}]::text[] as members", members.join(", ")));
    }
    sql.push(if unique { ", r.count, r.member" } else { ", r.count" });
    if let Some(name) = rollup_column(stored.meter.aggregation) {
        sql.push(format!(", r.{name}"));
    }
    sql.push(" from (select ");
    let by_path = holders.is_some() || query.whose != GroupBySubject::All;
    sql.push(if by_path { "path_id" } else { "null::bigint as path_id" });
    let resolution = match buckets {
        Buckets::Whole(resolution, _) => *resolution,
        Buckets::Cut(_) => RollupResolution::Hour,
    };
    let start = resolution.word();
    let at = if matches!(buckets, Buckets::Cut(_)) { "cut.at" } else { start };
    sql.push(format!(", min({at}) as at, dimension_set_id"));
    sql.push(if unique { ", sum(refs) as count, member" } else { ", sum(count) as count" });
    if let Some(name) = rollup_column(stored.meter.aggregation) {
        sql.push(format!(", {} as {name}", join_columns(name).0));
    }
    let table = if unique { resolution.members() } else { resolution.rollups() };
    let push_identity = |sql: &mut QueryBuilder<Postgres>| {
        sql.push(" where environment = ").push_bind(environment.code());
        sql.push(" and meter_id = ").push_bind(stored.id);
        push_paths(sql, "path_id", paths);
    };
    match buckets {
        Buckets::Whole(_, [span]) => {
            sql.push(format!(" from {table}"));
            push_identity(sql);
            sql.push(format!(" and {start} >= ")).push_bind(span.from);
            sql.push(format!(" and {start} < ")).push_bind(span.to);
        }
        Buckets::Whole(_, spans) => {
            let (from, to) = columns(spans);
            sql.push(" from unnest(").push_bind(from).push(", ").push_bind(to);
            sql.push(format!(") as span (s, e) cross join lateral (select * from {table}"));
            push_identity(sql);
            sql.push(format!(" and {start} >= span.s and {start} < span.e offset 0) r"));
        }
        Buckets::Cut(partial_hours) => {
            let (hours, at): (Vec<_>, Vec<_>) =
                partial_hours.iter().map(|cut| (cut.hour.from, cut.part.from)).unzip();
            sql.push(" from unnest(").push_bind(hours).push(", ").push_bind(at);
            sql.push(format!(") as cut (hour, at) cross join lateral (select * from {table}"));
            push_identity(sql);
            sql.push(format!(" and {start} = cut.hour offset 0) r"));
        }
    }
    sql.push(format!(" group by width_bucket({at}, "))
        .push_bind(query.edges(bounds))
        .push("), dimension_set_id");
    sql.push(if by_path { ", path_id" } else { "" }).push(if unique { ", member) r" } else { ") r" });
    if !dimensions.is_empty() {
        sql.push(" join dimension_sets d on d.id = r.dimension_set_id");
    }
}

/// The same of what is not folded yet.
fn push_tail(
    sql: &mut QueryBuilder<Postgres>,
    environment: Environment,
    meter_query: &MeterQuery<'_>,
    dimensions: &[String],
    UnfoldedRange { batch_ids, within }: &UnfoldedRange,
    spans: &[Span],
) {
    let MeterQuery { stored, query, paths, bounds, .. } = *meter_query;
    let unique = stored.meter.aggregation == Aggregation::UniqueCount;
    let edges = query.edges(bounds);
    sql.push("select path_id, min(at) as at, members, sum(sign)::bigint");
    match rollup_column(stored.meter.aggregation) {
        None => sql.push(", text_digest(member)"),
        Some(name) => sql.push(format!(", {}", made_of(name, "number"))),
    };
    // the first part of a union names its columns: those of rollups, or these
    sql.push(" from (");
    let scope = MeasureScope::BatchesWithin { batch_ids, within: *within, spans };
    push_measures(sql, environment, stored, dimensions, paths, &scope);
    sql.push(") measures group by path_id, members, width_bucket(at, ").push_bind(edges).push(")");
    sql.push(if unique { ", member" } else { "" });
}

fn push_grouping(sql: &mut QueryBuilder<Postgres>, meter_query: &MeterQuery<'_>, dimensions: &[String]) {
    let MeterQuery { stored, query, holders, bounds, .. } = *meter_query;
    let aggregation = stored.meter.aggregation;
    let unique = aggregation == Aggregation::UniqueCount;
    let joined = rollup_column(aggregation);
    sql.push("), named (path_id, at, members, count");
    if unique {
        sql.push(", member");
    }
    if let Some(name) = joined {
        sql.push(format!(", {name}"));
    }
    sql.push(") as (select * from parts), grouped as (select width_bucket(at, ").push_bind(bounds.to_vec());
    sql.push(") as w");
    sql.push(match query.whose {
        _ if holders.is_some() => ", holder.subject_id::text as subject",
        GroupBySubject::All => ", null::text as subject",
        GroupBySubject::EachSubject => ", s.subject",
        GroupBySubject::EachPath => ", named.path_id::text as subject",
    });
    sql.push(", ");
    push_slice(sql, &query.slices, dimensions);
    sql.push(" as slice");
    for index in 0..query.group_by.len() {
        sql.push(format!(", members[{}] as g{index}", index + 1));
    }
    sql.push(if unique { ", member" } else { "" });
    sql.push(", sum(count)::bigint as count");
    let shown = match joined {
        Some("sum") => "sum(sum)::text as sum, null::text as picked".to_owned(),
        Some("last") => "null::text as sum, (max(last))[4]::text as picked".to_owned(),
        Some(name) => format!("null::text as sum, {}::text as picked", join_columns(name).0),
        None => "null::text as sum, null::text as picked".to_owned(),
    };
    sql.push(format!(", {shown} from named"));
    if let Some(HolderColumns { paths, subject_ids }) = holders {
        sql.push(" join unnest(").push_bind(paths.clone()).push(", ").push_bind(subject_ids.clone());
        sql.push(") as holder (path_id, subject_id) on holder.path_id = named.path_id");
    } else if query.whose == GroupBySubject::EachSubject {
        sql.push(" join paths p on p.id = named.path_id join subjects s on s.id = p.subject_id");
    }
    let mut conjunction = " where ";
    for (name, allowed) in &query.filter {
        let position = dimensions.iter().position(|d| d == name).unwrap_or_default() + 1;
        sql.push(format!("{conjunction}members[{position}] = any(")).push_bind(allowed.clone()).push(")");
        conjunction = " and ";
    }
    let keys = 3 + query.group_by.len();
    let list = |count: usize| (1..=count).map(|n| n.to_string()).collect::<Vec<_>>().join(", ");
    sql.push(format!(" group by {} having sum(count) <> 0", list(keys + usize::from(unique))));
    if unique {
        let groups: Vec<String> = (0..query.group_by.len()).map(|index| format!(", g{index}")).collect();
        let groups = groups.concat();
        let of_member = format!("partition by subject, slice{groups}, member");
        let (from, fresh) = if query.tells_new {
            let first = format!("min(w) filter (where count > 0) over ({of_member})");
            let from = format!("(select *, {first} as first_w from grouped) grouped");
            (from, "(count(*) filter (where w = first_w))::text")
        } else {
            ("grouped".to_owned(), "null::text")
        };
        sql.push(format!(
            ") select w, subject, slice{groups}, sum(count)::bigint as count, {fresh} as sum,
               (count(*) filter (where count > 0))::text as picked
             from {from} group by {}",
            list(keys)
        ));
    } else {
        sql.push(") select * from grouped");
    }
}
