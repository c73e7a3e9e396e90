//! Access control: the guard in front of every handler, after the table of routes.

use axum::body::HttpBody;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use secrecy::SecretString;

use super::problem::Problem;
use super::request_log;
use crate::engine::Engine;
use crate::engine::access::{Principal, Role};

/// The callers of a route; the application's secret key may call every route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    Open,
    /// The biller, identified by its signature over the body, which the handler verifies.
    Signed,
    Secret,
    /// A secret key from a gateway. The gateway may forward its client's `Authorization`, so the key may be
    /// in `x-metergate-key` instead.
    Gateway,
    /// A secret key from one of Stripe's SDKs, which may send it as the user name of basic credentials.
    StripeSdk,
    /// A secret or publishable key.
    Publishable,
    /// A secret key, or an end-user token with the scope `usage:read` for its own subject.
    EndUser,
    /// A secret key, or an end-user token with the scope `caps:write` for its own subject.
    Payer,
}

impl Access {
    /// Names the credentials that may call a route.
    fn needs(self) -> &'static str {
        match self {
            Self::Open | Self::Signed | Self::Secret | Self::Gateway | Self::StripeSdk => "a secret key",
            Self::Publishable => "a secret or a publishable key",
            Self::EndUser => "a secret key, or a token of the subject with the scope `usage:read`",
            Self::Payer => "a secret key, or a token of the subject with the scope `caps:write`",
        }
    }
}

const USAGE_READ: &str = "usage:read";
const CAPS_WRITE: &str = "caps:write";

#[derive(Debug, Clone)]
pub(super) struct RequestGuard {
    pub(super) engine: Engine,
    pub(super) access: Access,
    /// The route's path, as in the table of routes.
    pub(super) path: &'static str,
}

pub(super) async fn admit(State(guard): State<RequestGuard>, mut request: Request, next: Next) -> Response {
    request_log::name_route(&request, guard.path);
    if matches!(guard.access, Access::Open | Access::Signed) {
        return next.run(request).await;
    }
    let principal = match identify(&guard, request.headers()).await {
        Ok(principal) => principal,
        Err(problem) => return reject(&request, problem),
    };
    let may = match (&principal.role, guard.access) {
        (Role::Secret, _) | (Role::Publishable, Access::Publishable) => true,
        (Role::EndUser { scopes, .. }, Access::EndUser) => scopes.iter().any(|scope| scope == USAGE_READ),
        (Role::EndUser { scopes, .. }, Access::Payer) => scopes.iter().any(|scope| scope == CAPS_WRITE),
        (Role::Publishable | Role::EndUser { .. }, _) => false,
    };
    if !may {
        return reject(&request, forbidden(format!("this route needs {}", guard.access.needs())));
    }
    request.extensions_mut().insert(principal);
    next.run(request).await
}

/// Answers with a problem and tells the client that an unread body ends the connection.
fn reject(request: &Request, problem: Problem) -> Response {
    let mut response = problem.into_response();
    if !request.body().is_end_stream() {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

const GATEWAY_KEY: HeaderName = HeaderName::from_static("x-metergate-key");

async fn identify(guard: &RequestGuard, headers: &HeaderMap) -> Result<Principal, Problem> {
    let missing = || {
        let detail = "a credential is required; send a key or a token as `Authorization: Bearer …`";
        Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", detail)
    };
    if guard.access == Access::Gateway
        && let Some(key) = headers.get(GATEWAY_KEY)
    {
        let key = key.to_str().map_err(|_| missing())?;
        return Ok(guard.engine.gatekeeper().admit(&SecretString::from(key.trim())).await?);
    }
    let value =
        headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).ok_or_else(missing)?;
    let (scheme, credential) = value.split_once(' ').ok_or_else(missing)?;
    if guard.access == Access::StripeSdk && scheme.eq_ignore_ascii_case("basic") {
        let key = basic_user(credential.trim()).ok_or_else(missing)?;
        return Ok(guard.engine.gatekeeper().admit(&key).await?);
    }
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(missing());
    }
    Ok(guard.engine.gatekeeper().admit(&SecretString::from(credential.trim())).await?)
}

/// Returns the user name of basic credentials (RFC 7617).
fn basic_user(credentials: &str) -> Option<SecretString> {
    let pair = STANDARD.decode(credentials).ok().and_then(|pair| String::from_utf8(pair).ok())?;
    pair.split_once(':').map(|(user, _)| SecretString::from(user))
}

pub(super) fn forbidden(detail: impl Into<String>) -> Problem {
    Problem::new(StatusCode::FORBIDDEN, "forbidden", detail)
}
