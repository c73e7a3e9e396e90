//! Webhooks in all of Stripe's versions since 2022: the fields of an event on arrival, and the objects
//! inside. Fields that are not needed are not read, so they may have any shape.

use serde_json::Value;

use crate::providers::Failure;
use metergate_domain::base::limits::WEBHOOK_NAME_CHARS_MAX;
use metergate_domain::base::names::SubjectId;
use metergate_domain::base::{Span, Timestamp};
use metergate_domain::subjects::ProviderSubscription;
use metergate_domain::subjects::subscription::SubscriptionStatus;
use metergate_domain::webhook::{WebhookInvoice, WebhookNotice};

/// The topic of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Topic {
    Subscription,
    Checkout,
    Customer,
    Invoice,
    /// Meter events that Stripe took but did not count.
    MeterErrors,
    /// Any other topic; the event is stored only.
    Other,
}

impl Topic {
    pub fn of(kind: &str) -> Self {
        match kind {
            "checkout.session.completed" | "checkout.session.async_payment_succeeded" => Self::Checkout,
            "customer.created" | "customer.updated" | "customer.deleted" => Self::Customer,
            "v1.billing.meter.error_report_triggered" | "v1.billing.meter.no_meter_found" => {
                Self::MeterErrors
            }
            // an upcoming invoice has no id yet
            "invoice.upcoming" => Self::Other,
            _ if kind.starts_with(SUBSCRIPTION_EVENTS) => Self::Subscription,
            _ if kind.starts_with("invoice.") => Self::Invoice,
            _ => Self::Other,
        }
    }
}

pub const SUBSCRIPTION_EVENTS: &str = "customer.subscription.";
pub const SUBSCRIPTION_DELETED: &str = "customer.subscription.deleted";
pub const INVOICE_PAID: &str = "invoice.paid";
pub const CUSTOMER_DELETED: &str = "customer.deleted";

/// Reads the fields of an event on arrival. Returns none if the value is not an event.
pub fn notice(event: &Value) -> Option<WebhookNotice> {
    let kind = name(&event["type"]).unwrap_or_default();
    let object = &event["data"]["object"];
    // a thin event only names its object
    let object_id = name(&object["id"]).or_else(|| name(&event["related_object"]["id"]));
    let customer = match Topic::of(&kind) {
        Topic::Customer => object_id.clone(),
        _ => id_of(&object["customer"]),
    };
    Some(WebhookNotice {
        id: name(&event["id"])?,
        created: seconds(&event["created"]).or_else(|| Timestamp::parse(event["created"].as_str()?).ok()),
        api_version: name(&event["api_version"]),
        livemode: event["livemode"].as_bool(),
        kind,
        object_id,
        customer,
    })
}

/// Reads a non-empty text that is short enough to be stored.
fn name(value: &Value) -> Option<String> {
    let text = value.as_str()?;
    let is_decent = !text.is_empty()
        && !text.contains('\0')
        && (text.len() <= WEBHOOK_NAME_CHARS_MAX || text.chars().count() <= WEBHOOK_NAME_CHARS_MAX);
    is_decent.then(|| text.to_owned())
}

/// Reads the id of an object, which may be given as the whole object.
fn id_of(value: &Value) -> Option<String> {
    name(value).or_else(|| name(&value["id"]))
}

fn seconds(value: &Value) -> Option<Timestamp> {
    Timestamp::from_micros(value.as_i64()?.checked_mul(1_000_000)?)
}

fn subject(value: &Value) -> Option<SubjectId> {
    SubjectId::parse(value.as_str()?).ok()
}

/// Reads a subscription. Returns none if the object is not a subscription, or its status is unknown.
pub fn subscription(object: &Value) -> Option<ProviderSubscription> {
    let status = object["status"].as_str()?;
    let (_, status) = SubscriptionStatus::WORDS.iter().find(|(word, _)| *word == status)?;
    let items = object["items"]["data"].as_array().map_or(&[][..], Vec::as_slice);
    // items have periods since 2025-03-31.basil; before, the subscription had one
    let mut periods: Vec<Span> = items.iter().filter_map(period).collect();
    periods.extend(period(object).filter(|_| periods.is_empty()));
    let period = periods.iter().min_by_key(|period| period.to).copied();
    let at_period_end = object["cancel_at_period_end"].as_bool() == Some(true);
    let last_end = periods.iter().map(|period| period.to).max().filter(|_| at_period_end);
    let price = |item: &Value| id_of(&item["price"]).or_else(|| id_of(&item["plan"]));
    let created_at = seconds(&object["created"])?;
    let anchor = seconds(&object["billing_cycle_anchor"]);
    Some(ProviderSubscription {
        id: name(&object["id"])?,
        customer: id_of(&object["customer"])?,
        subject: subject(&object["metadata"]["subject"]),
        status: *status,
        prices: items.iter().filter_map(price).collect(),
        anchor: anchor.or(period.map(|period| period.from)).unwrap_or(created_at),
        period,
        ends_at: seconds(&object["cancel_at"]).or(last_end),
        ended_at: seconds(&object["ended_at"]),
        created_at,
    })
}

fn period(object: &Value) -> Option<Span> {
    let span =
        Span { from: seconds(&object["current_period_start"])?, to: seconds(&object["current_period_end"])? };
    (!span.is_empty()).then_some(span)
}

/// Reads the subscription of an event. A deleted subscription has ended, regardless of its status.
pub fn subscription_of(event: &Value) -> Option<ProviderSubscription> {
    let mut billed = subscription(&event["data"]["object"])?;
    if event["type"] == SUBSCRIPTION_DELETED && !billed.is_over() {
        billed.status = SubscriptionStatus::Canceled;
        billed.ended_at = billed.ended_at.or_else(|| seconds(&event["created"]));
    }
    Some(billed)
}

/// Reads the subject and the customer of a checkout, if both are named.
pub fn checkout(object: &Value) -> Option<(SubjectId, String)> {
    Some((subject(&object["client_reference_id"])?, id_of(&object["customer"])?))
}

/// A paid purchase, which grants its credit packs once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Purchase {
    /// The invoice id, or the session id of a checkout without an invoice.
    pub reference: String,
    /// The id of the checkout session.
    pub checkout: Option<String>,
    pub customer: Option<String>,
    pub subject: Option<SubjectId>,
    /// The quantity of each price in the event.
    pub items: Vec<(String, i64)>,
    /// True if the event lacks lines. An invoice event has only the first lines; a checkout event has
    /// none.
    pub has_more: bool,
}

/// Reads the purchase of a checkout. Returns none if the checkout is not paid. Also returns none for a
/// subscription without an invoice: the later invoice is the purchase.
pub fn bought_by_checkout(object: &Value) -> Option<Purchase> {
    let is_paid = matches!(object["payment_status"].as_str(), Some("paid" | "no_payment_required"));
    let invoice = id_of(&object["invoice"]);
    if !is_paid || (invoice.is_none() && object["mode"] == "subscription") {
        return None;
    }
    let session = name(&object["id"])?;
    Some(Purchase {
        reference: invoice.unwrap_or_else(|| session.clone()),
        checkout: Some(session),
        customer: id_of(&object["customer"]),
        subject: subject(&object["client_reference_id"]),
        items: items(&object["line_items"]),
        has_more: object["line_items"]["data"].as_array().is_none_or(Vec::is_empty)
            || object["line_items"]["has_more"] == true,
    })
}

/// Reads the purchase of a paid invoice.
pub fn bought_by_invoice(object: &Value) -> Option<Purchase> {
    Some(Purchase {
        reference: name(&object["id"])?,
        checkout: None,
        customer: id_of(&object["customer"]),
        subject: None,
        items: items(&object["lines"]),
        has_more: object["lines"]["has_more"] == true,
    })
}

/// Sums up the quantities by price in a list of lines.
fn items(list: &Value) -> Vec<(String, i64)> {
    items_of(list["data"].as_array().map_or(&[][..], Vec::as_slice))
}

/// Sums up the quantities by price in lines. Since 2025-03-31.basil an invoice line has its price under
/// `pricing`.
pub fn items_of(lines: &[Value]) -> Vec<(String, i64)> {
    let mut items: Vec<(String, i64)> = Vec::new();
    for line in lines {
        let price = id_of(&line["price"]).or_else(|| id_of(&line["pricing"]["price_details"]["price"]));
        let count = line["quantity"].as_i64().unwrap_or(1);
        let is_proration = line["proration"] == true
            || line["parent"]["subscription_item_details"]["proration"] == true
            || line["parent"]["invoice_item_details"]["proration"] == true;
        let Some(price) = price.filter(|_| count > 0 && !is_proration) else { continue };
        match items.iter_mut().find(|(known, _)| *known == price) {
            Some((_, sum)) => *sum = sum.saturating_add(count),
            None => items.push((price, count)),
        }
    }
    items
}

/// The fields of a customer that matter here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Customer {
    pub id: String,
    pub subject: Option<SubjectId>,
    pub deleted: bool,
}

pub fn customer(object: &Value) -> Option<Customer> {
    Some(Customer {
        id: name(&object["id"])?,
        subject: subject(&object["metadata"]["subject"]),
        deleted: object["deleted"].as_bool() == Some(true),
    })
}

/// Reads an invoice. Returns none if the invoice lacks an id, a customer or a creation time.
pub fn invoice(object: &Value) -> Option<WebhookInvoice> {
    let parent = &object["parent"]["subscription_details"]["subscription"];
    Some(WebhookInvoice {
        id: name(&object["id"])?,
        customer: id_of(&object["customer"])?,
        subscription: id_of(parent).or_else(|| id_of(&object["subscription"])),
        // deleted drafts have no status
        status: name(&object["status"]).unwrap_or_else(|| "deleted".to_owned()),
        billing_reason: name(&object["billing_reason"]),
        currency: name(&object["currency"]),
        total: object["total"].as_i64(),
        amount_due: object["amount_due"].as_i64(),
        amount_paid: object["amount_paid"].as_i64(),
        attempt_count: object["attempt_count"].as_i64().and_then(|count| i32::try_from(count).ok()),
        period_start: seconds(&object["period_start"]),
        period_end: seconds(&object["period_end"]),
        created_at: seconds(&object["created"])?,
    })
}

/// Returns the meter events that were taken but not counted, with reasons: the samples of a report, in
/// the shape of `GET /v2/core/events/{id}`.
pub fn uncounted(event: &Value) -> Vec<(String, Failure)> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let summary = event["data"]["developer_message_summary"].as_str().unwrap_or_default();
    let mut found = Vec::new();
    for kind in list(&event["data"]["reason"]["error_types"]) {
        let code = name(&kind["code"]).unwrap_or_else(|| "unknown".to_owned());
        for sample in list(&kind["sample_errors"]) {
            let message = sample["error_message"].as_str().unwrap_or(summary).to_owned();
            let requests = [&sample["request"], &sample["api_request"]];
            let identifier = requests.iter().find_map(|request| {
                let by_key = || super::meter_events::identifier_of(&name(&request["idempotency_key"])?);
                name(&request["identifier"]).or_else(by_key)
            });
            found.extend(identifier.map(|identifier| (identifier, Failure { code: code.clone(), message })));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_micros(seconds * 1_000_000).unwrap()
    }

    #[test]
    fn reads_periods_from_items_or_the_subscription() {
        let item = |from: i64, to: i64| json!({"price": {"id": "p"}, "current_period_start": from, "current_period_end": to});
        let top = json!({"current_period_start": 100, "current_period_end": 200});
        let cases = [
            (json!({"items": {"data": [{"price": {"id": "p"}}]}}), true, Some((100, 200))),
            (json!({"items": {"data": [item(10, 90), item(20, 50), item(0, 400)]}}), false, Some((20, 50))),
            // an event from the time when both had periods
            (json!({"items": {"data": [item(10, 90)]}}), true, Some((10, 90))),
            (json!({"items": {"data": [item(90, 10)]}}), false, None),
            (json!({}), false, None),
        ];
        for (more, with_top, expected) in cases {
            let mut object = json!({"id": "sub", "customer": "cus", "status": "active", "created": 5});
            let mut add = |fields: &Value| {
                object.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
            };
            add(&more);
            if with_top {
                add(&top);
            }
            let read = subscription(&object).unwrap();
            assert_eq!(
                read.period.map(|p| (p.from, p.to)),
                expected.map(|(f, t)| (at(f), at(t))),
                "{object}"
            );
        }
    }

    #[test]
    fn reads_an_end_as_a_time_or_the_end_of_the_last_period() {
        let items = json!({"data": [
            {"price": "p", "current_period_start": 0, "current_period_end": 50},
            {"price": {"id": "q"}, "current_period_start": 0, "current_period_end": 90}]});
        let cases = [
            (json!({"cancel_at_period_end": false, "cancel_at": null}), None),
            (json!({"cancel_at_period_end": true}), Some(90)),
            (json!({"cancel_at_period_end": true, "cancel_at": 70}), Some(70)),
            (json!({"cancel_at": 70}), Some(70)),
        ];
        for (fields, expected) in cases {
            let mut object = json!({"id": "sub", "customer": {"id": "cus", "object": "customer"}, "status": "active",
                "created": 5, "items": items, "metadata": {"subject": "s"}});
            object.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
            let read = subscription(&object).unwrap();
            assert_eq!(read.ends_at, expected.map(at), "{object}");
            assert_eq!((read.customer.as_str(), read.prices), ("cus", vec!["p".to_owned(), "q".to_owned()]));
            assert_eq!(read.subject.unwrap().as_str(), "s");
        }
    }

    #[test]
    fn deleted_subscriptions_are_over() {
        let object = json!({"id": "sub", "customer": "cus", "status": "active", "created": 5});
        let event = |kind: &str| json!({"id": "e", "type": kind, "created": 9, "data": {"object": object}});
        let deleted = subscription_of(&event("customer.subscription.deleted")).unwrap();
        assert_eq!((deleted.status, deleted.ended_at), (SubscriptionStatus::Canceled, Some(at(9))));
        assert!(!subscription_of(&event("customer.subscription.updated")).unwrap().is_over());
        assert_eq!(
            subscription(&json!({"id": "sub", "customer": "c", "status": "dormant", "created": 5})),
            None
        );
    }

    #[test]
    fn reads_events_of_every_shape() {
        let event = json!({"id": "evt_1", "object": "event", "api_version": "2022-11-15", "created": 7, "livemode": false,
            "type": "invoice.paid", "data": {"object": {"id": "in_1", "customer": {"id": "cus_1"}}}});
        let read = notice(&event).unwrap();
        assert_eq!((read.object_id.as_deref(), read.customer.as_deref()), (Some("in_1"), Some("cus_1")));
        assert_eq!((read.created, read.livemode), (Some(at(7)), Some(false)));
        let thin = json!({"id": "evt_2", "object": "v2.core.event", "created": "1970-01-01T00:00:07.000Z", "livemode": true,
            "type": "v1.billing.meter.error_report_triggered", "related_object": {"id": "mtr_1", "type": "billing.meter"}});
        let read = notice(&thin).unwrap();
        assert_eq!((read.object_id.as_deref(), read.created), (Some("mtr_1"), Some(at(7))));
        let small = notice(&json!({"id": "evt_3", "object": "event"})).unwrap();
        assert_eq!((small.kind.as_str(), small.livemode), ("", None));
        for none in [json!({}), json!([]), json!({"id": ""}), json!({"id": "a\0"}), json!({"id": 5})] {
            assert_eq!(notice(&none), None, "{none}");
        }
    }

    #[test]
    fn reads_the_subscription_of_an_invoice_from_either_place() {
        let base = json!({"id": "in_1", "customer": "cus_1", "status": "open", "created": 5, "total": 1200});
        let with = |name: &str, value: Value| {
            let mut object = base.clone();
            object[name] = value;
            invoice(&object).unwrap().subscription
        };
        let since =
            json!({"type": "subscription_details", "subscription_details": {"subscription": "sub_1"}});
        assert_eq!(with("subscription", json!("sub_1")).as_deref(), Some("sub_1"));
        assert_eq!(with("parent", since).as_deref(), Some("sub_1"));
        assert_eq!(with("parent", Value::Null), None);
    }

    #[test]
    fn reads_identifiers_of_samples_from_identifier_or_key() {
        let report = json!({"data": {"developer_message_summary": "two", "reason": {"error_count": 3, "error_types": [
            {"code": "meter_event_customer_not_found", "error_count": 2, "sample_errors": [
                {"error_message": "gone", "request": {"identifier": "i1"}},
                {"request": {"id": "req_1", "idempotency_key": "event-i-2-0"}},
                {"error_message": "none", "request": {"id": "req_2"}}]},
            {"code": "archived_meter", "sample_errors": [{"api_request": {"identifier": "i3"}}]}]}}});
        let found: Vec<String> = uncounted(&report)
            .into_iter()
            .map(|(identifier, why)| format!("{identifier} {} {}", why.code, why.message))
            .collect();
        let expected = [
            "i1 meter_event_customer_not_found gone",
            "i-2 meter_event_customer_not_found two",
            "i3 archived_meter two",
        ];
        assert_eq!(found, expected);
        assert_eq!(uncounted(&json!({})), Vec::new());
    }
}
