//! The service under test. In process: the real router on a real database, with a manual clock and folding on
//! request. As a process: the real binary.

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use http_body_util::BodyExt;
use metergate::engine::access::keys::KeyKind;
use metergate::engine::access::tokens::TokenSettings;
use metergate::engine::{Clock, Engine, EngineSettings};
use metergate::http::{Api, HttpService, HttpSettings, service};
use metergate::providers::stripe::StripeSettings;
use metergate::store::Database;
use metergate_domain::base::{Environment, Timestamp};
use metergate_domain::catalog::Catalog;
use secrecy::SecretString;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tower::ServiceExt;

use super::proxy::Proxy;
use super::{cluster, contract};

pub(crate) const TEST_SECRET: &str = "the-secret-of-the-test-environment!!";
pub(crate) const LIVE_SECRET: &str = "the-secret-of-the-live-environment!!";
/// The initial time of a test's clock.
pub(crate) const NOON: &str = "2026-11-20T12:00:00Z";

pub(crate) fn at(text: &str) -> Timestamp {
    Timestamp::parse(text).unwrap()
}

pub(crate) struct TestService {
    pub(crate) engine: Engine,
    pub(crate) clock: Clock,
    pub(crate) url: String,
    pub(crate) key: String,
    front: HttpService,
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: axum::http::HeaderMap,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|why| panic!("{why}: {}", self.text))
    }

    /// Returns true if the answer is marked as a replay.
    pub(crate) fn is_replay(&self) -> bool {
        self.headers.contains_key("idempotent-replayed")
    }

    pub(crate) fn code(&self) -> String {
        self.json()["code"].as_str().unwrap_or_default().to_owned()
    }
}

pub(crate) fn engine_settings() -> EngineSettings {
    let tokens = |secret: &str| TokenSettings {
        hs256_secret: Some(SecretString::from(secret)),
        audience: "metergate".to_owned(),
        ..TokenSettings::default()
    };
    EngineSettings {
        event_age_max: Duration::from_hours(30 * 24),
        wait_max: Duration::from_secs(5),
        credential_life: Duration::from_millis(1),
        tokens: [(Environment::Test, tokens(TEST_SECRET)), (Environment::Live, tokens(LIVE_SECRET))],
        stripe: StripeSettings::default(),
        late_grace: Duration::from_hours(1),
    }
}

impl TestService {
    pub(crate) async fn start() -> Self {
        Self::at_url(&cluster::database_url().await, engine_settings()).await
    }

    /// Starts the service with these meters in the test environment.
    pub(crate) async fn with_meters(meters: Value) -> Self {
        let service = Self::start().await;
        service.apply(json!({ "meters": meters })).await;
        service
    }

    pub(crate) async fn at_url(url: &str, settings: EngineSettings) -> Self {
        let database = Database::new(url, None, 8).unwrap();
        let clock = Clock::manual(at(NOON));
        let engine = Engine::start(database, clock.clone(), settings).unwrap();
        let key = engine.create_key(Environment::Test, KeyKind::Secret, "test").await.unwrap();
        let http = HttpSettings {
            cors_origins: vec!["https://app.example".parse().unwrap()],
            request_max: Duration::from_secs(30),
        };
        let front = service(Api { engine: engine.clone(), metrics: Arc::new(None) }, &http);
        Self { engine, clock, url: url.to_owned(), key, front }
    }

    /// Starts the service with this catalog behind a proxy that can cut connections. Calls wait for at most 50 ms.
    pub(crate) async fn behind_proxy(catalog: Value) -> (Self, Proxy) {
        let url = cluster::database_url().await;
        let proxy = Proxy::start(&url);
        let mut settings = engine_settings();
        settings.wait_max = Duration::from_millis(50);
        let service = Self::at_url(&proxy.url(&url), settings).await;
        service.apply(catalog).await;
        (service, proxy)
    }

    pub(crate) async fn apply(&self, catalog: Value) {
        let catalog = Catalog::read(catalog).unwrap();
        self.engine.apply_catalog(Environment::Test, catalog, false).await.unwrap();
    }

    /// Sends a request and checks the answer against openapi.yaml.
    pub(crate) async fn send(&self, request: Request<Body>) -> Answer {
        let (method, uri) = (request.method().clone(), request.uri().to_string());
        let response = self.front.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let answer = Answer { status: parts.status, headers: parts.headers, text };
        contract::assert_documented(&method, &uri, &answer);
        answer
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> axum::http::request::Builder {
        Request::builder().method(method).uri(path).header("authorization", format!("Bearer {}", self.key))
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(self.request(Method::GET, path).body(Body::empty()).unwrap()).await
    }

    pub(crate) async fn get_as(&self, credential: &str, path: &str) -> Answer {
        let request = Request::builder().uri(path).header("authorization", format!("Bearer {credential}"));
        self.send(request.body(Body::empty()).unwrap()).await
    }

    pub(crate) async fn send_json(&self, method: Method, path: &str, body: &Value) -> Answer {
        self.send_typed(method, path, "application/json", body.to_string().into_bytes()).await
    }

    pub(crate) async fn send_typed(
        &self,
        method: Method,
        path: &str,
        media_type: &str,
        body: Vec<u8>,
    ) -> Answer {
        let request = self.request(method, path).header("content-type", media_type);
        self.send(request.body(Body::from(body)).unwrap()).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Answer {
        self.send_json(Method::POST, path, body).await
    }

    pub(crate) async fn put(&self, path: &str, body: &Value) -> Answer {
        self.send_json(Method::PUT, path, body).await
    }

    pub(crate) async fn put_as(&self, credential: &str, path: &str, body: &Value) -> Answer {
        let request = Request::builder().method(Method::PUT).uri(path);
        let request = request.header("authorization", format!("Bearer {credential}"));
        let request = request.header("content-type", "application/json");
        self.send(request.body(Body::from(body.to_string())).unwrap()).await
    }

    /// Returns an end-user token.
    pub(crate) fn token(subject: &str, scope: &str) -> String {
        let claims = json!({"sub": subject, "scope": scope, "aud": "metergate", "exp": 4_102_444_800_i64});
        let key = jsonwebtoken::EncodingKey::from_secret(TEST_SECRET.as_bytes());
        jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &key).unwrap()
    }

    /// Records events, and asserts that each is accepted.
    pub(crate) async fn record(&self, events: &Value) {
        let answer = self.post("/v1/events?backfill=true", events).await;
        let expected = events.as_array().map_or(1, Vec::len);
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
        assert_eq!(answer.json()["accepted"], expected, "{}", answer.text);
    }

    /// Returns the rows of a usage query.
    pub(crate) async fn usage(&self, query: &str) -> Vec<Value> {
        let answer = self.get(&format!("/v1/usage?{query}")).await;
        assert_eq!(answer.status, StatusCode::OK, "{query}: {}", answer.text);
        answer.json()["data"].as_array().unwrap().clone()
    }

    /// Returns the values of a usage query as JSON text.
    pub(crate) async fn values(&self, query: &str) -> Vec<String> {
        self.usage(query).await.iter().map(|row| row["value"].to_string()).collect()
    }

    /// Folds all events and builds all gaps.
    pub(crate) async fn fold(&self) {
        while self.engine.fold_some(Environment::Test).await.unwrap().events > 0 {}
        while self.engine.build_some(Environment::Test).await.unwrap() {}
        while self.engine.sum_some_days(Environment::Test).await.unwrap() {}
    }

    pub(crate) async fn verify(&self) {
        let verdict = self.engine.verify(Environment::Test).await.unwrap();
        assert_eq!(verdict.differences, 0, "{:?}", verdict.shown);
    }
}

/// A client of a process, with a key.
#[derive(Clone)]
pub(crate) struct Caller {
    client: reqwest::Client,
    base: String,
    key: String,
}

impl Caller {
    /// Sends a request and checks the answer against openapi.yaml. Returns `None` if the connection breaks first.
    pub(crate) async fn try_send(&self, method: Method, path: &str, body: &Value) -> Option<Answer> {
        let request =
            self.client.request(method.clone(), format!("{}{path}", self.base)).bearer_auth(&self.key);
        let request = if body.is_null() { request } else { request.json(body) };
        let answer = request.send().await.ok()?;
        let (status, headers) = (answer.status(), answer.headers().clone());
        let answer = Answer { status, headers, text: answer.text().await.ok()? };
        contract::assert_documented(&method, path, &answer);
        Some(answer)
    }

    pub(crate) async fn send(&self, method: Method, path: &str, body: &Value) -> Answer {
        self.try_send(method, path, body).await.unwrap()
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, &Value::Null).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Answer {
        self.send(Method::POST, path, body).await
    }

    pub(crate) async fn put(&self, path: &str, body: &Value) -> Answer {
        self.send(Method::PUT, path, body).await
    }
}

/// A running process of the real binary.
pub(crate) struct Process {
    pub(crate) child: Child,
    pub(crate) base: String,
}

impl Process {
    /// Starts the binary on a free port, and waits until it listens.
    pub(crate) async fn start(url: &str) -> Self {
        Self::start_with(&[("DATABASE_URL", url)], &std::env::temp_dir()).await
    }

    pub(crate) async fn start_with(variables: &[(&str, &str)], folder: &std::path::Path) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_metergate"));
        command.current_dir(folder).env("METERGATE__HTTP__BIND", "127.0.0.1:0");
        command.env("METERGATE__LOG__FORMAT", "json").envs(variables.iter().copied());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut output = String::new();
        let address = loop {
            let Some(line) = lines.next_line().await.unwrap() else { panic!("did not start: {output}") };
            output.push_str(&line);
            let line: Value = serde_json::from_str(&line).unwrap_or_default();
            if line["message"] == "service is listening" {
                break line["address"].as_str().unwrap().to_owned();
            }
        };
        // the process would block on a full pipe
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Self { child, base: format!("http://{address}") }
    }

    pub(crate) fn caller(&self, key: &str) -> Caller {
        Caller { client: reqwest::Client::new(), base: self.base.clone(), key: key.to_owned() }
    }

    /// Kills the process, as `kill -9` does.
    pub(crate) async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }

    /// Asks the process to stop, and asserts that it exits with success.
    pub(crate) async fn stop(mut self) {
        let pid = self.child.id().unwrap().to_string();
        // the shell has a built-in `kill`; a small system may have no other
        let asked = Command::new("sh").args(["-c", "kill -TERM $0", &pid]).status().await.unwrap();
        assert!(asked.success());
        assert!(self.child.wait().await.unwrap().success());
    }
}
