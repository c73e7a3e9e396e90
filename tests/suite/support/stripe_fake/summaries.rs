//! `GET /v1/billing/meters/{id}/event_summaries`, newest first.

use serde_json::{Number, Value, json};

use super::clock::{DAY, HOUR, seconds};
use super::errors::ApiError;
use super::forms::Form;
use super::routes::page;
use super::state::State;

const MINUTE: i64 = 60;

pub(super) fn list(state: &State, id: &str, mut form: Form) -> Result<Value, ApiError> {
    let meter = state.meters.get(id)?;
    let customer = form.required("customer", 5000)?;
    let from = form.integer("start_time")?.ok_or_else(|| ApiError::missing_param("start_time"))?;
    let to = form.integer("end_time")?.ok_or_else(|| ApiError::missing_param("end_time"))?;
    let window = match form.choice("value_grouping_window", &["hour", "day"])?.as_deref() {
        None => None,
        Some("hour") => Some(HOUR),
        Some(_) => Some(DAY),
    };
    if from >= to {
        return Err(ApiError::bad_param("end_time", "`end_time` must be after `start_time`."));
    }
    let unit = window.unwrap_or(MINUTE);
    for (name, at) in [("start_time", from), ("end_time", to)] {
        if at % unit != 0 {
            let message = format!("`{name}` must be aligned with {} boundaries in UTC.", name_of(unit));
            return Err(ApiError::bad_param(name, message));
        }
    }
    let seen_until = state.now() - seconds(state.options.summary_lag);
    let row = |(from, to): (i64, i64), value: i128| {
        json!({
            "id": format!("mtrusg_{}_{customer}_{from}_{to}", meter.id),
            "object": "billing.meter_event_summary",
            "aggregated_value": Number::from_i128(value),
            "start_time": from,
            "end_time": to,
            "livemode": state.options.livemode,
            "meter": meter.id,
        })
    };
    let aggregate = |range| state.ledger.aggregate(meter, &customer, range, seen_until);
    let rows = match window {
        None => vec![row((from, to), aggregate((from, to)).unwrap_or(0))],
        Some(window) => {
            let windows =
                (0..(to - from) / window).rev().map(|n| (from + n * window, from + (n + 1) * window));
            windows.filter_map(|range| aggregate(range).map(|value| row(range, value))).collect()
        }
    };
    page(rows, form, &format!("/v1/billing/meters/{id}/event_summaries"))
}

fn name_of(unit: i64) -> &'static str {
    match unit {
        DAY => "day",
        HOUR => "hour",
        _ => "minute",
    }
}
