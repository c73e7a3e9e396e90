//! The lock around an environment's configuration: its catalog, tree, customers and subscriptions.
//! Whoever records holds it shared, whoever changes holds it exclusively and raises the version; so what is cached
//! under a version is true for as long as the shared lock is held.

use sqlx::{PgConnection, Row};

use super::StoreError;
use metergate_domain::base::environment::Environment;
use metergate_domain::base::timestamp::Timestamp;

/// First half of the advisory lock's key; the second is the environment.
pub(super) const LOCK: i32 = 0x4d47_0001;

/// What is in force: the version of the whole configuration, and of the catalog and the exchange rates,
/// which are a part of it and change far more rarely.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Versions {
    pub config: i64,
    pub catalog: i64,
}

/// What a transaction learns at its start.
#[derive(Debug, Clone, Copy)]
pub struct RecordingStart {
    pub versions: Versions,
    /// Postgres's clock, read after the lock.
    pub now: Timestamp,
    /// A fresh batch number. Where a commit is not answered it tells, later, whether it happened: a
    /// transaction id could not, since after a crash ids that never reached the disk are given again.
    pub batch_id: i64,
}

/// Begins a transaction that records: the shared lock, then, in a statement of its own so that its
/// snapshot follows the lock, the version. All in one message.
pub async fn begin_recording(
    connection: &mut PgConnection,
    environment: Environment,
) -> Result<RecordingStart, StoreError> {
    open(connection, environment, "begin;").await
}

/// The same within a transaction that has just begun.
pub async fn open_recording(
    connection: &mut PgConnection,
    environment: Environment,
) -> Result<RecordingStart, StoreError> {
    open(connection, environment, "").await
}

async fn open(
    connection: &mut PgConnection,
    environment: Environment,
    begin: &str,
) -> Result<RecordingStart, StoreError> {
    // constants and a number of ours: nothing here is input
    let code = environment.code();
    let sql = format!(
        "{begin} select pg_advisory_xact_lock_shared({LOCK}, {code});
         select config_version, catalog_version, (extract(epoch from clock_timestamp()) * 1000000)::bigint as now_micros,
                nextval('batch_ids') as batch_id
         from environments where environment = {code}"
    );
    let rows = sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).fetch_all(connection).await?;
    let row = rows.last().ok_or(sqlx::Error::RowNotFound)?;
    let now = Timestamp::from_micros(row.try_get("now_micros")?);
    Ok(RecordingStart {
        versions: Versions {
            config: row.try_get("config_version")?,
            catalog: row.try_get("catalog_version")?,
        },
        now: now.ok_or_else(|| sqlx::Error::Decode("the clock of the database is out of range".into()))?,
        batch_id: row.try_get("batch_id")?,
    })
}

/// Within a transaction: waits until nobody records, and keeps others from it.
pub async fn lock_alone(connection: &mut PgConnection, environment: Environment) -> Result<(), StoreError> {
    sqlx::query("select pg_advisory_xact_lock($1, $2)")
        .bind(LOCK)
        .bind(i32::from(environment.code()))
        .execute(connection)
        .await?;
    Ok(())
}

/// The same, for a change: raises the version.
pub async fn lock_for_change(
    connection: &mut PgConnection,
    environment: Environment,
) -> Result<(), StoreError> {
    lock_alone(connection, environment).await?;
    sqlx::query("update environments set config_version = config_version + 1 where environment = $1")
        .bind(environment.code())
        .execute(&mut *connection)
        .await?;
    Ok(())
}

/// Raises the version of what is cached with the catalog. The caller holds the lock for a change.
pub async fn raise_catalog_version(
    connection: &mut PgConnection,
    environment: Environment,
) -> Result<(), StoreError> {
    sqlx::query("update environments set catalog_version = catalog_version + 1 where environment = $1")
        .bind(environment.code())
        .execute(connection)
        .await?;
    Ok(())
}

/// When the counters of spend caps got the names that they have; none: they have always had them.
pub async fn caps_renamed_at(
    connection: &mut PgConnection,
    environment: Environment,
) -> Result<Option<Timestamp>, StoreError> {
    let renamed_at = sqlx::query_scalar("select caps_renamed_at from environments where environment = $1")
        .bind(environment.code())
        .fetch_one(connection)
        .await?;
    Ok(renamed_at)
}

/// The version that is in force; that of the change, where the caller makes one.
pub async fn version(connection: &mut PgConnection, environment: Environment) -> Result<i64, StoreError> {
    let version = sqlx::query_scalar("select config_version from environments where environment = $1")
        .bind(environment.code())
        .fetch_one(connection)
        .await?;
    Ok(version)
}

/// The time of a change, which is not before `at`, and later than that of any other. The caller holds the
/// lock alone.
pub async fn time_of_change(
    connection: &mut PgConnection,
    environment: Environment,
    at: Timestamp,
) -> Result<Timestamp, StoreError> {
    let time = sqlx::query_scalar(
        "update environments set changed_at = greatest($2, changed_at + interval '1 microsecond')
         where environment = $1 returning changed_at",
    )
    .bind(environment.code())
    .bind(at)
    .fetch_one(connection)
    .await?;
    Ok(time)
}

/// The versions in force in a snapshot, and what time it is.
pub async fn versions(
    connection: &mut PgConnection,
    environment: Environment,
) -> Result<(Versions, Timestamp), StoreError> {
    let row = sqlx::query(
        "select config_version, catalog_version, clock_timestamp() as now from environments where environment = $1",
    )
    .bind(environment.code())
    .fetch_one(connection)
    .await?;
    let versions =
        Versions { config: row.try_get("config_version")?, catalog: row.try_get("catalog_version")? };
    Ok((versions, row.try_get("now")?))
}
