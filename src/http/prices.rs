//! `/v1/quotes`, `/v1/rates`.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use serde_json::Value;

use super::extract::{Caller, JsonOf, NoQuery, QueryOf};
use super::problem::Problem;
use super::state::Api;
use crate::engine::{Page, PageRequest};
use metergate_domain::pricing::{ExchangeRate, QuoteRequest};

#[derive(Serialize)]
pub(super) struct RatesSet {
    rates: Vec<ExchangeRate>,
}

pub(super) async fn quote(
    State(api): State<Api>,
    caller: Caller,
    _: NoQuery,
    JsonOf(request): JsonOf<QuoteRequest>,
) -> Result<Json<impl Serialize>, Problem> {
    Ok(Json(api.engine.quote(caller.environment, &request).await?))
}

pub(super) async fn put_rates(
    State(api): State<Api>,
    caller: Caller,
    _: NoQuery,
    JsonOf(body): JsonOf<Value>,
) -> Result<Json<RatesSet>, Problem> {
    Ok(Json(RatesSet { rates: api.engine.put_rates(caller.environment, body).await? }))
}

pub(super) async fn rates(
    State(api): State<Api>,
    caller: Caller,
    QueryOf(page): QueryOf<PageRequest>,
) -> Result<Json<Page<ExchangeRate>>, Problem> {
    Ok(Json(api.engine.list_rates(caller.environment, &page).await?))
}
