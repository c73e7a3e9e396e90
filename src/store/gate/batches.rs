//! Batches of the gate, by which a commit that was not answered is settled. A transaction's own id would
//! not do: after a crash of the server, ids that never reached the disk are given again.

use std::time::Duration;

use sqlx::PgConnection;

use crate::store::StoreError;

/// Commits a batch and notes that it happened, in one message.
pub async fn commit(connection: &mut PgConnection, batch_id: i64) -> Result<(), StoreError> {
    // a number of ours: nothing here is input
    let sql = format!("insert into gate_batches (batch_id, settled) values ({batch_id}, true); commit");
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(connection).await?;
    Ok(())
}

/// Returns whether a batch was committed. Waits for it where it is still at work; if it was not, it never will
/// be.
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

/// Forgets batches that nobody can ask about any more.
pub async fn delete_old(connection: &mut PgConnection, age: Duration) -> Result<(), StoreError> {
    sqlx::query("delete from gate_batches where at < now() - make_interval(secs => $1)")
        .bind(age.as_secs_f64())
        .execute(connection)
        .await?;
    Ok(())
}
