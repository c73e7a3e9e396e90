//! `GET /v1/events`: the webhook events of the last 30 days, for receivers that missed some.

use serde_json::Value;

use super::clock::DAY;
use super::errors::ApiError;
use super::forms::Form;
use super::outbox::Webhook;
use super::routes::page;
use super::state::State;

const KEPT: i64 = 30 * DAY;

/// Returns the kept snapshot events, newest first. Thin events have a separate route.
fn kept(state: &State) -> impl Iterator<Item = &Webhook> {
    let since = state.now() - KEPT;
    state.outbox.newest_first().filter(move |it| it.created >= since && !state.reports.contains_key(&it.id))
}

fn show(webhook: &Webhook) -> Value {
    serde_json::from_str(&webhook.body).unwrap_or_default()
}

pub(super) fn list(state: &State, mut form: Form) -> Result<Value, ApiError> {
    let kind = form.text("type", 200)?;
    let (mut from, mut to) = (i64::MIN, i64::MAX);
    if let Some(mut created) = form.nested("created")? {
        from = created.integer("gte")?.or(created.integer("gt")?.map(|at| at + 1)).unwrap_or(from);
        to = created.integer("lte")?.or(created.integer("lt")?.map(|at| at - 1)).unwrap_or(to);
        created.finish()?;
    }
    let wanted = |it: &&Webhook| {
        kind.as_ref().is_none_or(|kind| it.kind == *kind) && (from..=to).contains(&it.created)
    };
    page(kept(state).filter(wanted).map(show).collect(), form, "/v1/events")
}

pub(super) fn get(state: &State, id: &str, form: Form) -> Result<Value, ApiError> {
    form.finish()?;
    kept(state).find(|it| it.id == id).map(show).ok_or_else(|| ApiError::not_found("event", id))
}
