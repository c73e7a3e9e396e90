//! Exports with an unknown outcome, or refused after delivery, are neither billed twice nor forgotten.

use std::time::Duration;

use metergate::providers::Failure;
use metergate_domain::base::Environment;
use serde_json::{Value, json};

use super::{METER, Pair, meters, ran};
use crate::support::service::NOON;
use crate::support::stripe_fake::{Endpoint, Fault, Options, Plan, unix};

async fn with_one_event() -> Pair {
    let pair = Pair::with(Options::default(), &json!({"meters": [meters(&json!(1))[0]]})).await;
    pair.map("acme", "cus_acme").await;
    pair.track("a", "acme", json!(7), NOON).await;
    pair
}

impl Pair {
    async fn mark_failed(&self, identifier: &str) -> u64 {
        let failure = Failure {
            code: "meter_event_customer_not_found".to_owned(),
            message: "no such customer".to_owned(),
        };
        let failed = [(identifier.to_owned(), failure)];
        self.service.engine.mark_exports_failed(Environment::Test, &failed).await.unwrap()
    }

    async fn retry_first(&self) -> Value {
        let id = self.exports().await[0]["id"].as_str().unwrap().to_owned();
        self.service.post(&format!("/v1/exports/{id}/retry"), &Value::Null).await.json()
    }

    async fn identifier(&self) -> String {
        self.exports().await[0]["identifier"].as_str().unwrap().to_owned()
    }
}

/// The report arrives before the delivery is confirmed. Under the same identifier, Stripe would answer
/// that the event exists, and would never count it.
#[tokio::test(flavor = "multi_thread")]
async fn a_report_about_a_pending_export_changes_its_identifier() {
    let pair = with_one_event().await;
    pair.stripe.fail_next(Endpoint::MeterEvents, Fault::ResetAfter, 1);
    pair.stripe.fail_next(Endpoint::MeterEvents, Fault::ResetBefore, 1_000);
    assert_eq!(pair.run().await, ran(1, 0, 0, 1));
    let identifier = pair.identifier().await;
    assert_eq!(pair.mark_failed(&identifier).await, 1);
    pair.stripe.set_faults(Plan::seeded(1));
    assert_eq!(pair.retry_first().await["status"], "pending");
    assert_ne!(pair.identifier().await, identifier);
    assert_eq!(pair.run().await.delivered, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_that_overtakes_the_answer_keeps_the_export_dead() {
    let pair = with_one_event().await;
    pair.stripe.fail_next(Endpoint::MeterEvents, Fault::Unauthorized, 1);
    pair.run().await;
    let identifier = pair.identifier().await;
    pair.stripe.fail_next(Endpoint::MeterEvents, Fault::Slow(Duration::from_secs(1)), 1);
    let mark = async {
        while pair.stripe.events().is_empty() {
            tokio::task::yield_now().await;
        }
        assert_eq!(pair.mark_failed(&identifier).await, 1);
    };
    tokio::join!(pair.run(), mark);
    assert_eq!(pair.exports().await[0]["status"], "dead");
}

/// Stripe took the export without an answer, and then refused it for another reason. The export must
/// stay in doubt.
#[tokio::test(flavor = "multi_thread")]
async fn looks_up_exports_that_died_in_doubt_before_a_retry() {
    for taken in [true, false] {
        let pair = with_one_event().await;
        let fault = if taken { Fault::ResetAfter } else { Fault::ResetBefore };
        pair.stripe.fail_next(Endpoint::MeterEvents, fault, 1);
        pair.stripe.fail_next(Endpoint::MeterEvents, Fault::ResetBefore, 1_000);
        assert_eq!(pair.run().await, ran(1, 0, 0, 1));
        pair.stripe.set_faults(Plan::seeded(1));
        let meters = pair.stripe.get("/v1/billing/meters");
        let meter =
            meters["data"].as_array().unwrap().iter().find(|meter| meter["event_name"] == METER).unwrap();
        let path = format!("/v1/billing/meters/{}", meter["id"].as_str().unwrap());
        pair.stripe.post(&format!("{path}/deactivate"), &[]);
        assert_eq!(pair.run().await, ran(0, 0, 1, 0));
        pair.stripe.post(&format!("{path}/reactivate"), &[]);
        pair.set_clock("2026-11-21T18:00:00Z");
        pair.retry_first().await;
        let done = pair.run().await;
        assert_eq!((done.dead, done.pending), (0, 0));
        assert_eq!(pair.all_of("cus_acme"), 7, "taken: {taken}");
    }
}

/// A change of the catalog does not show the outcome; an operator who retries by id knows it.
#[tokio::test(flavor = "multi_thread")]
async fn catalog_changes_do_not_retry_exports_with_unknown_delivery() {
    let pair = with_one_event().await;
    pair.stripe.fail_next(Endpoint::MeterEvents, Fault::ResetAfter, 1);
    pair.stripe.fail_next(Endpoint::MeterEvents, Fault::ResetBefore, 1_000);
    pair.run().await;
    pair.stripe.set_faults(Plan::seeded(1));
    // another system reports for the same customer
    let timestamp = unix(NOON).to_string();
    pair.stripe.post(
        "/v1/billing/meter_events",
        &[
            ("event_name", METER),
            ("payload[stripe_customer_id]", "cus_acme"),
            ("payload[value]", "3"),
            ("timestamp", &timestamp),
        ],
    );
    pair.set_clock("2026-11-21T18:00:00Z");
    assert_eq!(pair.run().await, ran(0, 0, 1, 0));
    let mut meter = meters(&json!(1))[0].clone();
    meter["stripe"]["event_name"] = json!("requests");
    pair.service.apply(json!({"meters": [meter]})).await;
    assert_eq!(pair.run().await, ran(0, 0, 1, 0));
    assert_eq!(pair.stripe.total("cus_acme", "requests", 0, i64::MAX), 0);
    pair.retry_first().await;
    assert_eq!(pair.run().await, ran(0, 1, 0, 0));
}

/// Stripe no longer accepts the original time, so the export moves to the present period, with a mark.
#[tokio::test(flavor = "multi_thread")]
async fn carries_exports_that_were_dead_for_too_long() {
    let mut meter = meters(&json!(1))[0].clone();
    meter["stripe"]["event_name"] = json!("misspelt");
    let pair = Pair::with(Options::default(), &json!({"meters": [meter]})).await;
    pair.map("acme", "cus_acme").await;
    pair.track("a", "acme", json!(7), NOON).await;
    assert_eq!(pair.run().await, ran(1, 0, 1, 0));
    pair.set_clock("2027-01-20T12:00:00.5Z");
    pair.service.apply(json!({"meters": [meters(&json!(1))[0]]})).await;
    assert_eq!(pair.run().await, ran(0, 1, 0, 0));
    let export = pair.exports().await[0].clone();
    assert_eq!(export["timestamp"], "2027-01-20T12:00:00Z");
    assert_eq!(export["carried_from"], NOON);
    assert_eq!(pair.all_of("cus_acme"), 7);
}

/// Stripe carried out the first cancelation without an answer; a day later it refuses a second one.
#[tokio::test(flavor = "multi_thread")]
async fn looks_up_a_cancelation_with_a_lost_answer() {
    for (fault, total) in [(Fault::ResetAfter, 50), (Fault::ResetBefore, 50)] {
        let pair = with_one_event().await;
        assert_eq!(pair.run().await, ran(1, 1, 0, 0));
        pair.set_clock("2026-11-21T10:00:00Z");
        pair.void("a").await;
        pair.stripe.fail_next(Endpoint::Adjustments, fault, 1);
        pair.stripe.fail_next(Endpoint::Adjustments, Fault::ResetBefore, 1_000);
        assert_eq!(pair.run().await, ran(0, 0, 0, 1));
        pair.stripe.set_faults(Plan::seeded(1));
        pair.set_clock("2026-11-22T10:00:00Z");
        assert_eq!(pair.run().await, ran(0, 0, 0, 0));
        pair.track("b", "acme", json!(50), "2026-11-22T10:00:00Z").await;
        pair.run().await;
        assert_eq!(pair.all_of("cus_acme"), total, "{fault:?}");
    }
}

/// Each look-up may time out, so an unavailable account must not be asked thousands of times.
#[tokio::test(flavor = "multi_thread")]
async fn delivery_lookups_stop_when_the_provider_does_not_answer() {
    let pair = Pair::with(Options::default(), &json!({"meters": [meters(&json!(1))[0]]})).await;
    for n in 0..40 {
        pair.map(&format!("s{n}"), &format!("cus_{n}")).await;
        pair.track(&format!("e{n}"), &format!("s{n}"), json!(1), NOON).await;
    }
    pair.stripe.fail_next(Endpoint::Any, Fault::ResetAfter, 100_000);
    pair.run().await;
    pair.set_clock("2026-11-21T18:00:00Z");
    pair.service.engine.export_ended(Environment::Test).await.unwrap();
    let asked = pair.stripe.calls(Endpoint::Summaries) + pair.stripe.calls(Endpoint::OtherReads);
    assert!(asked < 10, "{asked}");
    pair.stripe.set_faults(Plan::seeded(1));
    let done = pair.run().await;
    assert_eq!((done.delivered, done.dead, done.pending), (0, 0, 0));
    assert_eq!(pair.stripe.events().len(), 40);
}

/// A proxy may answer in Stripe's place; such an answer is not Stripe's.
#[tokio::test(flavor = "multi_thread")]
async fn answers_of_proxies_do_not_make_exports_dead() {
    for status in [302, 400, 403, 404, 408] {
        let pair = with_one_event().await;
        let code = axum::http::StatusCode::from_u16(status).unwrap();
        let router = axum::Router::new().fallback(move || async move { (code, "<html>not here</html>") });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let serving = tokio::spawn(async move { axum::serve(listener, router).await });
        let astray = super::another_at(url, &pair.service.url).await;
        let done = astray.engine.run_exports(Environment::Test).await.unwrap();
        assert_eq!((done.delivered, done.dead, done.pending), (0, 0, 1), "{status}");
        serving.abort();
        assert_eq!(pair.run().await, ran(0, 1, 0, 0));
    }
}
