//! Reads values: one statement for several queries, or for a page of a ranking.

use std::collections::BTreeMap;

use sqlx::postgres::PgRow;
use sqlx::{PgConnection, PgPool, Postgres, QueryBuilder, Row, Transaction};

use super::partial_hours::PartialHours;
use super::query::PlannedQuery;
use super::rollups::push_question;
use crate::store::StoreError;
use metergate_domain::base::limits::USAGE_ROWS_MAX;
use metergate_domain::base::{Timestamp, Total};
use metergate_domain::catalog::Aggregation;
use metergate_domain::usage::{Aggregate, Group, RankPageRequest};

/// Begins a read snapshot, in which several statements see the same data.
pub async fn snapshot(pool: &PgPool) -> Result<Transaction<'static, Postgres>, StoreError> {
    Ok(pool.begin_with("begin isolation level repeatable read, read only").await?)
}

/// Returns the time of the database.
pub async fn now(connection: &mut PgConnection) -> Result<Timestamp, StoreError> {
    Ok(sqlx::query_scalar("select clock_timestamp()").fetch_one(connection).await?)
}

/// Keeps one generic plan for each frequent query until the transaction ends. Such queries read few
/// paths by index, and planning takes as long as reading.
pub async fn keep_plans(connection: &mut PgConnection) -> Result<(), StoreError> {
    sqlx::raw_sql("set local plan_cache_mode = force_generic_plan").execute(connection).await?;
    Ok(())
}

/// The aggregates of a query by window and group.
pub type AggregatesByGroup = BTreeMap<(usize, Group), Aggregate>;

/// Answers queries with the same groups in one statement, to save round trips. An answer with too
/// many rows has one row more than the limit.
pub async fn find(
    connection: &mut PgConnection,
    asked: &[PlannedQuery<'_>],
) -> Result<Vec<AggregatesByGroup>, StoreError> {
    let mut answers = vec![AggregatesByGroup::new(); asked.len()];
    let mut sql = QueryBuilder::default();
    let some: Vec<&PlannedQuery<'_>> = asked.iter().filter(|asked| !asked.is_empty()).collect();
    let edges = PartialHours::of(&some);
    edges.push(&mut sql);
    let mut beginning = "";
    for (place, asked) in asked.iter().enumerate().filter(|(_, asked)| !asked.is_empty()) {
        sql.push(format!("{beginning}select {place} as question, answer.* from ("));
        push_question(&mut sql, asked, &edges)?;
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
        found.insert(read_key(row, meter_query.query.group_by.len())?, read(row)?);
    }
    Ok(answers)
}

/// Ranks the subjects of a query, the largest first. Returns one row more than the page holds if
/// there are more. The query must group by subject and have two bounds.
pub async fn top(
    connection: &mut PgConnection,
    asked: &PlannedQuery<'_>,
    ranks: RankPageRequest,
) -> Result<Vec<(String, Aggregate)>, StoreError> {
    if asked.is_empty() {
        return Ok(Vec::new());
    }
    let mut sql = QueryBuilder::default();
    let edges = PartialHours::of(&[asked]);
    edges.push(&mut sql);
    sql.push("select * from (");
    push_question(&mut sql, asked, &edges)?;
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

/// Reads the columns `w`, `subject`, `slice` and those of the groups.
pub(super) fn read_key(row: &PgRow, groups: usize) -> Result<(usize, Group), StoreError> {
    let (window, slice): (i32, Option<i32>) = (row.try_get("w")?, row.try_get("slice")?);
    let dimensions = (0..groups).map(|index| Ok(row.try_get(format!("g{index}").as_str())?));
    let group = Group {
        subject: row.try_get("subject")?,
        dimensions: dimensions.collect::<Result<_, StoreError>>()?,
        slice: slice.and_then(|slice| usize::try_from(slice).ok()),
    };
    // `width_bucket` counts from 1
    Ok((usize::try_from(window - 1).unwrap_or_default(), group))
}

fn read(row: &PgRow) -> Result<Aggregate, StoreError> {
    let total = |name: &str| -> Result<Option<Total>, StoreError> {
        let text: Option<String> = row.try_get(name)?;
        text.map(|text| Total::from_decimal(&text))
            .transpose()
            .map_err(|why| StoreError::internal(why.to_string()))
    };
    Ok(Aggregate { count: row.try_get("count")?, sum: total("sum")?, picked: total("picked")? })
}
