//! Invoices: opened, finalized, paid or not, with the link to their subscription in both shapes.

use serde_json::{Map, Value, json};

use super::clock::HOUR;
use super::errors::ApiError;
use super::forms::Form;
use super::routes::page;
use super::state::State;
use super::subscriptions::{change, find};
use super::version::Version;

/// How long usage of the period may still arrive.
const GRACE: i64 = HOUR;

#[derive(Debug, Clone)]
pub(super) struct Invoice {
    id: String,
    customer: String,
    subscription: String,
    status: &'static str,
    reason: &'static str,
    created: i64,
    /// The period whose usage it bills.
    period: (i64, i64),
    pub(super) finalize_at: Option<i64>,
    amount: i64,
    attempts: i64,
}

impl Invoice {
    fn render(&self, state: &State, version: &Version) -> Value {
        let is_paid = self.status == "paid";
        let metadata = find(state, &self.subscription).map_or_else(|_| json!({}), |it| it.metadata.clone());
        let mut shown = json!({
            "id": self.id,
            "object": "invoice",
            "amount_due": self.amount,
            "amount_paid": if is_paid { self.amount } else { 0 },
            "amount_remaining": if is_paid { 0 } else { self.amount },
            "attempt_count": self.attempts,
            "attempted": self.attempts > 0,
            "billing_reason": self.reason,
            "collection_method": "charge_automatically",
            "created": self.created,
            "currency": "usd",
            "customer": self.customer,
            "livemode": state.options.livemode,
            "metadata": {},
            "period_start": self.period.0,
            "period_end": self.period.1,
            "status": self.status,
            "total": self.amount,
        });
        if version.is_since_basil() {
            shown["parent"] = json!({
                "type": "subscription_details",
                "quote_details": null,
                "subscription_details": {"metadata": metadata, "subscription": self.subscription},
            });
        } else {
            shown["subscription"] = json!(self.subscription);
            shown["subscription_details"] = json!({"metadata": metadata});
            shown["paid"] = json!(is_paid);
        }
        shown
    }
}

impl State {
    fn emit_invoice(&mut self, kind: &str, id: &str) {
        if let Some(invoice) = self.invoices.get(id) {
            let shown = invoice.render(self, &self.endpoint_version);
            self.emit(kind, &shown, None);
        }
    }
}

/// The invoice of a new period; that of a renewal waits an hour for late usage.
pub(super) fn open(state: &mut State, subscription: &str, reason: &'static str, at_once: bool) {
    let Ok(billed) = find(state, subscription).cloned() else { return };
    let (now, id) = (state.now(), state.next_id("in"));
    let start = state.invoices.values().rfind(|it| it.subscription == subscription).map(|it| it.period.1);
    let invoice = Invoice {
        id: id.clone(),
        customer: billed.customer,
        subscription: billed.id,
        status: "draft",
        reason,
        created: now,
        period: (start.unwrap_or(billed.created), now),
        finalize_at: (!at_once && billed.pause_collection.is_none()).then_some(now + GRACE),
        amount: 0,
        attempts: 0,
    };
    state.invoices.insert(id.clone(), invoice);
    if let Some(subscription) = state.subscriptions.get_mut(subscription) {
        subscription.latest_invoice = Some(id.clone());
    }
    state.emit_invoice("invoice.created", &id);
    if at_once {
        finalize(state, &id);
    }
}

pub(super) fn finalize(state: &mut State, id: &str) {
    let Some(invoice) = state.invoices.get(id).cloned() else { return };
    let amount = amount(state, &invoice);
    if let Some(invoice) = state.invoices.get_mut(id) {
        (invoice.amount, invoice.status, invoice.finalize_at) = (amount, "open", None);
    }
    state.emit_invoice("invoice.finalized", id);
    collect(state, id);
}

/// The usage of the past period and what is paid ahead, in minor units; nothing ahead while on
/// trial or after the end.
fn amount(state: &State, invoice: &Invoice) -> i64 {
    let Ok(subscription) = find(state, &invoice.subscription) else { return 0 };
    let is_free = subscription.status == "trialing" || subscription.has_ended();
    let total = subscription.items.iter().map(|item| {
        let price = state.prices.get(&item.price).cloned().unwrap_or_default();
        let unit_amount = price["unit_amount"].as_i64().unwrap_or(0);
        let quantity = match (item.quantity, price["recurring"]["meter"].as_str()) {
            (Some(_), _) if is_free => 0,
            (Some(quantity), _) => i128::from(quantity),
            (None, Some(meter)) => {
                let meter = state.meters.get(meter).ok();
                let used = meter
                    .and_then(|it| state.ledger.aggregate(it, &invoice.customer, invoice.period, i64::MAX));
                used.unwrap_or(0)
            }
            (None, None) => 0,
        };
        quantity.max(0) * i128::from(unit_amount)
    });
    i64::try_from(total.sum::<i128>()).unwrap_or(i64::MAX)
}

/// One attempt to be paid, and what it does to the subscription.
fn collect(state: &mut State, id: &str) {
    let Some(invoice) = state.invoices.get(id).cloned() else { return };
    let is_paid = invoice.amount == 0 || state.can_pay(&invoice.customer);
    if let Some(invoice) = state.invoices.get_mut(id) {
        invoice.attempts += 1;
        invoice.status = if is_paid { "paid" } else { "open" };
    }
    state.emit_invoice(if is_paid { "invoice.paid" } else { "invoice.payment_failed" }, id);
    let status = find(state, &invoice.subscription).map_or("canceled", |subscription| subscription.status);
    let next = match (is_paid, status) {
        (true, "past_due" | "unpaid" | "incomplete") => "active",
        (false, "active") => "past_due",
        _ => return,
    };
    change(state, &invoice.subscription, |subscription| subscription.status = next);
}

fn existing<'a>(state: &'a State, id: &str) -> Result<&'a Invoice, ApiError> {
    state.invoices.get(id).ok_or_else(|| ApiError::not_found("invoice", id))
}

pub(super) fn get(state: &State, id: &str, form: Form, version: &Version) -> Result<Value, ApiError> {
    form.finish()?;
    Ok(existing(state, id)?.render(state, version))
}

pub(super) fn list(state: &State, mut form: Form, version: &Version) -> Result<Value, ApiError> {
    let (customer, subscription) = (form.text("customer", 5000)?, form.text("subscription", 5000)?);
    let wanted = |it: &&Invoice| {
        customer.as_ref().is_none_or(|customer| it.customer == *customer)
            && subscription.as_ref().is_none_or(|subscription| it.subscription == *subscription)
    };
    let found = state.invoices.values().rev().filter(wanted);
    page(found.map(|it| it.render(state, version)).collect(), form, "/v1/invoices")
}

pub(super) fn act(
    state: &mut State,
    id: &str,
    form: Form,
    version: &Version,
    (expected, act): (&str, fn(&mut State, &str)),
) -> Result<Value, ApiError> {
    form.finish()?;
    let status = existing(state, id)?.status;
    if status != expected {
        return Err(ApiError::invalid(format!("The invoice is {status}, and not {expected}.")));
    }
    act(state, id);
    Ok(existing(state, id)?.render(state, version))
}

pub(super) fn finalize_call(
    state: &mut State,
    id: &str,
    form: Form,
    version: &Version,
) -> Result<Value, ApiError> {
    act(state, id, form, version, ("draft", finalize))
}

pub(super) fn pay_call(
    state: &mut State,
    id: &str,
    form: Form,
    version: &Version,
) -> Result<Value, ApiError> {
    let paid = act(state, id, form, version, ("open", collect))?;
    if paid["status"] != "paid" {
        return Err(ApiError::new(402, "Your card was declined.").with_code("card_declined").kept());
    }
    Ok(paid)
}

/// What the present period would come to if it ended now; it has no id.
pub(super) fn preview(state: &State, mut form: Form, version: &Version) -> Result<Value, ApiError> {
    let customer = form.text("customer", 5000)?;
    let subscription = form.required("subscription", 5000)?;
    form.choice("preview_mode", &["next", "recurring"])?;
    form.finish()?;
    let billed = find(state, &subscription)?;
    if customer.is_some_and(|customer| customer != billed.customer) {
        return Err(ApiError::not_found("subscription", &subscription));
    }
    let mut invoice = Invoice {
        id: String::new(),
        customer: billed.customer.clone(),
        subscription,
        status: "draft",
        reason: "upcoming",
        created: state.now(),
        period: billed.items.first().map_or((0, 0), |item| item.period),
        finalize_at: None,
        amount: 0,
        attempts: 0,
    };
    invoice.amount = amount(state, &invoice);
    let mut shown = invoice.render(state, version);
    shown.as_object_mut().and_then(|shown: &mut Map<_, _>| shown.remove("id"));
    Ok(shown)
}
