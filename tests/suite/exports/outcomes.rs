//! The effect of each Stripe answer on an export.

use std::time::Duration;

use serde_json::{Value, json};

use super::{METER, Pair, meters, ran};
use crate::support::service::NOON;
use crate::support::stripe_fake::{Endpoint, Fault, Options, unix};

async fn with_one_event() -> Pair {
    let pair = Pair::with(Options::default(), &json!({"meters": [meters(&json!(1))[0]]})).await;
    pair.map("acme", "cus_acme").await;
    pair.track("a", "acme", json!(7), NOON).await;
    pair
}

#[tokio::test(flavor = "multi_thread")]
async fn transient_failures_are_retried_and_count_once() {
    let faults = [
        Fault::ResetBefore,
        Fault::ResetAfter,
        Fault::ErrorBefore,
        Fault::ErrorBeforeKept,
        Fault::ErrorAfter,
        Fault::RateLimited("endpoint-rate"),
        Fault::LockTimeout,
    ];
    for fault in faults {
        let pair = with_one_event().await;
        pair.stripe.fail_next(Endpoint::MeterEvents, fault, 2);
        assert_eq!(pair.run().await, ran(1, 1, 0, 0), "{fault:?}");
        let export = &pair.exports().await[0];
        assert_eq!(export["status"], "delivered", "{fault:?}: {export}");
        assert_eq!(pair.all_of("cus_acme"), 7, "{fault:?}");
        pair.assert_lawful();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn persistent_failures_stay_pending_with_their_error() {
    let pair = with_one_event().await;
    pair.stripe.fail_next(Endpoint::MeterEvents, Fault::ErrorBefore, 1_000);
    assert_eq!(pair.run().await, ran(1, 0, 0, 1));
    let export = pair.exports().await[0].clone();
    assert_eq!(export["status"], "pending");
    assert!(export["attempts"].as_i64().unwrap() > 1);
    assert!(!export["last_error"].is_null());
    // the interval waits for the pause; a requested run does not
    pair.stripe.set_faults(crate::support::stripe_fake::Plan::seeded(1));
    let waited = pair
        .service
        .engine
        .export_ended(metergate_domain::base::environment::Environment::Test)
        .await
        .unwrap();
    assert_eq!(waited.delivered, 0);
    assert_eq!(pair.run().await, ran(0, 1, 0, 0));
    let again = pair.exports().await[0].clone();
    assert_eq!(again["identifier"], export["identifier"]);
    assert_eq!(pair.all_of("cus_acme"), 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_credentials_stop_exports_and_count_no_attempts() {
    let pair = with_one_event().await;
    pair.map("other", "cus_other").await;
    pair.track("b", "other", json!(1), NOON).await;
    pair.stripe.fail_next(Endpoint::MeterEvents, Fault::Unauthorized, 1_000);
    assert_eq!(pair.run().await, ran(2, 0, 0, 2));
    for export in pair.exports().await {
        assert_eq!((&export["status"], &export["attempts"]), (&json!("pending"), &json!(0)), "{export}");
    }
    pair.stripe.set_faults(crate::support::stripe_fake::Plan::seeded(1));
    assert_eq!(pair.run().await, ran(0, 2, 0, 0));
    assert_eq!(pair.all_of("cus_acme"), 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_error_makes_exports_dead_until_it_is_corrected() {
    let meter = |event_name: &str| {
        json!({"key": METER, "event_name": METER, "aggregation": "sum", "value_property": "value",
               "stripe": {"event_name": event_name}})
    };
    let pair = Pair::with(Options::default(), &json!({"meters": [meter("misspelt")]})).await;
    pair.map("acme", "cus_acme").await;
    pair.track("a", "acme", json!(7), NOON).await;
    assert_eq!(pair.run().await, ran(1, 0, 1, 0));
    let export = pair.exports().await[0].clone();
    assert_eq!(export["status"], "dead");
    assert!(export["last_error"].as_str().unwrap().contains("no_meter"), "{export}");
    // the cause is still there
    let path = format!("/v1/exports/{}/retry", export["id"].as_str().unwrap());
    let retried = pair.service.post(&path, &Value::Null).await.json();
    assert_eq!(retried["status"], "pending");
    assert_eq!(pair.run().await, ran(0, 0, 1, 0));
    // a catalog with the right name revives it
    pair.service.apply(json!({"meters": [meter(METER)]})).await;
    assert_eq!(pair.run().await, ran(0, 1, 0, 0));
    assert_eq!(pair.all_of("cus_acme"), 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_time_makes_the_export_dead_and_a_future_one_delays_it() {
    let pair = with_one_event().await;
    pair.stripe.set_clock(unix("2026-11-20T11:00:00Z"));
    assert_eq!(pair.run().await, ran(1, 0, 0, 1));
    assert!(pair.exports().await[0]["last_error"].as_str().unwrap().contains("timestamp_in_future"));
    pair.stripe.set_clock(unix("2027-01-20T11:00:00Z"));
    assert_eq!(pair.run().await, ran(0, 0, 1, 0));
    assert!(pair.exports().await[0]["last_error"].as_str().unwrap().contains("timestamp_too_far_in_past"));
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_delivery_is_resolved_from_provider_summaries() {
    // taken without an answer, and not taken without an answer
    for (fault, taken) in [(Fault::ResetAfter, true), (Fault::ResetBefore, false)] {
        let pair = with_one_event().await;
        pair.stripe.fail_next(Endpoint::MeterEvents, fault, 1);
        // calls after the first do not reach Stripe
        pair.stripe.fail_next(Endpoint::MeterEvents, Fault::ResetBefore, 1_000);
        assert_eq!(pair.run().await, ran(1, 0, 0, 1));
        pair.stripe.set_faults(crate::support::stripe_fake::Plan::seeded(1));
        // Stripe has forgotten the identifier, so a repeated call would count twice
        pair.set_clock("2026-11-21T18:00:00Z");
        assert_eq!(pair.stripe.events().len(), usize::from(taken));
        let done = pair.run().await;
        assert_eq!((done.dead, done.pending), (0, 0), "{fault:?}");
        assert_eq!(pair.all_of("cus_acme"), 7, "{fault:?}");
        assert_eq!(pair.stripe.events().len(), 1);
        assert_eq!(pair.exports().await[0]["status"], "delivered");
        pair.assert_lawful();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn delivery_that_fits_no_summary_is_left_to_the_operator() {
    let pair = with_one_event().await;
    pair.stripe.fail_next(Endpoint::MeterEvents, Fault::ResetBefore, 1_000);
    pair.run().await;
    pair.stripe.set_faults(crate::support::stripe_fake::Plan::seeded(1));
    // another system reports for the same customer
    pair.report_elsewhere("cus_acme", 3).await;
    pair.set_clock("2026-11-21T18:00:00Z");
    assert_eq!(pair.run().await, ran(0, 0, 1, 0));
    assert!(pair.exports().await[0]["last_error"].as_str().unwrap().contains("fate_unknown"));
    assert_eq!(pair.all_of("cus_acme"), 3);
    // a change of the meter's address revives only exports that were certainly not taken
    let mut meter = meters(&json!(1))[0].clone();
    meter["stripe"]["scale"] = json!(2);
    pair.service.apply(json!({"meters": [meter]})).await;
    assert_eq!(pair.run().await, ran(0, 0, 1, 0));
    assert_eq!(pair.all_of("cus_acme"), 3);
    // an operator who has looked may retry
    let path = format!("/v1/exports/{}/retry", pair.exports().await[0]["id"].as_str().unwrap());
    pair.service.post(&path, &Value::Null).await;
    assert_eq!(pair.run().await, ran(0, 1, 0, 0));
    assert_eq!(pair.all_of("cus_acme"), 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn exports_refused_after_delivery_are_retried_with_a_new_identifier() {
    let pair = with_one_event().await;
    pair.run().await;
    let export = pair.exports().await[0].clone();
    let identifier = export["identifier"].as_str().unwrap().to_owned();
    let failure = metergate::providers::Failure {
        code: "meter_event_customer_not_found".to_owned(),
        message: "no such customer".to_owned(),
    };
    let marked = pair
        .service
        .engine
        .mark_exports_failed(
            metergate_domain::base::environment::Environment::Test,
            &[(identifier.clone(), failure)],
        )
        .await
        .unwrap();
    assert_eq!(marked, 1);
    let dead = pair.exports().await[0].clone();
    assert_eq!(dead["status"], "dead");
    assert!(dead["last_error"].as_str().unwrap().contains("meter_event_customer_not_found"));
    let path = format!("/v1/exports/{}/retry", export["id"].as_str().unwrap());
    pair.service.post(&path, &Value::Null).await;
    assert_eq!(pair.run().await.delivered, 1);
    assert_ne!(pair.exports().await[0]["identifier"], json!(identifier));
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_provider_answers_do_not_delay_other_exports() {
    let pair = Pair::with(
        Options { latency: Duration::from_millis(50), ..Options::default() },
        &json!({"meters": [meters(&json!(1))[0]]}),
    )
    .await;
    for n in 0..40 {
        pair.map(&format!("s{n}"), &format!("cus_{n}")).await;
        for hour in 10..13 {
            pair.track(
                &format!("e{n}-{hour}"),
                &format!("s{n}"),
                json!(n),
                &format!("2026-11-20T{hour}:00:00Z"),
            )
            .await;
        }
    }
    let done = pair.run().await;
    // no export for a customer with usage 0
    assert_eq!((done.delivered, done.pending), (39 * 3, 0));
    for n in 0..40 {
        assert_eq!(pair.all_of(&format!("cus_{n}")), n * 3);
        assert!(pair.stripe.most_in_flight(&format!("cus_{n}"), METER) <= 1);
    }
    pair.assert_lawful();
}
