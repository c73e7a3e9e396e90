//! `/webhooks/stripe`, which receives webhooks, and `/v1/webhook-events`, which lists them.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};

use super::body;
use super::extract::{Caller, QueryOf};
use super::problem::Problem;
use super::query::{FromQuery, Parameters};
use super::state::Api;
use crate::engine::{Page, PageRequest, WebhookRow};
use metergate_domain::base::limits::WEBHOOK_BODY_BYTES_MAX;
use metergate_domain::webhook::WebhookStatus;

const SIGNATURE: &str = "stripe-signature";

pub(super) async fn receive(
    State(api): State<Api>,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode, Problem> {
    let body = body::read_at_most(body, WEBHOOK_BODY_BYTES_MAX).await?;
    let signature = headers.get(SIGNATURE).map(|value| value.to_str().unwrap_or_default());
    api.engine.receive_webhook(signature, &body).await?;
    Ok(StatusCode::OK)
}

pub(super) struct StatusFilter(Option<WebhookStatus>);

impl FromQuery for StatusFilter {
    fn parse(parameters: &mut Parameters) -> Option<Self> {
        Some(Self(parameters.word("status", &WebhookStatus::WORDS)))
    }
}

pub(super) async fn list(
    State(api): State<Api>,
    caller: Caller,
    QueryOf((StatusFilter(status), page)): QueryOf<(StatusFilter, PageRequest)>,
) -> Result<Json<Page<WebhookRow>>, Problem> {
    Ok(Json(api.engine.list_webhook_events(caller.environment, status, &page).await?))
}
