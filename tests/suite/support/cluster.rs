//! One throwaway cluster per run, removed by its guardian however the run ends. Databases are
//! cloned from a migrated template.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock};

use metergate::embedded::{Cluster, ServerPurpose};
use metergate::store::Database;
use sqlx::{Connection, PgConnection};

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
    Cluster::start(&folder, None, ServerPurpose::Throwaway).await.unwrap()
}

/// A migrated server that a test may stop and crash, with its syncs to disk; and where it is.
pub(crate) async fn server_of_its_own() -> (tempfile::TempDir, Cluster, String) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let server = Cluster::start(folder.path(), None, ServerPurpose::Service).await.unwrap();
    let url = server.url("postgres");
    let database = Database::new(&url, None, 1).unwrap();
    database.migrate().await.unwrap();
    database.close().await;
    (folder, server, url)
}

/// Commits linger before they are synced, so that a crash of the server finds some.
pub(crate) async fn let_commits_linger(url: &str) {
    for set in ["commit_delay = 50000", "commit_siblings = 0", "wal_writer_delay = '10s'"] {
        sqlx_execute(url, &format!("alter system set {set}")).await;
    }
    sqlx_execute(url, "select pg_reload_conf()").await;
}

/// Ends one backend that serves a client, whichever.
pub(crate) async fn terminate_a_backend(connection: &mut PgConnection) {
    let one = "select pg_terminate_backend(pid) from pg_stat_activity
         where datname = current_database() and pid <> pg_backend_pid() and backend_type = 'client backend'
         order by random() limit 1";
    sqlx::query(one).execute(connection).await.unwrap();
}

/// `kill -9` of one backend that serves a client, where there is one: the server recovers as from a
/// crash.
pub(crate) async fn kill_a_backend(url: &str) {
    let Ok(mut connection) = PgConnection::connect(url).await else { return };
    let pid: Result<Option<i32>, _> = sqlx::query_scalar(
        "select pid from pg_stat_activity where pid <> pg_backend_pid() and backend_type = 'client backend'
         order by random() limit 1",
    )
    .fetch_optional(&mut connection)
    .await;
    if let Ok(Some(pid)) = pid {
        let kill = format!("kill -KILL {pid}");
        tokio::process::Command::new("sh").args(["-c", &kill]).status().await.unwrap();
    }
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
    let mut connection = PgConnection::connect(url).await.unwrap();
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql.to_owned())).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
}
