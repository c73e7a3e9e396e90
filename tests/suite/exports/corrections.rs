//! Voids and negative usage: taken back while Stripe allows it, carried after that, never sent.

use serde_json::json;

use super::Pair;
use crate::support::stripe_fake::{Endpoint, Fault};

async fn exported(values: &[i64]) -> Pair {
    let pair = Pair::start().await;
    pair.map("acme", "cus_acme").await;
    for (n, value) in values.iter().enumerate() {
        pair.track(&format!("e{n}"), "acme", json!(value), "2026-11-20T11:30:00Z").await;
    }
    pair.run().await;
    pair
}

#[tokio::test(flavor = "multi_thread")]
async fn a_void_within_a_day_cancels_and_sends_the_rest() {
    let pair = exported(&[100, 20]).await;
    pair.void("e0").await;
    let done = pair.run().await;
    assert_eq!((done.dead, done.pending), (0, 0));
    assert_eq!(pair.all_of("cus_acme"), 20);
    assert_eq!(pair.stripe.total("cus_acme", "requests", 0, i64::MAX), 1);
    let statuses: Vec<_> = pair.exports().await.iter().map(|export| export["status"].clone()).collect();
    assert_eq!(statuses.iter().filter(|status| **status == "canceled").count(), 2, "{statuses:?}");
    pair.void("e1").await;
    pair.run().await;
    assert_eq!(pair.all_of("cus_acme"), 0);
    pair.service.verify().await;
    pair.assert_lawful();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_void_after_that_is_carried_against_usage_to_come() {
    let pair = exported(&[100, 20]).await;
    pair.set_clock("2026-11-22T12:00:00Z");
    pair.void("e0").await;
    let done = pair.run().await;
    assert_eq!((done.created, done.dead, done.pending), (0, 0, 0));
    assert_eq!(pair.all_of("cus_acme"), 120);
    pair.track("later", "acme", json!(30), "2026-11-22T12:00:00Z").await;
    pair.run().await;
    assert_eq!(pair.all_of("cus_acme"), 120);
    pair.track("more", "acme", json!(75), "2026-11-22T12:00:00Z").await;
    pair.run().await;
    assert_eq!(pair.all_of("cus_acme"), 125);
    pair.assert_lawful();
}

#[tokio::test(flavor = "multi_thread")]
async fn negative_usage_is_a_correction_too() {
    let pair = exported(&[100]).await;
    pair.track("less", "acme", json!(-30), "2026-11-20T11:40:00Z").await;
    pair.run().await;
    assert_eq!(pair.all_of("cus_acme"), 70);
    // of an hour without anything to take back
    pair.track("much_less", "acme", json!(-50), "2026-11-20T09:40:00Z").await;
    pair.run().await;
    assert_eq!(pair.all_of("cus_acme"), 70);
    pair.track("more", "acme", json!(60), "2026-11-20T12:00:00Z").await;
    pair.run().await;
    assert_eq!(pair.all_of("cus_acme"), 80);
    pair.assert_lawful();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_sent_is_withdrawn_and_what_may_be_there_is_taken_back_first() {
    // nobody has sent it
    let pair = Pair::start().await;
    pair.map("acme", "cus_acme").await;
    pair.stripe.fail_next(Endpoint::MeterEvents, Fault::Unauthorized, 1);
    pair.track("a", "acme", json!(100), "2026-11-20T11:30:00Z").await;
    pair.run().await;
    pair.track("b", "acme", json!(-60), "2026-11-20T11:30:00Z").await;
    pair.run().await;
    assert_eq!(pair.all_of("cus_acme"), 40);
    pair.assert_lawful();

    // it was taken, and the answers got lost; so does the first of the cancelation
    let pair = Pair::start().await;
    pair.map("acme", "cus_acme").await;
    pair.stripe.fail_next(Endpoint::MeterEvents, Fault::ResetAfter, 1_000);
    pair.track("a", "acme", json!(100), "2026-11-20T11:30:00Z").await;
    assert_eq!(pair.run().await.delivered, 0);
    pair.void("a").await;
    pair.stripe.set_faults(crate::support::stripe_fake::Plan::seeded(7));
    pair.stripe.fail_next(Endpoint::Adjustments, Fault::ErrorBefore, 1);
    pair.stripe.fail_next(Endpoint::Adjustments, Fault::ResetAfter, 1);
    let done = pair.run().await;
    assert_eq!((done.dead, done.pending), (0, 0));
    assert_eq!(pair.all_of("cus_acme"), 0);
    pair.assert_lawful();
}
