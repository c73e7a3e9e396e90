//! `/webhooks/stripe`, where the biller tells us, and `/v1/webhook-events`, what it told.

use axum::Json;
use axum::body::Body;
use axum::extract::{Extension, State};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};

use super::problem::Problem;
use super::query;
use super::query::Parameters;
use super::{Api, body};
use crate::engine::access::Principal;
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

pub(super) async fn list(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    uri: Uri,
) -> Result<Response, Problem> {
    let mut parameters = Parameters::of(&uri);
    let status = parameters.optional("status", |word| query::word(word, &WebhookStatus::WORDS));
    let cursor = parameters.optional("cursor", query::text);
    let limit = parameters.limit();
    parameters.finish()?;
    let page =
        api.engine.list_webhook_events(principal.environment, status, cursor.as_deref(), limit).await?;
    Ok(Json(page).into_response())
}
