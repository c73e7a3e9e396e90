//! Routes that Stripe does not have, for manual tests with the fake: time, payments, faults, checkout.

use std::time::Duration;

use serde_json::{Value, json};

use super::customers::Payments;
use super::errors::ApiError;
use super::faults::{Endpoint, Fault};
use super::forms::Form;
use super::state::State;
use super::{checkout, routes, subscriptions};

/// Delay of a slow answer.
const SLOW: Duration = Duration::from_secs(30);

/// Returns whether a path needs no key.
pub(super) fn is_control(path: &str) -> bool {
    path.starts_with("/fake/") || path.starts_with("/pay/")
}

pub(super) fn answer(
    state: &mut State,
    method: &str,
    path: &[&str],
    mut form: Form,
) -> Result<Value, ApiError> {
    match (method, path) {
        ("GET", ["pay", id]) => checkout::complete(state, id),
        ("POST", ["fake", "advance"]) => {
            let seconds = form.integer("seconds")?.unwrap_or(0) + form.integer("days")?.unwrap_or(0) * 86_400;
            form.finish()?;
            let seconds = u64::try_from(seconds).map_err(|_| ApiError::invalid("Time must not run back."))?;
            state.clock.advance(Duration::from_secs(seconds));
            state.settle();
            Ok(json!({"now": state.now()}))
        }
        ("POST", ["fake", "customers", id, "payments"]) => {
            let outcome = match form.choice("outcome", &["succeed", "fail", "missing"])?.as_deref() {
                Some("fail") => Payments::Fail,
                Some("missing") => Payments::Missing,
                _ => Payments::Succeed,
            };
            form.finish()?;
            state.payments.insert((*id).to_owned(), outcome);
            Ok(json!({"customer": id}))
        }
        ("POST", ["fake", "subscriptions", id, "pause"]) => {
            form.finish()?;
            subscriptions::find(state, id)?;
            subscriptions::pause(state, id);
            Ok(subscriptions::snapshot(state, id))
        }
        ("POST", ["fake", "webhooks"]) => {
            state.is_silent = form.flag("silent")?.unwrap_or(state.is_silent);
            form.finish()?;
            Ok(json!({"silent": state.is_silent}))
        }
        ("POST", ["fake", "faults"]) => {
            let (endpoint, fault, count) = read_fault(&mut form)?;
            form.finish()?;
            state.faults.push_next(endpoint, fault, count);
            Ok(json!({"next": count}))
        }
        ("GET", ["fake", "totals"]) => totals(state, form),
        (method, path) => Err(routes::unknown(method, &format!("/{}", path.join("/")))),
    }
}

/// Reads a fault for the next calls to meter events, or to all endpoints with `endpoint=any`.
fn read_fault(form: &mut Form) -> Result<(Endpoint, Fault, u32), ApiError> {
    let is_any = form.choice("endpoint", &["any", "meter_events"])?.as_deref() == Some("any");
    let fault = match form.required("fault", 50)?.as_str() {
        "reset_before" => Fault::ResetBefore,
        "reset_after" => Fault::ResetAfter,
        "error_before" => Fault::ErrorBefore,
        "error_before_kept" => Fault::ErrorBeforeKept,
        "error_after" => Fault::ErrorAfter,
        "rate_limited" => Fault::RateLimited("global-rate"),
        "lock_timeout" => Fault::LockTimeout,
        "unauthorized" => Fault::Unauthorized,
        "slow" => Fault::Slow(SLOW),
        other => return Err(ApiError::bad_param("fault", format!("Invalid fault: {other}"))),
    };
    let count = form.integer("count")?.and_then(|count| u32::try_from(count).ok()).unwrap_or(1);
    Ok((if is_any { Endpoint::Any } else { Endpoint::MeterEvents }, fault, count))
}

/// Lists the billed total of every customer and meter.
fn totals(state: &State, form: Form) -> Result<Value, ApiError> {
    form.finish()?;
    let mut rows = Vec::new();
    for (meter, customer) in state.ledger.lanes() {
        if let Ok(meter) = state.meters.get(meter) {
            let total = state.ledger.aggregate(meter, customer, (i64::MIN, i64::MAX), i64::MAX).unwrap_or(0);
            rows.push(json!({"customer": customer, "event_name": meter.event_name, "total": total}));
        }
    }
    Ok(json!({ "data": rows }))
}
