//! One throwaway cluster per run, removed by its guardian however the run ends. Databases are
//! cloned from a migrated template.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock};

use metergate::embedded::{Cluster, Purpose};
use metergate::store::Database;

static CLUSTER: OnceLock<Cluster> = OnceLock::new();
static CLONING: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
static NEXT: AtomicU32 = AtomicU32::new(1);

fn cluster() -> &'static Cluster {
    static STARTING: Mutex<()> = Mutex::new(());
    let _one_at_a_time = STARTING.lock();
    CLUSTER.get_or_init(|| {
        // in a thread of its own: the caller is inside a runtime
        std::thread::spawn(|| {
            tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
                let cluster = start_throwaway().await;
                sqlx_execute(&cluster.url("postgres"), "create database template").await;
                let database = Database::new(&cluster.url("template"), None, 1).unwrap();
                database.migrate().await.unwrap();
                database.close().await;
                cluster
            })
        })
        .join()
        .unwrap()
    })
}

/// A cluster of a test's own, for tests that stop it.
pub(crate) async fn start_throwaway() -> Cluster {
    let folder = tempfile::Builder::new().prefix("metergate-test-").tempdir().unwrap().keep();
    Cluster::start(&folder, None, Purpose::Throwaway).await.unwrap()
}

/// The URL of a fresh, migrated database.
pub(crate) async fn database_url() -> String {
    let cluster = cluster();
    let name = format!("test_{}", NEXT.fetch_add(1, Ordering::Relaxed));
    let _one_at_a_time = CLONING.lock().await;
    sqlx_execute(&cluster.url("postgres"), &format!("create database {name} template template")).await;
    cluster.url(&name)
}

/// Runs SQL on a connection of its own.
pub(crate) async fn sqlx_execute(url: &str, sql: &str) {
    use sqlx::Connection;
    let mut connection = sqlx::PgConnection::connect(url).await.unwrap();
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql.to_owned())).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
}
