//! `/v1/quotes`, `/v1/rates`.

use axum::Json;
use axum::body::Body;
use axum::extract::{Extension, State};
use axum::http::{HeaderMap, Uri};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::problem::Problem;
use super::query;
use super::query::Parameters;
use super::{Api, body};
use crate::engine::access::Principal;
use metergate_domain::pricing::exchange::ExchangeRate;
use metergate_domain::pricing::quote::QuoteRequest;

#[derive(Serialize)]
struct RatesSet {
    rates: Vec<ExchangeRate>,
}

pub(super) async fn quote(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    Parameters::of(&uri).finish()?;
    let request = QuoteRequest::read(body::json(&headers, body).await?)?;
    Ok(Json(api.engine.quote(principal.environment, &request).await?).into_response())
}

pub(super) async fn put_rates(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    Parameters::of(&uri).finish()?;
    let body = body::json(&headers, body).await?;
    let rates = api.engine.put_rates(principal.environment, body).await?;
    Ok(Json(RatesSet { rates }).into_response())
}

pub(super) async fn rates(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    uri: Uri,
) -> Result<Response, Problem> {
    let mut parameters = Parameters::of(&uri);
    let cursor = parameters.optional("cursor", query::text);
    let limit = parameters.limit();
    parameters.finish()?;
    Ok(Json(api.engine.list_rates(principal.environment, cursor.as_deref(), limit).await?).into_response())
}
