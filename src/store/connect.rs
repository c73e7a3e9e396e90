//! Connections: a pool for what is answered by one statement or a short transaction, and
//! connections of their own for writers.

use std::str::FromStr;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{ConnectOptions, PgConnection, PgPool};

use super::StoreError;

/// How long a caller waits for a connection of the pool.
const ACQUIRE_MAX: Duration = Duration::from_secs(2);
/// How long opening one may take.
const CONNECT_MAX: Duration = Duration::from_secs(5);

#[derive(Debug, Clone)]
pub struct Database {
    pool: PgPool,
    writer: PgConnectOptions,
}

impl Database {
    /// Prepares to connect; nothing is opened yet. `direct_url`: where writers connect, where
    /// `url` leads through a pooler that shares sessions.
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
            // a session may hold a lock while it waits for others: that of a machine that is gone must end
            ("tcp_keepalives_idle", "30s"),
            ("tcp_keepalives_interval", "10s"),
            ("tcp_keepalives_count", "3"),
            // with arrays of thousands of elements, plans made for them flip to scans and hashes
            ("plan_cache_mode", "force_generic_plan"),
        ]);
        let pool = PgPoolOptions::new()
            .max_connections(connections_max)
            .acquire_timeout(ACQUIRE_MAX)
            .idle_timeout(Duration::from_mins(5))
            .connect_lazy_with(reader);
        Ok(Self { pool, writer })
    }

    pub fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// A connection of a writer's own.
    pub async fn connect_writer(&self) -> Result<PgConnection, StoreError> {
        match tokio::time::timeout(CONNECT_MAX, self.writer.connect()).await {
            Ok(connected) => Ok(connected?),
            Err(_) => Err(StoreError::Unavailable(sqlx::Error::PoolTimedOut)),
        }
    }

    /// Brings the schema up to date; several replicas may do so at once.
    pub async fn migrate(&self) -> Result<(), StoreError> {
        let mut connection = self.connect_writer().await?;
        Ok(MIGRATIONS.run(&mut connection).await?)
    }

    /// Whether the database answers and has every migration of this program.
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
