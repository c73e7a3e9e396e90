//! Stores events: their once-only keys, their rows, and the note that their batch is unfolded.

use uuid::Uuid;

use crate::store::StoreError;
use crate::store::scope::Scope;
use metergate_domain::base::{Quantity, Timestamp};

/// The keys of a batch as columns, in ascending order of the key.
#[derive(Debug, Default)]
pub struct KeyColumns {
    pub keys: Vec<Uuid>,
    pub contents: Vec<Uuid>,
    pub occurred_at: Vec<Timestamp>,
    pub timestamp_given: Vec<bool>,
}

/// A key as it was first recorded.
#[derive(Debug, Clone, Copy, sqlx::FromRow)]
pub struct KeyRow {
    pub key: Uuid,
    pub content: Uuid,
    pub occurred_at: Timestamp,
    pub timestamp_given: bool,
    pub batch_id: i64,
}

/// Inserts the free keys and returns their number. Waits for concurrent transactions that insert the
/// same keys.
pub async fn insert_keys(
    scope: &mut Scope<'_>,
    batch_id: i64,
    columns: &KeyColumns,
) -> Result<u64, StoreError> {
    let done = sqlx::query(
        "insert into event_keys (environment, key, content, occurred_at, timestamp_given, batch_id)
         select $1, key, content, occurred_at, timestamp_given, $2
         from unnest($3::uuid[], $4::uuid[], $5::timestamptz[], $6::boolean[])
             as given (key, content, occurred_at, timestamp_given)
         on conflict on constraint event_keys_pk do nothing",
    )
    .bind(scope.environment.code())
    .bind(batch_id)
    .bind(&columns.keys)
    .bind(&columns.contents)
    .bind(&columns.occurred_at)
    .bind(&columns.timestamp_given)
    .execute(&mut *scope.connection)
    .await?;
    Ok(done.rows_affected())
}

/// Returns the stored rows of some keys.
pub async fn find_keys(scope: &mut Scope<'_>, keys: &[Uuid]) -> Result<Vec<KeyRow>, StoreError> {
    let found = sqlx::query_as(
        "select key, content, occurred_at, timestamp_given, batch_id from event_keys
         where environment = $1 and key = any($2)",
    )
    .bind(scope.environment.code())
    .bind(keys)
    .fetch_all(&mut *scope.connection)
    .await?;
    Ok(found)
}

/// Returns the time of the latest event.
pub async fn latest(scope: &mut Scope<'_>) -> Result<Option<Timestamp>, StoreError> {
    let latest = sqlx::query_scalar(
        "select occurred_at from events where environment = $1 order by occurred_at desc limit 1",
    )
    .bind(scope.environment.code())
    .fetch_optional(&mut *scope.connection)
    .await?;
    Ok(latest)
}

/// The events of a batch as columns, in order of arrival.
#[derive(Debug, Default)]
pub struct EventColumns {
    pub path_ids: Vec<i64>,
    pub occurred_at: Vec<Timestamp>,
    pub customer_ids: Vec<Option<i64>>,
    pub keys: Vec<Uuid>,
    pub ordinals: Vec<i32>,
    pub event_name_ids: Vec<i32>,
    pub signs: Vec<i16>,
    pub values: Vec<Quantity>,
    pub properties: Vec<Option<String>>,
    pub ids: Vec<Option<String>>,
    pub sources: Vec<Option<String>>,
    /// The meter that an event is bound to; none if all meters of its name count it.
    pub meter_ids: Vec<Option<i32>>,
}

/// Inserts the events, and marks their batch as unfolded.
pub async fn insert_batch(
    scope: &mut Scope<'_>,
    batch_id: i64,
    columns: &EventColumns,
) -> Result<(), StoreError> {
    let (Some(first), Some(last)) = (columns.occurred_at.iter().min(), columns.occurred_at.iter().max())
    else {
        return Ok(());
    };
    let mut event_name_ids = columns.event_name_ids.clone();
    event_name_ids.sort_unstable();
    event_name_ids.dedup();
    sqlx::query(
        "with noted as (
             insert into unfolded (batch_id, environment, first_at, last_at, event_count, event_name_ids)
             values ($2, $1, $14, $15, $16, $17))
         insert into events (environment, batch_id, path_id, occurred_at, customer_id, key, ordinal, event_name_id,
                             sign, value, properties, id, source, meter_id)
         select $1, $2, path_id, occurred_at, customer_id, key, ordinal, event_name_id, sign, value,
                properties::jsonb, id, source, meter_id
         from unnest($3::bigint[], $4::timestamptz[], $5::bigint[], $6::uuid[], $7::int[], $8::int[], $9::smallint[],
                     $10::numeric[], $11::text[], $12::text[], $13::text[], $18::int[])
             as given (path_id, occurred_at, customer_id, key, ordinal, event_name_id, sign, value, properties, id,
                       source, meter_id)",
    )
    .bind(scope.environment.code())
    .bind(batch_id)
    .bind(&columns.path_ids)
    .bind(&columns.occurred_at)
    .bind(&columns.customer_ids)
    .bind(&columns.keys)
    .bind(&columns.ordinals)
    .bind(&columns.event_name_ids)
    .bind(&columns.signs)
    .bind(&columns.values)
    .bind(&columns.properties)
    .bind(&columns.ids)
    .bind(&columns.sources)
    .bind(first)
    .bind(last)
    .bind(i32::try_from(columns.keys.len()).unwrap_or(i32::MAX))
    .bind(event_name_ids)
    .bind(&columns.meter_ids)
    .execute(&mut *scope.connection)
    .await?;
    Ok(())
}
