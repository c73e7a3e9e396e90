//! `/v1/subjects`: who uses, and the tree they form.

use axum::Json;
use axum::body::Body;
use axum::extract::{Extension, Path, State};
use axum::http::{HeaderMap, Uri};
use axum::response::{IntoResponse, Response};

use super::access::forbidden;
use super::problem::Problem;
use super::query;
use super::query::Parameters;
use super::{Api, body};
use crate::engine::SubjectChange;
use crate::engine::access::{Principal, Role};
use metergate_domain::base::fields::{Parsed, Violation};
use metergate_domain::base::names::SubjectId;

pub(super) fn parse(text: String) -> Parsed<SubjectId> {
    Ok(SubjectId::parse(text)?)
}

/// The subject in a path.
pub(super) fn in_path(text: String) -> Result<SubjectId, Problem> {
    SubjectId::parse(text)
        .map_err(|bad| Problem::invalid(vec![Violation::new(bad.code, bad.detail).under("subject")]))
}

/// A token shows its own subject alone.
pub(super) fn require_own_subjects(principal: &Principal, subject: &SubjectId) -> Result<(), Problem> {
    match &principal.role {
        Role::EndUser { subject: own, .. } if own != subject => {
            Err(forbidden("a token shows its own subject alone"))
        }
        Role::EndUser { .. } | Role::Secret | Role::Publishable => Ok(()),
    }
}

pub(super) async fn put(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    Path(subject): Path<String>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    Parameters::of(&uri).finish()?;
    let subject = in_path(subject)?;
    let change = SubjectChange::read(body::json(&headers, body).await?)?;
    Ok(Json(api.engine.put_subject(principal.environment, subject, change).await?).into_response())
}

pub(super) async fn get(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    Path(subject): Path<String>,
    uri: Uri,
) -> Result<Response, Problem> {
    Parameters::of(&uri).finish()?;
    let subject = in_path(subject)?;
    Ok(Json(api.engine.get_subject(principal.environment, &subject).await?).into_response())
}

pub(super) async fn list(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    uri: Uri,
) -> Result<Response, Problem> {
    let mut parameters = Parameters::of(&uri);
    let parent = parameters.optional("parent", parse);
    let cursor = parameters.optional("cursor", query::text);
    let limit = parameters.limit();
    parameters.finish()?;
    let parent = parent.as_ref().map(SubjectId::as_str);
    let page = api.engine.list_subjects(principal.environment, parent, cursor.as_deref(), limit).await?;
    Ok(Json(page).into_response())
}
