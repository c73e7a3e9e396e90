//! A private PostgreSQL under a folder of the service's own, for when no `DATABASE_URL` is set,
//! and the throwaway clusters of the tests.
//!
//! Promises: needs no root and works as root (the server then runs as `postgres`, else `nobody`);
//! a Unix socket and no port; data kept between runs; a clean stop with the program. A guardian
//! process notices when the program dies without stopping it, kill -9 included, and stops the
//! server then, so that nothing is left that blocks the next start. Crash recovery is
//! PostgreSQL's own.

mod account;
mod binaries;
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
use folder::Postmaster;

/// How long a server may take to start, crash recovery included.
const START_MAX: Duration = Duration::from_mins(2);
/// How long a stopping server may take before the start gives up on it.
const STOP_MAX: Duration = Duration::from_mins(1);
/// How long a start waits for a process that is about to leave the folder.
const LOCK_WAIT_MAX: Duration = Duration::from_secs(3);
const POLL: Duration = Duration::from_millis(5);
/// A Unix socket's path is limited by the kernel.
const SOCKET_PATH_BYTES_MAX: usize = 100;
const LOG_BYTES_MAX: u64 = 16 * 1024 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum EmbeddedError {
    #[error(
        "no PostgreSQL to run on: set DATABASE_URL, or, to run an embedded one, install the server programs (Debian: `apt-get install postgresql`, macOS: `brew install postgresql`) or name their folder in METERGATE__POSTGRES__BIN; none were found or could be downloaded ({0})"
    )]
    NoBinaries(String),
    #[error(
        "the data in {folder} was made by PostgreSQL {made_by}, and no server programs of that version were found; install them, or name their folder in METERGATE__POSTGRES__BIN"
    )]
    OtherVersion { folder: String, made_by: String },
    #[error(
        "another metergate (process {pid}) is using {folder}; stop it, or run this one in another folder or with DATABASE_URL"
    )]
    InUse { folder: String, pid: String },
    #[error("cannot use {path}: {why}")]
    Folder { path: String, why: std::io::Error },
    #[error("cannot run {program}: {why}")]
    Program { program: String, why: String },
    #[error("PostgreSQL did not start; the end of its log:\n{0}")]
    NotStarted(String),
}

fn at(path: &Path) -> impl FnOnce(std::io::Error) -> EmbeddedError + '_ {
    move |why| EmbeddedError::Folder { path: path.display().to_string(), why }
}

/// What a cluster is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerPurpose {
    /// Data that must survive.
    Service,
    /// A test run: no syncs to disk, and the folder goes with the process.
    Throwaway,
}

/// A running server of our own.
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
    /// Held as long as the folder is ours.
    _lock: File,
}

impl Cluster {
    /// Starts the server of `folder`, which is made where it is missing.
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
            // the guardian removes it, and runs as the server does
            account.own(&folder).map_err(at(&folder))?;
        }
        let data = data_folder(&folder, account.as_ref())?;
        let binaries = Binaries::find(bin, folder::version_of(&data).as_deref(), &folder).await?;
        stop_orphan(&binaries, account.as_ref(), &data)?;
        // there from before the data is made until it is whole
        let unfinished = folder.join("initialising");
        if unfinished.exists() || folder::version_of(&data).is_none() {
            File::create(&unfinished).map_err(at(&unfinished))?;
            folder::empty(&data).map_err(at(&data))?;
            initialise(&binaries, account.as_ref(), &data, purpose)?;
            fs::remove_file(&unfinished).map_err(at(&unfinished))?;
        }
        let socket = socket_folder(&data, account.as_ref())?;
        let log = folder.join("postgres.log");
        let server = spawn_server(&binaries, account.as_ref(), &data, &socket, &log, purpose)?;
        let guardian = spawn_guardian(&binaries, account.as_ref(), &data, &folder, purpose)?;
        let mut cluster =
            Self { binaries, account, data, socket, log, purpose, server, guardian, _lock: lock };
        cluster.wait_until_ready().await?;
        Ok(cluster)
    }

    /// Where to connect.
    pub fn url(&self, database: &str) -> String {
        url(&self.socket, database)
    }

    /// Starts the server again where it ended by itself; nothing while it runs.
    pub async fn revive(&mut self) -> Result<(), EmbeddedError> {
        if !self.has_ended() {
            return Ok(());
        }
        tracing::error!("the embedded PostgreSQL ended; starting it again");
        let account = self.account.as_ref();
        stop_orphan(&self.binaries, account, &self.data)?;
        self.server =
            spawn_server(&self.binaries, account, &self.data, &self.socket, &self.log, self.purpose)?;
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
                tracing::warn!("PostgreSQL did not stop when asked; its guardian will try again");
            }
        }
        // the server is our child: reap it, but do not wait for ever
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

/// Where to connect to a server that another process runs in `folder`; none when nobody does.
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

/// Takes the folder for this process; freed by the kernel however the process ends.
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
        // a process that was killed a moment ago may not be gone yet
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

/// The data folder, with links followed. Where the server's account cannot reach the folder (a private home, as root),
/// the data lies elsewhere and a link leads there.
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
        // a link whose target is gone
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

/// The socket lies with the data, unless that path is too long for a socket.
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

/// The lock is ours, so a server that still runs here has lost its program: stop it.
fn stop_orphan(binaries: &Binaries, account: Option<&OsAccount>, data: &Path) -> Result<(), EmbeddedError> {
    let deadline = Instant::now() + STOP_MAX;
    while let Some(postmaster) = Postmaster::of(data) {
        if !postmaster.is_alive(data) {
            // its process id is gone, or belongs to something else by now
            let pid_file = data.join("postmaster.pid");
            fs::remove_file(&pid_file).map_err(at(&pid_file))?;
            break;
        }
        if Instant::now() > deadline {
            let why = format!("a server that lost its program (process {}) does not stop", postmaster.pid);
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

/// A command in a process group of its own, so that Ctrl-C reaches the program alone.
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

fn spawn_server(
    binaries: &Binaries,
    account: Option<&OsAccount>,
    data: &Path,
    socket: &Path,
    log: &Path,
    purpose: ServerPurpose,
) -> Result<Child, EmbeddedError> {
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

/// A shell that waits for the end of its input, which comes when this process stops or dies.
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
