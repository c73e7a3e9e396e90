//! Fetching with an API key: few requests, patient retries, and any number of replicas.

use metergate_domain::base::Environment;
use serde_json::json;

use super::{Rig, settings};
use crate::support::service::Process;
use crate::support::stripe_fake::{Endpoint, Fault};
use crate::support::{TestService, at};

#[tokio::test]
async fn one_fetch_serves_a_burst_of_events() {
    let rig = Rig::start(true).await;
    let customer = rig.customer_of("s").await;
    let subscription = rig.stripe.subscribe(&customer, &rig.pro, &[]);
    for n in 0..20 {
        let path = format!("/v1/subscriptions/{subscription}");
        rig.stripe.post(&path, &[("description", &format!("{n}"))]);
    }
    let reads = rig.stripe.calls(Endpoint::OtherReads);
    rig.hear().await;
    assert_eq!(rig.subject_path("s").await, "pro active -");
    assert_eq!(rig.stripe.calls(Endpoint::OtherReads) - reads, 1);
}

#[tokio::test]
async fn failed_fetches_are_retried_with_backoff() {
    let rig = Rig::start(true).await;
    let customer = rig.customer_of("s").await;
    rig.stripe.subscribe(&customer, &rig.pro, &[]);
    let faults =
        [Fault::RateLimited("global-rate"), Fault::ErrorBefore, Fault::ResetBefore, Fault::Unauthorized];
    let waits = [2, 4, 8, 16];
    let mut now = crate::support::stripe_fake::unix(crate::support::service::NOON);
    for (fault, wait) in faults.into_iter().zip(waits) {
        rig.stripe.fail_next(Endpoint::OtherReads, fault, 1);
        rig.hear().await;
        let pending = rig.events("pending").await;
        assert_eq!(pending.len(), 1, "{fault:?}: {pending:?}");
        assert!(!pending[0].1.is_empty(), "the reason must be recorded");
        assert_eq!(rig.check("s", 1).await, "no_subscription");
        let set = |seconds: i64| {
            let at = metergate_domain::base::timestamp::Timestamp::from_micros(seconds * 1_000_000).unwrap();
            rig.service.clock.set(at);
        };
        // not a moment earlier
        set(now + wait - 1);
        let reads = rig.stripe.calls(Endpoint::OtherReads);
        rig.work().await;
        assert_eq!(rig.stripe.calls(Endpoint::OtherReads), reads);
        now += wait;
        set(now);
    }
    rig.work().await;
    assert_eq!(rig.subject_path("s").await, "pro active -");
    assert_eq!(rig.events("pending").await, []);
}

#[tokio::test]
async fn subscriptions_unknown_to_stripe_are_read_from_signed_payloads() {
    let rig = Rig::start(true).await;
    let customer = rig.customer_of("s").await;
    let subscription = rig.stripe.subscribe(&customer, &rig.pro, &[]);
    // a key of another account knows neither the subscription nor its customer
    for webhook in rig.stripe.take_webhooks() {
        let body = webhook.body.replace(&subscription, "sub_elsewhere").replace(&customer, "cus_elsewhere");
        rig.deliver(&super::Webhook { body, ..webhook }).await;
    }
    rig.map("t", "cus_elsewhere").await;
    rig.work().await;
    assert_eq!(rig.subject_path("t").await, "pro active -");
    // with a deleted customer the subscription has ended, although a payload shows it active
    let gone = rig.customer_of("u").await;
    let subscription = rig.stripe.subscribe(&gone, &rig.pro, &[]);
    let told = rig.stripe.take_webhooks();
    rig.stripe.delete(&format!("/v1/customers/{gone}"));
    for webhook in told.iter().filter(|webhook| webhook.kind == "customer.subscription.created") {
        let body = webhook.body.replace(&subscription, "sub_forgotten");
        rig.deliver(&super::Webhook { body, ..webhook.clone() }).await;
    }
    rig.work().await;
    assert!(rig.subject_path("u").await.starts_with("pro canceled"), "{}", rig.subject_path("u").await);
}

#[tokio::test]
async fn the_program_receives_and_applies_webhooks() {
    let rig = Rig::start(true).await;
    let stripe = &rig.stripe;
    stripe.set_clock(std::time::UNIX_EPOCH.elapsed().unwrap().as_secs().try_into().unwrap());
    let process = Process::start_with(
        &[
            ("DATABASE_URL", &rig.service.url),
            ("STRIPE_TEST_SECRET", "sk_test_fake"),
            ("STRIPE_TEST_WEBHOOK_SECRET", "whsec_older,whsec_fake"),
            ("METERGATE__STRIPE__API_BASE", &stripe.url()),
        ],
        &std::env::temp_dir(),
    )
    .await;
    let customer = stripe.customer(&[]);
    let subscription = stripe.subscribe(&customer, &rig.pro, &[("metadata[subject]", "s")]);
    let caller = process.caller(&rig.service.key);
    let hear = async |expected: &str| {
        let statuses =
            stripe.deliver(&format!("{}/webhooks/stripe", process.base), &stripe.take_webhooks()).await;
        assert!(!statuses.is_empty() && statuses.iter().all(|status| *status == 200), "{statuses:?}");
        for _ in 0..100 {
            let shown = caller.get("/v1/subjects/s/subscription").await.json();
            if shown["status"] == expected {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        panic!("{}", caller.get("/v1/webhook-events").await.text);
    };
    hear("active").await;
    stripe.delete(&format!("/v1/subscriptions/{subscription}"));
    hear("canceled").await;
    process.stop().await;
}

#[tokio::test]
async fn two_replicas_share_one_queue() {
    let rig = Rig::start(true).await;
    let other = TestService::at_url(&rig.service.url, settings(&rig.stripe, true)).await;
    other.clock.set(at(crate::support::service::NOON));
    let mut subscriptions = Vec::new();
    for n in 0..40 {
        let subject = format!("s{n}");
        let customer = rig.stripe.customer(&[]);
        let fields = [("metadata[subject]", subject.as_str())];
        subscriptions.push((subject.clone(), rig.stripe.subscribe(&customer, &rig.starter, &fields)));
    }
    let work = async |service: &TestService| {
        for _ in 0..12 {
            while service.engine.apply_webhooks(Environment::Test).await.unwrap() > 0 {}
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    let life = async {
        for (n, (_, subscription)) in subscriptions.iter().enumerate() {
            if n % 4 == 0 {
                rig.stripe.delete(&format!("/v1/subscriptions/{subscription}"));
            } else {
                rig.stripe.set_status(subscription, if n % 2 == 0 { "past_due" } else { "unpaid" });
            }
            for webhook in rig.stripe.take_webhooks() {
                rig.deliver(&webhook).await;
            }
        }
    };
    tokio::join!(life, work(&rig.service), work(&other));
    rig.work().await;
    for (n, (subject, _)) in subscriptions.iter().enumerate() {
        let expected = match (n % 4, n % 2) {
            (0, _) => "starter canceled",
            (_, 0) => "starter past_due",
            _ => "starter unpaid",
        };
        assert!(
            rig.subject_path(subject).await.starts_with(expected),
            "{n}: {}",
            rig.subject_path(subject).await
        );
        // no event was applied twice: each status change occurs in the history once
        let path = format!("/v1/subjects/{subject}/subscription?history=true");
        let history = rig.service.get(&path).await.json();
        assert!(history["history"].as_array().unwrap().len() <= 4, "{history}");
    }
    assert_eq!(rig.events("pending").await, []);
    rig.service.verify().await;
}

#[tokio::test]
async fn reports_of_uncounted_meter_events_mark_their_exports() {
    let rig = Rig::start(true).await;
    rig.stripe.meter("m");
    rig.service
        .apply(json!({
            "meters": [{"key": "m", "event_name": "e", "aggregation": "sum", "stripe": {"event_name": "m"}}],
            "plans": [],
        }))
        .await;
    rig.customer_of("s").await;
    rig.hear().await;
    rig.service.post("/v1/events", &json!({"event_name": "e", "subject": "s", "value": 5})).await;
    let ran = rig.service.post("/v1/exports/run", &json!(null)).await;
    assert_eq!(ran.json()["delivered"], 1, "{}", ran.text);
    let export = &rig.service.get("/v1/exports").await.json()["data"][0];
    let identifier = export["identifier"].as_str().unwrap();
    rig.stripe.report_errors("m", "archived_meter", &[identifier]);
    rig.hear().await;
    let export = &rig.service.get("/v1/exports").await.json()["data"][0];
    assert_eq!(export["status"], "dead", "{export}");
    assert!(export["last_error"].as_str().unwrap().starts_with("archived_meter"), "{export}");
    // without a key the report cannot be fetched
    let silent = Rig::start(false).await;
    silent.stripe.report_no_meter(&["i"]);
    silent.hear().await;
    assert_eq!(silent.events("ignored").await.len(), 1);
}
