//! Problems in the form that Stripe's SDKs read, from handlers and from layers.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::Response;
use serde::Serialize;

use super::problem::Problem;

const REQUEST_ID: HeaderName = HeaderName::from_static("request-id");
const SHOULD_RETRY: HeaderName = HeaderName::from_static("stripe-should-retry");
/// A header that all of Stripe's SDKs send.
const VERSION: HeaderName = HeaderName::from_static("stripe-version");
const PATH: &str = "/v1/billing/";

#[derive(Serialize)]
struct Envelope<'a> {
    error: Error<'a>,
}

#[derive(Serialize)]
struct Error<'a> {
    r#type: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<&'a str>,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    param: Option<String>,
}

/// The answers to a request that must have Stripe's form.
#[derive(Debug, Clone, Copy)]
pub(super) enum Reads {
    None,
    /// Answers to an SDK on a path that does not exist. The SDK would read a problem as a result.
    Nowhere,
    All,
}

pub(super) fn reads(request: &Request) -> Reads {
    if request.uri().path().starts_with(PATH) {
        return Reads::All;
    }
    if request.headers().contains_key(VERSION) { Reads::Nowhere } else { Reads::None }
}

/// Returns the answer, with a problem in its body rewritten in Stripe's form.
pub(super) fn translated(mut response: Response, reads: Reads, request_id: &HeaderValue) -> Response {
    let problem = response.extensions().get::<Arc<Problem>>().cloned();
    let is_nowhere = problem.as_ref().is_some_and(|problem| problem.code == "not_found");
    match reads {
        Reads::All => {}
        Reads::Nowhere if is_nowhere => {}
        Reads::Nowhere | Reads::None => return response,
    }
    if let Some(problem) = problem {
        // strings always serialise
        let json = serde_json::to_vec(&Envelope { error: error(&problem) }).unwrap_or_default();
        *response.status_mut() = status(problem.status);
        *response.body_mut() = Body::from(json);
        let headers = response.headers_mut();
        headers.remove(header::CONTENT_LENGTH);
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if is_final(&problem) {
            headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"));
        }
    }
    response.headers_mut().insert(REQUEST_ID, request_id.clone());
    response
}

/// Returns Stripe's status: 400 for every fault of the request's content.
fn status(status: StatusCode) -> StatusCode {
    match status {
        StatusCode::CONFLICT | StatusCode::UNSUPPORTED_MEDIA_TYPE | StatusCode::UNPROCESSABLE_ENTITY => {
            StatusCode::BAD_REQUEST
        }
        other => other,
    }
}

/// Returns true if a retry gets the same answer.
fn is_final(problem: &Problem) -> bool {
    matches!(problem.code, "meter_event_exists" | "idempotency_key_reused")
}

fn error(problem: &Problem) -> Error<'_> {
    let param = problem.errors.first().filter(|_| problem.code != "invalid_idempotency_key");
    let param = param.map(|violation| param_of(&violation.pointer)).filter(|param| !param.is_empty());
    Error { r#type: kind(problem), code: code(problem), message: message(problem, param.as_deref()), param }
}

fn kind(problem: &Problem) -> &'static str {
    match problem.code {
        "idempotency_key_reused" | "invalid_idempotency_key" => "idempotency_error",
        _ if problem.status.is_server_error() => "api_error",
        _ => "invalid_request_error",
    }
}

/// Returns Stripe's code if it has one. Returns none for errors that Stripe sends without a code.
/// Otherwise returns our code.
fn code(problem: &Problem) -> Option<&'static str> {
    Some(match problem.code {
        "missing_field" | "missing_parameter" => "parameter_missing",
        "unknown_field" | "unknown_parameter" => "parameter_unknown",
        "empty" => "parameter_invalid_empty",
        "invalid_integer" => "parameter_invalid_integer",
        "invalid_value" => "payload_invalid_value",
        "forbidden" => "secret_key_required",
        _ if problem.status == StatusCode::TOO_MANY_REQUESTS => "rate_limit",
        "meter_event_exists" | "idempotency_key_reused" | "unauthorized" | "not_found" => return None,
        other => other,
    })
}

fn message(problem: &Problem, param: Option<&str>) -> String {
    let Some((param, violation)) = param.zip(problem.errors.first()) else { return problem.detail.clone() };
    match violation.code {
        "missing_field" | "missing_parameter" => format!("Missing required param: {param}."),
        "unknown_field" | "unknown_parameter" => format!("Received unknown parameter: {param}"),
        "empty" => format!("You passed an empty string for '{param}'; leave it out, or give it a value."),
        _ => format!("{param}: {}", violation.detail),
    }
}

/// Converts a pointer such as `/payload/value` to `payload[value]`.
fn param_of(pointer: &str) -> String {
    let mut parts = pointer.split('/').skip(1).map(|part| part.replace("~1", "/").replace("~0", "~"));
    let first = parts.next().unwrap_or_default();
    parts.fold(first, |param, key| format!("{param}[{key}]"))
}
