//! The table of routes.

use axum::http::Method;
use serde_json::{Value, json};

use super::errors::ApiError;
use super::faults::Endpoint;
use super::forms::Form;
use super::http::Call;
use super::state::State;
use super::{
    adjustments, catalog, checkout, control, customers, events, invoices, meter_events, meters, reports,
    subscription_calls, subscriptions, summaries,
};

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
    let version = &call.version(&state.options.api_version)?;
    let path: Vec<&str> = call.path.trim_start_matches('/').split('/').collect();
    match (call.method.as_str(), path.as_slice()) {
        (method, ["v1", "billing", path @ ..]) => billing(state, method, path, form),
        ("GET", ["v2", "core", "events", id]) => reports::get(state, id),
        ("GET", ["v1", "events"]) => events::list(state, form),
        ("GET", ["v1", "events", id]) => events::get(state, id, form),
        ("GET", ["v1", "customers"]) => customers::list(state, form),
        ("POST", ["v1", "customers"]) => customers::create(state, form),
        ("GET", ["v1", "customers", id]) => customers::get(state, id, form),
        ("POST", ["v1", "customers", id]) => customers::update(state, id, form),
        ("DELETE", ["v1", "customers", id]) => customers::delete(state, id, form),
        ("GET", ["v1", "products"]) => catalog::list(state, "product", form),
        ("POST", ["v1", "products"]) => catalog::create_product(state, form),
        ("GET", ["v1", "products", id]) => catalog::get(state, "product", id, form),
        ("POST", ["v1", "products", id]) => catalog::update_product(state, id, form),
        ("GET", ["v1", "prices"]) => catalog::list(state, "price", form),
        ("POST", ["v1", "prices"]) => catalog::create_price(state, form),
        ("GET", ["v1", "prices", id]) => catalog::get(state, "price", id, form),
        ("POST", ["v1", "prices", id]) => catalog::update_price(state, id, form),
        ("GET", ["v1", "subscriptions"]) => subscriptions::list(state, form, version),
        ("POST", ["v1", "subscriptions"]) => subscription_calls::create(state, form, version),
        ("GET", ["v1", "subscriptions", id]) => subscriptions::get(state, id, form, version),
        ("POST", ["v1", "subscriptions", id]) => subscription_calls::update(state, id, form, version),
        ("DELETE", ["v1", "subscriptions", id]) => subscription_calls::cancel(state, id, form, version),
        ("POST", ["v1", "subscriptions", id, "resume"]) => {
            subscription_calls::resume(state, id, form, version)
        }
        ("GET", ["v1", "invoices"]) => invoices::list(state, form, version),
        ("POST", ["v1", "invoices", "create_preview"]) => invoices::preview(state, form, version),
        ("GET", ["v1", "invoices", id]) => invoices::get(state, id, form, version),
        ("GET", ["v1", "invoices", id, "lines"]) => invoices::list_lines(state, id, form),
        ("POST", ["v1", "invoices", id, "void"]) => invoices::void_call(state, id, form, version),
        ("POST", ["v1", "invoices", id, "finalize"]) => invoices::finalize_call(state, id, form, version),
        ("POST", ["v1", "invoices", id, "pay"]) => invoices::pay_call(state, id, form, version),
        ("POST", ["v1", "checkout", "sessions"]) => checkout::create(state, form),
        ("GET", ["v1", "checkout", "sessions", id]) => checkout::get(state, id, form),
        (method, path @ ["fake" | "pay", ..]) => control::answer(state, method, path, form),
        (method, _) => Err(unknown(method, &call.path)),
    }
}

fn billing(state: &mut State, method: &str, path: &[&str], form: Form) -> Result<Value, ApiError> {
    match (method, path) {
        ("POST", ["meter_events"]) => meter_events::create(state, form),
        ("POST", ["meter_event_adjustments"]) => adjustments::create(state, form),
        ("GET", ["meters"]) => meters::list(state, form),
        ("POST", ["meters"]) => meters::create(state, form),
        ("GET", ["meters", id]) => meters::get(state, id, form),
        ("POST", ["meters", id]) => meters::update(state, id, form),
        ("POST", ["meters", id, "deactivate"]) => meters::set_active(state, id, form, false),
        ("POST", ["meters", id, "reactivate"]) => meters::set_active(state, id, form, true),
        ("GET", ["meters", id, "event_summaries"]) => summaries::list(state, id, form),
        (method, path) => Err(unknown(method, &format!("/v1/billing/{}", path.join("/")))),
    }
}

pub(super) fn unknown(method: &str, path: &str) -> ApiError {
    ApiError::new(404, format!("Unrecognized request URL ({method}: {path})."))
}

/// Returns a page of rows in their order; each row has an id.
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
