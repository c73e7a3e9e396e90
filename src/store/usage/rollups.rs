//! The SQL of a usage query: rollups of whole days and hours, unfolded batches, and the grouping of
//! all parts.

use sqlx::{Postgres, QueryBuilder};

use super::measures::{MeasureScope, Measures, columns, join_columns, made_of, rollup_column};
use super::partial_hours::PartialHours;
use super::query::{Dimensions, HolderColumns, MeterQuery, PlannedQuery, UnfoldedRange, push_paths};
use super::rollup_resolution::RollupResolution;
use crate::store::StoreError;
use metergate_domain::base::Span;
use metergate_domain::catalog::Aggregation;
use metergate_domain::usage::{GroupBySubject, PartialHour, UsageQuery};

/// Writes a query, without a limit of rows.
pub(super) fn push_question(
    sql: &mut QueryBuilder<Postgres>,
    asked: &PlannedQuery<'_>,
    edges: &PartialHours<'_>,
) -> Result<(), StoreError> {
    let PlannedQuery { meter_query, reading, tail } = asked;
    let dimensions = Dimensions::needed(meter_query.query);
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
            push_rollups(sql, meter_query, &dimensions, &Buckets::Whole(resolution, spans))?;
        }
    }
    if !reading.partial_hours.is_empty() {
        next_part(sql);
        push_rollups(sql, meter_query, &dimensions, &Buckets::Cut(&reading.partial_hours))?;
    }
    let folded = reading.folded();
    if let Some(tail) = tail.filter(|_| !folded.is_empty()) {
        next_part(sql);
        push_tail(sql, meter_query, &dimensions, tail, &folded);
    }
    edges.push_part(sql, asked, &dimensions, next_part)?;
    push_grouping(sql, meter_query, &dimensions)
}

/// The rollups to read.
#[derive(Debug)]
enum Buckets<'a> {
    /// Rollups within the spans.
    Whole(RollupResolution, &'a [Span]),
    /// Hourly rollups, dated to the larger part of their hour.
    Cut(&'a [PartialHour]),
}

/// Writes the columns of a part: `path_id`, `at`, `members`, `count`, the rollup columns of the
/// aggregation, and `member` for `unique_count`. Rollups between the same two edges are summed up
/// first, because the look-up of dimensions and members costs more.
fn push_rollups(
    sql: &mut QueryBuilder<Postgres>,
    meter_query: &MeterQuery<'_>,
    dimensions: &Dimensions,
    buckets: &Buckets<'_>,
) -> Result<(), StoreError> {
    let MeterQuery { stored, query, bounds, .. } = *meter_query;
    let unique = stored.meter.aggregation == Aggregation::UniqueCount;
    let column = rollup_column(stored.meter.aggregation);
    sql.push("select r.path_id, r.at, ");
    push_members(sql, &Dimensions::of(stored), dimensions)?;
    sql.push(if unique { ", r.count, r.member" } else { ", r.count" });
    if let Some(name) = column {
        sql.push(format!(", r.{name}"));
    }
    sql.push(" from (select ");
    sql.push(if meter_query.is_by_path() { "path_id" } else { "null::bigint as path_id" });
    let at = match buckets {
        Buckets::Whole(resolution, _) => resolution.word(),
        Buckets::Cut(_) => "cut.at",
    };
    sql.push(format!(", min({at}) as at, dimension_set_id"));
    sql.push(if unique { ", sum(refs) as count, member" } else { ", sum(count) as count" });
    if let Some(name) = column {
        sql.push(format!(", {} as {name}", join_columns(name).0));
    }
    push_buckets(sql, meter_query, buckets);
    sql.push(format!(" group by width_bucket({at}, "))
        .push_bind(query.edges(bounds))
        .push("), dimension_set_id");
    sql.push(if meter_query.is_by_path() { ", path_id" } else { "" });
    sql.push(if unique { ", member) r" } else { ") r" });
    if !dimensions.names().is_empty() {
        sql.push(" join dimension_sets d on d.id = r.dimension_set_id");
    }
    Ok(())
}

/// Writes the needed dimensions of a rollup.
fn push_members(
    sql: &mut QueryBuilder<Postgres>,
    kept: &Dimensions,
    needed: &Dimensions,
) -> Result<(), StoreError> {
    let members: Result<Vec<String>, StoreError> =
        needed.names().iter().map(|name| Ok(format!("d.members[{}]", kept.place(name)?))).collect();
    sql.push(format!("array[{}]::text[] as members", members?.join(", ")));
    Ok(())
}

/// Writes the rollups of a query.
fn push_buckets(sql: &mut QueryBuilder<Postgres>, meter_query: &MeterQuery<'_>, buckets: &Buckets<'_>) {
    let resolution = match buckets {
        Buckets::Whole(resolution, _) => *resolution,
        Buckets::Cut(_) => RollupResolution::Hour,
    };
    let unique = meter_query.stored.meter.aggregation == Aggregation::UniqueCount;
    let (table, start) =
        (if unique { resolution.members() } else { resolution.rollups() }, resolution.word());
    let push_identity = |sql: &mut QueryBuilder<Postgres>| {
        sql.push(" where environment = ").push_bind(meter_query.environment.code());
        sql.push(" and meter_id = ").push_bind(meter_query.stored.id);
        push_paths(sql, "path_id", meter_query.scope.paths());
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
}

/// Writes the same columns for unfolded events.
fn push_tail(
    sql: &mut QueryBuilder<Postgres>,
    meter_query: &MeterQuery<'_>,
    dimensions: &Dimensions,
    UnfoldedRange { batch_ids, within }: &UnfoldedRange,
    spans: &[Span],
) {
    let MeterQuery { stored, query, bounds, .. } = *meter_query;
    let unique = stored.meter.aggregation == Aggregation::UniqueCount;
    let edges = query.edges(bounds);
    sql.push("select path_id, min(at) as at, members, sum(sign)::bigint");
    match rollup_column(stored.meter.aggregation) {
        None => sql.push(", text_digest(member)"),
        Some(name) => sql.push(format!(", {}", made_of(name, "number"))),
    };
    // the first part of a union names the columns, so these names are those of rollups
    sql.push(" from (");
    let scope = MeasureScope::BatchesWithin { batch_ids, within: *within, spans };
    Measures::of(meter_query, dimensions, scope).push(sql);
    sql.push(") measures group by path_id, members, width_bucket(at, ").push_bind(edges).push(")");
    sql.push(if unique { ", member" } else { "" });
}

fn push_grouping(
    sql: &mut QueryBuilder<Postgres>,
    meter_query: &MeterQuery<'_>,
    dimensions: &Dimensions,
) -> Result<(), StoreError> {
    let MeterQuery { stored, query, bounds, .. } = *meter_query;
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
    push_groups(sql, meter_query, dimensions)?;
    sql.push(if unique { ", member" } else { "" });
    sql.push(", sum(count)::bigint as count");
    let shown = match joined {
        Some("sum") => "sum(sum)::text as sum, null::text as picked".to_owned(),
        Some("last") => "null::text as sum, (max(last))[4]::text as picked".to_owned(),
        Some(name) => format!("null::text as sum, {}::text as picked", join_columns(name).0),
        None => "null::text as sum, null::text as picked".to_owned(),
    };
    sql.push(format!(", {shown} from named"));
    push_subjects(sql, meter_query);
    sql.push(" where true");
    dimensions.push_filter(sql, &query.filter)?;
    let keys = KEYS + query.group_by.len();
    sql.push(format!(" group by {} having sum(count) <> 0)", first_columns(keys + usize::from(unique))));
    if unique {
        push_members_counted(sql, meter_query);
    } else {
        sql.push(" select * from grouped");
    }
    Ok(())
}

/// The number of columns that identify rows in addition to the groups: `w`, `subject` and `slice`.
const KEYS: usize = 3;

fn first_columns(count: usize) -> String {
    (1..=count).map(|n| n.to_string()).collect::<Vec<_>>().join(", ")
}

/// Writes `subject`, `slice` and the groups, each after a comma. [`push_subjects`] joins the
/// relations that they use.
pub(super) fn push_groups(
    sql: &mut QueryBuilder<Postgres>,
    meter_query: &MeterQuery<'_>,
    dimensions: &Dimensions,
) -> Result<(), StoreError> {
    sql.push(match meter_query.query.whose {
        _ if meter_query.holders.is_some() => ", holder.subject_id::text as subject",
        GroupBySubject::All => ", null::text as subject",
        GroupBySubject::EachSubject => ", s.subject",
        GroupBySubject::EachPath => ", named.path_id::text as subject",
    });
    sql.push(", ");
    dimensions.push_slice(sql, &meter_query.query.slices)?;
    sql.push(" as slice");
    for (index, name) in meter_query.query.group_by.iter().enumerate() {
        sql.push(format!(", members[{}] as g{index}", dimensions.place(name)?));
    }
    Ok(())
}

/// Joins the subjects to a relation `named`.
pub(super) fn push_subjects(sql: &mut QueryBuilder<Postgres>, meter_query: &MeterQuery<'_>) {
    if let Some(HolderColumns { paths, subject_ids }) = meter_query.holders {
        sql.push(" join unnest(").push_bind(paths.clone()).push(", ").push_bind(subject_ids.clone());
        sql.push(") as holder (path_id, subject_id) on holder.path_id = named.path_id");
    } else if meter_query.query.whose == GroupBySubject::EachSubject {
        sql.push(" join paths p on p.id = named.path_id join subjects s on s.id = p.subject_id");
    }
}

/// Returns the columns of the groups, each after a comma.
pub(super) fn group_columns(query: &UsageQuery) -> String {
    (0..query.group_by.len()).map(|index| format!(", g{index}")).collect::<Vec<_>>().concat()
}

/// Writes the number of members in each group.
fn push_members_counted(sql: &mut QueryBuilder<Postgres>, meter_query: &MeterQuery<'_>) {
    let groups = group_columns(meter_query.query);
    let (from, fresh) = if meter_query.query.tells_new {
        let of_member = format!("partition by subject, slice{groups}, member");
        let first = format!("min(w) filter (where count > 0) over ({of_member})");
        let from = format!("(select *, {first} as first_w from grouped) grouped");
        (from, "(count(*) filter (where w = first_w))::text")
    } else {
        ("grouped".to_owned(), "null::text")
    };
    sql.push(format!(
        " select w, subject, slice{groups}, sum(count)::bigint as count, {fresh} as sum,
            (count(*) filter (where count > 0))::text as picked
          from {from} group by {}",
        first_columns(KEYS + meter_query.query.group_by.len())
    ));
}
