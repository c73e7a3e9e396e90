//! `POST /v1/billing/meter_events` and `…/meter_event_adjustments`: delivery and cancelation.

use super::client::{Client, Fault};
use crate::providers::{DeliveryResult, OutgoingMeterEvent, Retryable};
use metergate_domain::base::Timestamp;

/// The beginning of Stripe's message about a duplicate, which has no error code.
const ALREADY_THERE: &str = "An event already exists with identifier";

pub(super) fn seconds(at: Timestamp) -> i64 {
    at.micros().div_euclid(1_000_000)
}

/// Returns an idempotency key per attempt, because Stripe repeats a stored 500 under the same key. The
/// identifier makes the meter event count once.
fn idempotency_key(what: &str, event: &OutgoingMeterEvent) -> String {
    format!("{what}-{}-{}", event.identifier, event.attempt)
}

/// Returns the identifier of the event that was sent under an idempotency key.
pub(super) fn identifier_of(key: &str) -> Option<String> {
    let (identifier, _) = key.strip_prefix("event-")?.rsplit_once('-')?;
    Some(identifier.to_owned())
}

/// Sends a meter event. If Stripe already knows the identifier, returns `Duplicate`.
pub(super) async fn deliver(client: &Client, event: &OutgoingMeterEvent) -> DeliveryResult {
    let (customer, value) =
        (format!("payload[{}]", event.customer_key), format!("payload[{}]", event.value_key));
    let fields = [
        ("event_name", event.event_name.clone()),
        (customer.as_str(), event.customer.clone()),
        (value.as_str(), event.value.to_string()),
        ("identifier", event.identifier.clone()),
        ("timestamp", seconds(event.timestamp).to_string()),
    ];
    match client.post("/v1/billing/meter_events", &fields, &idempotency_key("event", event)).await {
        Ok(_) => DeliveryResult::Delivered,
        Err(fault) if fault.status == Some(400) && fault.failure.message.starts_with(ALREADY_THERE) => {
            DeliveryResult::Duplicate
        }
        Err(fault) if fault.status == Some(400) && fault.failure.code == "timestamp_in_future" => {
            DeliveryResult::Retryable(Retryable { failure: fault.failure, may_be_taken: false, after: None })
        }
        Err(fault) => failed(fault),
    }
}

/// Cancels a meter event by its identifier.
pub(super) async fn cancel(client: &Client, event: &OutgoingMeterEvent) -> DeliveryResult {
    let fields = [
        ("event_name", event.event_name.clone()),
        ("type", "cancel".to_owned()),
        ("cancel[identifier]", event.identifier.clone()),
    ];
    let key = idempotency_key("cancel", event);
    match client.post("/v1/billing/meter_event_adjustments", &fields, &key).await {
        Ok(_) => DeliveryResult::Delivered,
        Err(fault) if fault.status == Some(400) && says_canceled(&fault.failure.message) => {
            DeliveryResult::Duplicate
        }
        Err(fault) => failed(fault),
    }
}

/// Returns whether an earlier call canceled the event. Stripe has no error code for this, only a
/// message.
fn says_canceled(message: &str) -> bool {
    let message = message.to_ascii_lowercase();
    message.contains("already") && message.contains("cancel")
}

fn failed(fault: Fault) -> DeliveryResult {
    if fault.is_refusal() {
        return DeliveryResult::Unauthorized(fault.failure);
    }
    if fault.is_transient() {
        let Fault { failure, after, may_be_done, .. } = fault;
        return DeliveryResult::Retryable(Retryable { failure, may_be_taken: may_be_done, after });
    }
    DeliveryResult::Dead(fault.failure)
}
