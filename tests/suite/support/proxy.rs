//! A proxy in front of PostgreSQL with connections that a test can cut, also after a commit was sent and
//! before its answer arrives.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;

pub(crate) struct Proxy {
    folder: tempfile::TempDir,
    state: Arc<State>,
}

struct State {
    real: PathBuf,
    /// While this is false, every connection is cut and new ones are refused.
    up: watch::Sender<bool>,
    /// Number of further commits that lose their answer.
    swallow: AtomicU32,
    swallowed: AtomicU32,
    deliver_commits: AtomicBool,
}

impl Proxy {
    /// Starts a proxy in front of the server of `url`.
    pub(crate) fn start(url: &str) -> Self {
        let host = form_urlencoded::parse(url.split_once('?').unwrap().1.as_bytes())
            .find(|(name, _)| name == "host")
            .map(|(_, host)| host.into_owned())
            .unwrap();
        let folder = tempfile::Builder::new().prefix("mgp").tempdir().unwrap();
        let state = Arc::new(State {
            real: PathBuf::from(host).join(".s.PGSQL.5432"),
            up: watch::Sender::new(true),
            swallow: AtomicU32::new(0),
            swallowed: AtomicU32::new(0),
            deliver_commits: AtomicBool::new(true),
        });
        let listener = UnixListener::bind(folder.path().join(".s.PGSQL.5432")).unwrap();
        let accepting = Arc::clone(&state);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(pass(client, Arc::clone(&accepting)));
            }
        });
        Self { folder, state }
    }

    /// Returns the URL of the same database through the proxy.
    pub(crate) fn url(&self, url: &str) -> String {
        let host: String =
            form_urlencoded::byte_serialize(self.folder.path().display().to_string().as_bytes()).collect();
        format!("{}?host={host}&sslmode=disable", url.split_once('?').unwrap().0)
    }

    /// Cuts every connection and refuses new ones.
    pub(crate) fn cut(&self) {
        self.state.up.send_replace(false);
    }

    pub(crate) fn mend(&self) {
        self.state.up.send_replace(true);
    }

    /// Loses the answers of the next commits; `delivered` sets whether the server receives the commits.
    pub(crate) fn swallow_commits(&self, count: u32, delivered: bool) {
        self.state.deliver_commits.store(delivered, Ordering::SeqCst);
        self.state.swallow.store(count, Ordering::SeqCst);
    }

    pub(crate) fn swallowed(&self) -> u32 {
        self.state.swallowed.load(Ordering::SeqCst)
    }
}

async fn pass(mut client: UnixStream, state: Arc<State>) {
    let mut up = state.up.subscribe();
    if !*up.borrow() {
        return;
    }
    let Ok(mut server) = UnixStream::connect(&state.real).await else { return };
    let (mut from_client, mut from_server) = (vec![0; 65_536], vec![0; 65_536]);
    let mut commits = Commits::default();
    loop {
        tokio::select! {
            () = cut(&mut up) => return,
            read = client.read(&mut from_client) => {
                let Ok(count @ 1..) = read else { return };
                let is_commit = commits.is_one(&from_client[..count]);
                let take = |left: u32| left.checked_sub(1);
                if is_commit && state.swallow.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).is_ok() {
                    if state.deliver_commits.load(Ordering::SeqCst) {
                        server.write_all(&from_client[..count]).await.ok();
                        // the server answers only after the commit
                        server.readable().await.ok();
                    }
                    state.swallowed.fetch_add(1, Ordering::SeqCst);
                    return;
                }
                if server.write_all(&from_client[..count]).await.is_err() { return }
            }
            read = server.read(&mut from_server) => {
                let Ok(count @ 1..) = read else { return };
                if client.write_all(&from_server[..count]).await.is_err() { return }
            }
        }
    }
}

/// The detection of commits in the messages of a connection.
#[derive(Default)]
struct Commits {
    /// The prepared statement that commits by itself.
    at_once: Option<Vec<u8>>,
}

impl Commits {
    fn is_one(&mut self, sent: &[u8]) -> bool {
        // a message has a kind, a length, and texts that end with a zero byte
        let mut texts = sent.get(5..).unwrap_or_default().split(|byte| *byte == 0);
        let (first, second) = (texts.next().unwrap_or_default(), texts.next().unwrap_or_default());
        match sent[0] {
            b'Q' => sent.ends_with(b"commit\0"),
            b'P' => {
                if second.windows(15).any(|words| words == b"hold_what_fits(") {
                    self.at_once = Some(first.to_vec());
                }
                false
            }
            b'B' => self.at_once.as_deref() == Some(second),
            _ => false,
        }
    }
}

async fn cut(up: &mut watch::Receiver<bool>) {
    up.wait_for(|up| !up).await.ok();
}
