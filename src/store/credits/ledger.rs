//! Reads of the credit ledger.

use sqlx::postgres::PgRow;
use sqlx::{FromRow, PgConnection, Row};
use uuid::Uuid;

use crate::store::StoreError;
use crate::store::scope::Scope;
use metergate_domain::base::{Quantity, Timestamp, Total};
use metergate_domain::credits::{MovementKind, Unit};
use metergate_domain::gate::PaidShare;

/// A row of the ledger.
#[derive(Debug, Clone, FromRow)]
pub struct LedgerRow {
    pub id: i64,
    pub subject_id: i64,
    #[sqlx(rename = "grant_id")]
    pub grant: Option<Uuid>,
    #[sqlx(try_from = "String")]
    pub kind: MovementKind,
    #[sqlx(flatten)]
    pub unit: Unit,
    pub amount: Total,
    pub at: Timestamp,
    pub balance: Total,
    pub event_key: Option<Uuid>,
    /// The caller's ids of the event and the reservation, if they differ from the keys.
    pub event_id: Option<String>,
    pub reservation: Option<Uuid>,
    pub reservation_id: Option<String>,
    pub meter: Option<String>,
    pub quantity: Option<Quantity>,
    pub refunds: Option<i64>,
    pub reason: Option<String>,
}

const COLUMNS: &str = "l.id, l.subject_id, l.grant_id, l.kind, l.unit, l.unit_key, l.amount, l.at, l.balance,
    l.event_key, l.reservation, l.meter, l.quantity, l.refunds, l.reason";

/// Returns a page of a subject's movements with ids below `before`, the latest first.
pub async fn list(
    scope: &mut Scope<'_>,
    subject_id: i64,
    before: i64,
    limit: u32,
) -> Result<Vec<LedgerRow>, StoreError> {
    let sql = format!(
        "with page as (
             select {COLUMNS} from credit_ledger l where l.subject_id = $2 and l.id < $3 order by l.id desc limit $4)
         select {COLUMNS}, r.id as reservation_id,
                (select e.id from event_keys k join events e on e.environment = $1 and e.key = k.key
                        and e.occurred_at = k.occurred_at and e.sign = 1
                 where k.environment = $1 and k.key = l.event_key limit 1) as event_id
         from page l left join reservations r on r.environment = $1 and r.key = l.reservation
         order by l.id desc"
    );
    let rows = sqlx::query_as(sqlx::AssertSqlSafe(sql))
        .bind(scope.environment.code())
        .bind(subject_id)
        .bind(before)
        .bind(i64::from(limit));
    Ok(rows.fetch_all(&mut *scope.connection).await?)
}

/// Returns the spends for an event that are not reversed, by id in ascending order.
pub async fn spent_for(scope: &mut Scope<'_>, event_key: Uuid) -> Result<Vec<LedgerRow>, StoreError> {
    let sql = format!(
        "select {COLUMNS}, null::text as event_id, null::text as reservation_id from credit_ledger l
         where l.environment = $1 and l.event_key = $2 and l.kind in ('settle', 'spend')
           and not exists (select from credit_ledger r where r.environment = $1 and r.event_key = $2 and r.refunds = l.id)
         order by l.id"
    );
    let rows = sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(scope.environment.code()).bind(event_key);
    Ok(rows.fetch_all(&mut *scope.connection).await?)
}

/// Returns the unit of a spend of a subject, and its amount that is not reversed.
pub async fn spend(
    connection: &mut PgConnection,
    subject_id: i64,
    id: i64,
) -> Result<Option<(Unit, Total)>, StoreError> {
    let row = sqlx::query(
        "select l.unit, l.unit_key, l.amount - coalesce((
                    select sum(r.amount) from credit_ledger r
                    where r.environment = l.environment and r.event_key = l.event_key and r.refunds = l.id), 0) as amount
         from credit_ledger l where l.id = $1 and l.subject_id = $2 and l.kind in ('settle', 'spend')",
    )
    .bind(id)
    .bind(subject_id)
    .fetch_optional(connection)
    .await?;
    row.map(|row| Ok((Unit::from_row(&row)?, row.try_get("amount")?))).transpose()
}

/// Returns the usage of an event that credits paid for, by subject and counter.
pub async fn covers_of(scope: &mut Scope<'_>, event_key: Uuid) -> Result<Vec<PaidShare>, StoreError> {
    let rows = sqlx::query(
        "select subject_id, definition, at, sum(quantity) as quantity from credit_covers
         where environment = $1 and event_key = $2 group by subject_id, definition, at having sum(quantity) > 0",
    )
    .bind(scope.environment.code())
    .bind(event_key)
    .fetch_all(&mut *scope.connection)
    .await?;
    let read = |row: &PgRow| {
        Ok(PaidShare {
            subject_id: row.try_get("subject_id")?,
            definition: row.try_get("definition")?,
            at: row.try_get("at")?,
            event: event_key,
            quantity: row.try_get("quantity")?,
        })
    };
    rows.iter().map(read).collect()
}

/// Returns the sum of the usage that credits paid for, for each wanted subject, definition and span.
pub async fn covered(
    connection: &mut PgConnection,
    wanted: &[(i64, Uuid, Timestamp, Timestamp)],
) -> Result<Vec<Total>, StoreError> {
    let found = sqlx::query_scalar(
        "select coalesce((select sum(c.quantity) from credit_covers c
                          where c.subject_id = given.subject_id and c.definition = given.definition
                            and c.at >= given.since and c.at < given.until), 0)
         from unnest($1::bigint[], $2::uuid[], $3::timestamptz[], $4::timestamptz[]) with ordinality
             as given (subject_id, definition, since, until, n) order by n",
    )
    .bind(wanted.iter().map(|(id, _, _, _)| *id).collect::<Vec<i64>>())
    .bind(wanted.iter().map(|(_, definition, _, _)| *definition).collect::<Vec<Uuid>>())
    .bind(wanted.iter().map(|(_, _, since, _)| *since).collect::<Vec<Timestamp>>())
    .bind(wanted.iter().map(|(_, _, _, until)| *until).collect::<Vec<Timestamp>>())
    .fetch_all(connection)
    .await?;
    Ok(found)
}
