//! Subscriptions: their state, their JSON, lookups and ends.

use serde_json::{Map, Value, json};

use super::catalog;
use super::errors::ApiError;
use super::forms::Form;
use super::periods::{Interval, around};
use super::routes::page;
use super::state::State;
use super::version::Version;

#[derive(Debug, Clone)]
pub(super) struct Subscription {
    pub(super) id: String,
    pub(super) customer: String,
    pub(super) status: &'static str,
    pub(super) items: Vec<Item>,
    pub(super) anchor: i64,
    pub(super) created: i64,
    pub(super) cancel_at: Option<i64>,
    pub(super) cancel_at_period_end: bool,
    pub(super) canceled_at: Option<i64>,
    pub(super) ended_at: Option<i64>,
    pub(super) trial: Option<(i64, i64)>,
    pub(super) is_trial_end_told: bool,
    /// The action at the end of a trial without a payment method: `create_invoice`, `pause` or `cancel`.
    pub(super) without_payment: String,
    pub(super) metadata: Value,
    pub(super) description: Option<String>,
    /// The behaviour of a paused collection, under which invoices stay drafts.
    pub(super) pause_collection: Option<String>,
    pub(super) latest_invoice: Option<String>,
}

#[derive(Debug, Clone)]
pub(super) struct Item {
    pub(super) id: String,
    pub(super) price: String,
    pub(super) quantity: Option<i64>,
    pub(super) interval: Interval,
    pub(super) period: (i64, i64),
    pub(super) created: i64,
}

impl Item {
    pub(super) fn is_metered(&self) -> bool {
        self.quantity.is_none()
    }
}

impl Subscription {
    pub(super) fn has_ended(&self) -> bool {
        matches!(self.status, "canceled" | "incomplete_expired")
    }

    /// Returns the end of the first period to end.
    pub(super) fn period_end(&self) -> Option<i64> {
        self.items.iter().map(|item| item.period.1).min()
    }

    /// Counts every item's period from the anchor; if the anchor is in the future, the period starts now.
    pub(super) fn restart_periods(&mut self, now: i64) {
        for item in &mut self.items {
            let (start, end) = around(self.anchor, item.interval, now);
            item.period = (if self.anchor > now { now } else { start }, end);
        }
    }

    pub(super) fn render(&self, state: &State, version: &Version) -> Value {
        let items: Vec<Value> =
            self.items.iter().map(|item| self.render_item(item, state, version)).collect();
        let currency = items.first().map_or(Value::Null, |item| item["price"]["currency"].clone());
        let mut shown = json!({
            "id": self.id,
            "object": "subscription",
            "billing_cycle_anchor": self.anchor,
            "cancel_at": self.cancel_at,
            "cancel_at_period_end": self.cancel_at_period_end,
            "canceled_at": self.canceled_at,
            "cancellation_details": {"comment": null, "feedback": null, "reason": self.canceled_at.map(|_| "cancellation_requested")},
            "collection_method": "charge_automatically",
            "created": self.created,
            "currency": currency,
            "customer": self.customer,
            "description": self.description,
            "ended_at": self.ended_at,
            "items": {
                "object": "list",
                "data": items,
                "has_more": false,
                "url": format!("/v1/subscription_items?subscription={}", self.id),
            },
            "latest_invoice": self.latest_invoice,
            "livemode": state.options.livemode,
            "metadata": self.metadata,
            "pause_collection": self.pause_collection.as_ref().map(|behavior| json!({"behavior": behavior, "resumes_at": null})),
            "schedule": null,
            "start_date": self.created,
            "status": self.status,
            "test_clock": null,
            "trial_end": self.trial.map(|trial| trial.1),
            "trial_settings": {"end_behavior": {"missing_payment_method": self.without_payment}},
            "trial_start": self.trial.map(|trial| trial.0),
        });
        if !version.is_since_basil() {
            let first = self.items.iter().min_by_key(|item| item.period.1);
            let (start, end) = first.map(|item| item.period).unzip();
            shown["current_period_start"] = json!(start);
            shown["current_period_end"] = json!(end);
        }
        shown
    }

    fn render_item(&self, item: &Item, state: &State, version: &Version) -> Value {
        let mut shown = Map::new();
        let mut put = |name: &str, value: Value| shown.insert(name.to_owned(), value);
        put("id", json!(item.id));
        put("object", json!("subscription_item"));
        put("created", json!(item.created));
        put("metadata", json!({}));
        put("price", state.prices.get(&item.price).cloned().unwrap_or_default());
        put("subscription", json!(self.id));
        // a metered item has no quantity
        if let Some(quantity) = item.quantity {
            put("quantity", json!(quantity));
        }
        if version.is_since_basil() {
            put("current_period_start", json!(item.period.0));
            put("current_period_end", json!(item.period.1));
        }
        Value::Object(shown)
    }
}

pub(super) fn find<'a>(state: &'a State, id: &str) -> Result<&'a Subscription, ApiError> {
    state.subscriptions.get(id).ok_or_else(|| ApiError::not_found("subscription", id))
}

pub(super) fn show(state: &State, id: &str, version: &Version) -> Result<Value, ApiError> {
    Ok(find(state, id)?.render(state, version))
}

/// Returns the JSON of a subscription in the webhook endpoint's version.
pub(super) fn snapshot(state: &State, id: &str) -> Value {
    show(state, id, &state.endpoint_version).unwrap_or_default()
}

/// Changes a subscription and emits an event for the change.
pub(super) fn change(state: &mut State, id: &str, change: impl FnOnce(&mut Subscription)) {
    let before = snapshot(state, id);
    if let Some(subscription) = state.subscriptions.get_mut(id) {
        change(subscription);
    }
    let after = snapshot(state, id);
    state.emit_change("customer.subscription.updated", &before, &after);
}

/// Ends a subscription now.
pub(super) fn end(state: &mut State, id: &str) {
    let now = state.now();
    if let Some(subscription) = state.subscriptions.get_mut(id) {
        subscription.status = "canceled";
        subscription.canceled_at.get_or_insert(now);
        subscription.ended_at = Some(now);
    }
    let ended = snapshot(state, id);
    state.emit("customer.subscription.deleted", &ended, None);
}

pub(super) fn pause(state: &mut State, id: &str) {
    change(state, id, |subscription| subscription.status = "paused");
    let paused = snapshot(state, id);
    state.emit("customer.subscription.paused", &paused, None);
}

/// Returns the ids of a customer's subscriptions that have not ended.
pub(super) fn open_of(state: &State, customer: &str) -> Vec<String> {
    let open = |it: &&Subscription| it.customer == customer && !it.has_ended();
    state.subscriptions.values().filter(open).map(|it| it.id.clone()).collect()
}

pub(super) fn get(state: &State, id: &str, form: Form, version: &Version) -> Result<Value, ApiError> {
    form.finish()?;
    show(state, id, version)
}

const STATUSES: [&str; 10] = [
    "active",
    "all",
    "canceled",
    "ended",
    "incomplete",
    "incomplete_expired",
    "past_due",
    "paused",
    "trialing",
    "unpaid",
];

pub(super) fn list(state: &State, mut form: Form, version: &Version) -> Result<Value, ApiError> {
    let customer = form.text("customer", 5000)?;
    let price = form.text("price", 5000)?;
    let status = form.choice("status", &STATUSES)?;
    let wanted = |it: &&Subscription| {
        let status_fits = match status.as_deref() {
            None => it.status != "canceled",
            Some("all") => true,
            Some("ended") => it.has_ended(),
            Some(status) => it.status == status,
        };
        status_fits
            && customer.as_ref().is_none_or(|customer| it.customer == *customer)
            && price.as_ref().is_none_or(|price| it.items.iter().any(|item| item.price == *price))
    };
    let found = state.subscriptions.values().rev().filter(wanted);
    page(found.map(|it| it.render(state, version)).collect(), form, "/v1/subscriptions")
}

/// Reads an item; its price must be recurring.
pub(super) fn read_item(state: &mut State, price: &str, quantity: Option<i64>) -> Result<Item, ApiError> {
    let object = catalog::price(state, price)?;
    let interval = catalog::interval(object)
        .ok_or_else(|| ApiError::bad_param("items", format!("The price {price} is not recurring.")))?;
    let is_metered = object["recurring"]["usage_type"] == "metered";
    if is_metered && quantity.is_some() {
        return Err(ApiError::bad_param("items", "A metered price takes no quantity."));
    }
    let quantity = if is_metered { None } else { Some(quantity.unwrap_or(1)) };
    let now = state.now();
    Ok(Item {
        id: state.next_id("si"),
        price: price.to_owned(),
        quantity,
        interval,
        period: (now, now),
        created: now,
    })
}
