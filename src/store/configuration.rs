//! The lock of an environment's configuration: its catalog, subject tree, customers and subscriptions. A
//! transaction that records holds the lock shared. A transaction that changes the configuration holds it
//! exclusively and raises the version. A cache of a version is therefore valid while the shared lock is held.

use sqlx::Row;

use super::error::StoreError;
use crate::store::scope::Scope;
use metergate_domain::base::Timestamp;

/// First half of the key of the advisory lock; the second half is the environment.
pub(super) const LOCK: i32 = 0x4d47_0001;

/// The current versions of the whole configuration, and of its part that changes far less often: the
/// catalog and the exchange rates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Versions {
    pub config: i64,
    pub catalog: i64,
}

/// The facts that a transaction reads at its start.
#[derive(Debug, Clone, Copy)]
pub struct RecordingStart {
    pub versions: Versions,
    /// PostgreSQL's clock, read after the lock was taken.
    pub now: Timestamp,
    /// A new batch number. After a commit without an answer, it tells whether the commit took place. A
    /// transaction id could not: after a crash, PostgreSQL reuses ids that never reached the disk.
    pub batch_id: i64,
}

/// Begins a transaction that records, in one message: takes the shared lock, then reads the versions.
/// These are two statements, so that the snapshot of the second follows the lock.
pub async fn begin_recording(scope: &mut Scope<'_>) -> Result<RecordingStart, StoreError> {
    open(scope, "begin;").await
}

/// Takes the lock and reads the versions in a transaction that has just begun.
pub async fn open_recording(scope: &mut Scope<'_>) -> Result<RecordingStart, StoreError> {
    open(scope, "").await
}

async fn open(scope: &mut Scope<'_>, begin: &str) -> Result<RecordingStart, StoreError> {
    // safe: the text contains only constants and the environment's number
    let code = scope.environment.code();
    let sql = format!(
        "{begin} select pg_advisory_xact_lock_shared({LOCK}, {code});
         select config_version, catalog_version, (extract(epoch from clock_timestamp()) * 1000000)::bigint as now_micros,
                nextval('batch_ids') as batch_id
         from environments where environment = {code}"
    );
    let rows = sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).fetch_all(&mut *scope.connection).await?;
    let row = rows.last().ok_or(sqlx::Error::RowNotFound)?;
    let now = Timestamp::from_micros(row.try_get("now_micros")?);
    Ok(RecordingStart {
        versions: Versions {
            config: row.try_get("config_version")?,
            catalog: row.try_get("catalog_version")?,
        },
        now: now.ok_or_else(|| sqlx::Error::Decode("the database clock is out of range".into()))?,
        batch_id: row.try_get("batch_id")?,
    })
}

/// Takes the lock exclusively: waits for transactions that record, and blocks new ones.
pub async fn lock_alone(scope: &mut Scope<'_>) -> Result<(), StoreError> {
    sqlx::query("select pg_advisory_xact_lock($1, $2)")
        .bind(LOCK)
        .bind(i32::from(scope.environment.code()))
        .execute(&mut *scope.connection)
        .await?;
    Ok(())
}

/// Takes the lock exclusively and raises the version, for a change of the configuration.
pub async fn lock_for_change(scope: &mut Scope<'_>) -> Result<(), StoreError> {
    lock_alone(scope).await?;
    sqlx::query("update environments set config_version = config_version + 1 where environment = $1")
        .bind(scope.environment.code())
        .execute(&mut *scope.connection)
        .await?;
    Ok(())
}

/// Raises the version of the catalog and the exchange rates. The caller holds the lock for a change.
pub async fn raise_catalog_version(scope: &mut Scope<'_>) -> Result<(), StoreError> {
    sqlx::query("update environments set catalog_version = catalog_version + 1 where environment = $1")
        .bind(scope.environment.code())
        .execute(&mut *scope.connection)
        .await?;
    Ok(())
}

/// Returns the current version, which is the new one within a change.
pub async fn version(scope: &mut Scope<'_>) -> Result<i64, StoreError> {
    let version = sqlx::query_scalar("select config_version from environments where environment = $1")
        .bind(scope.environment.code())
        .fetch_one(&mut *scope.connection)
        .await?;
    Ok(version)
}

/// Returns and stores the time of a change: not before `at`, and later than that of every earlier change. The
/// caller must hold the lock exclusively.
pub async fn time_of_change(scope: &mut Scope<'_>, at: Timestamp) -> Result<Timestamp, StoreError> {
    let time = sqlx::query_scalar(
        "update environments set changed_at = greatest($2, changed_at + interval '1 microsecond')
         where environment = $1 returning changed_at",
    )
    .bind(scope.environment.code())
    .bind(at)
    .fetch_one(&mut *scope.connection)
    .await?;
    Ok(time)
}

/// Returns the versions in the current snapshot, and PostgreSQL's clock.
pub async fn versions(scope: &mut Scope<'_>) -> Result<(Versions, Timestamp), StoreError> {
    let row = sqlx::query(
        "select config_version, catalog_version, clock_timestamp() as now from environments where environment = $1",
    )
    .bind(scope.environment.code())
    .fetch_one(&mut *scope.connection)
    .await?;
    let versions =
        Versions { config: row.try_get("config_version")?, catalog: row.try_get("catalog_version")? };
    Ok((versions, row.try_get("now")?))
}
