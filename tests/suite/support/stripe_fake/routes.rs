//! The table of routes.

use axum::http::Method;
use serde_json::{Value, json};

use super::errors::ApiError;
use super::faults::Endpoint;
use super::forms::Form;
use super::http::Call;
use super::state::State;
use super::{adjustments, meter_events, meters, summaries};

pub(super) fn endpoint(method: &Method, path: &str) -> Endpoint {
    match path {
        "/v1/billing/meter_events" => Endpoint::MeterEvents,
        "/v1/billing/meter_event_adjustments" => Endpoint::Adjustments,
        path if path.ends_with("/event_summaries") => Endpoint::Summaries,
        _ if method == Method::GET => Endpoint::OtherReads,
        _ => Endpoint::OtherWrites,
    }
}

pub(super) fn answer(state: &mut State, call: &Call) -> Result<Value, ApiError> {
    let form = Form::read(&call.parameters)?;
    let path: Vec<&str> = call.path.trim_start_matches('/').split('/').collect();
    match (call.method.as_str(), path.as_slice()) {
        ("POST", ["v1", "billing", "meter_events"]) => meter_events::create(state, form),
        ("POST", ["v1", "billing", "meter_event_adjustments"]) => adjustments::create(state, form),
        ("GET", ["v1", "billing", "meters"]) => meters::list(state, form),
        ("POST", ["v1", "billing", "meters"]) => meters::create(state, form),
        ("GET", ["v1", "billing", "meters", id]) => meters::get(state, id, form),
        ("POST", ["v1", "billing", "meters", id]) => meters::update(state, id, form),
        ("POST", ["v1", "billing", "meters", id, "deactivate"]) => meters::set_active(state, id, form, false),
        ("POST", ["v1", "billing", "meters", id, "reactivate"]) => meters::set_active(state, id, form, true),
        ("GET", ["v1", "billing", "meters", id, "event_summaries"]) => summaries::list(state, id, form),
        (method, _) => {
            Err(ApiError::new(404, format!("Unrecognized request URL ({method}: {}).", call.path)))
        }
    }
}

/// A page of rows that each have an id, in their order.
pub(super) fn page(mut rows: Vec<Value>, mut form: Form, url: &str) -> Result<Value, ApiError> {
    let limit = form.integer("limit")?.unwrap_or(10);
    let after = form.text("starting_after", 200)?;
    let before = form.text("ending_before", 200)?;
    form.finish()?;
    let limit = usize::try_from(limit).ok().filter(|limit| (1..=100).contains(limit)).ok_or_else(|| {
        ApiError::bad_param("limit", format!("Invalid integer: {limit} is not between 1 and 100"))
    })?;
    let find = |rows: &[Value], id: &str| {
        rows.iter().position(|row| row["id"] == id).ok_or_else(|| ApiError::not_found("object", id))
    };
    if let Some(after) = after {
        rows.drain(..=find(&rows, &after)?);
    }
    let mut has_more = rows.len() > limit;
    if let Some(before) = before {
        rows.truncate(find(&rows, &before)?);
        has_more = rows.len() > limit;
        rows.drain(..rows.len().saturating_sub(limit));
    }
    rows.truncate(limit);
    Ok(json!({"object": "list", "url": url, "has_more": has_more, "data": rows}))
}
