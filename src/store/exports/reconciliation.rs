//! Recorded, accumulated and exported usage of a customer on a meter, for comparison.

use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};

use super::parts::read_units;
use crate::store::StoreError;
use crate::store::scope::Scope;
use metergate_domain::base::{Span, Timestamp};
use metergate_domain::exports::Units;

/// Units at a time.
#[derive(Debug, Clone, Copy)]
pub struct UnitsAt {
    pub at: Timestamp,
    pub units: Units,
}

/// Sums in a window.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sums {
    pub events: Units,
    pub recorded: Units,
    pub exported: Units,
    pub delivered: Units,
}

fn part(row: &PgRow) -> Result<UnitsAt, StoreError> {
    Ok(UnitsAt { at: row.try_get("at")?, units: read_units(&row.try_get("units")?)? })
}

/// Returns the number of a customer.
pub async fn customer(scope: &mut Scope<'_>, stripe_customer_id: &str) -> Result<Option<i64>, StoreError> {
    let id =
        sqlx::query_scalar("select id from customers where environment = $1 and stripe_customer_id = $2")
            .bind(scope.environment.code())
            .bind(stripe_customer_id)
            .fetch_optional(&mut *scope.connection)
            .await?;
    Ok(id)
}

/// Returns the accumulated units, by bucket.
pub async fn recorded(
    connection: &mut PgConnection,
    customer_id: i64,
    meter_id: i32,
    span: Span,
) -> Result<Vec<UnitsAt>, StoreError> {
    let rows = sqlx::query(
        "select bucket_from as at, recorded::text as units from export_sums
         where customer_id = $1 and meter_id = $2 and bucket_from >= $3 and bucket_from < $4",
    )
    .bind(customer_id)
    .bind(meter_id)
    .bind(span.from)
    .bind(span.to)
    .fetch_all(connection)
    .await?;
    rows.iter().map(part).collect()
}

/// Returns the exported units by timestamp, each with whether it was delivered.
pub async fn exported(
    connection: &mut PgConnection,
    customer_id: i64,
    meter_id: i32,
    span: Span,
) -> Result<Vec<(UnitsAt, bool)>, StoreError> {
    let rows = sqlx::query(
        "select occurred_at as at, value::text as units, status = 'delivered' as delivered from exports
         where customer_id = $1 and meter_id = $2 and occurred_at >= $3 and occurred_at < $4
           and status <> 'canceled'",
    )
    .bind(customer_id)
    .bind(meter_id)
    .bind(span.from)
    .bind(span.to)
    .fetch_all(connection)
    .await?;
    rows.iter().map(|row| Ok((part(row)?, row.try_get("delivered")?))).collect()
}

const LOCK: i32 = 0x4d47_0005;

/// Tries to lock the comparison, until the end of the connection. Returns false if another process
/// holds the lock.
pub async fn try_lock(scope: &mut Scope<'_>) -> Result<bool, StoreError> {
    let locked = sqlx::query_scalar("select pg_try_advisory_lock($1, $2)")
        .bind(LOCK)
        .bind(i32::from(scope.environment.code()))
        .fetch_one(&mut *scope.connection)
        .await?;
    Ok(locked)
}

/// Counts the comparisons since a time.
pub async fn checked_since(scope: &mut Scope<'_>, since: Timestamp) -> Result<i64, StoreError> {
    let count =
        sqlx::query_scalar("select count(*) from export_checks where environment = $1 and checked_at > $2")
            .bind(scope.environment.code())
            .bind(since)
            .fetch_one(&mut *scope.connection)
            .await?;
    Ok(count)
}

/// A customer and meter with a day that is still to be compared.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Unchecked {
    pub customer_id: i64,
    pub customer: String,
    pub meter_id: i32,
    pub meter: String,
    pub event_name: String,
    pub exported: i64,
}

/// Returns some customers and meters with deliveries on a day, no open exports, and no comparison for
/// that day. The oldest last comparison comes first.
pub async fn unchecked(scope: &mut Scope<'_>, day: Span, limit: i64) -> Result<Vec<Unchecked>, StoreError> {
    let found = sqlx::query_as(
        "select x.customer_id, c.stripe_customer_id as customer, x.meter_id, m.key as meter, x.event_name,
                sum(x.value)::bigint as exported
         from exports x
         join customers c on c.id = x.customer_id
         join meters m on m.id = x.meter_id
         left join export_checks k on k.customer_id = x.customer_id and k.meter_id = x.meter_id
         where x.environment = $1 and x.created_at >= $2 and x.occurred_at >= $2 and x.occurred_at < $3
           and x.status <> 'canceled' and k.day is distinct from $2
           -- gauges are not sums
           and m.definition #>> '{stripe,formula}' is distinct from 'last'
         group by 1, 2, 3, 4, 5, k.checked_at
         having bool_and(x.status = 'delivered')
         order by k.checked_at nulls first, x.customer_id limit $4",
    )
    .bind(scope.environment.code())
    .bind(day.from)
    .bind(day.to)
    .bind(limit)
    .fetch_all(&mut *scope.connection)
    .await?;
    Ok(found)
}

/// The result of a comparison.
#[derive(Debug, Clone, Copy)]
pub struct Checked {
    pub day: Timestamp,
    /// The provider's sum.
    pub provider: Units,
    pub checked_at: Timestamp,
}

/// Records the result of a comparison.
pub async fn note_checked(
    scope: &mut Scope<'_>,
    pair: &Unchecked,
    checked: Checked,
) -> Result<(), StoreError> {
    sqlx::query(
        "insert into export_checks (environment, customer_id, meter_id, day, exported, provider, checked_at)
         values ($1, $2, $3, $4, $5, $6::text::numeric, $7)
         on conflict on constraint export_checks_pk do update
             set day = excluded.day, exported = excluded.exported, provider = excluded.provider,
                 checked_at = excluded.checked_at",
    )
    .bind(scope.environment.code())
    .bind(pair.customer_id)
    .bind(pair.meter_id)
    .bind(checked.day)
    .bind(pair.exported)
    .bind(checked.provider.to_string())
    .bind(checked.checked_at)
    .execute(&mut *scope.connection)
    .await?;
    Ok(())
}
