//! Monthly partitions of the events, made before they are needed. Attaching one lets recording and
//! reading go on.

use sqlx::{Connection, PgConnection};

use super::StoreError;
use metergate_domain::base::timestamp::Timestamp;
use metergate_domain::base::window::{Span, utc_month};

const LOCK: i64 = 0x4d47_0002;
/// What lies before shares the one partition that the first migration made.
pub const FIRST_MONTH: &str = "2020-01-01T00:00:00Z";

/// The month of an event, unless it lies before all months.
pub fn month_of(at: Timestamp) -> Option<Span> {
    let month = utc_month(at);
    Timestamp::parse(FIRST_MONTH).is_ok_and(|first| month.from >= first).then_some(month)
}

/// Makes the partition of a month, where it is missing. Replicas may do so at once.
pub async fn ensure(connection: &mut PgConnection, month: Span) -> Result<(), StoreError> {
    let name: String = format!("events_{}", &month.from.to_string()[..7]).replace('-', "_");
    let mut transaction = connection.begin().await?;
    sqlx::query("select pg_advisory_xact_lock($1)").bind(LOCK).execute(&mut *transaction).await?;
    let exists: bool = sqlx::query_scalar("select to_regclass($1) is not null")
        .bind(&name)
        .fetch_one(&mut *transaction)
        .await?;
    if !exists {
        // the name and the bounds are made of digits here, not of input
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
