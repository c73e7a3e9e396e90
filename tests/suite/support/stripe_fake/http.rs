//! One call from arrival to answer: faults, the API key, limits, the idempotency key, then the table of
//! routes.

use std::sync::Arc;

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use serde_json::Value;

use super::control::is_control;
use super::errors::ApiError;
use super::faults::{Endpoint, Fault};
use super::idempotency::KEY_LENGTH_MAX;
use super::routes;
use super::server::Shared;
use super::traffic::Slot;
use super::version::Version;

const BODY_BYTES_MAX: usize = 1 << 20;

/// A request with its whole body.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) method: Method,
    pub(super) path: String,
    /// The parameters as received, from the query or from the body.
    pub(super) parameters: String,
    headers: HeaderMap,
}

#[derive(Debug, Clone)]
pub(super) struct Answer {
    pub(super) status: u16,
    body: String,
    headers: Vec<(&'static str, &'static str)>,
}

impl Answer {
    pub(super) fn ok(body: &Value) -> Self {
        Self { status: 200, body: body.to_string(), headers: Vec::new() }
    }

    pub(super) fn internal() -> Self {
        ApiError::new(500, "An unknown error occurred").into()
    }
}

impl From<ApiError> for Answer {
    fn from(error: ApiError) -> Self {
        Self {
            status: error.status,
            body: error.body().to_string(),
            headers: error.header.into_iter().collect(),
        }
    }
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::from(self.body));
        *response.status_mut() = StatusCode::from_u16(self.status).unwrap_or_default();
        let headers = response.headers_mut();
        headers.insert("content-type", HeaderValue::from_static("application/json"));
        for (name, value) in self.headers {
            headers.insert(name, HeaderValue::from_static(value));
        }
        response
    }
}

impl Call {
    async fn read(request: Request) -> Result<Self, ApiError> {
        let (parts, body) = request.into_parts();
        let path = parts.uri.path().to_owned();
        let query = parts.uri.query().unwrap_or_default().to_owned();
        let parameters = if parts.method == Method::GET {
            query
        } else {
            let body =
                to_bytes(body, BODY_BYTES_MAX).await.map_err(|_| ApiError::new(413, "Body is too large"))?;
            let form = "application/x-www-form-urlencoded";
            let media_type = parts.headers.get("content-type").and_then(|value| value.to_str().ok());
            if !body.is_empty() && !media_type.is_some_and(|media_type| media_type.starts_with(form)) {
                let message = format!("Invalid request: the body of POST {path} must be {form}");
                return Err(ApiError::invalid(message));
            }
            let body = String::from_utf8(body.to_vec()).map_err(|_| ApiError::invalid("Invalid UTF-8"))?;
            if body.is_empty() { query } else { body }
        };
        Ok(Self { method: parts.method, path, parameters, headers: parts.headers })
    }

    /// Builds a call without the network, for tests.
    pub(super) fn direct(method: Method, path: &str, parameters: String) -> Self {
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let parameters = if query.is_empty() { parameters } else { query.to_owned() };
        Self { method, path: path.to_owned(), parameters, headers: HeaderMap::new() }
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    pub(super) fn endpoint(&self) -> Endpoint {
        routes::endpoint(&self.method, &self.path)
    }

    /// Returns the idempotency key of a POST; other methods ignore it.
    pub(super) fn idempotency_key(&self) -> Option<&str> {
        self.header("idempotency-key").filter(|_| self.method == Method::POST)
    }

    pub(super) fn version(&self, default: &str) -> Result<Version, ApiError> {
        Version::read(self.header("stripe-version").unwrap_or(default))
    }

    /// Returns the parts of a call that a retry with the same key must repeat.
    fn fingerprint(&self) -> String {
        format!("{} {} {}", self.method, self.path, self.parameters)
    }

    /// Returns the API key: a bearer token, or the user name of basic authentication.
    fn api_key(&self) -> Option<String> {
        let (scheme, credential) = self.header("authorization")?.split_once(' ')?;
        if scheme.eq_ignore_ascii_case("bearer") {
            return Some(credential.to_owned());
        }
        let decoded = base64::engine::general_purpose::STANDARD.decode(credential).ok()?;
        Some(String::from_utf8(decoded).ok()?.split_once(':')?.0.to_owned())
    }
}

pub(super) async fn handle(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let call = match Call::read(request).await {
        Ok(call) => call,
        Err(why) => return Answer::from(why).into_response(),
    };
    let fault = shared.lock().arrive(&call);
    if fault == Some(Fault::ResetBefore) {
        shared.lock().traffic.count(call.endpoint(), None);
        reset();
    }
    let answer = take(&shared, &call, fault).await.unwrap_or_else(Answer::from);
    let is_lost = fault == Some(Fault::ResetAfter);
    shared.lock().traffic.count(call.endpoint(), (!is_lost).then_some(answer.status));
    if is_lost {
        reset();
    }
    let id = shared.lock().next_id("req");
    let mut response = answer.into_response();
    if let Ok(id) = HeaderValue::from_str(&id) {
        response.headers_mut().insert("request-id", id);
    }
    response
}

/// Ends the connection without an answer, by ending the task that serves it without a panic message.
fn reset() -> ! {
    std::panic::resume_unwind(Box::new("the plan requires a reset"))
}

async fn take(shared: &Arc<Shared>, call: &Call, fault: Option<Fault>) -> Result<Answer, ApiError> {
    let latency = {
        let mut state = shared.lock();
        authorize(call, &state.options.api_key, fault)?;
        call.version(&state.options.api_version)?;
        if call.path.starts_with("/v2/") && call.header("stripe-version").is_none() {
            return Err(ApiError::invalid("The header Stripe-Version is required."));
        }
        limit(fault)?;
        state.traffic.spend(call.endpoint())?;
        state.options.latency
    };
    let _slot = Slot::take(shared, call)?;
    let key = match HeldKey::take(shared, call)? {
        Begun::Fresh(key) => key,
        Begun::Replay(answer) => return Ok(answer),
    };
    if !latency.is_zero() {
        tokio::time::sleep(latency).await;
    }
    let answer = shared.lock().process(call, fault);
    if let Some(Fault::Slow(delay)) = fault {
        tokio::time::sleep(delay).await;
    }
    drop(key);
    Ok(answer)
}

fn authorize(call: &Call, expected: &str, fault: Option<Fault>) -> Result<(), ApiError> {
    if is_control(&call.path) {
        return Ok(());
    }
    let Some(key) = call.api_key() else {
        return Err(ApiError::new(401, "You did not provide an API key."));
    };
    if key != expected || fault == Some(Fault::Unauthorized) {
        let shown: String = key.chars().take(8).collect();
        return Err(ApiError::new(401, format!("Invalid API Key provided: {shown}****")));
    }
    Ok(())
}

fn limit(fault: Option<Fault>) -> Result<(), ApiError> {
    match fault {
        Some(Fault::RateLimited(reason)) => Err(rate_limited(reason)),
        Some(Fault::LockTimeout) => Err(lock_timeout()),
        _ => Ok(()),
    }
}

pub(super) fn rate_limited(reason: &'static str) -> ApiError {
    ApiError::new(429, "Request rate limit exceeded.")
        .with_code("rate_limit")
        .with_header("stripe-rate-limited-reason", reason)
}

pub(super) fn lock_timeout() -> ApiError {
    let message = "This object cannot be accessed right now because another API request or Stripe process is currently accessing it.";
    ApiError::new(429, message).with_code("lock_timeout")
}

/// An idempotency key held by a call. It is released when the call ends, even by a panic.
struct HeldKey {
    shared: Arc<Shared>,
    key: Option<String>,
}

enum Begun {
    Fresh(HeldKey),
    Replay(Answer),
}

impl HeldKey {
    fn take(shared: &Arc<Shared>, call: &Call) -> Result<Begun, ApiError> {
        let key = call.idempotency_key().map(str::to_owned);
        if let Some(key) = &key {
            if key.chars().count() > KEY_LENGTH_MAX {
                return Err(ApiError::idempotency("Idempotency keys can be at most 255 characters"));
            }
            let mut state = shared.lock();
            let now = state.now();
            if let Some(mut answer) = state.keys.take(key, &call.fingerprint(), now)? {
                answer.headers.push(("idempotent-replayed", "true"));
                return Ok(Begun::Replay(answer));
            }
        }
        Ok(Begun::Fresh(Self { shared: Arc::clone(shared), key }))
    }
}

impl Drop for HeldKey {
    fn drop(&mut self) {
        if let Some(key) = &self.key {
            self.shared.lock().keys.release(key);
        }
    }
}
