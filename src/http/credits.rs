//! `/v1/subjects/{subject}/credits` and `/v1/notices`: what was prepaid, and what became of it.

use axum::Json;
use axum::body::Body;
use axum::extract::{Extension, Path, State};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use uuid::Uuid;

use super::events::{idempotency_key, with_replay_header};
use super::problem::Problem;
use super::query;
use super::query::Parameters;
use super::{Api, body, subjects};
use crate::engine::access::Principal;
use metergate_domain::base::fields::Violation;
use metergate_domain::base::names::{EventId, SubjectId};
use metergate_domain::credits::grant::{Request, VoidRequest};

pub(super) async fn grant(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    Path(subject): Path<String>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    Parameters::of(&uri).finish()?;
    let subject = subjects::in_path(subject)?;
    let mut request = Request::read(body::json(&headers, body).await?)?;
    if request.external_ref.is_none() {
        request.external_ref = idempotency_key(&headers)?.map(EventId::into_string);
    }
    let (grant, replayed) = api.engine.grant_credits(principal.environment, subject, request).await?;
    Ok(with_replay_header((StatusCode::CREATED, Json(grant)).into_response(), replayed))
}

pub(super) async fn void(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    Path((subject, id)): Path<(String, String)>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    Parameters::of(&uri).finish()?;
    let subject = subjects::in_path(subject)?;
    let id = Uuid::try_parse(&id).map_err(|_| {
        Problem::invalid(vec![Violation::new("invalid_id", "must be the `id` of a grant").under("id")])
    })?;
    let request =
        body::json_or_empty(&headers, body).await?.map(VoidRequest::read).transpose()?.unwrap_or_default();
    let (grant, replayed) = api.engine.void_grant(principal.environment, subject, id, request).await?;
    Ok(with_replay_header(Json(grant).into_response(), replayed))
}

pub(super) async fn balance(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    Path(subject): Path<String>,
    uri: Uri,
) -> Result<Response, Problem> {
    Parameters::of(&uri).finish()?;
    let subject = own(&principal, subject)?;
    Ok(Json(api.engine.credits(principal.environment, &subject).await?).into_response())
}

pub(super) async fn grants(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    Path(subject): Path<String>,
    uri: Uri,
) -> Result<Response, Problem> {
    let (cursor, limit) = page(&uri)?;
    let subject = own(&principal, subject)?;
    let environment = principal.environment;
    Ok(Json(api.engine.list_grants(environment, &subject, cursor.as_deref(), limit).await?).into_response())
}

pub(super) async fn ledger(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    Path(subject): Path<String>,
    uri: Uri,
) -> Result<Response, Problem> {
    let (cursor, limit) = page(&uri)?;
    let subject = own(&principal, subject)?;
    let environment = principal.environment;
    Ok(Json(api.engine.credit_ledger(environment, &subject, cursor.as_deref(), limit).await?).into_response())
}

pub(super) async fn notices(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    uri: Uri,
) -> Result<Response, Problem> {
    let mut parameters = Parameters::of(&uri);
    let subject = parameters.optional("subject", subjects::parse);
    let kind = parameters.optional("kind", |value| {
        query::word(value, &[("low_balance", "low_balance"), ("top_up_due", "top_up_due")])
    });
    let cursor = parameters.optional("cursor", query::text);
    let limit = parameters.limit();
    parameters.finish()?;
    let which = (subject.as_ref().map(SubjectId::as_str), kind);
    let page = api.engine.list_notices(principal.environment, which, cursor.as_deref(), limit).await?;
    Ok(Json(page).into_response())
}

fn page(uri: &Uri) -> Result<(Option<String>, u32), Problem> {
    let mut parameters = Parameters::of(uri);
    let cursor = parameters.optional("cursor", query::text);
    let limit = parameters.limit();
    parameters.finish()?;
    Ok((cursor, limit))
}

/// The subject in the path, which a token must be for.
fn own(principal: &Principal, subject: String) -> Result<SubjectId, Problem> {
    let subject = subjects::in_path(subject)?;
    subjects::require_own_subjects(principal, &subject)?;
    Ok(subject)
}
