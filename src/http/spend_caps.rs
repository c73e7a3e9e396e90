//! `/v1/subjects/{subject}/spend-caps`: what a subject may spend.

use axum::Json;
use axum::body::Body;
use axum::extract::{Extension, Path, State};
use axum::http::{HeaderMap, Uri};
use axum::response::{IntoResponse, Response};

use super::access::require_own_subject;
use super::problem::Problem;
use super::query::Parameters;
use super::usage::viewer;
use super::{Api, body, subjects};
use crate::engine::access::Principal;
use metergate_domain::pricing::cap::SpendCap;

pub(super) async fn put(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    Path(subject): Path<String>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    Parameters::of(&uri).finish()?;
    let subject = subjects::in_path(subject)?;
    require_own_subject(&principal, &subject)?;
    let caps = SpendCap::read_all(body::json(&headers, body).await?)?;
    Ok(Json(api.engine.put_spend_caps(principal.environment, subject, viewer(&principal), caps).await?)
        .into_response())
}

pub(super) async fn get(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    Path(subject): Path<String>,
    uri: Uri,
) -> Result<Response, Problem> {
    Parameters::of(&uri).finish()?;
    let subject = subjects::in_path(subject)?;
    require_own_subject(&principal, &subject)?;
    Ok(Json(api.engine.spend_caps(principal.environment, &subject, viewer(&principal)).await?)
        .into_response())
}
