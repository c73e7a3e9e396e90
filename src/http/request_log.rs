//! The id, the metrics and the log line of every request. A bare error status of a layer becomes a problem,
//! in Stripe's form for Stripe's SDKs.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue, Method, header};
use axum::response::{IntoResponse, Response};
use metrics::{Counter, Histogram};

use super::problem::{MEDIA_TYPE, Problem};
use super::stripe_errors;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const REQUEST_ID_CHARS_MAX: usize = 128;

/// The route of a request. The guard of the route sets it, and the log reads it.
#[derive(Debug, Clone, Default)]
struct RouteName(Arc<OnceLock<&'static str>>);

pub(super) fn name_route(request: &Request, path: &'static str) {
    if let Some(name) = request.extensions().get::<RouteName>() {
        name.0.set(path).ok();
    }
}

/// The labels of a kind of answer; there are a few hundred kinds at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct RequestLabels {
    method: &'static str,
    route: &'static str,
    status: u16,
}

/// The metrics of each kind of answer, kept so that their labels are not built for every request.
#[derive(Debug, Clone, Default)]
pub(super) struct RequestMetrics(Arc<RwLock<HashMap<RequestLabels, RouteMetrics>>>);

#[derive(Debug, Clone)]
struct RouteMetrics {
    requests: Counter,
    seconds: Histogram,
}

impl RouteMetrics {
    fn of(kind: RequestLabels) -> Self {
        let RequestLabels { method, route, status } = kind;
        let status = status.to_string();
        Self {
            requests: metrics::counter!("metergate_http_requests_total", "method" => method, "route" => route, "status" => status),
            seconds: metrics::histogram!("metergate_http_request_seconds", "method" => method, "route" => route),
        }
    }

    fn note(&self, took: Duration) {
        self.requests.increment(1);
        self.seconds.record(took.as_secs_f64());
    }
}

impl RequestMetrics {
    fn note(&self, kind: RequestLabels, took: Duration) {
        if let Some(measure) = self.0.read().unwrap_or_else(PoisonError::into_inner).get(&kind) {
            measure.note(took);
            return;
        }
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        known.entry(kind).or_insert_with(|| RouteMetrics::of(kind)).note(took);
    }

    /// Answers a request and logs, measures and identifies it.
    pub(super) async fn around<F: Future<Output = Response>>(
        &self,
        mut request: Request,
        answer: impl FnOnce(Request) -> F,
    ) -> Response {
        let started = Instant::now();
        let request_id = request_id(&request);
        let method = request.method().clone();
        let reads = stripe_errors::reads(&request);
        let name = RouteName::default();
        request.extensions_mut().insert(name.clone());
        let mut response = answer(request).await;
        if is_bare_error(&response) {
            let headers = response.headers().clone();
            response = Problem::of_status(response.status()).into_response();
            for (name, value) in headers.iter().filter(|(name, _)| *name == header::ACCEPT_ENCODING) {
                response.headers_mut().insert(name, value.clone());
            }
        }
        response = stripe_errors::translated(response, reads, &request_id);
        let route = name.0.get().copied().unwrap_or("unmatched");
        let (method_name, status) = (known_method(&method), response.status().as_u16());
        self.note(RequestLabels { method: method_name, route, status }, started.elapsed());
        log(&method, route, &response, &request_id, started);
        response.headers_mut().insert(REQUEST_ID, request_id);
        response
    }
}

/// Returns the caller's request id if it is short printable ASCII, otherwise a new one.
fn request_id(request: &Request) -> HeaderValue {
    let is_usable = |value: &&HeaderValue| {
        let bytes = value.as_bytes();
        !bytes.is_empty() && bytes.len() <= REQUEST_ID_CHARS_MAX && bytes.iter().all(u8::is_ascii_graphic)
    };
    request.headers().get(REQUEST_ID).filter(is_usable).cloned().unwrap_or_else(|| {
        let made = uuid::Uuid::now_v7().to_string();
        HeaderValue::try_from(made).unwrap_or_else(|_| HeaderValue::from_static("none"))
    })
}

fn is_bare_error(response: &Response) -> bool {
    let status = response.status();
    let described = response.headers().get(header::CONTENT_TYPE).is_some_and(|value| value == MEDIA_TYPE);
    (status.is_client_error() || status.is_server_error()) && !described
}

/// Returns the method as a label. A method may be any word, so unknown ones share one label.
fn known_method(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        Method::HEAD => "HEAD",
        _ => "other",
    }
}

fn log(method: &Method, route: &str, response: &Response, request_id: &HeaderValue, started: Instant) {
    let status = response.status().as_u16();
    let duration_ms = started.elapsed().as_secs_f64() * 1_000.0;
    let request_id = request_id.to_str().unwrap_or_default();
    let problem = response.extensions().get::<Arc<Problem>>();
    let code = problem.map_or("", |problem| problem.code);
    match problem.and_then(|problem| problem.internal.as_deref()) {
        Some(why) if status == 500 => {
            tracing::error!(%method, route, status, duration_ms, request_id, code, why, "request answered");
        }
        Some(why) => {
            tracing::warn!(%method, route, status, duration_ms, request_id, code, why, "request answered");
        }
        None if status >= 400 => {
            tracing::info!(%method, route, status, duration_ms, request_id, code, "request answered");
        }
        None => {
            tracing::debug!(%method, route, status, duration_ms, request_id, "request answered");
        }
    }
}
