//! Exports, written before they are sent, and kept with their outcomes.

pub mod gauges;
pub mod parts;
pub mod reconciliation;
pub mod sums;

use serde::Serialize;
use sqlx::{FromRow, PgConnection, QueryBuilder};
use uuid::Uuid;

use super::StoreError;
use crate::store::scope::Scope;
use metergate_domain::base::{Span, Timestamp};
use metergate_domain::catalog::StripeMeter;
use metergate_domain::exports::{ExportFilter, ExportStatus};
use parts::MeterBucket;

/// An export as stored and as shown in answers.
#[derive(Debug, Clone, FromRow, Serialize)]
pub struct ExportRow {
    pub id: Uuid,
    pub provider: String,
    #[serde(skip)]
    pub customer_id: i64,
    pub customer: String,
    #[serde(skip)]
    pub meter_id: i32,
    pub meter: String,
    #[serde(skip)]
    pub bucket_from: Timestamp,
    pub event_name: String,
    #[serde(skip)]
    pub customer_key: String,
    #[serde(skip)]
    pub value_key: String,
    pub value: i64,
    #[serde(rename = "timestamp")]
    pub occurred_at: Timestamp,
    pub identifier: String,
    #[sqlx(try_from = "String")]
    pub status: ExportStatus,
    pub attempts: i32,
    pub last_error: Option<String>,
    /// The original time of use, if the export was moved to a later billing period.
    pub carried_from: Option<Timestamp>,
    #[serde(skip)]
    pub unknown_since: Option<Timestamp>,
    /// True if the provider is asked to cancel the export; false after a refusal.
    #[serde(skip)]
    pub cancel_wanted: Option<bool>,
    /// True if the export sets a gauge, so that a second delivery does no harm.
    #[serde(skip)]
    pub is_gauge: bool,
    pub created_at: Timestamp,
    pub delivered_at: Option<Timestamp>,
}

const SELECT: &str =
    "select x.id, x.provider, x.customer_id, c.stripe_customer_id as customer, x.meter_id, m.key as meter,
        x.bucket_from, x.event_name, x.customer_key, x.value_key, x.value, x.occurred_at, x.identifier,
        x.carried_from, x.status, x.attempts, x.last_error, x.unknown_since, x.cancel_wanted, x.created_at,
        (m.definition #>> '{stripe,formula}' = 'last') is true as is_gauge,
        x.delivered_at
     from exports x join customers c on c.id = x.customer_id join meters m on m.id = x.meter_id";

/// An export to be written.
#[derive(Debug, Clone)]
pub struct NewExport {
    pub id: Uuid,
    pub customer_id: i64,
    pub meter_id: i32,
    pub bucket_from: Timestamp,
    pub event_name: String,
    pub customer_key: String,
    pub value_key: String,
    pub value: i64,
    pub occurred_at: Timestamp,
    pub identifier: String,
    pub carried_from: Option<Timestamp>,
}

pub async fn insert(
    scope: &mut Scope<'_>,
    provider: &str,
    made: &[NewExport],
    now: Timestamp,
) -> Result<(), StoreError> {
    let texts = |of: fn(&NewExport) -> &String| made.iter().map(of).cloned().collect::<Vec<String>>();
    sqlx::query(
        "insert into exports (environment, provider, status, created_at, next_attempt_at, id, customer_id, meter_id,
                              bucket_from, event_name, customer_key, value_key, value, occurred_at, identifier,
                              carried_from)
         select $1, $2, 'pending', $3, $3, *
         from unnest($4::uuid[], $5::bigint[], $6::int[], $7::timestamptz[], $8::text[], $9::text[], $10::text[],
                     $11::bigint[], $12::timestamptz[], $13::text[], $14::timestamptz[])",
    )
    .bind(scope.environment.code())
    .bind(provider)
    .bind(now)
    .bind(made.iter().map(|x| x.id).collect::<Vec<_>>())
    .bind(made.iter().map(|x| x.customer_id).collect::<Vec<_>>())
    .bind(made.iter().map(|x| x.meter_id).collect::<Vec<_>>())
    .bind(made.iter().map(|x| x.bucket_from).collect::<Vec<_>>())
    .bind(texts(|x| &x.event_name))
    .bind(texts(|x| &x.customer_key))
    .bind(texts(|x| &x.value_key))
    .bind(made.iter().map(|x| x.value).collect::<Vec<_>>())
    .bind(made.iter().map(|x| x.occurred_at).collect::<Vec<_>>())
    .bind(texts(|x| &x.identifier))
    .bind(made.iter().map(|x| x.carried_from).collect::<Vec<_>>())
    .execute(&mut *scope.connection)
    .await?;
    Ok(())
}

/// Returns the exports of a bucket, the latest first.
pub async fn of_bucket(
    connection: &mut PgConnection,
    place: &MeterBucket,
) -> Result<Vec<ExportRow>, StoreError> {
    let sql = format!(
        "{SELECT} where x.customer_id = $1 and x.meter_id = $2 and x.bucket_from = $3 order by x.id desc"
    );
    let rows = sqlx::query_as(sqlx::AssertSqlSafe(sql))
        .bind(place.customer_id)
        .bind(place.meter_id)
        .bind(place.bucket.span.from)
        .fetch_all(connection)
        .await?;
    Ok(rows)
}

/// Returns the exports of the bucket that contains an instant, the oldest first.
pub async fn around(
    connection: &mut PgConnection,
    customer_id: i64,
    meter_id: i32,
    at: Timestamp,
) -> Result<Vec<ExportRow>, StoreError> {
    let sql = format!(
        "{SELECT} where x.customer_id = $1 and x.meter_id = $2 and x.bucket_from = (
             select max(bucket_from) from export_sums
             where customer_id = $1 and meter_id = $2 and bucket_from <= $3 and bucket_to > $3)
         order by x.id"
    );
    let rows = sqlx::query_as(sqlx::AssertSqlSafe(sql))
        .bind(customer_id)
        .bind(meter_id)
        .bind(at)
        .fetch_all(connection)
        .await?;
    Ok(rows)
}

/// Marks exports to be taken back.
pub async fn want_cancel(
    connection: &mut PgConnection,
    ids: &[Uuid],
    now: Timestamp,
) -> Result<(), StoreError> {
    if ids.is_empty() {
        return Ok(());
    }
    sqlx::query("update exports set cancel_wanted = true, next_attempt_at = $2 where id = any($1)")
        .bind(ids)
        .bind(now)
        .execute(connection)
        .await?;
    Ok(())
}

/// Returns the due exports and cancelations, at most the first per customer and provider's meter.
/// Several of our meters may share a meter of the provider. `except` names exports that were just tried;
/// later exports of the same customer and meter wait for them.
pub async fn due(
    scope: &mut Scope<'_>,
    due_by: Timestamp,
    except: &[Uuid],
    limit: i64,
) -> Result<Vec<ExportRow>, StoreError> {
    let sql = format!(
        "{SELECT} where x.id in (
             select id from (
                 select distinct on (customer_id, event_name) id, next_attempt_at from exports
                 where environment = $1 and (status = 'pending' or (cancel_wanted and status = 'delivered'))
                 order by customer_id, event_name, id) first
             where next_attempt_at <= $2 and id <> all($4) limit $3)
         order by x.id"
    );
    let rows = sqlx::query_as(sqlx::AssertSqlSafe(sql))
        .bind(scope.environment.code())
        .bind(due_by)
        .bind(limit)
        .bind(except)
        .fetch_all(&mut *scope.connection)
        .await?;
    Ok(rows)
}

/// Clears the unknown outcome of exports. The provider's sums show that it did not take them.
pub async fn note_not_taken(connection: &mut PgConnection, ids: &[Uuid]) -> Result<(), StoreError> {
    sqlx::query("update exports set unknown_since = null where id = any($1) and status = 'pending'")
        .bind(ids)
        .execute(connection)
        .await?;
    Ok(())
}

/// Marks exports as possibly taken from now on. Callers mark exports before they send them.
pub async fn note_attempts(
    connection: &mut PgConnection,
    ids: &[Uuid],
    now: Timestamp,
) -> Result<(), StoreError> {
    sqlx::query(
        "update exports set attempts = attempts + 1, unknown_since = coalesce(unknown_since, $2) where id = any($1)",
    )
    .bind(ids)
    .bind(now)
    .execute(connection)
    .await?;
    Ok(())
}

/// The outcomes of delivery attempts.
#[derive(Debug, Default)]
pub struct Outcomes {
    pub delivered: Vec<Uuid>,
    pub canceled: Vec<Uuid>,
    /// The exports that the provider did not take back, each with the reason.
    pub kept: Vec<(Uuid, String)>,
    pub dead: Vec<Dead>,
    pub later: Vec<Deferred>,
}

/// An export that the provider will never take unchanged.
#[derive(Debug, Clone)]
pub struct Dead {
    pub id: Uuid,
    pub why: String,
    /// The time of the first attempt that may have been taken, if any.
    pub unknown_since: Option<Timestamp>,
}

/// An export that is tried again later.
#[derive(Debug, Clone)]
pub struct Deferred {
    pub id: Uuid,
    pub why: String,
    pub next_attempt_at: Timestamp,
    /// The time since which the outcome is unknown, if it is.
    pub unknown_since: Option<Timestamp>,
    /// True if the attempt counts towards the pause.
    pub counts: bool,
}

impl Outcomes {
    pub fn is_empty(&self) -> bool {
        self.delivered.is_empty()
            && self.canceled.is_empty()
            && self.kept.is_empty()
            && self.dead.is_empty()
            && self.later.is_empty()
    }
}

/// Writes the outcomes of attempts. Rows that another replica changed meanwhile stay unchanged.
pub async fn note_outcomes(
    connection: &mut PgConnection,
    outcomes: &Outcomes,
    now: Timestamp,
) -> Result<(), StoreError> {
    // an export refused after its delivery stays dead, regardless of later answers
    sqlx::query(
        "update exports set status = 'delivered', delivered_at = $2, last_error = null, unknown_since = null
         where id = any($1) and (status = 'pending' or status = 'dead' and delivered_at is null)",
    )
    .bind(&outcomes.delivered)
    .bind(now)
    .execute(&mut *connection)
    .await?;
    cancel(connection, &outcomes.canceled).await?;
    let (ids, whys): (Vec<Uuid>, Vec<String>) = outcomes.kept.iter().cloned().unzip();
    sqlx::query(
        "update exports x set cancel_wanted = false, last_error = given.why, unknown_since = null
         from unnest($1::uuid[], $2::text[]) as given (id, why)
         where x.id = given.id and x.status = 'delivered'",
    )
    .bind(ids)
    .bind(whys)
    .execute(&mut *connection)
    .await?;
    let dead = &outcomes.dead;
    sqlx::query(
        "update exports x set status = 'dead', last_error = given.why, unknown_since = given.unknown_since
         from unnest($1::uuid[], $2::text[], $3::timestamptz[]) as given (id, why, unknown_since)
         where x.id = given.id and x.status = 'pending'",
    )
    .bind(dead.iter().map(|d| d.id).collect::<Vec<_>>())
    .bind(dead.iter().map(|d| d.why.clone()).collect::<Vec<_>>())
    .bind(dead.iter().map(|d| d.unknown_since).collect::<Vec<_>>())
    .execute(&mut *connection)
    .await?;
    let later = &outcomes.later;
    sqlx::query(
        "update exports x set last_error = given.why, next_attempt_at = given.next_attempt_at,
                unknown_since = given.unknown_since, attempts = x.attempts - given.uncounted
         from unnest($1::uuid[], $2::text[], $3::timestamptz[], $4::timestamptz[], $5::int[])
             as given (id, why, next_attempt_at, unknown_since, uncounted)
         where x.id = given.id and (x.status = 'pending' or x.cancel_wanted and x.status = 'delivered')",
    )
    .bind(later.iter().map(|d| d.id).collect::<Vec<_>>())
    .bind(later.iter().map(|d| d.why.clone()).collect::<Vec<_>>())
    .bind(later.iter().map(|d| d.next_attempt_at).collect::<Vec<_>>())
    .bind(later.iter().map(|d| d.unknown_since).collect::<Vec<_>>())
    .bind(later.iter().map(|d| i32::from(!d.counts)).collect::<Vec<_>>())
    .execute(connection)
    .await?;
    Ok(())
}

/// Cancels exports. Their units become unexported usage of their own bucket.
pub async fn cancel(connection: &mut PgConnection, ids: &[Uuid]) -> Result<(), StoreError> {
    if ids.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "with canceled as (
             update exports set status = 'canceled', cancel_wanted = null, unknown_since = null
             where id = any($1) and status in ('pending', 'delivered', 'dead')
             returning customer_id, meter_id, bucket_from, value),
         -- locks in the order of the fold
         locked as (
             select from export_sums
             where (customer_id, meter_id, bucket_from) in (select customer_id, meter_id, bucket_from from canceled)
             order by meter_id, customer_id, bucket_from for no key update)
         update export_sums s set exported = s.exported - given.value
         from (select customer_id, meter_id, bucket_from, sum(value) as value from canceled group by 1, 2, 3) given
         where (select count(*) from locked) > 0 and s.customer_id = given.customer_id and s.meter_id = given.meter_id
           and s.bucket_from = given.bucket_from",
    )
    .bind(ids)
    .execute(connection)
    .await?;
    Ok(())
}

const LOCK: i32 = 0x4d47_0004;

/// Tries to lock the sending of an environment's exports, until [`unlock`] or the end of the
/// connection. Returns false if another process holds the lock.
pub async fn try_lock(scope: &mut Scope<'_>) -> Result<bool, StoreError> {
    let locked = sqlx::query_scalar("select pg_try_advisory_lock($1, $2)")
        .bind(LOCK)
        .bind(i32::from(scope.environment.code()))
        .fetch_one(&mut *scope.connection)
        .await?;
    Ok(locked)
}

/// Releases the lock of [`try_lock`].
pub async fn unlock(scope: &mut Scope<'_>) -> Result<(), StoreError> {
    sqlx::query("select pg_advisory_unlock($1, $2)")
        .bind(LOCK)
        .bind(i32::from(scope.environment.code()))
        .execute(&mut *scope.connection)
        .await?;
    Ok(())
}

/// Counts the pending and the dead exports.
pub async fn open(scope: &mut Scope<'_>) -> Result<(i64, i64), StoreError> {
    let counts = sqlx::query_as(
        "select count(*) filter (where status <> 'dead'), count(*) filter (where status = 'dead') from exports
         where environment = $1 and (status in ('pending', 'dead') or (cancel_wanted and status = 'delivered'))",
    )
    .bind(scope.environment.code())
    .fetch_one(&mut *scope.connection)
    .await?;
    Ok(counts)
}

/// The position after which a page begins.
#[derive(Debug, Clone, Copy)]
pub struct ExportCursor {
    pub created_at: Timestamp,
    pub id: Uuid,
}

/// Returns a page of exports, the latest first.
pub async fn list(
    scope: &mut Scope<'_>,
    filter: &ExportFilter,
    after: Option<ExportCursor>,
    limit: u32,
) -> Result<Vec<ExportRow>, StoreError> {
    let mut sql = QueryBuilder::new(SELECT);
    sql.push(" where x.environment = ").push_bind(scope.environment.code());
    if let Some(status) = filter.status {
        sql.push(" and x.status = ").push_bind(status.as_str());
    }
    if let Some(customer) = &filter.customer {
        sql.push(" and c.stripe_customer_id = ").push_bind(customer.clone());
    }
    if let Some(meter) = &filter.meter {
        sql.push(" and m.key = ").push_bind(meter.clone());
    }
    if let Some(after) = after {
        sql.push(" and (x.created_at, x.id) < (").push_bind(after.created_at);
        sql.push(", ").push_bind(after.id).push(")");
    }
    sql.push(" order by x.created_at desc, x.id desc limit ").push_bind(i64::from(limit));
    let rows = sql.build_query_as().persistent(false).fetch_all(&mut *scope.connection).await?;
    Ok(rows)
}

/// Locks one export.
pub async fn lock(scope: &mut Scope<'_>, id: Uuid) -> Result<Option<ExportRow>, StoreError> {
    let sql = format!("{SELECT} where x.environment = $1 and x.id = $2 for no key update of x");
    let row = sqlx::query_as(sqlx::AssertSqlSafe(sql))
        .bind(scope.environment.code())
        .bind(id)
        .fetch_optional(&mut *scope.connection)
        .await?;
    Ok(row)
}

/// The prefix of an export's error if the provider's sums do not show the outcome.
pub const DELIVERY_UNKNOWN: &str = "fate_unknown";

/// The dead exports of a meter that become pending again, with the limits for late ones.
#[derive(Debug, Clone, Copy)]
pub struct Revival<'a> {
    pub meter_id: i32,
    /// The only export to make pending. None means all dead exports except those with an unknown
    /// outcome.
    pub only: Option<Uuid>,
    pub stripe: &'a StripeMeter,
    pub now: Timestamp,
    /// The earliest time that the provider accepts.
    pub oldest: Timestamp,
    /// Periods that ended by then accept no more usage.
    pub closed_by: Timestamp,
}

/// Makes dead exports of a meter pending again: one, or all but those with an unknown outcome.
///
/// Exports that were certainly not taken get the meter's present address. If their period accepts no
/// more usage, they move to the present one. Exports that the provider refused after delivery get a new
/// identifier.
pub async fn revive(scope: &mut Scope<'_>, revival: Revival<'_>) -> Result<(), StoreError> {
    sqlx::query(
        "with dead as (
             select x.id, x.unknown_since is not null and x.last_error not like $8 || '%' as in_doubt,
                    s.bucket_from is not null
                        and (x.occurred_at < $9 or (x.carried_from is null and s.period_to <= $10)) as is_late
             from exports x left join export_sums s on s.customer_id = x.customer_id
                  and s.meter_id = x.meter_id and s.bucket_from = x.bucket_from
             where x.environment = $1 and x.meter_id = $2 and x.status = 'dead'
               and (x.id = $3 or $3::uuid is null and x.last_error not like $8 || '%')),
         known as (
             update exports x
             set status = 'pending', next_attempt_at = $4, unknown_since = null,
                 event_name = $5, customer_key = $6, value_key = $7, delivered_at = null,
                 identifier = case when x.delivered_at is null then x.identifier
                                   else 'mg_' || gen_random_uuid() end,
                 occurred_at = case when d.is_late then date_trunc('second', $4) else x.occurred_at end,
                 carried_from = case when d.is_late then coalesce(x.carried_from, x.bucket_from)
                                     else x.carried_from end
             from dead d where d.id = x.id and not d.in_doubt)
         update exports x set status = 'pending', next_attempt_at = $4
         from dead d where d.id = x.id and d.in_doubt",
    )
    .bind(scope.environment.code())
    .bind(revival.meter_id)
    .bind(revival.only)
    .bind(revival.now)
    .bind(&revival.stripe.event_name)
    .bind(&revival.stripe.customer_key)
    .bind(&revival.stripe.value_key)
    .bind(DELIVERY_UNKNOWN)
    .bind(revival.oldest)
    .bind(revival.closed_by)
    .execute(&mut *scope.connection)
    .await?;
    Ok(())
}

/// Marks exports as refused after delivery, by identifier and with a reason. Includes exports with a
/// delivery that was not confirmed yet. Returns their number.
pub async fn mark_refused(
    scope: &mut Scope<'_>,
    refused: &[(String, String)],
    now: Timestamp,
) -> Result<u64, StoreError> {
    let (identifiers, whys): (Vec<String>, Vec<String>) = refused.iter().cloned().unzip();
    let done = sqlx::query(
        "update exports x set status = 'dead', last_error = given.why, unknown_since = null,
                delivered_at = coalesce(delivered_at, $4)
         from unnest($2::text[], $3::text[]) as given (identifier, why)
         where x.environment = $1 and x.identifier = given.identifier and x.status in ('pending', 'delivered')",
    )
    .bind(scope.environment.code())
    .bind(identifiers)
    .bind(whys)
    .bind(now)
    .execute(&mut *scope.connection)
    .await?;
    Ok(done.rows_affected())
}

/// Returns the sum of a customer's deliveries on a meter with timestamps in a span.
pub async fn delivered_within(
    connection: &mut PgConnection,
    customer_id: i64,
    event_name: &str,
    span: Span,
) -> Result<i64, StoreError> {
    let sum = sqlx::query_scalar(
        "select coalesce(sum(value), 0)::bigint from exports
         where customer_id = $1 and event_name = $2 and occurred_at >= $3 and occurred_at < $4 and status = 'delivered'",
    )
    .bind(customer_id)
    .bind(event_name)
    .bind(span.from)
    .bind(span.to)
    .fetch_one(connection)
    .await?;
    Ok(sum)
}
