//! Counters. Missing counters are inserted first; then all are locked. Row locks follow the order of the
//! primary key.

use std::collections::BTreeMap;

use sqlx::{PgConnection, Row};
use uuid::Uuid;

use crate::store::StoreError;
use crate::store::scope::Scope;
use metergate_domain::base::names::{ItemKey, PlanKey};
use metergate_domain::base::{Quantity, Span, Timestamp, Total};
use metergate_domain::gate::{Counter, CounterKey, CounterPeriod, CounterState};
use metergate_domain::usage::RankPageRequest;

/// A counter that should exist.
#[derive(Debug, Clone, Copy)]
pub struct WantedCounter {
    pub counter: CounterPeriod,
    pub meter_id: i32,
    /// True for a counter of priced usage, false for a counter of a limit.
    pub of_price: bool,
}

#[derive(Debug, Clone, Copy)]
pub struct CounterRow {
    pub key: CounterKey,
    pub id: i64,
    pub level: CounterState,
    pub next_expiry: Option<Timestamp>,
    pub period_end: Timestamp,
    pub since: Timestamp,
}

impl CounterRow {
    /// Returns whether the row counts the given period. After a change of a limit, an old row may still
    /// exist.
    pub fn counts(&self, counter: &CounterPeriod) -> bool {
        self.period_end == counter.period.to && self.since == counter.since
    }
}

impl From<&CounterRow> for Counter {
    fn from(row: &CounterRow) -> Self {
        Self { level: row.level, next_expiry: row.next_expiry, becomes: None }
    }
}

/// Returns the id of a counter from the rows that were read. Every hold line belongs to such a counter.
pub fn id_of(ids: &BTreeMap<CounterKey, i64>, key: &CounterKey) -> Result<i64, StoreError> {
    ids.get(key).copied().ok_or_else(|| StoreError::internal(format!("the counter {key:?} has no row")))
}

/// The columns of counter keys.
#[derive(Debug, Default)]
pub(crate) struct Keys {
    pub(crate) subject_ids: Vec<i64>,
    pub(crate) definitions: Vec<Uuid>,
    pub(crate) period_starts: Vec<Timestamp>,
}

impl Keys {
    fn push(&mut self, key: CounterKey) {
        self.subject_ids.push(key.subject_id);
        self.definitions.push(key.definition);
        self.period_starts.push(key.period_start);
    }
}

impl FromIterator<CounterKey> for Keys {
    fn from_iter<I: IntoIterator<Item = CounterKey>>(keys: I) -> Self {
        let mut columns = Self::default();
        keys.into_iter().for_each(|key| columns.push(key));
        columns
    }
}

/// The columns of wanted counters.
#[derive(Debug, Default)]
struct WantedColumns {
    keys: Keys,
    meter_ids: Vec<i32>,
    ends: Vec<Timestamp>,
    since: Vec<Timestamp>,
    of_price: Vec<bool>,
}

impl<'w> FromIterator<&'w WantedCounter> for WantedColumns {
    fn from_iter<I: IntoIterator<Item = &'w WantedCounter>>(all: I) -> Self {
        let mut columns = Self::default();
        for WantedCounter { counter, meter_id, of_price } in all {
            columns.keys.push(counter.key);
            columns.meter_ids.push(*meter_id);
            columns.ends.push(counter.period.to);
            columns.since.push(counter.since);
            columns.of_price.push(*of_price);
        }
        columns
    }
}

fn read_key(row: &sqlx::postgres::PgRow) -> Result<CounterKey, StoreError> {
    Ok(CounterKey {
        subject_id: row.try_get("subject_id")?,
        definition: row.try_get("definition")?,
        period_start: row.try_get("period_start")?,
    })
}

fn read(row: &sqlx::postgres::PgRow) -> Result<CounterRow, StoreError> {
    Ok(CounterRow {
        key: read_key(row)?,
        id: row.try_get("id")?,
        level: CounterState {
            used: row.try_get("used")?,
            held: row.try_get("held")?,
            covered: row.try_get("covered")?,
        },
        next_expiry: row.try_get("next_expiry")?,
        period_end: row.try_get("period_end")?,
        since: row.try_get("since")?,
    })
}

/// Inserts missing counters at zero and returns their keys. `wanted` must ascend. Waits for transactions
/// that insert the same counters.
pub async fn insert_missing(
    scope: &mut Scope<'_>,
    wanted: &[WantedCounter],
) -> Result<Vec<CounterKey>, StoreError> {
    let columns: WantedColumns = wanted.iter().collect();
    let rows = sqlx::query(
        "insert into counters (environment, subject_id, definition, period_start, meter_id, period_end, since,
                               of_price, used, held)
         select $1, subject_id, definition, period_start, meter_id, period_end, since, of_price, 0, 0
         from unnest($2::bigint[], $3::uuid[], $4::timestamptz[], $5::int[], $6::timestamptz[], $7::timestamptz[],
                     $8::boolean[])
             as given (subject_id, definition, period_start, meter_id, period_end, since, of_price)
         on conflict on constraint counters_pk do nothing
         returning subject_id, definition, period_start",
    )
    .bind(scope.environment.code())
    .bind(&columns.keys.subject_ids)
    .bind(&columns.keys.definitions)
    .bind(&columns.keys.period_starts)
    .bind(&columns.meter_ids)
    .bind(&columns.ends)
    .bind(&columns.since)
    .bind(&columns.of_price)
    .fetch_all(&mut *scope.connection)
    .await?;
    rows.iter().map(read_key).collect()
}

/// Locks the existing counters in the order of their keys. Returns them, and the server's time after the
/// last lock.
pub async fn lock(
    connection: &mut PgConnection,
    keys: impl Iterator<Item = CounterKey>,
) -> Result<(Vec<CounterRow>, Timestamp), StoreError> {
    let keys: Keys = keys.collect();
    if keys.subject_ids.is_empty() {
        return Ok((Vec::new(), crate::store::usage::now(connection).await?));
    }
    // The clock is read for each row after its lock, so the last reading follows every lock.
    let rows = sqlx::query(
        "with locked as materialized (
             select c.subject_id, c.definition, c.period_start, c.id, c.used, c.held, c.covered, c.next_expiry,
                    c.period_end, c.since
             from unnest($1::bigint[], $2::uuid[], $3::timestamptz[]) as given (subject_id, definition, period_start)
             join counters c on c.subject_id = given.subject_id and c.definition = given.definition
                            and c.period_start = given.period_start
             order by c.subject_id, c.definition, c.period_start
             for no key update of c)
         select *, clock_timestamp() as now from locked",
    )
    .bind(&keys.subject_ids)
    .bind(&keys.definitions)
    .bind(&keys.period_starts)
    .fetch_all(&mut *connection)
    .await?;
    let now = match rows.last() {
        Some(last) => last.try_get("now")?,
        None => crate::store::usage::now(connection).await?,
    };
    Ok((rows.iter().map(read).collect::<Result<_, _>>()?, now))
}

/// Finds the existing counters without locking them.
pub async fn find(
    connection: &mut PgConnection,
    keys: impl Iterator<Item = CounterKey>,
) -> Result<Vec<CounterRow>, StoreError> {
    let keys: Keys = keys.collect();
    let rows = sqlx::query(
        "select c.subject_id, c.definition, c.period_start, c.id, c.used, c.held, c.covered, c.next_expiry,
                    c.period_end, c.since
         from unnest($1::bigint[], $2::uuid[], $3::timestamptz[]) as given (subject_id, definition, period_start)
         join counters c on c.subject_id = given.subject_id and c.definition = given.definition
                        and c.period_start = given.period_start",
    )
    .bind(&keys.subject_ids)
    .bind(&keys.definitions)
    .bind(&keys.period_starts)
    .fetch_all(connection)
    .await?;
    rows.iter().map(read).collect()
}

/// Adds to `used` of counters, locking them in order, and returns them afterwards. `given` must ascend.
/// Missing counters are inserted.
pub async fn add_used(
    scope: &mut Scope<'_>,
    given: &[(WantedCounter, Total)],
) -> Result<Vec<CounterRow>, StoreError> {
    let columns: WantedColumns = given.iter().map(|(wanted, _)| wanted).collect();
    let amounts: Vec<Total> = given.iter().map(|(_, amount)| *amount).collect();
    // An upsert locks in the given order; a plain update does not.
    let rows = sqlx::query(
        "insert into counters (environment, subject_id, definition, period_start, meter_id, period_end, since,
                               of_price, used, held)
         select $1, subject_id, definition, period_start, meter_id, period_end, since, of_price, amount, 0
         from unnest($2::bigint[], $3::uuid[], $4::timestamptz[], $5::int[], $6::timestamptz[], $7::timestamptz[],
                     $8::boolean[], $9::numeric[])
             as given (subject_id, definition, period_start, meter_id, period_end, since, of_price, amount)
         on conflict on constraint counters_pk do update set used = counters.used + excluded.used
         returning subject_id, definition, period_start, id, used, held, covered, next_expiry, period_end, since",
    )
    .bind(scope.environment.code())
    .bind(&columns.keys.subject_ids)
    .bind(&columns.keys.definitions)
    .bind(&columns.keys.period_starts)
    .bind(&columns.meter_ids)
    .bind(&columns.ends)
    .bind(&columns.since)
    .bind(&columns.of_price)
    .bind(&amounts)
    .fetch_all(&mut *scope.connection)
    .await?;
    rows.iter().map(read).collect()
}

/// The new values of locked counters, as columns.
#[derive(Debug, Default)]
pub struct CounterColumns {
    pub keys: Vec<CounterKey>,
    pub used: Vec<Total>,
    pub held: Vec<Total>,
    pub covered: Vec<Total>,
    pub next_expiry: Vec<Option<Timestamp>>,
}

impl CounterColumns {
    pub fn push(&mut self, key: CounterKey, level: CounterState, next_expiry: Option<Timestamp>) {
        self.keys.push(key);
        self.used.push(level.used);
        self.held.push(level.held);
        self.covered.push(level.covered);
        self.next_expiry.push(next_expiry);
    }
}

/// Adds to `covered` of the counters of definitions, in the periods around instants.
pub async fn add_covered(
    connection: &mut PgConnection,
    given: &[(i64, Uuid, Timestamp, Total)],
) -> Result<(), StoreError> {
    sqlx::query(
        "update counters c set covered = c.covered + given.covered
         from (select subject_id, definition, at, sum(covered) as covered
               from unnest($1::bigint[], $2::uuid[], $3::timestamptz[], $4::numeric[])
                   as given (subject_id, definition, at, covered)
               group by subject_id, definition, at) given
         where c.subject_id = given.subject_id and c.definition = given.definition
           and c.since <= given.at and given.at < c.period_end",
    )
    .bind(given.iter().map(|(id, _, _, _)| *id).collect::<Vec<i64>>())
    .bind(given.iter().map(|(_, definition, _, _)| *definition).collect::<Vec<Uuid>>())
    .bind(given.iter().map(|(_, _, at, _)| *at).collect::<Vec<Timestamp>>())
    .bind(given.iter().map(|(_, _, _, covered)| *covered).collect::<Vec<Total>>())
    .execute(connection)
    .await?;
    Ok(())
}

/// Writes the values of locked counters.
pub async fn set(connection: &mut PgConnection, columns: &CounterColumns) -> Result<(), StoreError> {
    let keys: Keys = columns.keys.iter().copied().collect();
    sqlx::query(
        "update counters c set used = given.used, held = given.held, covered = given.covered,
                               next_expiry = given.next_expiry
         from unnest($1::bigint[], $2::uuid[], $3::timestamptz[], $4::numeric[], $5::numeric[], $6::timestamptz[],
                     $7::numeric[])
             as given (subject_id, definition, period_start, used, held, next_expiry, covered)
         where c.subject_id = given.subject_id and c.definition = given.definition
           and c.period_start = given.period_start",
    )
    .bind(&keys.subject_ids)
    .bind(&keys.definitions)
    .bind(&keys.period_starts)
    .bind(&columns.used)
    .bind(&columns.held)
    .bind(&columns.next_expiry)
    .bind(&columns.covered)
    .execute(connection)
    .await?;
    Ok(())
}

/// Returns the keys of a subject's existing limit counters, with the end of the period and `since`.
pub async fn of_subject(
    connection: &mut PgConnection,
    subject_id: i64,
) -> Result<Vec<(CounterKey, Timestamp, Timestamp)>, StoreError> {
    let rows = sqlx::query(
        "select subject_id, definition, period_start, period_end, since from counters
         where subject_id = $1 and not of_price",
    )
    .bind(subject_id)
    .fetch_all(connection)
    .await?;
    rows.iter().map(|row| Ok((read_key(row)?, row.try_get("period_end")?, row.try_get("since")?))).collect()
}

/// Returns all counters of priced usage, with their subjects.
pub async fn of_prices(scope: &mut Scope<'_>) -> Result<Vec<(String, CounterRow)>, StoreError> {
    let rows = sqlx::query(
        "select s.subject, c.subject_id, c.definition, c.period_start, c.id, c.used, c.held, c.covered, c.next_expiry,
                c.period_end, c.since
         from counters c join subjects s on s.id = c.subject_id
         where c.environment = $1 and c.of_price order by s.subject",
    )
    .bind(scope.environment.code())
    .fetch_all(&mut *scope.connection)
    .await?;
    rows.iter().map(|row| Ok((row.try_get("subject")?, read(row)?))).collect()
}

/// Deletes counters with their hold lines. The caller must hold the configuration lock.
pub async fn delete(
    connection: &mut PgConnection,
    keys: impl Iterator<Item = CounterKey>,
) -> Result<(), StoreError> {
    let keys: Keys = keys.collect();
    if keys.subject_ids.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "with gone as (
             delete from counters c
             using unnest($1::bigint[], $2::uuid[], $3::timestamptz[]) as given (subject_id, definition, period_start)
             where c.subject_id = given.subject_id and c.definition = given.definition
               and c.period_start = given.period_start
             returning c.id)
         delete from hold_lines l using gone where l.counter_id = gone.id",
    )
    .bind(&keys.subject_ids)
    .bind(&keys.definitions)
    .bind(&keys.period_starts)
    .execute(connection)
    .await?;
    Ok(())
}

/// Deletes the counters of definitions for all subscribers of a plan. The caller must hold the
/// configuration lock.
pub async fn delete_of_plan(
    scope: &mut Scope<'_>,
    plan: &str,
    definitions: &[Uuid],
) -> Result<(), StoreError> {
    sqlx::query(
        "with gone as (
             delete from counters c using subscriptions s
             where s.environment = $1 and s.plan = $2 and c.subject_id = s.subject_id and c.definition = any($3)
             returning c.id)
         delete from hold_lines l using gone where l.counter_id = gone.id",
    )
    .bind(scope.environment.code())
    .bind(plan)
    .bind(definitions)
    .execute(&mut *scope.connection)
    .await?;
    Ok(())
}

/// Returns whether there are old counters to delete. A limit counter qualifies only without hold lines.
pub async fn has_old(scope: &mut Scope<'_>, ended_before: Timestamp) -> Result<bool, StoreError> {
    let found = sqlx::query_scalar(
        "select exists (select from counters c where c.environment = $1 and c.period_end < $2
                        and (c.of_price or not exists (select from hold_lines l where l.counter_id = c.id)))",
    )
    .bind(scope.environment.code())
    .bind(ended_before)
    .fetch_one(&mut *scope.connection)
    .await?;
    Ok(found)
}

/// Deletes some old counters with their hold lines. Returns the number of deleted counters.
pub async fn delete_old(
    scope: &mut Scope<'_>,
    ended_before: Timestamp,
    limit: i64,
) -> Result<u64, StoreError> {
    let dropped: i64 = sqlx::query_scalar(
        "with gone as (
             delete from counters where ctid = any(array(
                 select c.ctid from counters c
                 where c.environment = $1 and c.period_end < $2
                   and (c.of_price or not exists (select from hold_lines l where l.counter_id = c.id))
                 limit $3 for update skip locked))
             returning id),
         lines as (delete from hold_lines l using gone where l.counter_id = gone.id)
         select count(*) from gone",
    )
    .bind(scope.environment.code())
    .bind(ended_before)
    .bind(limit)
    .fetch_one(&mut *scope.connection)
    .await?;
    Ok(u64::try_from(dropped).unwrap_or_default())
}

/// The quota of a plan's limit, or none for an unlimited limit.
#[derive(Debug, Clone)]
pub struct QuotaOf {
    pub plan: PlanKey,
    pub key: ItemKey,
    pub definition: Uuid,
    pub quota: Option<Quantity>,
}

/// A counter with its quota.
#[derive(Debug, Clone)]
pub struct LimitNearQuota {
    pub subject: String,
    /// The index of the limit in the given list of quotas.
    pub place: usize,
    /// The quota after overrides.
    pub quota: Quantity,
    pub used: Total,
    pub period: Span,
}

/// Lists the counters of present periods by the used percentage, highest first. A quota of zero counts as
/// 100 %. Returns one row more than requested, if there is one.
pub async fn nearest_to_quota(
    scope: &mut Scope<'_>,
    quotas: &[QuotaOf],
    now: Timestamp,
    ranks: RankPageRequest,
) -> Result<Vec<LimitNearQuota>, StoreError> {
    let names = |name: fn(&QuotaOf) -> String| quotas.iter().map(name).collect::<Vec<String>>();
    let rows = sqlx::query(
        "select s.subject, near.place, near.quota, near.used, near.period_start, near.period_end
         from (select c.subject_id, given.place, c.used, c.period_start, c.period_end, given.key,
                      case when sub.overrides ? given.key then (sub.overrides ->> given.key)::numeric
                           else given.quota end as quota
               from unnest($2::text[], $3::text[], $4::uuid[], $5::numeric[])
                        with ordinality as given (plan, key, definition, quota, place)
               join counters c on c.definition = given.definition
               join subscriptions sub on sub.subject_id = c.subject_id and sub.plan = given.plan
               where c.environment = $1 and c.period_start <= $6 and $6 < c.period_end
                   and sub.status <> 'canceled') near
         join subjects s on s.id = near.subject_id
         where near.quota is not null
         order by case when near.quota = 0 then 100 else near.used * 100 / near.quota end desc, s.subject, near.key
         offset $7 limit $8",
    )
    .bind(scope.environment.code())
    .bind(names(|quota| quota.plan.to_string()))
    .bind(names(|quota| quota.key.to_string()))
    .bind(quotas.iter().map(|quota| quota.definition).collect::<Vec<_>>())
    .bind(quotas.iter().map(|quota| quota.quota).collect::<Vec<_>>())
    .bind(now)
    .bind(i64::try_from(ranks.after).unwrap_or(i64::MAX))
    .bind(i64::try_from(ranks.limit + 1).unwrap_or(i64::MAX))
    .fetch_all(&mut *scope.connection)
    .await?;
    rows.iter()
        .map(|row| {
            let place: i64 = row.try_get("place")?;
            Ok(LimitNearQuota {
                subject: row.try_get("subject")?,
                // `with ordinality` counts from 1.
                place: usize::try_from(place - 1).unwrap_or(usize::MAX),
                quota: row.try_get("quota")?,
                used: row.try_get("used")?,
                period: Span { from: row.try_get("period_start")?, to: row.try_get("period_end")? },
            })
        })
        .collect()
}
