//! Stores voids: each event can be voided once, and the void remains as a row.

use uuid::Uuid;

use crate::store::StoreError;
use crate::store::scope::Scope;
use metergate_domain::base::Timestamp;
use metergate_domain::base::timestamp::MICROS_PER_HOUR;

/// A stored void.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct VoidRow {
    pub reason: Option<String>,
    pub voided_at: Timestamp,
}

/// Returns the void of an event, if it is voided.
pub async fn find(scope: &mut Scope<'_>, key: Uuid) -> Result<Option<VoidRow>, StoreError> {
    let found = sqlx::query_as("select reason, voided_at from voids where environment = $1 and key = $2")
        .bind(scope.environment.code())
        .bind(key)
        .fetch_optional(&mut *scope.connection)
        .await?;
    Ok(found)
}

/// A new void.
#[derive(Debug, Clone, Copy)]
pub struct NewVoid<'a> {
    /// The key of the event.
    pub key: Uuid,
    /// The batch of the counter-event.
    pub batch_id: i64,
    pub reason: Option<&'a str>,
    pub voided_at: Timestamp,
}

/// Inserts the void of an event. Returns false if the event is already voided. Waits for a concurrent
/// void of the same event.
pub async fn insert(scope: &mut Scope<'_>, void: NewVoid<'_>) -> Result<bool, StoreError> {
    let done = sqlx::query(
        "insert into voids (environment, key, batch_id, reason, voided_at) values ($1, $2, $3, $4, $5)
         on conflict on constraint voids_pk do nothing",
    )
    .bind(scope.environment.code())
    .bind(void.key)
    .bind(void.batch_id)
    .bind(void.reason)
    .bind(void.voided_at)
    .execute(&mut *scope.connection)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Inserts the counter-event: a copy of the event with sign −1, in an unfolded batch of its own.
pub async fn insert_counter_event(
    scope: &mut Scope<'_>,
    key: Uuid,
    occurred_at: Timestamp,
    batch_id: i64,
) -> Result<(), StoreError> {
    sqlx::query(
        "with countered as (
             insert into events (environment, batch_id, path_id, occurred_at, customer_id, key, ordinal,
                                 event_name_id, sign, value, properties, id, source, meter_id)
             select environment, $4, path_id, occurred_at, customer_id, key, 0, event_name_id, -1, value, properties,
                    id, source, meter_id
             from events e
             join (select batch_id from event_keys where environment = $1 and key = $2) k on k.batch_id = e.batch_id
             where e.environment = $1 and e.key = $2 and e.occurred_at = $3 and e.sign = 1
             returning event_name_id)
         insert into unfolded (batch_id, environment, first_at, last_at, event_count, event_name_ids)
         select $4, $1, $3, $3, 1, array[event_name_id] from countered",
    )
    .bind(scope.environment.code())
    .bind(key)
    .bind(occurred_at)
    .bind(batch_id)
    .execute(&mut *scope.connection)
    .await?;
    Ok(())
}

/// Adds a gap of one hour for some meters, because a minimum cannot be corrected by subtraction. An
/// existing gap is not enough: a concurrent rebuild without this void may be about to remove it.
pub async fn insert_gaps(
    scope: &mut Scope<'_>,
    meter_ids: &[i32],
    hour: Timestamp,
) -> Result<(), StoreError> {
    let end = Timestamp::from_micros(hour.micros() + MICROS_PER_HOUR).unwrap_or(Timestamp::MAX);
    sqlx::query(
        "insert into rollup_gaps (environment, meter_id, from_hour, to_hour)
         select $1, meter_id, $3, $4 from unnest($2::int[]) meter_id",
    )
    .bind(scope.environment.code())
    .bind(meter_ids)
    .bind(hour)
    .bind(end)
    .execute(&mut *scope.connection)
    .await?;
    Ok(())
}
