//! The history of customer mappings: usage stays with the customer at the time of its recording.

use sqlx::{PgConnection, Row};

use crate::store::StoreError;
use metergate_domain::base::Timestamp;
use metergate_domain::invoicing::{Mapping, Mappings};

/// Records a subject's present customer and the end of the earlier mapping. The caller holds the
/// configuration lock.
pub async fn note(connection: &mut PgConnection, subject_id: i64, now: Timestamp) -> Result<(), StoreError> {
    sqlx::query(
        "update customer_mappings m set mapped_until = greatest(m.mapped_from, $2)
         from subjects s where s.id = $1 and m.subject_id = s.id and m.mapped_until is null
           and m.customer_id is distinct from s.customer_id",
    )
    .bind(subject_id)
    .bind(now)
    .execute(&mut *connection)
    .await?;
    sqlx::query(
        "insert into customer_mappings (subject_id, customer_id, mapped_from)
         select id, customer_id, $2 from subjects where id = $1 and customer_id is not null
         on conflict (subject_id) where mapped_until is null do nothing",
    )
    .bind(subject_id)
    .bind(now)
    .execute(connection)
    .await?;
    Ok(())
}

/// Returns all mappings of a subject, the oldest first.
pub async fn of_subject(connection: &mut PgConnection, subject_id: i64) -> Result<Mappings, StoreError> {
    let rows = sqlx::query(
        "select customer_id, mapped_from, mapped_until from customer_mappings where subject_id = $1 order by id",
    )
    .bind(subject_id)
    .fetch_all(connection)
    .await?;
    let read = |row: &sqlx::postgres::PgRow| -> Result<Mapping, StoreError> {
        Ok(Mapping {
            customer_id: row.try_get("customer_id")?,
            from: row.try_get("mapped_from")?,
            until: row.try_get("mapped_until")?,
        })
    };
    Ok(Mappings::of(rows.iter().map(read).collect::<Result<_, _>>()?))
}
