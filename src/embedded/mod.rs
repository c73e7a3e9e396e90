//! A private PostgreSQL in a folder of the service, used if `DATABASE_URL` is not set, and the throwaway
//! clusters of the tests.
//!
//! The server needs no root. If root starts it, it runs as `postgres` or, without such an account, as
//! `nobody`. It listens on a Unix socket, not on a port. Data survives restarts, and the server stops with
//! the program. If the program dies without stopping the server (`kill -9` included), a guardian process
//! stops it, so that the next start finds the folder free. PostgreSQL does its own crash recovery.

mod account;
mod binaries;
mod error;
mod folder;

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use account::OsAccount;
pub use binaries::Binaries;
pub use error::EmbeddedError;
use error::at;
use folder::Postmaster;

/// Longest time that a server may take to start, including crash recovery.
const START_MAX: Duration = Duration::from_mins(2);
/// Longest time that a server may take to stop.
const STOP_MAX: Duration = Duration::from_mins(1);
/// Longest time that a start waits for a process that is about to release the folder.
const LOCK_WAIT_MAX: Duration = Duration::from_secs(3);
const POLL: Duration = Duration::from_millis(5);
/// Limit of the kernel for the path of a Unix socket.
const SOCKET_PATH_BYTES_MAX: usize = 100;
const LOG_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// The purpose of a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerPurpose {
    /// Data that must survive.
    Service,
    /// A test run: no syncs to disk, and the folder is removed with the process.
    Throwaway,
}

/// A running server that this process started.
#[derive(Debug)]
pub struct Cluster {
    binaries: Binaries,
    account: Option<OsAccount>,
    data: PathBuf,
    socket: PathBuf,
    log: PathBuf,
    purpose: ServerPurpose,
    server: Child,
    guardian: Child,
    /// The lock that this process holds while it uses the folder.
    _lock: File,
}

impl Cluster {
    /// Starts the server of `folder`; creates the folder if it is missing.
    pub async fn start(
        folder: &Path,
        bin: Option<&Path>,
        purpose: ServerPurpose,
    ) -> Result<Self, EmbeddedError> {
        fs::create_dir_all(folder).map_err(at(folder))?;
        let folder = folder.canonicalize().map_err(at(folder))?;
        let lock = lock(&folder).await?;
        let account = account::server_account();
        if let (ServerPurpose::Throwaway, Some(account)) = (purpose, account) {
            // the guardian removes the folder, and runs as the same account as the server
            account.own(&folder).map_err(at(&folder))?;
        }
        let data = data_folder(&folder, account.as_ref())?;
        let binaries = Binaries::find(bin, folder::version_of(&data).as_deref(), &folder).await?;
        stop_orphan(&binaries, account.as_ref(), &data)?;
        // this file exists while the data is incomplete
        let unfinished = folder.join("initialising");
        if unfinished.exists() || folder::version_of(&data).is_none() {
            File::create(&unfinished).map_err(at(&unfinished))?;
            folder::empty(&data).map_err(at(&data))?;
            initialise(&binaries, account.as_ref(), &data, purpose)?;
            fs::remove_file(&unfinished).map_err(at(&unfinished))?;
        }
        let socket = socket_folder(&data, account.as_ref())?;
        let log = folder.join("postgres.log");
        let files = ServerFiles { data: &data, socket: &socket, log: &log };
        let server = spawn_server(&binaries, account.as_ref(), files, purpose)?;
        let guardian = spawn_guardian(&binaries, account.as_ref(), &data, &folder, purpose)?;
        let mut cluster =
            Self { binaries, account, data, socket, log, purpose, server, guardian, _lock: lock };
        cluster.wait_until_ready().await?;
        Ok(cluster)
    }

    /// Returns the URL of a database.
    pub fn url(&self, database: &str) -> String {
        url(&self.socket, database)
    }

    /// Restarts the server if it has ended.
    pub async fn revive(&mut self) -> Result<(), EmbeddedError> {
        if !self.has_ended() {
            return Ok(());
        }
        tracing::error!("the embedded PostgreSQL ended unexpectedly; restarting it");
        let account = self.account.as_ref();
        stop_orphan(&self.binaries, account, &self.data)?;
        let files = ServerFiles { data: &self.data, socket: &self.socket, log: &self.log };
        self.server = spawn_server(&self.binaries, account, files, self.purpose)?;
        self.wait_until_ready().await
    }

    fn has_ended(&mut self) -> bool {
        self.server.try_wait().is_ok_and(|status| status.is_some())
    }

    /// Stops the server cleanly and waits for it.
    pub async fn stop(mut self) {
        if !self.has_ended() {
            let stopped = pg_ctl_stop(&self.binaries, self.account.as_ref(), &self.data).status();
            if !stopped.is_ok_and(|status| status.success()) {
                tracing::warn!("the embedded PostgreSQL did not stop; its guardian will stop it");
            }
        }
        // reaps the child process, but does not wait for ever
        let deadline = Instant::now() + STOP_MAX;
        while Instant::now() < deadline && matches!(self.server.try_wait(), Ok(None)) {
            tokio::time::sleep(POLL).await;
        }
        drop(self.guardian.stdin.take());
        while Instant::now() < deadline && matches!(self.guardian.try_wait(), Ok(None)) {
            tokio::time::sleep(POLL).await;
        }
    }

    async fn wait_until_ready(&mut self) -> Result<(), EmbeddedError> {
        let deadline = Instant::now() + START_MAX;
        loop {
            if Postmaster::of(&self.data)
                .is_some_and(|postmaster| postmaster.pid == self.server.id() && postmaster.ready)
            {
                return Ok(());
            }
            let ended = self.server.try_wait().ok().flatten().is_some();
            if ended || Instant::now() > deadline {
                return Err(EmbeddedError::NotStarted(folder::tail(&self.log)));
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

/// Returns the URL of the server that another process runs in `folder`, if there is one.
pub async fn running_url(folder: &Path, database: &str) -> Option<String> {
    let folder = folder.canonicalize().ok()?;
    let deadline = Instant::now() + START_MAX;
    loop {
        let held = OpenOptions::new().write(true).open(folder.join("lock")).ok()?;
        if held.try_lock().is_ok() {
            return None;
        }
        if let Some(postmaster) = Postmaster::of(&folder.join("data")).filter(|postmaster| postmaster.ready) {
            return Some(url(&postmaster.socket, database));
        }
        if Instant::now() > deadline {
            return None;
        }
        tokio::time::sleep(POLL).await;
    }
}

const USER: &str = "metergate";

fn url(socket: &Path, database: &str) -> String {
    let host: String = form_urlencoded::byte_serialize(socket.display().to_string().as_bytes()).collect();
    format!("postgres://{USER}@localhost/{database}?host={host}&sslmode=disable")
}

/// Locks the folder for this process. The kernel releases the lock when the process ends.
async fn lock(folder: &Path) -> Result<File, EmbeddedError> {
    let path = folder.join("lock");
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(at(&path))?;
    let deadline = Instant::now() + LOCK_WAIT_MAX;
    while file.try_lock().is_err() {
        // a process that was just killed may still exist
        if Instant::now() < deadline {
            tokio::time::sleep(POLL).await;
            continue;
        }
        let mut pid = String::new();
        file.read_to_string(&mut pid).ok();
        return Err(EmbeddedError::InUse {
            folder: folder.display().to_string(),
            pid: pid.trim().to_owned(),
        });
    }
    file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).map_err(at(&path))?;
    Ok(file)
}

/// Returns the data folder, with links resolved. If the server's account cannot enter the folder (a private
/// home, as root), the data is in /var/lib and a link leads there.
fn data_folder(folder: &Path, account: Option<&OsAccount>) -> Result<PathBuf, EmbeddedError> {
    let data = folder.join("data");
    if fs::symlink_metadata(&data).is_err() {
        match account {
            Some(account) if !account.can_reach(folder) => {
                let elsewhere =
                    Path::new("/var/lib").join(format!("metergate-{}", uuid::Uuid::now_v7().simple()));
                fs::create_dir_all(&elsewhere).map_err(at(&elsewhere))?;
                symlink(&elsewhere, &data).map_err(at(&data))?;
            }
            _ => fs::create_dir(&data).map_err(at(&data))?,
        }
    }
    if !data.exists() {
        // the target of the link is missing
        let target = fs::read_link(&data).map_err(at(&data))?;
        fs::create_dir_all(&target).map_err(at(&target))?;
    }
    let real = data.canonicalize().map_err(at(&data))?;
    fs::set_permissions(&real, fs::Permissions::from_mode(0o700)).map_err(at(&real))?;
    if let Some(account) = account {
        account.own(&real).map_err(at(&real))?;
    }
    Ok(real)
}

/// Returns the socket's folder: the data folder, unless its path is too long for a socket.
fn socket_folder(data: &Path, account: Option<&OsAccount>) -> Result<PathBuf, EmbeddedError> {
    if data.as_os_str().len() + "/.s.PGSQL.5432".len() <= SOCKET_PATH_BYTES_MAX {
        return Ok(data.to_path_buf());
    }
    let digest = blake3::hash(data.as_os_str().as_encoded_bytes()).to_hex();
    let socket = std::env::temp_dir().join(format!("metergate-{}", &digest[..16]));
    fs::create_dir_all(&socket).map_err(at(&socket))?;
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o700)).map_err(at(&socket))?;
    if let Some(account) = account {
        account.own(&socket).map_err(at(&socket))?;
    }
    Ok(socket)
}

/// Stops a server that an earlier, dead process left running in the folder. This process holds the folder's
/// lock.
fn stop_orphan(binaries: &Binaries, account: Option<&OsAccount>, data: &Path) -> Result<(), EmbeddedError> {
    let deadline = Instant::now() + STOP_MAX;
    while let Some(postmaster) = Postmaster::of(data) {
        if !postmaster.is_alive(data) {
            // the process is gone, or its id belongs to another program
            let pid_file = data.join("postmaster.pid");
            fs::remove_file(&pid_file).map_err(at(&pid_file))?;
            break;
        }
        if Instant::now() > deadline {
            let why = format!("a server left by an earlier run (process {}) does not stop", postmaster.pid);
            return Err(EmbeddedError::Program { program: "pg_ctl".to_owned(), why });
        }
        pg_ctl_stop(binaries, account, data).status().ok();
        std::thread::sleep(POLL);
    }
    Ok(())
}

fn pg_ctl_stop(binaries: &Binaries, account: Option<&OsAccount>, data: &Path) -> Command {
    let mut command = command(&binaries.program("pg_ctl"), account);
    command.args(["stop", "-s", "-w", "-m", "fast", "-D"]).arg(data);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// Prepares a command in its own process group, so that Ctrl-C reaches only this program.
fn command(program: &Path, account: Option<&OsAccount>) -> Command {
    let mut command = Command::new(program);
    command.process_group(0).current_dir("/").env_remove("PGDATA").env("LC_ALL", "C");
    if let Some(account) = account {
        command.uid(account.uid).gid(account.gid).env("HOME", "/");
    }
    command
}

fn initialise(
    binaries: &Binaries,
    account: Option<&OsAccount>,
    data: &Path,
    purpose: ServerPurpose,
) -> Result<(), EmbeddedError> {
    let mut initdb = command(&binaries.program("initdb"), account);
    initdb.args(["--auth=trust", "--encoding=UTF8", "--locale=C", "--username", USER, "-D"]).arg(data);
    if purpose == ServerPurpose::Throwaway {
        initdb.arg("--no-sync");
    }
    let failed = |why: String| EmbeddedError::Program { program: "initdb".to_owned(), why };
    let output = initdb.stdin(Stdio::null()).output().map_err(|why| failed(why.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

/// The folders and files of a running server.
#[derive(Clone, Copy)]
struct ServerFiles<'a> {
    data: &'a Path,
    /// The folder of the socket.
    socket: &'a Path,
    log: &'a Path,
}

fn spawn_server(
    binaries: &Binaries,
    account: Option<&OsAccount>,
    files: ServerFiles<'_>,
    purpose: ServerPurpose,
) -> Result<Child, EmbeddedError> {
    let ServerFiles { data, socket, log } = files;
    if fs::metadata(log).is_ok_and(|meta| meta.len() > LOG_BYTES_MAX) {
        fs::remove_file(log).map_err(at(log))?;
    }
    let output = OpenOptions::new().append(true).create(true).open(log).map_err(at(log))?;
    let errors = output.try_clone().map_err(at(log))?;
    let mut server = command(&binaries.program("postgres"), account);
    server.arg("-D").arg(data);
    let mut set = |name: &str, value: &str| {
        server.arg("-c").arg(format!("{name}={value}"));
    };
    set("unix_socket_directories", &socket.display().to_string());
    set("unix_socket_permissions", "0700");
    set("listen_addresses", "");
    set("max_connections", "200");
    set("shared_buffers", "256MB");
    set("effective_cache_size", "1GB");
    set("wal_level", "minimal");
    set("max_wal_senders", "0");
    set("max_wal_size", "4GB");
    set("checkpoint_timeout", "15min");
    set("random_page_cost", "1.1");
    set("autovacuum_naptime", "10s");
    set("jit", "off");
    set("timezone", "UTC");
    set("log_timezone", "UTC");
    set("log_min_messages", "warning");
    if purpose == ServerPurpose::Throwaway {
        set("fsync", "off");
        set("full_page_writes", "off");
    }
    server.stdin(Stdio::null()).stdout(output).stderr(errors);
    server
        .spawn()
        .map_err(|why| EmbeddedError::Program { program: "postgres".to_owned(), why: why.to_string() })
}

/// Starts a shell that waits for the end of its input, which comes when this process stops or dies.
fn spawn_guardian(
    binaries: &Binaries,
    account: Option<&OsAccount>,
    data: &Path,
    folder: &Path,
    purpose: ServerPurpose,
) -> Result<Child, EmbeddedError> {
    let (mode, after) = match purpose {
        ServerPurpose::Service => ("fast", ":"),
        ServerPurpose::Throwaway => ("immediate", r#"rm -rf "$3""#),
    };
    let script =
        format!(r#"read line; [ -f "$2/postmaster.pid" ] && "$1" stop -s -w -m {mode} -D "$2"; {after}"#);
    let mut guardian = command(Path::new("/bin/sh"), account);
    guardian
        .args(["-c", &script, "metergate-guardian"])
        .arg(binaries.program("pg_ctl"))
        .arg(data)
        .arg(folder);
    guardian.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    guardian
        .spawn()
        .map_err(|why| EmbeddedError::Program { program: "/bin/sh".to_owned(), why: why.to_string() })
}
