//! Extractors: the parts of a request, parsed for the handlers. A refusal lists every violation.

use std::ops::Deref;

use axum::body::Body;
use axum::extract::{FromRequest, FromRequestParts, RawPathParams, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::Response;
use serde_json::Value;
use uuid::Uuid;

use super::access::forbidden;
use super::body;
use super::problem::Problem;
use super::query::{FromQuery, Parameters};
use crate::engine::access::{Principal, Role};
use crate::engine::{SubjectChange, Viewer};
use metergate_domain::base::fields::received;
use metergate_domain::base::names::{EventId, SubjectId};
use metergate_domain::base::{Parsed, Violation};
use metergate_domain::credits::{Request as GrantRequest, VoidRequest};
use metergate_domain::gate::{Commit, Extend, Release, Reserve};
use metergate_domain::pricing::{QuoteRequest, SpendCap};
use metergate_domain::subjects::SubscriptionParams;

/// The caller, identified by the guard of the route.
#[derive(Debug)]
pub(super) struct Caller(Principal);

impl Caller {
    /// Returns the caller's view of a subject.
    pub(super) fn viewer(&self) -> Viewer {
        match &self.role {
            Role::EndUser { .. } => Viewer::EndUser,
            Role::Secret | Role::Publishable => Viewer::Application,
        }
    }
}

impl Deref for Caller {
    type Target = Principal;

    fn deref(&self) -> &Principal {
        &self.0
    }
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let principal = parts.extensions.get::<Principal>().cloned();
        principal.map(Self).ok_or_else(|| Problem::of_status(StatusCode::INTERNAL_SERVER_ERROR))
    }
}

/// A value in a path.
pub(super) trait PathValue: Sized {
    const NAME: &'static str;

    fn parse(text: &str) -> Parsed<Self>;
}

impl PathValue for EventId {
    const NAME: &'static str = "id";

    fn parse(text: &str) -> Parsed<Self> {
        Ok(Self::parse(text)?)
    }
}

impl PathValue for Uuid {
    const NAME: &'static str = "id";

    fn parse(text: &str) -> Parsed<Self> {
        let detail = || format!("must be a UUID, as lists return it; got {}", received(text));
        Self::try_parse(text).or_else(|_| Violation::only("invalid_id", detail()))
    }
}

impl PathValue for SubjectId {
    const NAME: &'static str = "subject";

    fn parse(text: &str) -> Parsed<Self> {
        Ok(Self::parse(text)?)
    }
}

/// Parses the path value with the name of its type.
async fn from_path<T: PathValue, S: Send + Sync>(parts: &mut Parts, state: &S) -> Result<T, Problem> {
    let bad_request = |_| Problem::of_status(StatusCode::BAD_REQUEST);
    let values = RawPathParams::from_request_parts(parts, state).await.map_err(bad_request)?;
    let text = values.iter().find(|(name, _)| *name == T::NAME).map(|(_, text)| text).unwrap_or_default();
    Ok(T::parse(text).map_err(|violations| violations.under(T::NAME))?)
}

/// The id in a path.
#[derive(Debug)]
pub(super) struct IdPath<T>(pub(super) T);

impl<T: PathValue, S: Send + Sync> FromRequestParts<S> for IdPath<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        from_path(parts, state).await.map(Self)
    }
}

/// The subject in a path; an end user may only reach their own.
#[derive(Debug)]
pub(super) struct SubjectPath(pub(super) SubjectId);

impl<S: Send + Sync> FromRequestParts<S> for SubjectPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let subject: SubjectId = from_path(parts, state).await?;
        match parts.extensions.get::<Principal>().map(|principal| &principal.role) {
            Some(Role::EndUser { subject: own, .. }) if *own != subject => Err(other_subject(own)),
            Some(_) => Ok(Self(subject)),
            None => Err(Problem::of_status(StatusCode::INTERNAL_SERVER_ERROR)),
        }
    }
}

/// The grant in a path, and its subject.
#[derive(Debug)]
pub(super) struct GrantPath {
    pub(super) subject: SubjectId,
    pub(super) id: Uuid,
}

impl<S: Send + Sync> FromRequestParts<S> for GrantPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let SubjectPath(subject) = SubjectPath::from_request_parts(parts, state).await?;
        Ok(Self { subject, id: from_path(parts, state).await? })
    }
}

/// Refuses a token for a subject that is not its own.
pub(super) fn other_subject(own: &SubjectId) -> Problem {
    forbidden(format!("a token reaches its own subject only, which is {}", received(own.as_str())))
}

/// The parsed query of a request, without unknown parameters.
#[derive(Debug)]
pub(super) struct QueryOf<T>(pub(super) T);

/// A query that must be empty.
pub(super) type NoQuery = QueryOf<()>;

impl<T: FromQuery, S: Sync> FromRequestParts<S> for QueryOf<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let mut parameters = Parameters::of(&parts.uri);
        let parsed = T::parse(&mut parameters);
        Ok(Self(parameters.finish_with(parsed)?))
    }
}

/// A value parsed from a JSON body. `None` stands for an empty body.
pub(super) trait FromJson: Sized {
    const MAY_BE_EMPTY: bool;

    fn parse(body: Option<Value>) -> Parsed<Self>;
}

macro_rules! json_bodies {
    ($($name:ident),+) => {$(
        impl FromJson for $name {
            const MAY_BE_EMPTY: bool = false;

            fn parse(body: Option<Value>) -> Parsed<Self> {
                Self::read(body.unwrap_or_default())
            }
        }
    )+};
    (optional $($name:ident),+) => {$(
        impl FromJson for $name {
            const MAY_BE_EMPTY: bool = true;

            fn parse(body: Option<Value>) -> Parsed<Self> {
                Self::read(body)
            }
        }
    )+};
}

json_bodies!(GrantRequest, QuoteRequest, Reserve, SubscriptionParams, SubjectChange);
json_bodies!(optional Commit, Extend, Release);

impl FromJson for VoidRequest {
    const MAY_BE_EMPTY: bool = true;

    fn parse(body: Option<Value>) -> Parsed<Self> {
        body.map(Self::read).transpose().map(Option::unwrap_or_default)
    }
}

impl FromJson for Vec<SpendCap> {
    const MAY_BE_EMPTY: bool = false;

    fn parse(body: Option<Value>) -> Parsed<Self> {
        SpendCap::read_all(body.unwrap_or_default())
    }
}

impl FromJson for Value {
    const MAY_BE_EMPTY: bool = false;

    fn parse(body: Option<Value>) -> Parsed<Self> {
        Ok(body.unwrap_or_default())
    }
}

/// The parsed JSON body of a request.
#[derive(Debug)]
pub(super) struct JsonOf<T>(pub(super) T);

impl<T: FromJson, S: Sync> FromRequest<S> for JsonOf<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        let (parts, body) = request.into_parts();
        parse_json(&parts.headers, body).await.map(Self)
    }
}

async fn parse_json<T: FromJson>(headers: &HeaderMap, body: Body) -> Result<T, Problem> {
    let value = if T::MAY_BE_EMPTY {
        body::json_or_empty(headers, body).await?
    } else {
        Some(body::json(headers, body).await?)
    };
    Ok(T::parse(value)?)
}

/// A request with an id of its own, which a retry repeats.
pub(super) trait HasId: FromJson {
    fn has_id(&self) -> bool;

    fn set_id(&mut self, id: EventId);
}

impl HasId for Reserve {
    fn has_id(&self) -> bool {
        self.id.is_some()
    }

    fn set_id(&mut self, id: EventId) {
        self.id = Some(id);
    }
}

impl HasId for GrantRequest {
    fn has_id(&self) -> bool {
        self.external_ref.is_some()
    }

    fn set_id(&mut self, id: EventId) {
        self.external_ref = Some(id.into_string());
    }
}

/// The parsed JSON body of a request. The `Idempotency-Key` header may replace the id in the body.
#[derive(Debug)]
pub(super) struct IdentifiedJson<T>(pub(super) T);

impl<T: HasId, S: Sync> FromRequest<S> for IdentifiedJson<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        let (parts, body) = request.into_parts();
        let mut parsed: T = parse_json(&parts.headers, body).await?;
        if !parsed.has_id()
            && let Some(key) = idempotency_key(&parts.headers)?
        {
            parsed.set_id(key);
        }
        Ok(Self(parsed))
    }
}

/// Returns the id in the `Idempotency-Key` header, if there is one.
pub(super) fn idempotency_key(headers: &HeaderMap) -> Result<Option<EventId>, Problem> {
    let refuse = |detail: &str| {
        let detail = format!("the `Idempotency-Key` header {detail}");
        Problem::from(Violation::new("invalid_idempotency_key", detail).under("id"))
    };
    let Some(value) = headers.get(HeaderName::from_static("idempotency-key")) else { return Ok(None) };
    let text = value.to_str().map_err(|_| refuse("must have visible ASCII characters only"))?;
    EventId::parse(text).map(Some).map_err(|bad| refuse(&bad.detail))
}

/// Adds the header that marks the answer as a replay.
pub(super) fn with_replay_header(mut response: Response, is_replay: bool) -> Response {
    if is_replay {
        let name = HeaderName::from_static("idempotent-replayed");
        response.headers_mut().insert(name, HeaderValue::from_static("true"));
    }
    response
}
