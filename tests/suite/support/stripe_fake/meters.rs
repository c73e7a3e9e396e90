//! Meters.

use serde_json::{Value, json};

use super::clock::{DAY, HOUR};
use super::errors::ApiError;
use super::forms::Form;
use super::routes::page;
use super::state::State;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Formula {
    Sum,
    Count,
    Last,
}

#[derive(Debug, Clone)]
pub(super) struct Meter {
    pub(super) id: String,
    pub(super) event_name: String,
    display_name: String,
    pub(super) formula: Formula,
    pub(super) customer_key: String,
    pub(super) value_key: String,
    /// Length in seconds of the window in which only the latest event counts.
    pub(super) window: Option<i64>,
    pub(super) deactivated_at: Option<i64>,
    created: i64,
    updated: i64,
}

#[derive(Debug, Default)]
pub(super) struct Meters(Vec<Meter>);

impl Meters {
    pub(super) fn get(&self, id: &str) -> Result<&Meter, ApiError> {
        self.0.iter().find(|meter| meter.id == id).ok_or_else(|| ApiError::not_found("meter", id))
    }

    fn get_mut(&mut self, id: &str) -> Result<&mut Meter, ApiError> {
        self.0.iter_mut().find(|meter| meter.id == id).ok_or_else(|| ApiError::not_found("meter", id))
    }

    /// Returns the active meter of an event name, otherwise the first archived one.
    pub(super) fn by_event_name(&self, event_name: &str) -> Option<&Meter> {
        let mut named = self.0.iter().filter(|meter| meter.event_name == event_name);
        named.clone().find(|meter| meter.deactivated_at.is_none()).or_else(|| named.next())
    }
}

impl Meter {
    fn render(&self, livemode: bool) -> Value {
        let formula = match self.formula {
            Formula::Sum => "sum",
            Formula::Count => "count",
            Formula::Last => "last",
        };
        json!({
            "id": self.id,
            "object": "billing.meter",
            "created": self.created,
            "updated": self.updated,
            "livemode": livemode,
            "display_name": self.display_name,
            "event_name": self.event_name,
            "event_time_window": self.window.map(|window| if window == DAY { "day" } else { "hour" }),
            "status": if self.deactivated_at.is_none() { "active" } else { "inactive" },
            "status_transitions": {"deactivated_at": self.deactivated_at},
            "customer_mapping": {"event_payload_key": self.customer_key, "type": "by_id"},
            "value_settings": {"event_payload_key": self.value_key},
            "default_aggregation": {"formula": formula},
        })
    }
}

pub(super) fn create(state: &mut State, mut form: Form) -> Result<Value, ApiError> {
    let display_name = form.required("display_name", 250)?;
    let event_name = form.required("event_name", 100)?;
    let mut aggregation =
        form.nested("default_aggregation")?.ok_or_else(|| ApiError::missing_param("default_aggregation"))?;
    let formula = match aggregation.choice("formula", &["sum", "count", "last"])?.as_deref() {
        Some("sum") => Formula::Sum,
        Some("count") => Formula::Count,
        Some(_) => Formula::Last,
        None => return Err(ApiError::missing_param("default_aggregation[formula]")),
    };
    aggregation.finish()?;
    let mut customer_key = "stripe_customer_id".to_owned();
    if let Some(mut mapping) = form.nested("customer_mapping")? {
        customer_key = mapping.required("event_payload_key", 100)?;
        mapping.choice("type", &["by_id"])?;
        mapping.finish()?;
    }
    let mut value_key = "value".to_owned();
    if let Some(mut settings) = form.nested("value_settings")? {
        value_key = settings.required("event_payload_key", 100)?;
        settings.finish()?;
    }
    let window = form.choice("event_time_window", &["day", "hour"])?;
    let window = window.map(|window| if window == "day" { DAY } else { HOUR });
    form.finish()?;
    if state.meters.by_event_name(&event_name).is_some_and(|meter| meter.deactivated_at.is_none()) {
        let message = format!("There is already an active meter with event name {event_name}.");
        return Err(ApiError::bad_param("event_name", message));
    }
    let (id, now) = (state.next_id("mtr"), state.now());
    let meter = Meter {
        id,
        event_name,
        display_name,
        formula,
        customer_key,
        value_key,
        window,
        deactivated_at: None,
        created: now,
        updated: now,
    };
    let rendered = meter.render(state.options.livemode);
    state.meters.0.push(meter);
    state.emit("billing.meter.created", &rendered, None);
    Ok(rendered)
}

pub(super) fn list(state: &State, mut form: Form) -> Result<Value, ApiError> {
    let status = form.choice("status", &["active", "inactive"])?;
    let meters = state.meters.0.iter().rev().map(|meter| meter.render(state.options.livemode));
    let rows = meters.filter(|meter| status.as_ref().is_none_or(|status| meter["status"] == *status));
    page(rows.collect(), form, "/v1/billing/meters")
}

pub(super) fn get(state: &State, id: &str, form: Form) -> Result<Value, ApiError> {
    form.finish()?;
    Ok(state.meters.get(id)?.render(state.options.livemode))
}

pub(super) fn update(state: &mut State, id: &str, mut form: Form) -> Result<Value, ApiError> {
    let display_name = form.text("display_name", 250)?;
    form.finish()?;
    let now = state.now();
    let meter = state.meters.get_mut(id)?;
    if let Some(display_name) = display_name {
        meter.display_name = display_name;
        meter.updated = now;
    }
    let rendered = meter.render(state.options.livemode);
    state.emit("billing.meter.updated", &rendered, None);
    Ok(rendered)
}

pub(super) fn set_active(state: &mut State, id: &str, form: Form, active: bool) -> Result<Value, ApiError> {
    form.finish()?;
    let now = state.now();
    let event_name = state.meters.get(id)?.event_name.clone();
    let other = state.meters.by_event_name(&event_name);
    if active && other.is_some_and(|other| other.id != id && other.deactivated_at.is_none()) {
        let message = format!("There is already an active meter with event name {event_name}.");
        return Err(ApiError::invalid(message));
    }
    let meter = state.meters.get_mut(id)?;
    meter.deactivated_at = if active { None } else { Some(now) };
    meter.updated = now;
    let rendered = meter.render(state.options.livemode);
    let kind = if active { "billing.meter.reactivated" } else { "billing.meter.deactivated" };
    state.emit(kind, &rendered, None);
    Ok(rendered)
}
