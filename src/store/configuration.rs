//! The lock around an environment's configuration: its catalog, tree and customers. Whoever records
//! holds it shared, whoever changes holds it exclusively and raises the version; so what is cached
//! under a version is true for as long as the shared lock is held.

use sqlx::{PgConnection, Row};

use super::StoreError;
use crate::domain::environment::Environment;
use crate::domain::timestamp::Timestamp;

/// First half of the advisory lock's key; the second is the environment.
const LOCK: i32 = 0x4d47_0001;

/// What a transaction learns at its start.
#[derive(Debug, Clone, Copy)]
pub struct Opening {
    pub config_version: i64,
    /// Postgres's clock, read after the lock.
    pub now: Timestamp,
    /// A fresh batch number. Where a commit is not answered it tells, later, whether it happened: a
    /// transaction id could not, since after a crash ids that never reached the disk are given again.
    pub batch_id: i64,
}

/// Begins a transaction that records: the shared lock, then, so that its snapshot follows the
/// lock, the version.
pub async fn begin_recording(
    connection: &mut PgConnection,
    environment: Environment,
) -> Result<Opening, StoreError> {
    let begin = match environment {
        Environment::Test => "begin; select pg_advisory_xact_lock_shared(1296498689, 0)",
        Environment::Live => "begin; select pg_advisory_xact_lock_shared(1296498689, 1)",
    };
    sqlx::raw_sql(begin).execute(&mut *connection).await?;
    opening(connection, environment).await
}

/// The same within a transaction that has just begun.
pub async fn open_recording(
    connection: &mut PgConnection,
    environment: Environment,
) -> Result<Opening, StoreError> {
    sqlx::query("select pg_advisory_xact_lock_shared($1, $2)")
        .bind(LOCK)
        .bind(i32::from(environment.code()))
        .execute(&mut *connection)
        .await?;
    opening(connection, environment).await
}

async fn opening(connection: &mut PgConnection, environment: Environment) -> Result<Opening, StoreError> {
    let row = sqlx::query(
        "select config_version, clock_timestamp() as now, nextval('batch_ids') as batch_id
         from environments where environment = $1",
    )
    .bind(environment.code())
    .fetch_one(&mut *connection)
    .await?;
    Ok(Opening {
        config_version: row.try_get("config_version")?,
        now: row.try_get("now")?,
        batch_id: row.try_get("batch_id")?,
    })
}

/// Within a transaction: waits until nobody records, raises the version and keeps the lock.
pub async fn lock_for_change(
    connection: &mut PgConnection,
    environment: Environment,
) -> Result<(), StoreError> {
    sqlx::query("select pg_advisory_xact_lock($1, $2)")
        .bind(LOCK)
        .bind(i32::from(environment.code()))
        .execute(&mut *connection)
        .await?;
    sqlx::query("update environments set config_version = config_version + 1 where environment = $1")
        .bind(environment.code())
        .execute(&mut *connection)
        .await?;
    Ok(())
}

pub async fn version(connection: &mut PgConnection, environment: Environment) -> Result<i64, StoreError> {
    let version = sqlx::query_scalar("select config_version from environments where environment = $1")
        .bind(environment.code())
        .fetch_one(connection)
        .await?;
    Ok(version)
}

#[cfg(test)]
mod tests {
    #[test]
    fn both_spellings_of_the_lock_agree() {
        assert_eq!(super::LOCK, 1_296_498_689);
    }
}
