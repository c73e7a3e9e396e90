//! Invoices from draft to payment, with the link to their subscription in both forms.

use serde_json::{Map, Value, json};

use super::clock::HOUR;
use super::errors::ApiError;
use super::forms::Form;
use super::rating;
use super::routes::page;
use super::state::State;
use super::subscriptions::{change, find};
use super::version::Version;

/// Time in which late usage of the period may still arrive, in seconds.
const GRACE: i64 = HOUR;
/// Number of lines in an invoice's JSON; further lines have a separate route.
const LINES_SHOWN: usize = 10;

#[derive(Debug, Clone)]
pub(super) struct Invoice {
    id: String,
    customer: String,
    subscription: String,
    status: &'static str,
    reason: &'static str,
    created: i64,
    /// The period of the billed usage.
    period: (i64, i64),
    pub(super) finalize_at: Option<i64>,
    amount: i64,
    attempts: i64,
    /// The lines, fixed when the invoice is finalized.
    lines: Vec<Line>,
}

/// An invoice line: price, quantity and amount.
#[derive(Debug, Clone)]
struct Line {
    item: String,
    price: String,
    quantity: i128,
    amount: i64,
}

impl Invoice {
    fn render(&self, state: &State, version: &Version) -> Value {
        let is_paid = self.status == "paid";
        let lines = self.lines(state);
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
            "currency": currency(state, &self.subscription),
            "customer": self.customer,
            "lines": {
                "object": "list",
                "has_more": lines.len() > LINES_SHOWN,
                "data": lines.into_iter().take(LINES_SHOWN).collect::<Vec<_>>(),
                "url": format!("/v1/invoices/{}/lines", self.id),
            },
            "livemode": state.options.livemode,
            "metadata": {},
            "period_start": self.period.0,
            "period_end": self.period.1,
            "status": self.status,
            "subtotal": self.amount,
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

impl Invoice {
    /// Returns the lines; those of a draft are computed now.
    fn lines(&self, state: &State) -> Vec<Value> {
        let lines = if self.status == "draft" { lines(state, self) } else { self.lines.clone() };
        let currency = currency(state, &self.subscription);
        let shown = |(number, line): (usize, &Line)| {
            json!({
                "id": format!("il_{}_{number}", self.id),
                "object": "line_item",
                "amount": line.amount,
                "currency": currency,
                "invoice": self.id,
                "livemode": state.options.livemode,
                "parent": {
                    "type": "subscription_item_details",
                    "subscription_item_details": {"subscription": self.subscription, "subscription_item": line.item},
                },
                "period": {"start": self.period.0, "end": self.period.1},
                "pricing": {
                    "type": "price_details",
                    "price_details": {"price": line.price, "product": state.prices.get(&line.price).map(|it| it["product"].clone())},
                },
                "quantity": i64::try_from(line.quantity).unwrap_or(i64::MAX),
            })
        };
        lines.iter().enumerate().map(shown).collect()
    }
}

pub(super) fn list_lines(state: &State, id: &str, form: Form) -> Result<Value, ApiError> {
    page(existing(state, id)?.lines(state), form, &format!("/v1/invoices/{id}/lines"))
}

pub(super) fn void_call(
    state: &mut State,
    id: &str,
    form: Form,
    version: &Version,
) -> Result<Value, ApiError> {
    let void = |state: &mut State, id: &str| {
        if let Some(invoice) = state.invoices.get_mut(id) {
            invoice.status = "void";
        }
        state.emit_invoice("invoice.voided", id);
    };
    act(state, id, form, version, ("open", void))
}

impl State {
    fn emit_invoice(&mut self, kind: &str, id: &str) {
        if let Some(invoice) = self.invoices.get(id) {
            let shown = invoice.render(self, &self.endpoint_version);
            self.emit(kind, &shown, None);
        }
    }
}

/// Opens the invoice of a new period; that of a renewal waits an hour for late usage.
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
        lines: Vec::new(),
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
    let lines = lines(state, &invoice);
    if let Some(invoice) = state.invoices.get_mut(id) {
        (invoice.amount, invoice.status, invoice.finalize_at) = (sum(&lines), "open", None);
        invoice.lines = lines;
    }
    state.emit_invoice("invoice.finalized", id);
    collect(state, id);
}

/// Computes the lines: usage of the past period, and fees in advance unless the subscription is on trial or
/// has ended.
fn lines(state: &State, invoice: &Invoice) -> Vec<Line> {
    let Ok(subscription) = find(state, &invoice.subscription) else { return Vec::new() };
    let is_free = subscription.status == "trialing" || subscription.has_ended();
    let mut lines = Vec::new();
    for item in &subscription.items {
        let price = state.prices.get(&item.price).cloned().unwrap_or_default();
        let quantity = match (item.quantity, price["recurring"]["meter"].as_str()) {
            (Some(_), _) if is_free => continue,
            (Some(quantity), _) => i128::from(quantity),
            (None, Some(meter)) => {
                let meter = state.meters.get(meter).ok();
                let used = meter
                    .and_then(|it| state.ledger.aggregate(it, &invoice.customer, invoice.period, i64::MAX));
                used.unwrap_or(0)
            }
            (None, None) => 0,
        };
        let rated = rating::rate(&price, quantity.max(0), state.options.tiers);
        lines.extend(rated.into_iter().map(|rated| Line {
            item: item.id.clone(),
            price: item.price.clone(),
            quantity: rated.quantity,
            amount: rated.rounded(),
        }));
    }
    lines
}

fn sum(lines: &[Line]) -> i64 {
    lines.iter().map(|line| line.amount).sum()
}

fn currency(state: &State, subscription: &str) -> String {
    let first = find(state, subscription).ok().and_then(|it| it.items.first());
    let price = first.and_then(|item| state.prices.get(&item.price));
    price.and_then(|price| price["currency"].as_str()).unwrap_or("usd").to_owned()
}

/// Attempts to collect an invoice and updates the status of its subscription.
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

/// Returns the invoice, without an id, that would be due if the current period ended now.
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
        lines: Vec::new(),
    };
    invoice.amount = sum(&lines(state, &invoice));
    let mut shown = invoice.render(state, version);
    shown.as_object_mut().and_then(|shown: &mut Map<_, _>| shown.remove("id"));
    Ok(shown)
}
