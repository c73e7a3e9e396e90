//! Voids and negative usage: canceled while Stripe allows it, carried after that, never sent as
//! negative values.

use serde_json::json;

use super::{METER, Pair};
use crate::support::stripe_fake::{Endpoint, Fault, Options};

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
async fn a_void_within_a_day_cancels_and_sends_the_remaining_usage() {
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
async fn a_later_void_is_subtracted_from_future_usage() {
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
async fn negative_usage_is_exported_as_a_correction() {
    let pair = exported(&[100]).await;
    pair.track("less", "acme", json!(-30), "2026-11-20T11:40:00Z").await;
    pair.run().await;
    assert_eq!(pair.all_of("cus_acme"), 70);
    // in an hour with no export that could be canceled
    pair.track("much_less", "acme", json!(-50), "2026-11-20T09:40:00Z").await;
    pair.run().await;
    assert_eq!(pair.all_of("cus_acme"), 70);
    pair.track("more", "acme", json!(60), "2026-11-20T12:00:00Z").await;
    pair.run().await;
    assert_eq!(pair.all_of("cus_acme"), 80);
    pair.assert_lawful();
}

#[tokio::test(flavor = "multi_thread")]
async fn withdraws_unsent_exports_and_cancels_those_that_may_be_taken() {
    // no call took the export
    let pair = Pair::start().await;
    pair.map("acme", "cus_acme").await;
    pair.stripe.fail_next(Endpoint::MeterEvents, Fault::Unauthorized, 1);
    pair.track("a", "acme", json!(100), "2026-11-20T11:30:00Z").await;
    pair.run().await;
    pair.track("b", "acme", json!(-60), "2026-11-20T11:30:00Z").await;
    pair.run().await;
    assert_eq!(pair.all_of("cus_acme"), 40);
    pair.assert_lawful();

    // the export was taken but its answers were lost, as is the first answer to the cancelation
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

#[tokio::test(flavor = "multi_thread")]
async fn withdraws_exports_that_stripe_refused() {
    let meter = |event_name: &str| {
        json!({"meters": [{"key": METER, "event_name": METER, "aggregation": "sum", "value_property": "value",
                           "stripe": {"event_name": event_name}}]})
    };
    let pair = Pair::with(Options::default(), &meter("misspelt")).await;
    pair.map("acme", "cus_acme").await;
    pair.track("a", "acme", json!(100), "2026-11-20T11:30:00Z").await;
    assert_eq!(pair.run().await.dead, 1);
    pair.service.apply(meter(METER)).await;
    pair.void("a").await;
    pair.track("b", "acme", json!(7), "2026-11-20T10:30:00Z").await;
    let done = pair.run().await;
    assert_eq!((done.dead, done.pending), (0, 0));
    assert_eq!(pair.all_of("cus_acme"), 7);
    pair.assert_lawful();
}
