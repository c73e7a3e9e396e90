//! `/v1/subjects/{subject}/subscription`: which plan a subject is on.

use axum::Json;
use axum::body::Body;
use axum::extract::{Extension, Path, State};
use axum::http::{HeaderMap, Uri};
use axum::response::{IntoResponse, Response};

use super::problem::Problem;
use super::query;
use super::query::Parameters;
use super::{Api, body, subjects};
use crate::engine::access::Principal;
use metergate_domain::base::fields::Parsed;
use metergate_domain::base::names::PlanKey;
use metergate_domain::subjects::subscription::{End, SubscriptionParams};

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
    let statement = SubscriptionParams::read(body::json(&headers, body).await?)?;
    Ok(Json(api.engine.put_subscription(principal.environment, subject, statement).await?).into_response())
}

pub(super) async fn get(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    Path(subject): Path<String>,
    uri: Uri,
) -> Result<Response, Problem> {
    let mut parameters = Parameters::of(&uri);
    let history = parameters.flag("history");
    parameters.finish()?;
    let subject = subjects::in_path(subject)?;
    Ok(Json(api.engine.get_subscription(principal.environment, &subject, history).await?).into_response())
}

pub(super) async fn end(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    Path(subject): Path<String>,
    uri: Uri,
) -> Result<Response, Problem> {
    let mut parameters = Parameters::of(&uri);
    let end = parameters.optional("at", read_end).unwrap_or(End::Now);
    let fallback_plan = parameters.optional("fallback_plan", |key| Ok(PlanKey::parse(key)?));
    parameters.finish()?;
    let subject = subjects::in_path(subject)?;
    let ended = api.engine.end_subscription(principal.environment, subject, end, fallback_plan).await?;
    Ok(Json(ended).into_response())
}

/// `now`, `period_end`, or a time.
fn read_end(value: String) -> Parsed<End> {
    match value.as_str() {
        "now" => Ok(End::Now),
        "period_end" => Ok(End::PeriodEnd),
        _ => Ok(End::At(query::timestamp(value)?)),
    }
}
