//! Problems (RFC 9457): this module alone turns errors into a status, a stable code and a text that says what
//! to do.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::OriginalUri;
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::engine::EngineError;
use metergate_domain::base::fields::received;
use metergate_domain::base::{Violation, Violations};
use metergate_domain::gate::Refusal;

pub(super) const MEDIA_TYPE: &str = "application/problem+json";
/// The `Retry-After` of a problem, in seconds.
const RETRY_AFTER_SECONDS: &str = "1";

#[derive(Debug)]
pub(super) struct Problem {
    pub(super) status: StatusCode,
    pub(super) code: &'static str,
    pub(super) detail: String,
    pub(super) errors: Vec<Violation>,
    /// An additional member of the document.
    more: Option<Box<(&'static str, serde_json::Value)>>,
    /// Text for the log only; clients never see it.
    pub(super) internal: Option<String>,
}

#[derive(Serialize)]
struct ProblemDocument<'a> {
    r#type: String,
    title: &'a str,
    status: u16,
    detail: &'a str,
    code: &'a str,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    errors: &'a [Violation],
    #[serde(flatten)]
    more: BTreeMap<&'static str, &'a serde_json::Value>,
}

impl Problem {
    pub(super) fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self { status, code, detail: detail.into(), errors: Vec::new(), more: None, internal: None }
    }

    /// Describes a call that conflicts with the state of its reservation.
    pub(super) fn refused(refusal: Refusal) -> Self {
        let status = if refusal == Refusal::NotFound { StatusCode::NOT_FOUND } else { StatusCode::CONFLICT };
        Self::new(status, refusal.code(), refusal.detail())
    }

    /// Adds a member to the document.
    pub(super) fn with(self, name: &'static str, value: serde_json::Value) -> Self {
        Self { more: Some(Box::new((name, value))), ..self }
    }

    pub(super) fn bad_request(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, detail)
    }

    /// Describes a status that a layer answered without a body.
    pub(super) fn of_status(status: StatusCode) -> Self {
        let (code, detail) = match status {
            StatusCode::BAD_REQUEST => {
                ("bad_request", "the request is not valid HTTP or its path is not valid UTF-8")
            }
            StatusCode::UNSUPPORTED_MEDIA_TYPE => (
                "unsupported_encoding",
                "the content encoding must be gzip or zstd; send the request body with one of them or uncompressed",
            ),
            StatusCode::PAYLOAD_TOO_LARGE => {
                ("body_too_large", "the request body is too large; send it in parts")
            }
            StatusCode::SERVICE_UNAVAILABLE => (
                "timeout",
                "the request took too long and may or may not have been recorded; send it again with the same ids",
            ),
            StatusCode::INTERNAL_SERVER_ERROR => {
                ("internal_error", "the server failed; report the `x-request-id` of this answer")
            }
            _ => ("failed", "the request failed"),
        };
        Self::new(status, code, detail)
    }
}

impl From<Violations> for Problem {
    /// Describes parsed input that is not acceptable. An id that is in use with other content is a conflict.
    fn from(violations: Violations) -> Self {
        let first = violations.first();
        let status =
            if first.code == "id_reused" { StatusCode::CONFLICT } else { StatusCode::UNPROCESSABLE_ENTITY };
        let more = match violations.len() {
            1 => String::new(),
            count => format!(" (and {} more, see `errors`)", count - 1),
        };
        let place = if first.pointer.is_empty() { "the input" } else { &first.pointer };
        let detail = format!("{place}: {}{more}", first.detail);
        Self { errors: violations.to_vec(), ..Self::new(status, first.code, detail) }
    }
}

impl From<Violation> for Problem {
    fn from(violation: Violation) -> Self {
        Violations::from(violation).into()
    }
}

impl From<EngineError> for Problem {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::Untrusted { code, detail } => Self::bad_request(code, detail),
            EngineError::Invalid(violations) => violations.into(),
            EngineError::NotFound { code, detail } => Self::new(StatusCode::NOT_FOUND, code, detail),
            EngineError::Conflict { code, detail } => Self::new(StatusCode::CONFLICT, code, detail),
            EngineError::Unauthorized { detail } => {
                Self::new(StatusCode::UNAUTHORIZED, "unauthorized", detail)
            }
            EngineError::Unavailable { code, detail, why } => {
                Self { internal: Some(why), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, code, detail) }
            }
            EngineError::Internal(why) => {
                Self { internal: Some(why), ..Self::of_status(StatusCode::INTERNAL_SERVER_ERROR) }
            }
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let document = ProblemDocument {
            r#type: format!("urn:metergate:problem:{}", self.code),
            title: self.status.canonical_reason().unwrap_or("Error"),
            status: self.status.as_u16(),
            detail: &self.detail,
            code: self.code,
            errors: &self.errors,
            more: self.more.iter().map(|more| (more.0, &more.1)).collect(),
        };
        // strings and numbers always serialise
        let json = serde_json::to_vec(&document).unwrap_or_default();
        let mut response = Response::new(Body::from(json));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static(MEDIA_TYPE));
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, header::HeaderValue::from_static("Bearer"));
        }
        if matches!(self.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            headers.insert(header::RETRY_AFTER, header::HeaderValue::from_static(RETRY_AFTER_SECONDS));
        }
        // for the log, and for translation into other error formats
        response.extensions_mut().insert(Arc::new(self));
        response
    }
}

pub(super) async fn no_such_path(OriginalUri(uri): OriginalUri) -> Problem {
    let detail = format!("no route matches {}; see /docs for the routes", received(uri.path()));
    Problem::new(StatusCode::NOT_FOUND, "not_found", detail)
}

pub(super) async fn no_such_method(method: Method, OriginalUri(uri): OriginalUri) -> Problem {
    let detail = format!("{} does not allow {method}; see /docs for its methods", received(uri.path()));
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", detail)
}

pub(super) fn of_panic(panic: Box<dyn Any + Send>) -> Response {
    let why = panic
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
        .unwrap_or_default();
    Problem {
        internal: Some(format!("panic: {why}")),
        ..Problem::of_status(StatusCode::INTERNAL_SERVER_ERROR)
    }
    .into_response()
}
