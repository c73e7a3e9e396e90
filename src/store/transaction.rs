//! Controls transactions that span several calls of the store.

use sqlx::{Connection, PgConnection, Postgres, Transaction};

use super::StoreError;

pub async fn commit(connection: &mut PgConnection) -> Result<(), StoreError> {
    Ok(sqlx::raw_sql("commit").execute(connection).await.map(drop)?)
}

pub async fn roll_back(connection: &mut PgConnection) -> Result<(), StoreError> {
    Ok(sqlx::raw_sql("rollback").execute(connection).await.map(drop)?)
}

/// Lifts the idle limit of the open transaction while another connection works for it.
pub async fn allow_idle(connection: &mut PgConnection) -> Result<(), StoreError> {
    let sql = "set local idle_in_transaction_session_timeout = 0";
    Ok(sqlx::raw_sql(sql).execute(connection).await.map(drop)?)
}

/// Begins a transaction that reads from one snapshot.
pub async fn begin_snapshot(connection: &mut PgConnection) -> Result<Transaction<'_, Postgres>, StoreError> {
    Ok(connection.begin_with("begin isolation level repeatable read, read only").await?)
}
