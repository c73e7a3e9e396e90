//! Monthly partitions of the events, created before they are needed. Attaching one does not block
//! recording or reading.

use sqlx::{Connection, PgConnection};

use super::error::StoreError;
use metergate_domain::base::window::utc_month;
use metergate_domain::base::{Span, Timestamp};

/// The key of the advisory lock for creating partitions.
const LOCK: i64 = 0x4d47_0002;
/// The start of the first monthly partition. Older events share one partition of the schema.
pub const FIRST_MONTH: &str = "2020-01-01T00:00:00Z";

/// Returns the month of an event, or none if the event is older than all monthly partitions.
pub fn month_of(at: Timestamp) -> Option<Span> {
    let month = utc_month(at);
    Timestamp::parse(FIRST_MONTH).is_ok_and(|first| month.from >= first).then_some(month)
}

/// Creates the partition of a month if it is missing. Several replicas may call it at the same time.
pub async fn ensure(connection: &mut PgConnection, month: Span) -> Result<(), StoreError> {
    let name: String = format!("events_{}", &month.from.to_string()[..7]).replace('-', "_");
    let mut transaction = connection.begin().await?;
    sqlx::query("select pg_advisory_xact_lock($1)").bind(LOCK).execute(&mut *transaction).await?;
    let exists: bool = sqlx::query_scalar("select to_regclass($1) is not null")
        .bind(&name)
        .fetch_one(&mut *transaction)
        .await?;
    if !exists {
        // safe: the name and the bounds contain only digits of the month
        let sql = format!(
            "create table {name} (like events including all);
             alter table events attach partition {name} for values from ('{}') to ('{}')",
            month.from, month.to
        );
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut *transaction).await?;
    }
    transaction.commit().await?;
    Ok(())
}
