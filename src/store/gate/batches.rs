//! The batches of the gate. Their rows show whether a commit without an answer succeeded.
//!
//! The ids of PostgreSQL transactions cannot show it: after a crash the server may assign lost ids again.

use std::time::Duration;

use sqlx::PgConnection;

use crate::store::StoreError;

/// Commits a batch together with its row, in one message.
pub async fn commit(connection: &mut PgConnection, batch_id: i64) -> Result<(), StoreError> {
    // The id comes from our sequence, so the statement contains no input.
    let sql = format!("insert into gate_batches (batch_id, settled) values ({batch_id}, true); commit");
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(connection).await?;
    Ok(())
}

/// Returns whether a batch was committed. Waits for a batch that is still running. A batch that is
/// reported as uncommitted can never commit later.
pub async fn was_committed(connection: &mut PgConnection, batch_id: i64) -> Result<bool, StoreError> {
    sqlx::query(
        "insert into gate_batches (batch_id, settled) values ($1, false)
         on conflict on constraint gate_batches_pk do nothing",
    )
    .bind(batch_id)
    .execute(&mut *connection)
    .await?;
    let settled = sqlx::query_scalar("select settled from gate_batches where batch_id = $1")
        .bind(batch_id)
        .fetch_one(connection)
        .await?;
    Ok(settled)
}

/// Deletes the rows of batches that are too old to be looked up.
pub async fn delete_old(connection: &mut PgConnection, age: Duration) -> Result<(), StoreError> {
    sqlx::query("delete from gate_batches where at < now() - make_interval(secs => $1)")
        .bind(age.as_secs_f64())
        .execute(connection)
        .await?;
    Ok(())
}
