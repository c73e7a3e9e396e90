//! Customers, prices, subscriptions, invoices and checkout over time.

use std::time::Duration;

use serde_json::{Value, json};

use super::{Caller, noon};
use crate::support::stripe_fake::{Clock, Options, Payments, StripeFake, unix};

const DAY: Duration = Duration::from_hours(24);

/// Starts a fake with a customer and a monthly price, and takes the webhooks of both.
async fn setup() -> (StripeFake, String, String) {
    let fake = StripeFake::start(Options::default()).await;
    let (customer, price) = (fake.customer(&[]), fake.price("pro", "month"));
    fake.take_webhooks();
    (fake, customer, price)
}

/// Takes the webhooks since the last call and returns their types.
fn told(fake: &StripeFake) -> Vec<String> {
    fake.take_webhooks().into_iter().map(|webhook| webhook.kind).collect()
}

fn subscription(fake: &StripeFake, id: &str) -> Value {
    fake.get(&format!("/v1/subscriptions/{id}"))
}

fn period(fake: &StripeFake, id: &str) -> (i64, i64) {
    let item = &subscription(fake, id)["items"]["data"][0];
    (item["current_period_start"].as_i64().unwrap(), item["current_period_end"].as_i64().unwrap())
}

const PAID: [&str; 3] = ["invoice.created", "invoice.finalized", "invoice.paid"];

#[tokio::test]
async fn a_renewal_rolls_the_period_from_its_anchor() {
    let options = Options { clock: Clock::fixed("2027-01-31T10:23:45Z"), ..Options::default() };
    let fake = StripeFake::start(options).await;
    let (customer, price) = (fake.customer(&[]), fake.price("pro", "month"));
    fake.take_webhooks();
    let id = fake.subscribe(&customer, &price, &[]);
    assert_eq!(told(&fake), [&["customer.subscription.created"], &PAID[..]].concat());
    let february = unix("2027-02-28T10:23:45Z");
    assert_eq!(period(&fake, &id), (unix("2027-01-31T10:23:45Z"), february));

    fake.set_clock(february - 1);
    assert_eq!(told(&fake), Vec::<String>::new());
    fake.set_clock(february);
    assert_eq!(period(&fake, &id), (february, unix("2027-03-31T10:23:45Z")));
    let renewed = fake.take_webhooks();
    assert_eq!(renewed[0].kind, "customer.subscription.updated");
    assert_eq!(renewed[1].kind, "invoice.created");
    let event: Value = serde_json::from_str(&renewed[0].body).unwrap();
    let before = &event["data"]["previous_attributes"]["items"]["data"][0]["current_period_end"];
    assert_eq!((before, &event["created"]), (&json!(february), &json!(february)));
    // the invoice stays open for late usage for an hour
    fake.advance(Duration::from_hours(1));
    assert_eq!(told(&fake), PAID[1..]);
    // a jump of the clock executes every event at its own time
    fake.set_clock(unix("2027-06-01T00:00:00Z"));
    assert_eq!(period(&fake, &id), (unix("2027-05-31T10:23:45Z"), unix("2027-06-30T10:23:45Z")));
    let moments: Vec<i64> = fake.take_webhooks().iter().map(|webhook| webhook.created).collect();
    assert!(moments.is_sorted() && moments.len() == 12, "{moments:?}");
    assert_eq!(moments[0], unix("2027-03-31T10:23:45Z"));
}

#[tokio::test]
async fn objects_have_the_fields_of_the_version() {
    let mut caller = Caller::start().await;
    let price = caller.fake.price("pro", "month");
    caller.fake.pin_webhooks("2024-06-20");
    let customer = caller.fake.customer(&[]);
    let id = caller.fake.subscribe(&customer, &price, &[]);
    let new = caller.get(&format!("/v1/subscriptions/{id}")).await.body;
    assert_eq!(new["current_period_end"], Value::Null);
    let end = new["items"]["data"][0]["current_period_end"].clone();
    assert_eq!(end, unix("2026-12-20T12:00:00Z"));
    let invoice = format!("/v1/invoices/{}", new["latest_invoice"].as_str().unwrap());
    let parent = &caller.get(&invoice).await.body["parent"];
    assert_eq!(parent["subscription_details"]["subscription"], json!(id));

    for version in ["2022-11-15", "2025-02-24.acacia"] {
        caller.version = version;
        let old = caller.get(&format!("/v1/subscriptions/{id}")).await.body;
        assert_eq!((&old["current_period_end"], &old["current_period_start"]), (&end, &json!(noon())));
        assert_eq!(old["items"]["data"][0]["current_period_end"], Value::Null);
        let old = caller.get(&invoice).await.body;
        assert_eq!((&old["subscription"], &old["parent"]), (&json!(id), &Value::Null));
    }
    // webhooks use the endpoint's own version
    let told = caller.fake.take_webhooks();
    let created = told.iter().find(|webhook| webhook.kind == "customer.subscription.created").unwrap();
    let created: Value = serde_json::from_str(&created.body).unwrap();
    assert_eq!(
        (&created["api_version"], &created["data"]["object"]["current_period_end"]),
        (&json!("2024-06-20"), &end)
    );
}

#[tokio::test]
async fn a_subscription_ends_now_or_with_its_period() {
    let (fake, customer, price) = setup().await;
    let (one, two) = (fake.subscribe(&customer, &price, &[]), fake.subscribe(&customer, &price, &[]));
    told(&fake);
    let ended = fake.delete(&format!("/v1/subscriptions/{one}"));
    assert_eq!((&ended["status"], &ended["ended_at"]), (&json!("canceled"), &json!(noon())));
    assert_eq!(told(&fake), ["customer.subscription.deleted"]);

    let path = format!("/v1/subscriptions/{two}");
    let end = period(&fake, &two).1;
    let ending = fake.post(&path, &[("cancel_at_period_end", "true")]);
    assert_eq!((&ending["status"], &ending["cancel_at"]), (&json!("active"), &json!(end)));
    assert_eq!((&ending["canceled_at"], &ending["ended_at"]), (&json!(noon()), &Value::Null));
    assert_eq!(fake.post(&path, &[("cancel_at_period_end", "false")])["cancel_at"], Value::Null);
    fake.post(&path, &[("cancel_at_period_end", "true")]);
    assert_eq!(told(&fake), ["customer.subscription.updated"; 3]);
    fake.set_clock(end);
    assert_eq!(told(&fake), ["customer.subscription.deleted"]);
    assert_eq!(subscription(&fake, &two)["ended_at"], end);
    assert_eq!(fake.get("/v1/subscriptions")["data"], json!([]));
    assert_eq!(fake.get("/v1/subscriptions?status=all")["data"].as_array().unwrap().len(), 2);
    fake.advance(40 * DAY);
    assert_eq!(told(&fake), Vec::<String>::new());
}

#[tokio::test]
async fn the_end_of_a_trial_is_announced() {
    let (fake, customer, price) = setup().await;
    let id = fake.subscribe(&customer, &price, &[("trial_period_days", "14")]);
    assert_eq!(subscription(&fake, &id)["status"], "trialing");
    assert_eq!(period(&fake, &id), (noon(), noon() + 14 * 86_400));
    told(&fake);
    fake.advance(11 * DAY);
    assert_eq!(told(&fake), ["customer.subscription.trial_will_end"]);
    fake.advance(3 * DAY);
    assert_eq!(told(&fake), ["customer.subscription.updated", "invoice.created"]);
    let active = subscription(&fake, &id);
    assert_eq!((&active["status"], &active["billing_cycle_anchor"]), (&json!("active"), &json!(fake.now())));
    assert_eq!(period(&fake, &id), (unix("2026-12-04T12:00:00Z"), unix("2027-01-04T12:00:00Z")));

    let pausing =
        [("trial_end", "1799000000"), ("trial_settings[end_behavior][missing_payment_method]", "pause")];
    let paused = fake.subscribe(&customer, &price, &pausing);
    fake.set_payments(&customer, Payments::Missing);
    fake.set_clock(1_799_000_000);
    assert_eq!(subscription(&fake, &paused)["status"], "paused");
    assert!(told(&fake).contains(&"customer.subscription.paused".to_owned()));
    let resumed =
        fake.post(&format!("/v1/subscriptions/{paused}/resume"), &[("billing_cycle_anchor", "now")]);
    assert_eq!((&resumed["status"], period(&fake, &paused).0), (&json!("active"), 1_799_000_000));
    assert_eq!(told(&fake), ["customer.subscription.updated", "customer.subscription.resumed"]);
    fake.pause(&paused);
    assert_eq!(subscription(&fake, &paused)["status"], "paused");
}

#[tokio::test]
async fn a_subscription_is_past_due_until_its_invoice_is_paid() {
    let (fake, customer, price) = setup().await;
    let id = fake.subscribe(&customer, &price, &[]);
    fake.set_payments(&customer, Payments::Fail);
    fake.set_clock(period(&fake, &id).1 + 3600);
    let happened = told(&fake);
    assert_eq!(happened[happened.len() - 2..], ["invoice.payment_failed", "customer.subscription.updated"]);
    let past_due = subscription(&fake, &id);
    assert_eq!(past_due["status"], "past_due");
    fake.set_status(&id, "unpaid");
    assert_eq!(subscription(&fake, &id)["status"], "unpaid");
    fake.set_payments(&customer, Payments::Succeed);
    fake.post(&format!("/v1/invoices/{}/pay", past_due["latest_invoice"].as_str().unwrap()), &[]);
    assert_eq!(subscription(&fake, &id)["status"], "active");

    fake.set_payments(&customer, Payments::Fail);
    let incomplete = fake.subscribe(&customer, &price, &[]);
    assert_eq!(subscription(&fake, &incomplete)["status"], "incomplete");
    fake.advance(Duration::from_hours(23));
    assert_eq!(subscription(&fake, &incomplete)["status"], "incomplete_expired");
}

#[tokio::test]
async fn a_subscription_can_change_its_price() {
    let (fake, customer, price) = setup().await;
    let (better, yearly) = (fake.price("better", "month"), fake.price("yearly", "year"));
    let id = fake.subscribe(&customer, &price, &[("items[0][quantity]", "2")]);
    let item = subscription(&fake, &id)["items"]["data"][0]["id"].as_str().unwrap().to_owned();
    let path = format!("/v1/subscriptions/{id}");
    let (before, now) = (period(&fake, &id), fake.now() + 86_400);
    fake.advance(DAY);
    let to = |price| fake.post(&path, &[("items[0][id]", &item), ("items[0][price]", price)]);
    assert_eq!(to(&better)["items"]["data"][0]["price"]["id"], json!(better));
    assert_eq!(period(&fake, &id), before);
    told(&fake);
    // another interval starts a new period
    assert_eq!(to(&yearly)["billing_cycle_anchor"], now);
    assert_eq!(period(&fake, &id), (now, unix("2027-11-21T12:00:00Z")));
    assert_eq!(told(&fake), [&["customer.subscription.updated"], &PAID[..]].concat());
    // two intervals have two periods
    fake.post(&path, &[("items[0][price]", &price)]);
    let both = subscription(&fake, &id);
    let ends: Vec<_> =
        both["items"]["data"].as_array().unwrap().iter().map(|it| &it["current_period_end"]).collect();
    assert_eq!(ends, [&json!(unix("2027-11-21T12:00:00Z")), &json!(unix("2026-12-21T12:00:00Z"))]);
    fake.advance(DAY);
    assert_eq!(fake.post(&path, &[("billing_cycle_anchor", "now")])["billing_cycle_anchor"], now + 86_400);
    let paused = fake.post(&path, &[("pause_collection[behavior]", "keep_as_draft")]);
    assert_eq!(paused["pause_collection"]["behavior"], "keep_as_draft");
    assert_eq!(fake.post(&path, &[("pause_collection", "")])["pause_collection"], Value::Null);
}

#[tokio::test]
async fn invoices_contain_usage() {
    let caller = Caller::start().await;
    let meter = caller.fake.meter("calls");
    let (customer, price) = (caller.fake.customer(&[]), caller.fake.metered_price(&meter, "month"));
    let id = caller.fake.subscribe(&customer, &price, &[]);
    assert_eq!(subscription(&caller.fake, &id)["items"]["data"][0]["quantity"], Value::Null);
    let sent =
        [("event_name", "calls"), ("payload[stripe_customer_id]", &customer), ("payload[value]", "250")];
    assert_eq!(caller.post("/v1/billing/meter_events", &sent).await.status, 200);
    let preview = caller.post("/v1/invoices/create_preview", &[("subscription", &id)]).await.body;
    assert_eq!(
        (&preview["amount_due"], &preview["status"], &preview["id"]),
        (&json!(250), &json!("draft"), &Value::Null)
    );
    caller.post(&format!("/v1/subscriptions/{id}"), &[("cancel_at_period_end", "true")]).await;
    caller.fake.set_clock(period(&caller.fake, &id).1 + 3600);
    assert_eq!(subscription(&caller.fake, &id)["status"], "canceled");
    let invoices = caller.get(&format!("/v1/invoices?subscription={id}")).await.body;
    assert_eq!(
        (&invoices["data"][0]["amount_paid"], &invoices["data"][1]["amount_paid"]),
        (&json!(250), &json!(0))
    );
}

#[tokio::test]
async fn a_checkout_links_customer_subscription_and_reference() {
    let (fake, _, price) = setup().await;
    let sent = [
        ("mode", "subscription"),
        ("client_reference_id", "user_42"),
        ("line_items[0][price]", price.as_str()),
        ("line_items[0][quantity]", "1"),
        ("subscription_data[metadata][subject]", "user_42"),
        ("success_url", "https://app.example/ok"),
        ("customer_email", "a@example.org"),
    ];
    let open = fake.post("/v1/checkout/sessions", &sent);
    fake.complete_checkout(open["id"].as_str().unwrap());
    let happened = fake.take_webhooks();
    let kinds: Vec<_> = happened.iter().map(|webhook| webhook.kind.as_str()).collect();
    let expected =
        [&["customer.created", "customer.subscription.created"], &PAID[..], &["checkout.session.completed"]];
    assert_eq!(kinds, expected.concat());
    let completed: Value = serde_json::from_str(&happened[5].body).unwrap();
    let session = &completed["data"]["object"];
    assert_eq!(
        (&session["client_reference_id"], &session["status"]),
        (&json!("user_42"), &json!("complete"))
    );
    let made = subscription(&fake, session["subscription"].as_str().unwrap());
    assert_eq!((&made["customer"], &made["metadata"]["subject"]), (&session["customer"], &json!("user_42")));
    assert_eq!(fake.get(&format!("/v1/checkout/sessions/{}", session["id"].as_str().unwrap())), *session);

    // a request to the session's URL completes the session
    let open = fake.post("/v1/checkout/sessions", &sent[..4]);
    let answer = reqwest::get(open["url"].as_str().unwrap()).await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(told(&fake).last().unwrap(), "checkout.session.completed");
}

#[tokio::test]
async fn objects_are_stored_listed_and_validated() {
    let caller = Caller::start().await;
    let (fake, customer) = (&caller.fake, caller.fake.customer(&[("email", "a@example.org")]));
    let price = fake.price("pro", "month");
    let id = fake.subscribe(&customer, &price, &[]);
    told(fake);
    for (path, sent) in [
        ("/v1/customers", vec![("nickname", "x")]),
        ("/v1/prices", vec![("currency", "usd"), ("product_data[name]", "x")]),
        (
            "/v1/prices",
            vec![
                ("currency", "usd"),
                ("unit_amount", "1"),
                ("recurring[interval]", "month"),
                ("recurring[usage_type]", "metered"),
                ("product_data[name]", "x"),
            ],
        ),
        ("/v1/subscriptions", vec![("customer", customer.as_str())]),
        (
            "/v1/subscriptions",
            vec![("customer", customer.as_str()), ("items[0][price]", &price), ("coupon", "x")],
        ),
        ("/v1/checkout/sessions", vec![("mode", "payment")]),
    ] {
        assert_eq!(caller.post(path, &sent).await.status, 400, "{path}");
    }
    let unknown = [("customer", "cus_none"), ("items[0][price]", &price)];
    assert_eq!(caller.post("/v1/subscriptions", &unknown).await.code(), "resource_missing");
    assert_eq!(caller.get("/v1/subscriptions/sub_none").await.status, 404);
    assert_eq!(told(fake), Vec::<String>::new());

    assert_eq!(caller.get("/v1/customers?email=a@example.org").await.body["data"][0]["id"], customer);
    assert_eq!(caller.get(&format!("/v1/subscriptions?price={price}")).await.body["data"][0]["id"], id);
    assert_eq!(fake.get(&format!("/v1/prices/{price}"))["recurring"]["interval"], "month");
    let product = fake.get(&format!("/v1/prices/{price}"))["product"].as_str().unwrap().to_owned();
    fake.post(&format!("/v1/products/{product}"), &[("name", "Pro")]);
    fake.post(&format!("/v1/prices/{price}"), &[("active", "false")]);
    assert_eq!(fake.get("/v1/products?active=true")["data"][0]["name"], "Pro");
    assert_eq!(fake.get("/v1/prices?active=true")["data"], json!([]));
    assert_eq!(told(fake), ["product.updated", "price.updated"]);

    // the deletion of a customer ends its subscriptions
    let delete = caller.request(reqwest::Method::DELETE, &format!("/v1/customers/{customer}"));
    assert_eq!(caller.try_send(delete).await.unwrap().body["deleted"], true);
    assert_eq!(told(fake), ["customer.subscription.deleted", "customer.deleted"]);
    assert_eq!(fake.get(&format!("/v1/customers/{customer}"))["deleted"], true);
    assert_eq!(caller.get(&format!("/v1/subscriptions/{id}")).await.body["status"], "canceled");
}

#[tokio::test]
async fn control_routes_move_time_and_payments() {
    let (fake, customer, price) = setup().await;
    fake.subscribe(&customer, &price, &[]);
    let client = reqwest::Client::new();
    let send = async |path: &str, body: &'static str| -> Value {
        let request = client.post(format!("{}/fake/{path}", fake.url()));
        let request = request.header("content-type", "application/x-www-form-urlencoded").body(body);
        request.send().await.unwrap().json().await.unwrap()
    };
    send(&format!("customers/{customer}/payments"), "outcome=fail").await;
    assert_eq!(send("advance", "days=31").await["now"], noon() + 31 * 86_400);
    assert!(told(&fake).contains(&"invoice.payment_failed".to_owned()));
    assert_eq!(send("webhooks", "silent=true").await, json!({"silent": true}));
    assert_eq!(send("faults", "endpoint=any&fault=unauthorized&count=1").await, json!({"next": 1}));
    let meters =
        || client.get(format!("{}/v1/billing/meters", fake.url())).bearer_auth("sk_test_fake").send();
    assert_eq!(meters().await.unwrap().status(), 401);
    assert_eq!(meters().await.unwrap().status(), 200);
    assert_eq!(send("faults", "fault=none").await["error"]["param"], "fault");
    let totals = reqwest::get(format!("{}/fake/totals", fake.url())).await.unwrap();
    assert_eq!(totals.json::<Value>().await.unwrap(), json!({"data": []}));
}
