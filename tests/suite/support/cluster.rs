//! One throwaway cluster per run; its guardian removes it even if the run crashes. Databases are cloned from
//! a migrated template.

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
        // in a separate thread, because the caller is inside a runtime
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

/// Starts a separate cluster for a test that stops it.
pub(crate) async fn start_throwaway() -> Cluster {
    let folder = tempfile::Builder::new().prefix("metergate-test-").tempdir().unwrap().keep();
    Cluster::start(&folder, None, ServerPurpose::Throwaway).await.unwrap()
}

/// Starts a migrated server, with syncs to disk, that a test may stop and crash. Returns its folder, the
/// server and its URL.
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

/// Delays the sync of commits, so that a crash of the server finds unsynced ones.
pub(crate) async fn let_commits_linger(url: &str) {
    for set in ["commit_delay = 50000", "commit_siblings = 0", "wal_writer_delay = '10s'"] {
        sqlx_execute(url, &format!("alter system set {set}")).await;
    }
    sqlx_execute(url, "select pg_reload_conf()").await;
}

/// Terminates one backend that serves a client.
pub(crate) async fn terminate_a_backend(connection: &mut PgConnection) {
    let one = "select pg_terminate_backend(pid) from pg_stat_activity
         where datname = current_database() and pid <> pg_backend_pid() and backend_type = 'client backend'
         order by random() limit 1";
    sqlx::query(one).execute(connection).await.unwrap();
}

/// Kills one backend that serves a client with `kill -9`, if there is one. The server then recovers as from a
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

/// Creates a migrated database and returns its URL.
pub(crate) async fn database_url() -> String {
    let cluster = cluster();
    let name = format!("test_{}", NEXT.fetch_add(1, Ordering::Relaxed));
    let _one_at_a_time = CLONING.lock().await;
    sqlx_execute(&cluster.url("postgres"), &format!("create database {name} template template")).await;
    cluster.url(&name)
}

/// Runs SQL on a new connection.
pub(crate) async fn sqlx_execute(url: &str, sql: &str) {
    let mut connection = PgConnection::connect(url).await.unwrap();
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql.to_owned())).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
}
