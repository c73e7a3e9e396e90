//! Packs bought through Stripe are granted once, in any order and number of webhooks.

use axum::body::Body;
use axum::http::{Request, StatusCode};
use metergate::engine::EngineSettings;
use metergate::providers::stripe::{StripeAccount, StripeSettings};
use metergate_domain::base::Environment;
use secrecy::SecretString;
use serde_json::{Value, json};

use super::{balance, catalog};
use crate::support::service::{NOON, engine_settings};
use crate::support::stripe_fake::{Options, StripeFake, sign, unix};
use crate::support::{TestService, cluster};

const SECRET: &str = "whsec_packs";

async fn start() -> TestService {
    let account = |live: bool| StripeAccount {
        api_key: None,
        webhook_secrets: if live { Vec::new() } else { vec![SecretString::from(SECRET)] },
    };
    let stripe = StripeSettings {
        accounts: [(Environment::Test, account(false)), (Environment::Live, account(true))],
        ..StripeSettings::default()
    };
    let settings = EngineSettings { stripe, ..engine_settings() };
    let service = TestService::at_url(&cluster::database_url().await, settings).await;
    let mut catalog = catalog();
    catalog["credit_packs"] = json!([
        {"key": "small", "credit_unit": "credits", "amount": 100, "expires_after": "30d", "stripe_price_ids": ["price_small"]},
        {"key": "large", "credit_unit": "credits", "amount": 1000, "stripe_price_ids": {"test": ["price_large"], "live": []}}]);
    service.apply(catalog).await;
    service
}

/// Starts a service with a Stripe account at a fake Stripe.
async fn start_beside(stripe: &StripeFake) -> TestService {
    let account = StripeAccount {
        api_key: Some(SecretString::from("sk_test_fake")),
        webhook_secrets: vec![SecretString::from(SECRET)],
    };
    let settings = StripeSettings {
        api_base: stripe.url(),
        accounts: [(Environment::Test, account), (Environment::Live, StripeAccount::default())],
        ..StripeSettings::default()
    };
    let settings = EngineSettings { stripe: settings, ..engine_settings() };
    TestService::at_url(&cluster::database_url().await, settings).await
}

/// Sends a webhook about an object and applies it.
async fn tell(service: &TestService, id: &str, kind: &str, object: &Value) {
    let event = json!({"id": id, "object": "event", "type": kind, "created": unix(NOON), "livemode": false,
                       "data": {"object": object}});
    let body = event.to_string();
    let request = Request::builder()
        .method("POST")
        .uri("/webhooks/stripe")
        .header("stripe-signature", sign(&[SECRET], unix(NOON), &body));
    let answer = service.send(request.body(Body::from(body)).unwrap()).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
    while service.engine.apply_webhooks(Environment::Test).await.unwrap() > 0 {}
}

async fn statuses(service: &TestService) -> Vec<Value> {
    let page = service.get("/v1/webhook-events").await.json();
    page["data"].as_array().unwrap().iter().map(|event| event["status"].clone()).collect()
}

fn checkout(invoice: Value, status: &str) -> Value {
    json!({"id": "cs_1", "object": "checkout.session", "mode": "payment", "payment_status": status,
           "client_reference_id": "a", "customer": "cus_1", "invoice": invoice,
           "line_items": {"data": [{"price": {"id": "price_small"}, "quantity": 2}, {"price": {"id": "price_x"}}]}})
}

fn invoice(line: Value) -> Value {
    json!({"id": "in_1", "object": "invoice", "customer": "cus_1", "status": "paid", "created": unix(NOON),
           "lines": {"data": [line]}})
}

#[tokio::test]
async fn checkouts_grant_their_pack_once() {
    let service = start().await;
    // not paid yet
    tell(&service, "evt_0", "checkout.session.completed", &checkout(Value::Null, "unpaid")).await;
    assert_eq!(balance(&service, "a").await, (0, 0));
    let paid = checkout(Value::Null, "paid");
    tell(&service, "evt_1", "checkout.session.async_payment_succeeded", &paid).await;
    for event in ["evt_1", "evt_2"] {
        tell(&service, event, "checkout.session.completed", &paid).await;
    }
    assert_eq!(balance(&service, "a").await, (200, 0));
    let grants = service.get("/v1/subjects/a/credits/grants").await.json();
    let grant = &grants["data"][0];
    assert_eq!(
        (&grant["source"], &grant["external_ref"], &grant["expires_at"]),
        (&json!("purchase"), &json!("stripe:cs_1:price_small"), &json!("2026-12-20T12:00:00Z"))
    );
    assert_eq!(grants["data"].as_array().unwrap().len(), 1);
    service.verify().await;
}

#[tokio::test]
async fn checkouts_and_their_invoice_grant_once() {
    for checkout_first in [false, true] {
        let service = start().await;
        let line = json!({"price": {"id": "price_small"}, "quantity": 2});
        let told = [
            ("evt_1", "checkout.session.completed", checkout(json!("in_1"), "paid")),
            ("evt_2", "invoice.paid", invoice(line)),
        ];
        let order = if checkout_first { [0, 1] } else { [1, 0] };
        for n in order {
            let (id, kind, object) = &told[n];
            tell(&service, id, kind, object).await;
        }
        // the invoice of an unknown customer waits until the customer is mapped
        service.clock.set(crate::support::at("2026-11-20T13:00:00Z"));
        while service.engine.apply_webhooks(Environment::Test).await.unwrap() > 0 {}
        assert_eq!(balance(&service, "a").await, (200, 0), "{checkout_first}");
        assert_eq!(statuses(&service).await, ["applied", "applied"]);
    }
}

#[tokio::test]
async fn paid_invoices_grant_the_packs_of_their_lines() {
    let service = start().await;
    let answer = service.put("/v1/subjects/a", &json!({"stripe_customer_id": "cus_1"})).await;
    assert_eq!(answer.status, StatusCode::OK);
    let cases = [
        ("in_1", "invoice.paid", json!({"price": {"id": "price_large"}}), 1000),
        // the format since 2025-03-31.basil
        (
            "in_2",
            "invoice.paid",
            json!({"pricing": {"price_details": {"price": "price_small"}}, "quantity": 3}),
            1300,
        ),
        ("in_3", "invoice.finalized", json!({"price": {"id": "price_large"}}), 1300),
        ("in_4", "invoice.paid", json!({"price": {"id": "price_large"}, "proration": true}), 1300),
        ("in_5", "invoice.paid", json!({"price": {"id": "price_none"}}), 1300),
        (
            "in_2",
            "invoice.paid",
            json!({"pricing": {"price_details": {"price": "price_small"}}, "quantity": 3}),
            1300,
        ),
    ];
    for (n, (id, kind, line, expected)) in cases.into_iter().enumerate() {
        let mut object = invoice(line);
        object["id"] = json!(id);
        tell(&service, &format!("evt_{n}"), kind, &object).await;
        assert_eq!(balance(&service, "a").await, (expected, 0), "{n}");
    }
    service.verify().await;
}

/// A webhook contains only the first lines; the pack may be on a later one.
#[tokio::test]
async fn packs_beyond_the_lines_of_the_webhook_are_granted() {
    let stripe = StripeFake::start(Options::default()).await;
    let service = start_beside(&stripe).await;
    let prices: Vec<String> = (0..13).map(|n| stripe.price(&format!("p{n}"), "month")).collect();
    let mut catalog = catalog();
    catalog["credit_packs"] = json!([
        {"key": "small", "credit_unit": "credits", "amount": 1, "stripe_price_ids": [prices[0]]},
        {"key": "last", "credit_unit": "credits", "amount": 1000, "stripe_price_ids": [prices[12]]}]);
    service.apply(catalog).await;
    let customer = stripe.customer(&[]);
    let answer = service.put("/v1/subjects/a", &json!({"stripe_customer_id": customer})).await;
    assert_eq!(answer.status, StatusCode::OK);
    let names: Vec<String> = (0..prices.len()).map(|n| format!("items[{n}][price]")).collect();
    let mut fields = vec![("customer", customer.as_str())];
    fields.extend(names.iter().map(String::as_str).zip(prices.iter().map(String::as_str)));
    stripe.post("/v1/subscriptions", &fields);
    let mut was_paid = false;
    for webhook in stripe.take_webhooks().iter().filter(|webhook| webhook.kind == "invoice.paid") {
        let told: Value = serde_json::from_str(&webhook.body).unwrap();
        assert_eq!(told["data"]["object"]["lines"]["has_more"], true);
        was_paid = true;
        tell(&service, &webhook.id, &webhook.kind, &told["data"]["object"]).await;
    }
    assert!(was_paid);
    assert_eq!(balance(&service, "a").await, (1001, 0));
    assert_eq!(statuses(&service).await, ["applied"]);
    service.verify().await;
}

/// Without an API key the other lines cannot be fetched, so the webhook stays open with an error.
#[tokio::test]
async fn invoices_with_unfetched_lines_wait_for_an_api_key() {
    let service = start().await;
    service.put("/v1/subjects/a", &json!({"stripe_customer_id": "cus_1"})).await;
    let mut object = invoice(json!({"price": {"id": "price_small"}}));
    object["lines"]["has_more"] = json!(true);
    tell(&service, "evt_1", "invoice.paid", &object).await;
    assert_eq!(balance(&service, "a").await, (0, 0));
    assert_eq!(statuses(&service).await, ["pending"]);
}
