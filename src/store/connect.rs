//! Connections and migrations: a pool for single statements and short transactions, and one connection
//! per writer.

use std::str::FromStr;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{ConnectOptions, PgConnection, PgPool};

use super::error::StoreError;

/// The longest wait for a connection of the pool.
const ACQUIRE_MAX: Duration = Duration::from_secs(2);
/// The longest time to open a connection.
const CONNECT_MAX: Duration = Duration::from_secs(5);

/// A PostgreSQL database: the pool, and the options with which writers connect.
#[derive(Debug, Clone)]
pub struct Database {
    pool: PgPool,
    writer: PgConnectOptions,
}

impl Database {
    /// Parses the URLs without opening a connection. Writers connect to `direct_url`. It must be set
    /// if `url` leads to a pooler that shares sessions between clients.
    pub fn new(url: &str, direct_url: Option<&str>, connections_max: u32) -> Result<Self, StoreError> {
        let through_pooler = direct_url.is_some();
        let options = |url: &str| -> Result<PgConnectOptions, StoreError> {
            let options = PgConnectOptions::from_str(url).map_err(|why| StoreError::Url(why.to_string()))?;
            Ok(options.application_name("metergate").log_statements(tracing::log::LevelFilter::Trace))
        };
        let mut reader = options(url)?;
        if through_pooler {
            reader = reader.statement_cache_capacity(0);
        } else {
            reader = reader.options([
                ("statement_timeout", "30s"),
                ("lock_timeout", "10s"),
                ("idle_in_transaction_session_timeout", "30s"),
            ]);
        }
        let writer = options(direct_url.unwrap_or(url))?.options([
            ("statement_timeout", "60s"),
            ("lock_timeout", "10s"),
            ("idle_in_transaction_session_timeout", "30s"),
            // ends the session of a machine that has disappeared, because it may hold locks
            ("tcp_keepalives_idle", "30s"),
            ("tcp_keepalives_interval", "10s"),
            ("tcp_keepalives_count", "3"),
            // custom plans for arrays of thousands of elements would switch to scans and hash joins
            ("plan_cache_mode", "force_generic_plan"),
        ]);
        let pool = PgPoolOptions::new()
            .max_connections(connections_max)
            .acquire_timeout(ACQUIRE_MAX)
            .idle_timeout(Duration::from_mins(5))
            .connect_lazy_with(reader);
        Ok(Self { pool, writer })
    }

    /// Returns the pool for single statements and short transactions.
    pub fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// Opens a connection for a writer.
    pub async fn connect_writer(&self) -> Result<PgConnection, StoreError> {
        match tokio::time::timeout(CONNECT_MAX, self.writer.connect()).await {
            Ok(connected) => Ok(connected?),
            Err(_) => Err(StoreError::Unavailable(sqlx::Error::PoolTimedOut)),
        }
    }

    /// Applies the missing migrations. Several replicas may call it at the same time.
    ///
    /// Fails with [`StoreError::IncompatibleSchema`] if the schema comes from an older or newer build
    /// that this build cannot continue. In that case nothing is changed.
    pub async fn migrate(&self) -> Result<(), StoreError> {
        let mut connection = self.connect_writer().await?;
        refuse_incompatible_schema(&mut connection).await?;
        Ok(MIGRATIONS.run(&mut connection).await?)
    }

    /// Returns whether the database answers and has every migration of this program.
    pub async fn is_ready(&self) -> Result<bool, StoreError> {
        let newest = MIGRATIONS.iter().map(|migration| migration.version).max().unwrap_or_default();
        let applied: Option<i64> =
            sqlx::query_scalar("select max(version) from _sqlx_migrations where success")
                .fetch_one(&self.pool)
                .await?;
        Ok(applied >= Some(newest))
    }

    pub async fn close(&self) {
        self.pool.close().await;
    }
}

static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!();

/// The reason that an incompatible schema is refused, for the error text.
const EARLIER_SCHEMA: &str = "an earlier build made it, and this build starts from a new schema";
const LATER_SCHEMA: &str = "a later build made it, and this build does not know all of it";

/// Compares the first and the last migration of the database with those of this program.
async fn refuse_incompatible_schema(connection: &mut PgConnection) -> Result<(), StoreError> {
    let exists: bool = sqlx::query_scalar("select to_regclass('_sqlx_migrations') is not null")
        .fetch_one(&mut *connection)
        .await?;
    if !exists {
        return Ok(());
    }
    let applied: Vec<(i64, Vec<u8>)> =
        sqlx::query_as("select version, checksum from _sqlx_migrations where success order by version")
            .fetch_all(connection)
            .await?;
    let (Some((first, checksum)), Some((version, _))) = (applied.first(), applied.last()) else {
        return Ok(());
    };
    let is_ours =
        MIGRATIONS.iter().next().is_some_and(|ours| ours.version == *first && *ours.checksum == **checksum);
    let newest = MIGRATIONS.iter().map(|migration| migration.version).max().unwrap_or_default();
    if is_ours && *version <= newest {
        return Ok(());
    }
    let reason = if is_ours { LATER_SCHEMA } else { EARLIER_SCHEMA };
    Err(StoreError::IncompatibleSchema { version: *version, reason })
}
