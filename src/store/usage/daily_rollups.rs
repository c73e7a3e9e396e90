//! Daily rollups: the sum of the hourly rollups of a day, built once the day is over. Callers hold
//! the fold lock.

use std::collections::HashMap;

use sqlx::{QueryBuilder, Row};

use super::measures::{join_columns, rollup_column};
use super::rollup_resolution::RollupResolution;
use crate::store::StoreError;
use crate::store::scope::Scope;
use metergate_domain::base::{Span, Timestamp};
use metergate_domain::catalog::{Aggregation, StoredMeter};

/// Returns the end of the days with rollups by meter. A meter without daily rollups is missing.
pub async fn until(scope: &mut Scope<'_>) -> Result<HashMap<i32, Timestamp>, StoreError> {
    let rows = sqlx::query("select meter_id, until from summed_days where environment = $1")
        .bind(scope.environment.code())
        .fetch_all(&mut *scope.connection)
        .await?;
    rows.iter().map(|row| Ok((row.try_get("meter_id")?, row.try_get("until")?))).collect()
}

/// A meter with daily rollups only up to some day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IncompleteDays {
    pub meter_id: i32,
    /// None if the meter has no daily rollups.
    pub until: Option<Timestamp>,
}

/// Returns a meter that has rollups but lacks daily ones before a time.
pub async fn next_incomplete(
    scope: &mut Scope<'_>,
    over: Timestamp,
) -> Result<Option<IncompleteDays>, StoreError> {
    let row = sqlx::query(
        "select m.id, s.until from meters m left join summed_days s on s.meter_id = m.id
         where m.environment = $1 and coalesce(s.until < $2, true)
           and not exists (select from rollup_gaps g where g.environment = $1 and g.meter_id = m.id and g.permanent)
         order by m.id limit 1",
    )
    .bind(scope.environment.code())
    .bind(over)
    .fetch_optional(&mut *scope.connection)
    .await?;
    row.map(|row| Ok(IncompleteDays { meter_id: row.try_get("id")?, until: row.try_get("until")? }))
        .transpose()
}

/// Builds the next daily rollup of a meter, among the days before `over`. Skips days without hourly
/// rollups.
pub async fn rebuild_next_days(
    scope: &mut Scope<'_>,
    stored: &StoredMeter,
    behind: IncompleteDays,
    over: Timestamp,
) -> Result<(), StoreError> {
    let since = behind.until.unwrap_or(Timestamp::MIN);
    let first: Option<Timestamp> = sqlx::query_scalar(
        "select hour from rollups where environment = $1 and meter_id = $2 and hour >= $3 and hour < $4
         order by hour limit 1",
    )
    .bind(scope.environment.code())
    .bind(stored.id)
    .bind(since)
    .bind(over)
    .fetch_optional(&mut *scope.connection)
    .await?;
    let until = match first {
        None => over,
        Some(first) => {
            let day = Span { from: first.day_floor(), to: first.day_after() };
            rebuild_days(scope, stored, day).await?;
            day.to
        }
    };
    sqlx::query(
        "insert into summed_days (meter_id, environment, until) values ($1, $2, $3)
         on conflict on constraint summed_days_pk do update set until = excluded.until",
    )
    .bind(stored.id)
    .bind(scope.environment.code())
    .bind(until)
    .execute(&mut *scope.connection)
    .await?;
    Ok(())
}

/// Rebuilds the daily rollups of whole days from the hours.
pub(crate) async fn rebuild_days(
    scope: &mut Scope<'_>,
    stored: &StoredMeter,
    days: Span,
) -> Result<(), StoreError> {
    delete(scope, stored, RollupResolution::Day, days).await?;
    copy(scope, stored, days, false).await?;
    if stored.meter.aggregation == Aggregation::UniqueCount {
        copy(scope, stored, days, true).await?;
    }
    Ok(())
}

/// Deletes the rollups of some hours or days.
pub(crate) async fn delete(
    scope: &mut Scope<'_>,
    stored: &StoredMeter,
    resolution: RollupResolution,
    within: Span,
) -> Result<(), StoreError> {
    for table in [resolution.rollups(), resolution.members()] {
        let start = resolution.word();
        let delete = format!(
            "delete from {table} where environment = $1 and meter_id = $2 and {start} >= $3 and {start} < $4"
        );
        sqlx::query(sqlx::AssertSqlSafe(delete))
            .bind(scope.environment.code())
            .bind(stored.id)
            .bind(within.from)
            .bind(within.to)
            .execute(&mut *scope.connection)
            .await?;
    }
    Ok(())
}

/// Writes the sums of some days' hours, or the members that occurred in them.
async fn copy(
    scope: &mut Scope<'_>,
    stored: &StoredMeter,
    days: Span,
    of_members: bool,
) -> Result<(), StoreError> {
    let (table, member, count): (fn(RollupResolution) -> &'static str, _, _) = if of_members {
        (RollupResolution::members, ", member", "refs")
    } else {
        (RollupResolution::rollups, "", "count")
    };
    let column = rollup_column(stored.meter.aggregation).filter(|_| !of_members);
    let (from, to, day) =
        (table(RollupResolution::Hour), table(RollupResolution::Day), RollupResolution::Day.start_of("hour"));
    let mut sql = QueryBuilder::new(format!(
        "insert into {to} (environment, meter_id, path_id, day, dimension_set_id{member}, {count}"
    ));
    if let Some(name) = column {
        sql.push(format!(", {name}"));
    }
    sql.push(format!(
        ") select environment, meter_id, path_id, {day} as day, dimension_set_id{member}, sum({count})"
    ));
    if let Some(name) = column {
        sql.push(format!(", {}", join_columns(name).0));
    }
    sql.push(format!(" from {from} where environment = ")).push_bind(scope.environment.code());
    sql.push(" and meter_id = ").push_bind(stored.id);
    sql.push(" and hour >= ").push_bind(days.from).push(" and hour < ").push_bind(days.to);
    sql.push(format!(" group by environment, meter_id, path_id, 4, dimension_set_id{member}"));
    sql.push(format!(" order by path_id, day, dimension_set_id{member}"));
    sql.build().persistent(false).execute(&mut *scope.connection).await?;
    Ok(())
}
