//! `POST /v1/billing/meter_event_adjustments`: cancels an event within a day of its receipt.

use serde_json::{Value, json};

use super::errors::ApiError;
use super::forms::Form;
use super::state::State;

pub(super) fn create(state: &mut State, mut form: Form) -> Result<Value, ApiError> {
    let event_name = form.required("event_name", 100)?;
    form.choice("type", &["cancel"])?.ok_or_else(|| ApiError::missing_param("type"))?;
    let mut cancel = form.nested("cancel")?.ok_or_else(|| ApiError::missing_param("cancel"))?;
    let identifier = cancel.required("identifier", 100)?;
    cancel.finish()?;
    form.finish()?;

    let now = state.now();
    let event = state.ledger.remembered(&identifier, now).filter(|event| event.event_name == event_name);
    let event = event.ok_or_else(|| {
        let message = format!(
            "No event of the past 24 hours was found with event name {event_name} and identifier {identifier}."
        );
        ApiError::bad_param("cancel[identifier]", message).with_code("resource_missing")
    })?;
    if event.is_canceled {
        let message = format!("The event with identifier {identifier} has been canceled already.");
        return Err(ApiError::bad_param("cancel[identifier]", message).kept());
    }
    event.is_canceled = true;
    Ok(json!({
        "object": "billing.meter_event_adjustment",
        "cancel": {"identifier": identifier},
        "event_name": event_name,
        "livemode": state.options.livemode,
        "status": "pending",
        "type": "cancel",
    }))
}
