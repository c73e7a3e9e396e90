//! Routes that Stripe does not have, for whoever tries the fake by hand: time, payments, checkout.

use std::time::Duration;

use serde_json::{Value, json};

use super::checkout;
use super::customers::Payments;
use super::errors::ApiError;
use super::forms::Form;
use super::routes;
use super::state::State;
use super::subscriptions;

/// Whether a path needs no key.
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
            let seconds = u64::try_from(seconds).map_err(|_| ApiError::invalid("Time runs forward only."))?;
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
        ("GET", ["fake", "totals"]) => totals(state, form),
        (method, path) => Err(routes::unknown(method, &format!("/{}", path.join("/")))),
    }
}

/// What every customer was billed, by meter.
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
