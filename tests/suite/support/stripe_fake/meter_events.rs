//! `POST /v1/billing/meter_events`: validates and records an event.

use serde_json::{Value, json};

use super::clock::DAY;
use super::customers;
use super::errors::ApiError;
use super::forms::Form;
use super::ledger::MeterEvent;
use super::meters::Meter;
use super::reports::report;
use super::state::State;

const AGE_MAX: i64 = 35 * DAY;
const AHEAD_MAX: i64 = 300;
const DIGITS_MAX: usize = 15;

pub(super) fn create(state: &mut State, mut form: Form) -> Result<Value, ApiError> {
    let event_name = form.required("event_name", 100)?;
    let payload = form.texts("payload")?.ok_or_else(|| ApiError::missing_param("payload"))?;
    let identifier = form.text("identifier", 100)?;
    let timestamp = form.integer("timestamp")?;
    form.finish()?;

    let meter = active_meter(state, &event_name)?;
    let customer =
        payload.get(&meter.customer_key).filter(|customer| !customer.is_empty()).ok_or_else(|| {
            let message = format!("The payload has no customer: `{}` is missing.", meter.customer_key);
            ApiError::bad_param("payload", message).with_code("payload_no_customer_defined")
        })?;
    let value = payload.get(&meter.value_key).ok_or_else(|| {
        let message = format!("The payload has no value: `{}` is missing.", meter.value_key);
        ApiError::bad_param("payload", message).with_code("payload_no_value_defined")
    })?;
    if value.starts_with('-') {
        state.traffic.violations.push(format!("a negative value for {customer} and {event_name}: {value}"));
    }
    let value = read_value(value, state.options.negative_values)?;
    let now = state.now();
    let timestamp = timestamp.unwrap_or(now);
    check_time(timestamp, now)?;

    let identifier = identifier.unwrap_or_else(|| state.next_id("mtrevt"));
    if state.ledger.remembered(&identifier, now).is_some() {
        let message = format!("An event already exists with identifier {identifier}.");
        return Err(ApiError::invalid(message).with_header("stripe-should-retry", "false").kept());
    }
    let is_unknown =
        state.options.unknown_customers_reported && customers::existing(state, customer).is_err();
    let event = MeterEvent {
        identifier: identifier.clone(),
        event_name: event_name.clone(),
        customer: customer.clone(),
        value,
        timestamp,
        received_at: now,
        is_canceled: false,
        dropped: None,
        meter: meter.id.clone(),
    };
    state.ledger.push(event);
    if is_unknown {
        report(state, Some(&meter.id), "meter_event_customer_not_found", &[&identifier]);
    }
    Ok(json!({
        "object": "billing.meter_event",
        "created": now,
        "event_name": event_name,
        "identifier": identifier,
        "livemode": state.options.livemode,
        "payload": payload,
        "timestamp": timestamp,
    }))
}

fn active_meter(state: &State, event_name: &str) -> Result<Meter, ApiError> {
    let refused = |message: String, code| ApiError::bad_param("event_name", message).with_code(code);
    match state.meters.by_event_name(event_name) {
        None => Err(refused(format!("No active meter found for event name {event_name}."), "no_meter")),
        Some(meter) if meter.deactivated_at.is_some() => {
            Err(refused(format!("The meter for event name {event_name} is archived."), "archived_meter"))
        }
        Some(meter) => Ok(meter.clone()),
    }
}

fn read_value(text: &str, negative_values: bool) -> Result<i64, ApiError> {
    let refused = |why: &str| {
        let message = format!("Invalid value in the payload: {text:?} {why}.");
        ApiError::bad_param("payload", message).with_code("payload_invalid_value")
    };
    let digits = text.strip_prefix('-').unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(refused("is not a whole number"));
    }
    if digits.len() < text.len() && !negative_values {
        return Err(refused("is negative"));
    }
    if digits.trim_start_matches('0').len() > DIGITS_MAX {
        return Err(refused("has more than 15 digits"));
    }
    text.parse().map_err(|_| refused("is not a whole number"))
}

fn check_time(timestamp: i64, now: i64) -> Result<(), ApiError> {
    let refused = |message: &str, code| Err(ApiError::bad_param("timestamp", message).with_code(code));
    if timestamp < now - AGE_MAX {
        return refused("The timestamp is more than 35 days in the past.", "timestamp_too_far_in_past");
    }
    if timestamp > now + AHEAD_MAX {
        return refused("The timestamp is more than 5 minutes in the future.", "timestamp_in_future");
    }
    Ok(())
}
