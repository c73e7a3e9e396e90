//! `/v1/billing`: usage as Stripe's own SDKs report it.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::events::count_unreadable;
use super::extract::{Caller, NoQuery, idempotency_key, with_replay_header};
use super::problem::Problem;
use super::state::Api;
use super::stripe_forms;
use metergate_domain::base::Environment;
use metergate_domain::usage::{Adjustment, MeterEvent};

pub(super) async fn record(
    State(api): State<Api>,
    caller: Caller,
    _: NoQuery,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let form = stripe_forms::read(&headers, body).await?;
    let sent = MeterEvent::read(form).inspect_err(|_| count_unreadable(1))?;
    let key = idempotency_key(&headers)?;
    let taken = api.engine.record_meter_event(caller.environment, sent, key).await?;
    let answer = json!({
        "object": "billing.meter_event",
        "created": taken.created_at.unix_seconds(),
        "event_name": taken.sent.event_name,
        "identifier": taken.identifier,
        "livemode": caller.environment == Environment::Live,
        "payload": taken.sent.payload,
        "timestamp": taken.occurred_at.unix_seconds(),
    });
    Ok(with_replay_header(Json(answer).into_response(), taken.replayed))
}

pub(super) async fn cancel(
    State(api): State<Api>,
    caller: Caller,
    _: NoQuery,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let adjustment = Adjustment::read(stripe_forms::read(&headers, body).await?)?;
    let event_name = adjustment.event_name.clone();
    let voided = api.engine.cancel_meter_event(caller.environment, adjustment).await?;
    let answer = json!({
        "object": "billing.meter_event_adjustment",
        "cancel": {"identifier": voided.id},
        "event_name": event_name,
        "livemode": caller.environment == Environment::Live,
        "status": "complete",
        "type": "cancel",
    });
    Ok(with_replay_header(Json(answer).into_response(), voided.replayed))
}
