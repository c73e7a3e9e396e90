//! The gate behind real gateways, with the configurations in `docs/guides/gateways.md`. If a gateway is not
//! installed, its test reports that and ends.

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};

use crate::support::service::Process;
use crate::support::{TestService, cluster};

const PAGE: &str = include_str!("../../../docs/guides/gateways.md");
/// Longest time that a gateway may take to listen.
const START_MAX: Duration = Duration::from_secs(20);

/// Returns the block of the page in a language, with the machine-specific parts replaced.
fn documented(language: &str, replacements: &[(&str, &str)]) -> String {
    let fence = format!("\n```{language}\n");
    let (_, rest) = PAGE.split_once(&fence).unwrap_or_else(|| panic!("the page has no {language}"));
    let mut text = rest.split_once("\n```").unwrap().0.to_owned();
    for (shown, real) in replacements {
        assert_eq!(text.matches(shown).count(), 1, "{shown} must occur once in {text}");
        text = text.replace(shown, real);
    }
    text
}

/// Returns the path of a program, or `None` if it is not installed.
fn installed(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin"), PathBuf::from("/usr/bin")]);
    let found = folders.map(|folder| folder.join(program)).find(|file| file.is_file());
    if found.is_none() {
        // written past the output capture of the test runner, so that a skipped test is visible
        writeln!(std::io::stderr(), "skipped: {program} is not installed").ok();
    }
    found
}

/// An application behind the gateway, which echoes each request.
struct App {
    address: SocketAddr,
    calls: Arc<AtomicUsize>,
}

impl App {
    async fn start() -> Self {
        let calls = Arc::new(AtomicUsize::new(0));
        let router = Router::new().fallback(echo).with_state(Arc::clone(&calls));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { address, calls }
    }
}

async fn echo(State(calls): State<Arc<AtomicUsize>>, request: Request) -> (StatusCode, Json<Value>) {
    calls.fetch_add(1, Ordering::SeqCst);
    let (head, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 1_000).await.unwrap();
    let header = |name: &str| head.headers.get(name).map(|value| value.to_str().unwrap());
    let status = if head.uri.path() == "/secret" { StatusCode::FORBIDDEN } else { StatusCode::OK };
    let seen = json!({
        "method": head.method.as_str(), "path": head.uri.to_string(), "body": String::from_utf8_lossy(&body),
        "subject": header("x-subject"), "reservation": header("x-metergate-reservation-id"),
    });
    (status, Json(seen))
}

/// Metergate as a process with the catalog of the documented configurations, an application, and the
/// gateway's port.
struct World {
    metergate: Process,
    key: String,
    app: App,
    gateway: SocketAddr,
    folder: tempfile::TempDir,
    client: reqwest::Client,
}

struct Seen {
    status: u16,
    headers: reqwest::header::HeaderMap,
    text: String,
}

impl Seen {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|why| panic!("{why}: {}", self.text))
    }
}

impl World {
    async fn start() -> Self {
        let url = cluster::database_url().await;
        let service = TestService::at_url(&url, crate::support::service::engine_settings()).await;
        service
            .apply(json!({
                "default_plan": "free",
                "meters": [{"key": "api_calls", "event_name": "api_call", "aggregation": "count"},
                           {"key": "tokens", "event_name": "ai", "aggregation": "sum"}],
                "plans": [
                    {"key": "free", "limits": [
                        {"key": "calls", "meter": "api_calls", "quota": 2, "period": "year"}]},
                    {"key": "other", "limits": [
                        {"key": "tokens", "meter": "tokens", "quota": 5, "period": "year"}]},
                ],
            }))
            .await;
        // a port that is free now; other programs ask for any free port, not for this one
        let gateway = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        Self {
            metergate: Process::start(&url).await,
            key: service.key.clone(),
            app: App::start().await,
            gateway,
            folder: tempfile::Builder::new().prefix("metergate-gateway-").tempdir().unwrap(),
            client: reqwest::Client::builder().no_proxy().build().unwrap(),
        }
    }

    fn metergate(&self) -> String {
        self.metergate.base.trim_start_matches("http://").to_owned()
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    /// Starts a gateway and waits until it listens. The gateway ends with the test.
    async fn run(&self, mut command: Command) -> Child {
        let log = self.folder.path().join("log");
        let output = std::fs::File::create(&log).unwrap();
        command.current_dir(&self.folder).env("HOME", self.folder.path());
        command.env("XDG_DATA_HOME", self.folder.path()).env("XDG_CONFIG_HOME", self.folder.path());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(output).kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let began = Instant::now();
        while TcpStream::connect(self.gateway).await.is_err() {
            let ended = child.try_wait().unwrap();
            let is_late = began.elapsed() > START_MAX;
            assert!(ended.is_none() && !is_late, "{}", std::fs::read_to_string(&log).unwrap());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        child
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Seen {
        let answer = request.send().await.unwrap();
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        Seen { status, headers, text: answer.text().await.unwrap() }
    }

    /// Sends a request through the gateway, with a customer's key.
    async fn get(&self, path: &str, key: &str) -> Seen {
        self.send(self.client.get(format!("http://{}{path}", self.gateway)).header("x-api-key", key)).await
    }

    /// Sends a request directly to Metergate, with the application's key.
    async fn tell(&self, method: reqwest::Method, path: &str, body: Value) {
        let request = self.client.request(method, format!("{}{path}", self.metergate.base));
        let answer = self.send(request.bearer_auth(&self.key).json(&body)).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text);
    }

    /// Checks that two held calls are allowed, that a third is denied, and that a released call frees the
    /// quota.
    async fn meters_calls(&self) {
        let post = reqwest::Method::POST;
        let stranger = self.get("/", "nobody's key").await;
        assert_eq!((stranger.status, self.app.calls.load(Ordering::SeqCst)), (401, 0));

        let first = self.get("/v1/things?a=1", "acme-key-1").await;
        assert_eq!(first.status, 200, "{}", first.text);
        assert!(first.header("ratelimit").starts_with("\"calls\";r=1;t="), "{:?}", first.headers);
        assert!(first.header("ratelimit-policy").starts_with("\"calls\";q=2;w="), "{:?}", first.headers);
        let first = first.json();
        assert_eq!((&first["subject"], &first["path"]), (&json!("acme"), &json!("/v1/things?a=1")));
        let request = self.client.post(format!("http://{}/", self.gateway)).header("x-api-key", "acme-key-1");
        let second = self.send(request.header("content-encoding", "br").body("a body")).await;
        assert_eq!(second.status, 200, "{}", second.text);
        let second = second.json();
        assert_eq!((&second["method"], &second["body"]), (&json!("POST"), &json!("a body")));

        let third = self.get("/", "acme-key-1").await;
        assert_eq!((third.status, third.json()["code"].as_str()), (429, Some("limit_reached")));
        assert_eq!(third.header("content-type"), "application/problem+json");
        assert!(third.header("retry-after").parse::<u64>().unwrap() > 1, "{:?}", third.headers);
        assert!(third.header("ratelimit").starts_with("\"calls\";r=0;t="), "{:?}", third.headers);
        assert_eq!(self.app.calls.load(Ordering::SeqCst), 2, "a denied call must not reach the application");

        let id = |seen: &Value| seen["reservation"].as_str().unwrap().to_owned();
        self.tell(post.clone(), &format!("/v1/reservations/{}/commit", id(&first)), json!({})).await;
        self.tell(post, &format!("/v1/reservations/{}/release", id(&second)), json!({})).await;
        let own = self.get("/secret", "acme-key-1").await;
        assert_eq!(
            (own.status, own.json()["subject"].as_str()),
            (403, Some("acme")),
            "the application's own"
        );
    }

    /// Checks the status of denials for other reasons than a quota.
    async fn denies_otherwise(&self) {
        let put = reqwest::Method::PUT;
        let subscription = |subject: &str| format!("/v1/subjects/{subject}/subscription");
        let unpaid = json!({"plan": "free", "status": "unpaid"});
        self.tell(put.clone(), &subscription("acme"), unpaid).await;
        let inactive = self.get("/", "acme-key-1").await;
        assert_eq!((inactive.status, inactive.json()["code"].as_str()), (402, Some("subscription_inactive")));
        self.tell(put, &subscription("globex"), json!({"plan": "other"})).await;
        let unmatched = self.get("/", "globex-key-1").await;
        assert_eq!((unmatched.status, unmatched.json()["code"].as_str()), (403, Some("unmatched")));
    }

    /// Checks that no call passes while Metergate is down.
    async fn stays_closed_without_metergate(mut self, status: u16) {
        let calls = self.app.calls.load(Ordering::SeqCst);
        self.metergate.child.kill().await.unwrap();
        assert_eq!(self.get("/", "globex-key-1").await.status, status);
        assert_eq!(self.app.calls.load(Ordering::SeqCst), calls);
    }
}

#[tokio::test]
async fn nginx_passes_allowed_calls_and_explains_denials() {
    let Some(nginx) = installed("nginx") else { return };
    let world = World::start().await;
    let server = documented(
        "nginx",
        &[
            ("listen 80;", &format!("listen {};", world.gateway)),
            ("127.0.0.1:8080", &world.metergate()),
            ("127.0.0.1:3000", &world.app.address.to_string()),
            ("mg_sk_live_…", &world.key),
        ],
    );
    // one process with its files in the test's folder, which needs no privileges and ends when killed
    let folders = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {kind};"))
        .join(" ");
    let configuration = world.write(
        "nginx.conf",
        &format!(
            "daemon off; master_process off; pid pid; error_log stderr;\n\
             events {{}}\nhttp {{ access_log off; {folders}\n{server}\n}}\n"
        ),
    );
    let mut command = Command::new(nginx);
    command.args(["-e", "stderr", "-p"]).arg(world.folder.path()).arg("-c").arg(configuration);
    let _nginx = world.run(command).await;
    world.meters_calls().await;
    world.denies_otherwise().await;
    world.stays_closed_without_metergate(503).await;
}

#[tokio::test]
async fn caddy_passes_allowed_calls_and_explains_denials() {
    let Some(caddy) = installed("caddy") else { return };
    let world = World::start().await;
    let site = documented(
        "caddyfile",
        &[
            ("api.example.com", &format!("http://{}", world.gateway)),
            ("127.0.0.1:8080", &world.metergate()),
            ("127.0.0.1:3000", &world.app.address.to_string()),
            ("mg_sk_live_…", &world.key),
        ],
    );
    let configuration = world.write("Caddyfile", &format!("{{\n\tadmin off\n\tauto_https off\n}}\n{site}\n"));
    let mut command = Command::new(caddy);
    command.args(["run", "--adapter", "caddyfile", "--config"]).arg(configuration);
    let _caddy = world.run(command).await;
    world.meters_calls().await;
    world.denies_otherwise().await;
    world.stays_closed_without_metergate(502).await;
}
