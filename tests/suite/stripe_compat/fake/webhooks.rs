//! Webhooks and their signatures, thin events, and delivery to a receiver.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use serde_json::{Value, json};

use super::{Caller, noon};
use crate::support::stripe_fake::{Options, StripeFake, Webhook, shuffled, sign};

type Received = Arc<Mutex<Vec<(String, String)>>>;

/// Starts a receiver that refuses the first `refusals` webhooks and keeps the signature and body of the
/// others.
async fn receiver(refusals: usize) -> (String, Received) {
    let received = Received::default();
    let (taking, left) = (Arc::clone(&received), Arc::new(Mutex::new(refusals)));
    let take = post(async move |headers: HeaderMap, body: String| {
        let mut left = left.lock().unwrap();
        if *left > 0 {
            *left -= 1;
            return StatusCode::SERVICE_UNAVAILABLE;
        }
        let signature = headers["stripe-signature"].to_str().unwrap().to_owned();
        taking.lock().unwrap().push((signature, body));
        StatusCode::OK
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/webhooks", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, Router::new().route("/webhooks", take)).await });
    (url, received)
}

fn kinds(webhooks: &[Webhook]) -> Vec<&str> {
    webhooks.iter().map(|webhook| webhook.kind.as_str()).collect()
}

async fn wait_for(received: &Received, count: usize) {
    for _ in 0..200 {
        if received.lock().unwrap().len() >= count {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{:?}", received.lock().unwrap());
}

#[test]
fn signatures_have_stripes_form() {
    let body = r#"{"id":"evt_1","object":"event"}"#;
    let v1 = "0c8670ed117751cc551a20e35839447075c42800ea3cf3e8a2fbda99cd1e6edd";
    assert_eq!(sign(&["whsec_test_secret"], 1_700_000_000, body), format!("t=1700000000,v1={v1}"));
    let rolled = sign(&["whsec_new", "whsec_test_secret"], 1_700_000_000, body);
    assert!(rolled.ends_with(&format!(",v1={v1}")) && rolled.matches("v1=").count() == 2, "{rolled}");
}

#[tokio::test]
async fn an_event_contains_the_object_and_its_previous_attributes() {
    let fake = StripeFake::start(Options { livemode: true, ..Options::default() }).await;
    let customer = fake.customer(&[("name", "Ada"), ("metadata[subject]", "user_42")]);
    fake.post(&format!("/v1/customers/{customer}"), &[("name", "Ada L."), ("metadata[subject]", "")]);
    let taken = fake.take_webhooks();
    assert_eq!(kinds(&taken), ["customer.created", "customer.updated"]);
    let updated: Value = serde_json::from_str(&taken[1].body).unwrap();
    assert_eq!((&updated["object"], &updated["livemode"]), (&json!("event"), &json!(true)));
    assert_eq!((&updated["created"], &updated["api_version"]), (&json!(noon()), &json!("2026-07-29.dahlia")));
    assert_eq!(updated["data"]["object"]["name"], "Ada L.");
    let before = json!({"name": "Ada", "metadata": {"subject": "user_42"}});
    assert_eq!(updated["data"]["previous_attributes"], before);
    assert_eq!(fake.signature(&taken[1].body), sign(&["whsec_fake"], noon(), &taken[1].body));
    fake.set_webhook_secrets(&["whsec_new", "whsec_fake"]);
    assert_eq!(fake.signature("x"), sign(&["whsec_new", "whsec_fake"], noon(), "x"));
    // taken webhooks are not returned again, but stay listed
    assert_eq!(fake.take_webhooks(), []);
    assert_eq!(fake.webhooks(), taken);
}

#[tokio::test]
async fn a_test_delivers_in_any_order_and_any_number_of_times() {
    let fake = StripeFake::start(Options::default()).await;
    for name in ["a", "b", "c"] {
        fake.customer(&[("name", name)]);
    }
    let taken = fake.take_webhooks();
    let mixed = shuffled(&taken, 3, 1);
    assert_eq!(mixed, shuffled(&taken, 3, 1));
    assert_ne!(mixed, shuffled(&taken, 3, 2));
    let (url, received) = receiver(1).await;
    let statuses = fake.deliver(&url, &mixed).await;
    assert_eq!((statuses[0], &statuses[1..]), (503, &[200; 8][..]));
    assert_eq!(received.lock().unwrap()[0], (fake.signature(&mixed[1].body), mixed[1].body.clone()));
    assert_eq!(fake.deliver("http://127.0.0.1:1/", &taken[..1]).await, [0]);
}

#[tokio::test]
async fn automatic_delivery_is_in_order_and_retried() {
    let (url, received) = receiver(1).await;
    let fake = StripeFake::start(Options { webhook_url: Some(url), ..Options::default() }).await;
    fake.set_silent(true);
    fake.customer(&[("name", "a")]);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(received.lock().unwrap().len(), 0);
    fake.advance(Duration::from_hours(72));
    fake.set_silent(false);
    wait_for(&received, 1).await;
    let (signature, body) = received.lock().unwrap()[0].clone();
    // each delivery has a new signature
    assert_eq!(signature, sign(&["whsec_fake"], noon() + 72 * 3600, &body));
    assert_eq!(body, fake.webhooks()[0].body);
}

#[tokio::test]
async fn thin_events_refer_to_their_full_event() {
    let caller = Caller::with(Options { unknown_customers_reported: true, ..Options::default() }).await;
    assert_eq!(caller.event("a", "5").await.status, 200);
    assert_eq!(caller.total(), 0);
    let known = caller.fake.customer(&[]);
    let mut sent = super::fields("b", "7");
    sent[1].1 = &known;
    assert_eq!(caller.post("/v1/billing/meter_events", &sent).await.status, 200);
    assert_eq!(caller.fake.total(&known, "tokens", 0, i64::MAX), 7);
    caller.fake.report_errors("tokens", "meter_event_invalid_value", &["b"]);
    assert_eq!(caller.fake.total(&known, "tokens", 0, i64::MAX), 0);
    caller.fake.report_no_meter(&["c", "d"]);

    let taken: Vec<_> =
        caller.fake.take_webhooks().into_iter().filter(|it| it.kind.starts_with("v1.")).collect();
    let report = "v1.billing.meter.error_report_triggered";
    assert_eq!(kinds(&taken), [report, report, "v1.billing.meter.no_meter_found"]);
    let thin: Value = serde_json::from_str(&taken[0].body).unwrap();
    assert_eq!((&thin["object"], &thin["data"]), (&json!("v2.core.event"), &Value::Null));
    assert_eq!(thin["related_object"]["type"], "billing.meter");
    for (number, code, identifiers) in [
        (0, "meter_event_customer_not_found", &["a"][..]),
        (1, "meter_event_invalid_value", &["b"]),
        (2, "no_meter", &["c", "d"]),
    ] {
        let whole = caller.get(&format!("/v2/core/events/{}", taken[number].id)).await.body;
        let kind = &whole["data"]["reason"]["error_types"][0];
        assert_eq!((&kind["code"], &kind["error_count"]), (&json!(code), &json!(identifiers.len())));
        let samples = kind["sample_errors"].as_array().unwrap().iter();
        let named: Vec<_> = samples.map(|sample| sample["request"]["identifier"].as_str().unwrap()).collect();
        assert_eq!(named, identifiers);
    }
    assert_eq!(caller.get("/v2/core/events/evt_none").await.status, 404);
    let path = format!("{}/v2/core/events/{}", caller.fake.url(), taken[0].id);
    let without_version = caller.client.get(path).bearer_auth("sk_test_fake");
    assert_eq!(caller.try_send(without_version).await.unwrap().status, 400);
}

#[tokio::test]
async fn events_can_be_listed_for_30_days() {
    let caller = Caller::start().await;
    let customer = caller.fake.customer(&[("name", "a")]);
    caller.fake.advance(Duration::from_hours(24));
    caller.fake.post(&format!("/v1/customers/{customer}"), &[("name", "b")]);
    caller.fake.report_no_meter(&["x"]);
    let list = async |query: &str| -> Vec<String> {
        let rows = caller.get(&format!("/v1/events?{query}")).await.body["data"].clone();
        rows.as_array().unwrap().iter().map(|row| row["type"].as_str().unwrap().to_owned()).collect()
    };
    let all = ["customer.updated", "customer.created", "billing.meter.created"];
    assert_eq!(list("").await, all);
    assert_eq!(list(&format!("created[gt]={}", noon())).await, all[..1]);
    assert_eq!(list(&format!("created[lte]={}", noon())).await, all[1..]);
    assert_eq!(list("type=customer.created").await, all[1..2]);
    let first = &caller.fake.webhooks()[0];
    assert_eq!(caller.get(&format!("/v1/events/{}", first.id)).await.body["type"], "billing.meter.created");
    caller.fake.advance(Duration::from_hours(30 * 24 - 1));
    assert_eq!(list("").await, all[..1]);
    assert_eq!(caller.get(&format!("/v1/events/{}", first.id)).await.status, 404);
}
