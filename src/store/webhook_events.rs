//! What the biller told, word for word, and what came of it.

use serde_json::value::RawValue;
use sqlx::postgres::PgRow;
use sqlx::types::Json;
use sqlx::{PgConnection, Row};

use super::StoreError;
use metergate_domain::base::environment::Environment;
use metergate_domain::base::timestamp::Timestamp;

/// An event as it came.
#[derive(Debug, Clone, Copy)]
pub struct Arrival<'a> {
    pub id: &'a str,
    pub kind: &'a str,
    pub created: Timestamp,
    pub api_version: Option<&'a str>,
    pub object_id: Option<&'a str>,
    pub customer: Option<&'a str>,
    pub payload: &'a RawValue,
    /// Whether anything may follow from it.
    pub matters: bool,
}

/// An event that was taken to be applied.
#[derive(Debug, Clone)]
pub struct ClaimedEvent {
    pub seq: i64,
    pub id: String,
    pub kind: String,
    pub created: Timestamp,
    pub object_id: Option<String>,
    pub attempts: i32,
}

#[derive(Debug, Clone)]
pub struct WebhookRow {
    pub seq: i64,
    pub id: String,
    pub kind: String,
    pub created: Timestamp,
    pub api_version: Option<String>,
    pub object_id: Option<String>,
    pub customer: Option<String>,
    pub status: String,
    pub reason: Option<String>,
    pub attempts: i32,
    pub next_attempt_at: Timestamp,
    pub received_at: Timestamp,
    pub settled_at: Option<Timestamp>,
}

/// Keeps an event, once; one that failed is tried again when it comes again. Whether there is anything
/// new to do.
pub async fn insert(
    connection: &mut PgConnection,
    environment: Environment,
    arrival: Arrival<'_>,
    now: Timestamp,
) -> Result<bool, StoreError> {
    let done = sqlx::query(
        "insert into webhook_events (environment, id, type, created, api_version, object_id, customer, payload, status,
                                     next_attempt_at, received_at, settled_at)
         values ($1, $2, $3, $4, $5, $6, $7, $8::json, case when $9 then 'pending' else 'ignored' end, $10, $10,
                 case when $9 then null else $10 end)
         on conflict on constraint webhook_events_id do update set
             status = 'pending', attempts = 0, next_attempt_at = $10, settled_at = null
             where webhook_events.status = 'failed'",
    )
    .bind(environment.code())
    .bind(arrival.id)
    .bind(arrival.kind)
    .bind(arrival.created)
    .bind(arrival.api_version)
    .bind(arrival.object_id)
    .bind(arrival.customer)
    .bind(arrival.payload.get())
    .bind(arrival.matters)
    .bind(now)
    .execute(connection)
    .await?;
    Ok(done.rows_affected() > 0 && arrival.matters)
}

/// Takes events that are due, for as long as a lease: others pass over them until then.
pub async fn claim(
    connection: &mut PgConnection,
    environment: Environment,
    now: Timestamp,
    lease_until: Timestamp,
    limit: i64,
) -> Result<Vec<ClaimedEvent>, StoreError> {
    let rows = sqlx::query(
        "with due as (
             select seq from webhook_events
             where environment = $1 and status = 'pending' and next_attempt_at <= $2
             order by next_attempt_at limit $4 for update skip locked)
         update webhook_events e set attempts = e.attempts + 1, next_attempt_at = $3
         from due where e.seq = due.seq
         returning e.seq, e.id, e.type, e.created, e.object_id, e.attempts",
    )
    .bind(environment.code())
    .bind(now)
    .bind(lease_until)
    .bind(limit)
    .fetch_all(connection)
    .await?;
    let read = |row: &PgRow| {
        Ok(ClaimedEvent {
            seq: row.try_get("seq")?,
            id: row.try_get("id")?,
            kind: row.try_get("type")?,
            created: row.try_get("created")?,
            object_id: row.try_get("object_id")?,
            attempts: row.try_get("attempts")?,
        })
    };
    rows.iter().map(read).collect()
}

pub async fn payload(connection: &mut PgConnection, seq: i64) -> Result<Option<Box<RawValue>>, StoreError> {
    let found = sqlx::query_scalar("select payload from webhook_events where seq = $1")
        .bind(seq)
        .fetch_optional(connection)
        .await?;
    Ok(found.map(|Json(payload)| payload))
}

/// The payloads about a subscription that can say what holds: those of the latest second, and of an end.
/// Events of types that begin with `prefix` are about it.
pub async fn latest_payloads(
    connection: &mut PgConnection,
    environment: Environment,
    object_id: &str,
    (prefix, deleted): (&str, &str),
    limit: i64,
) -> Result<Vec<Box<RawValue>>, StoreError> {
    let found: Vec<Json<Box<RawValue>>> = sqlx::query_scalar(
        "select payload from webhook_events
         where environment = $1 and object_id = $2 and starts_with(type, $3)
           and (type = $4 or created = (select max(created) from webhook_events
                                        where environment = $1 and object_id = $2 and starts_with(type, $3)))
         order by seq desc limit $5",
    )
    .bind(environment.code())
    .bind(object_id)
    .bind(prefix)
    .bind(deleted)
    .bind(limit)
    .fetch_all(connection)
    .await?;
    Ok(found.into_iter().map(|Json(payload)| payload).collect())
}

/// Notes what came of events.
pub async fn settle(
    connection: &mut PgConnection,
    seqs: &[i64],
    status: &str,
    reason: Option<&str>,
    now: Timestamp,
) -> Result<(), StoreError> {
    sqlx::query(
        "update webhook_events set status = $2, reason = $3, settled_at = $4
         where seq = any($1) and (status, reason) is distinct from ($2, $3)",
    )
    .bind(seqs)
    .bind(status)
    .bind(reason)
    .bind(now)
    .execute(connection)
    .await?;
    Ok(())
}

/// The events of a subscription that wait for a mapping.
pub async fn unmapped(
    connection: &mut PgConnection,
    environment: Environment,
    object_id: &str,
) -> Result<Vec<i64>, StoreError> {
    let found = sqlx::query_scalar(
        "select seq from webhook_events where environment = $1 and object_id = $2 and status = 'unmapped'",
    )
    .bind(environment.code())
    .bind(object_id)
    .fetch_all(connection)
    .await?;
    Ok(found)
}

/// Leaves events for later.
pub async fn postpone(
    connection: &mut PgConnection,
    seqs: &[i64],
    at: Timestamp,
    reason: &str,
) -> Result<(), StoreError> {
    sqlx::query("update webhook_events set next_attempt_at = $2, reason = $3 where seq = any($1)")
        .bind(seqs)
        .bind(at)
        .bind(reason)
        .execute(connection)
        .await?;
    Ok(())
}

/// A page of events, the latest to arrive first, those before the one with the number `before`.
pub async fn list(
    connection: &mut PgConnection,
    environment: Environment,
    status: Option<&str>,
    before: i64,
    limit: u32,
) -> Result<Vec<WebhookRow>, StoreError> {
    let rows = sqlx::query(
        "select seq, id, type, created, api_version, object_id, customer, status, reason, attempts, next_attempt_at,
                received_at, settled_at
         from webhook_events
         where environment = $1 and status = any($2) and seq < $3 order by seq desc limit $4",
    )
    .bind(environment.code())
    .bind(status.map_or_else(|| STATUSES.to_vec(), |status| vec![status]))
    .bind(before)
    .bind(i64::from(limit))
    .fetch_all(connection)
    .await?;
    let read = |row: &PgRow| {
        Ok(WebhookRow {
            seq: row.try_get("seq")?,
            id: row.try_get("id")?,
            kind: row.try_get("type")?,
            created: row.try_get("created")?,
            api_version: row.try_get("api_version")?,
            object_id: row.try_get("object_id")?,
            customer: row.try_get("customer")?,
            status: row.try_get("status")?,
            reason: row.try_get("reason")?,
            attempts: row.try_get("attempts")?,
            next_attempt_at: row.try_get("next_attempt_at")?,
            received_at: row.try_get("received_at")?,
            settled_at: row.try_get("settled_at")?,
        })
    };
    rows.iter().map(read).collect()
}

pub const STATUSES: [&str; 5] = ["pending", "applied", "ignored", "unmapped", "failed"];

/// Deletes events of some statuses that were settled before a time. How many there were.
pub async fn delete_settled(
    connection: &mut PgConnection,
    statuses: &[&str],
    before: Timestamp,
    limit: i64,
) -> Result<u64, StoreError> {
    let done = sqlx::query(
        "delete from webhook_events where seq in (
             select seq from webhook_events where settled_at < $2 and status = any($1) limit $3)",
    )
    .bind(statuses)
    .bind(before)
    .bind(limit)
    .execute(connection)
    .await?;
    Ok(done.rows_affected())
}
