//! Webhook events of the biller, stored verbatim, and their outcomes.

use serde::Serialize;
use serde_json::value::RawValue;
use sqlx::types::Json;
use sqlx::{FromRow, PgConnection};

use super::StoreError;
use crate::store::scope::Scope;
use metergate_domain::base::Timestamp;
use metergate_domain::webhook::{WebhookNotice, WebhookStatus};

/// A received webhook event.
#[derive(Debug, Clone, Copy)]
pub struct Arrival<'a> {
    pub notice: &'a WebhookNotice,
    pub payload: &'a RawValue,
    /// True if the event can have an effect.
    pub matters: bool,
}

/// An event that a worker has claimed.
#[derive(Debug, Clone, FromRow)]
pub struct ClaimedEvent {
    pub seq: i64,
    pub id: String,
    #[sqlx(rename = "type")]
    pub kind: String,
    pub created: Timestamp,
    pub object_id: Option<String>,
    pub attempts: i32,
}

/// A stored event, as lists show it.
#[derive(Debug, Clone, FromRow, Serialize)]
pub struct WebhookRow {
    #[serde(skip)]
    pub seq: i64,
    pub id: String,
    #[sqlx(rename = "type")]
    #[serde(rename = "type")]
    pub kind: String,
    pub created: Timestamp,
    pub api_version: Option<String>,
    pub object: Option<String>,
    pub customer: Option<String>,
    #[sqlx(try_from = "String")]
    pub status: WebhookStatus,
    pub reason: Option<String>,
    pub attempts: i32,
    /// The time of the next attempt of a pending event.
    pub next_attempt_at: Option<Timestamp>,
    pub received_at: Timestamp,
    pub settled_at: Option<Timestamp>,
}

/// Stores an event once. A failed event becomes pending again when it arrives again. Returns whether
/// a worker must process it.
pub async fn insert(scope: &mut Scope<'_>, arrival: Arrival<'_>, now: Timestamp) -> Result<bool, StoreError> {
    let done = sqlx::query(
        "insert into webhook_events (environment, id, type, created, api_version, object_id, customer, payload, status,
                                     next_attempt_at, received_at, settled_at)
         values ($1, $2, $3, $4, $5, $6, $7, $8::json, case when $9 then 'pending' else 'ignored' end, $10, $10,
                 case when $9 then null else $10 end)
         on conflict on constraint webhook_events_id do update set
             status = 'pending', attempts = 0, next_attempt_at = $10, settled_at = null
             where webhook_events.status = 'failed'",
    )
    .bind(scope.environment.code())
    .bind(&arrival.notice.id)
    .bind(&arrival.notice.kind)
    .bind(arrival.notice.created.unwrap_or(now))
    .bind(&arrival.notice.api_version)
    .bind(&arrival.notice.object_id)
    .bind(&arrival.notice.customer)
    .bind(arrival.payload.get())
    .bind(arrival.matters)
    .bind(now)
    .execute(&mut *scope.connection)
    .await?;
    Ok(done.rows_affected() > 0 && arrival.matters)
}

/// Claims due events until the lease ends. Other workers skip them until then.
pub async fn claim(
    scope: &mut Scope<'_>,
    now: Timestamp,
    lease_until: Timestamp,
    limit: i64,
) -> Result<Vec<ClaimedEvent>, StoreError> {
    let claimed = sqlx::query_as(
        "with due as (
             select seq from webhook_events
             where environment = $1 and status = 'pending' and next_attempt_at <= $2
             order by next_attempt_at limit $4 for update skip locked)
         update webhook_events e set attempts = e.attempts + 1, next_attempt_at = $3
         from due where e.seq = due.seq
         returning e.seq, e.id, e.type, e.created, e.object_id, e.attempts",
    )
    .bind(scope.environment.code())
    .bind(now)
    .bind(lease_until)
    .bind(limit)
    .fetch_all(&mut *scope.connection)
    .await?;
    Ok(claimed)
}

/// Returns the payload of an event.
pub async fn payload(connection: &mut PgConnection, seq: i64) -> Result<Option<Box<RawValue>>, StoreError> {
    let found = sqlx::query_scalar("select payload from webhook_events where seq = $1")
        .bind(seq)
        .fetch_optional(connection)
        .await?;
    Ok(found.map(|Json(payload)| payload))
}

/// The event types of subscriptions.
#[derive(Debug, Clone, Copy)]
pub struct SubscriptionTypes<'a> {
    /// The common prefix of all types.
    pub prefix: &'a str,
    /// The type of a subscription's end.
    pub deleted: &'a str,
}

/// Returns the payloads that may contain the current state of a subscription: those of the latest
/// second, and its end.
pub async fn latest_payloads(
    scope: &mut Scope<'_>,
    object_id: &str,
    types: SubscriptionTypes<'_>,
    limit: i64,
) -> Result<Vec<Box<RawValue>>, StoreError> {
    let found: Vec<Json<Box<RawValue>>> = sqlx::query_scalar(
        "select payload from webhook_events
         where environment = $1 and object_id = $2 and starts_with(type, $3)
           and (type = $4 or created = (select max(created) from webhook_events
                                        where environment = $1 and object_id = $2 and starts_with(type, $3)))
         order by seq desc limit $5",
    )
    .bind(scope.environment.code())
    .bind(object_id)
    .bind(types.prefix)
    .bind(types.deleted)
    .bind(limit)
    .fetch_all(&mut *scope.connection)
    .await?;
    Ok(found.into_iter().map(|Json(payload)| payload).collect())
}

/// Stores the outcomes of events.
pub async fn settle(
    connection: &mut PgConnection,
    seqs: &[i64],
    status: WebhookStatus,
    reason: Option<&str>,
    now: Timestamp,
) -> Result<(), StoreError> {
    sqlx::query(
        "update webhook_events set status = $2, reason = $3, settled_at = $4
         where seq = any($1) and (status, reason) is distinct from ($2, $3)",
    )
    .bind(seqs)
    .bind(status.as_str())
    .bind(reason)
    .bind(now)
    .execute(connection)
    .await?;
    Ok(())
}

/// Returns the events of a subscription that wait for a mapping.
pub async fn unmapped(scope: &mut Scope<'_>, object_id: &str) -> Result<Vec<i64>, StoreError> {
    let found = sqlx::query_scalar(
        "select seq from webhook_events where environment = $1 and object_id = $2 and status = 'unmapped'",
    )
    .bind(scope.environment.code())
    .bind(object_id)
    .fetch_all(&mut *scope.connection)
    .await?;
    Ok(found)
}

/// Postpones events to a later attempt.
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

/// Returns a page of events that arrived before the event number `before`, the latest first.
pub async fn list(
    scope: &mut Scope<'_>,
    status: Option<WebhookStatus>,
    before: i64,
    limit: u32,
) -> Result<Vec<WebhookRow>, StoreError> {
    let statuses =
        status.map_or_else(|| WebhookStatus::WORDS.map(|(_, each)| each).to_vec(), |one| vec![one]);
    let rows = sqlx::query_as(
        "select seq, id, type, created, api_version, object_id as object, customer, status, reason, attempts,
                case when status = 'pending' then next_attempt_at end as next_attempt_at, received_at, settled_at
         from webhook_events
         where environment = $1 and status = any($2) and seq < $3 order by seq desc limit $4",
    )
    .bind(scope.environment.code())
    .bind(words(&statuses))
    .bind(before)
    .bind(i64::from(limit))
    .fetch_all(&mut *scope.connection)
    .await?;
    Ok(rows)
}

fn words(statuses: &[WebhookStatus]) -> Vec<&'static str> {
    statuses.iter().map(|status| status.as_str()).collect()
}

/// Deletes events of some statuses that were settled before a time. Returns their number.
pub async fn delete_settled(
    connection: &mut PgConnection,
    statuses: &[WebhookStatus],
    before: Timestamp,
    limit: i64,
) -> Result<u64, StoreError> {
    let done = sqlx::query(
        "delete from webhook_events where seq in (
             select seq from webhook_events where settled_at < $2 and status = any($1) limit $3)",
    )
    .bind(words(statuses))
    .bind(before)
    .bind(limit)
    .execute(connection)
    .await?;
    Ok(done.rows_affected())
}
