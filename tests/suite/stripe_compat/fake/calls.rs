//! Rules for every call: keys, versions, idempotency, limits, faults.

use std::time::{Duration, Instant};

use futures::future::join_all;
use reqwest::Method;
use serde_json::json;

use super::{Caller, fields};
use crate::support::stripe_fake::{Clock, Endpoint, Fault, Options, Overlap, Plan};

const EVENTS: &str = "/v1/billing/meter_events";

#[tokio::test]
async fn calls_need_a_key_a_version_and_a_form() {
    let caller = Caller::start().await;
    let url = format!("{}/v1/billing/meters", caller.fake.url());
    let bare = || caller.client.get(&url).header("stripe-version", caller.version);
    assert_eq!(caller.try_send(bare()).await.unwrap().status, 401);
    assert_eq!(caller.try_send(bare().bearer_auth("sk_test_other")).await.unwrap().status, 401);
    assert_eq!(caller.try_send(bare().basic_auth("sk_test_fake", Some(""))).await.unwrap().status, 200);
    let wrong_version =
        caller.client.get(&url).bearer_auth("sk_test_fake").header("stripe-version", "latest");
    assert_eq!(caller.try_send(wrong_version).await.unwrap().status, 400);
    let json = caller.request(Method::POST, EVENTS).header("idempotency-key", "k").json(&json!({"a": 1}));
    assert_eq!(caller.try_send(json).await.unwrap().status, 400);
    assert_eq!(caller.get("/v1/nothing").await.status, 404);
    assert_eq!(caller.fake.violations(), Vec::<String>::new());

    let nothing = caller.client.post(format!("{}{EVENTS}", caller.fake.url())).bearer_auth("sk_test_fake");
    caller.try_send(nothing).await.unwrap();
    assert_eq!(
        caller.fake.violations(),
        [
            "POST /v1/billing/meter_events without Stripe-Version",
            "POST /v1/billing/meter_events without Idempotency-Key"
        ]
    );
}

#[tokio::test]
async fn an_idempotency_key_replays_the_first_answer_for_24_hours() {
    let caller = Caller::start().await;
    let sent = fields("a", "5");
    let first = caller.try_post(EVENTS, "k", &sent).await.unwrap();
    caller.fake.advance(Duration::from_hours(1));
    let again = caller.try_post(EVENTS, "k", &sent).await.unwrap();
    assert_eq!((again.status, &again.body), (200, &first.body));
    assert_eq!(
        (again.header("idempotent-replayed"), first.header("idempotent-replayed")),
        (Some("true"), None)
    );

    let other = caller.try_post(EVENTS, "k", &fields("b", "5")).await.unwrap();
    assert_eq!((other.status, &other.body["error"]["type"]), (400, &json!("idempotency_error")));
    let long = "k".repeat(256);
    assert_eq!(caller.try_post(EVENTS, &long, &sent).await.unwrap().status, 400);

    // after a day neither the key nor the identifier is remembered
    caller.fake.advance(Duration::from_hours(23));
    let late = caller.try_post(EVENTS, "k", &sent).await.unwrap();
    assert_eq!((late.status, late.header("idempotent-replayed")), (200, None));
    assert_eq!(caller.total(), 10);
}

#[tokio::test]
async fn a_failed_validation_leaves_the_key_unused() {
    let caller = Caller::start().await;
    let mut sent = fields("a", "5");
    sent[0].1 = "images";
    assert_eq!(caller.try_post(EVENTS, "k", &sent).await.unwrap().code(), "no_meter");
    caller.fake.meter("images");
    assert_eq!(caller.try_post(EVENTS, "k", &sent).await.unwrap().status, 200);
    // a duplicate was executed, so its answer is kept
    assert_eq!(caller.try_post(EVENTS, "l", &sent).await.unwrap().status, 400);
    let again = caller.try_post(EVENTS, "l", &sent).await.unwrap();
    assert_eq!((again.status, again.header("idempotent-replayed")), (400, Some("true")));
}

#[tokio::test]
async fn an_idempotency_key_serves_one_call_at_a_time() {
    let caller = Caller::with(Options { latency: Duration::from_millis(100), ..Options::default() }).await;
    let path = "/v1/billing/meters";
    let sent = [("display_name", "n"), ("event_name", "n"), ("default_aggregation[formula]", "sum")];
    let both = join_all([caller.try_post(path, "k", &sent), caller.try_post(path, "k", &sent)]).await;
    let mut answers: Vec<_> = both.iter().flatten().map(|answer| (answer.status, answer.code())).collect();
    answers.sort_unstable();
    assert_eq!(answers, [(200, ""), (409, "idempotency_key_in_use")]);
}

#[tokio::test]
async fn overlapping_calls_for_one_customer_and_meter_are_refused() {
    for (overlap, status, code) in [
        (Overlap::LockTimeout, 429, "lock_timeout"),
        (Overlap::Conflict, 409, "too_many_concurrent_requests"),
    ] {
        let latency = Duration::from_millis(100);
        let caller = Caller::with(Options { latency, overlap, ..Options::default() }).await;
        let mut other = fields("c", "3");
        other[1].1 = "cus_2";
        let (one, two, three) = (fields("a", "1"), fields("b", "2"), other);
        let all = join_all([&one, &two, &three].map(|sent| caller.post(EVENTS, sent))).await;
        let mut answers: Vec<_> = all.iter().map(|answer| (answer.status, answer.code())).collect();
        answers.sort_unstable();
        assert_eq!(answers, [(200, ""), (200, ""), (status, code)]);
        assert!(all.iter().all(|answer| answer.header("stripe-rate-limited-reason").is_none()));
        assert_eq!(caller.fake.most_in_flight("cus_1", "tokens"), 2);
        assert_eq!(caller.fake.most_in_flight("cus_2", "tokens"), 1);
        assert_eq!(caller.fake.violations(), ["overlapping calls for cus_1 and tokens"]);
        assert_eq!(caller.event("d", "1").await.status, 200);
    }
}

#[tokio::test]
async fn meter_events_have_a_rate_limit() {
    let caller = Caller::with(Options { calls_per_second: Some(3), ..Options::default() }).await;
    let mut limited = 0;
    for number in 0..6 {
        let answer = caller.event(&number.to_string(), "1").await;
        if answer.status == 429 {
            assert_eq!(answer.header("stripe-rate-limited-reason"), Some("endpoint-rate"));
            limited += 1;
        }
    }
    assert!(limited >= 2, "{limited}");
    assert_eq!(caller.fake.answers(Endpoint::MeterEvents, Some(429)), limited);
    // other endpoints have no limit
    assert_eq!(caller.get("/v1/billing/meters").await.status, 200);
}

#[tokio::test]
async fn each_fault_has_its_documented_effect() {
    let caller = Caller::start().await;
    let cases = [
        (Fault::ResetBefore, None, false),
        (Fault::ResetAfter, None, true),
        (Fault::ErrorBefore, Some(500), false),
        (Fault::ErrorBeforeKept, Some(500), false),
        (Fault::ErrorAfter, Some(500), true),
        (Fault::RateLimited("global-rate"), Some(429), false),
        (Fault::LockTimeout, Some(429), false),
        (Fault::Unauthorized, Some(401), false),
        (Fault::Slow(Duration::from_millis(50)), Some(200), true),
    ];
    for (number, (fault, status, is_taken)) in cases.into_iter().enumerate() {
        let name = number.to_string();
        caller.fake.fail_next(Endpoint::MeterEvents, fault, 1);
        let started = Instant::now();
        let answer = caller.try_post(EVENTS, &name, &fields(&name, "1")).await;
        assert_eq!(answer.as_ref().map(|answer| answer.status), status, "{fault:?}");
        let taken = caller.fake.events().iter().any(|event| event.identifier == name);
        assert_eq!(taken, is_taken, "{fault:?}");
        let reason = answer.as_ref().and_then(|answer| answer.header("stripe-rate-limited-reason"));
        assert_eq!(reason.is_some(), matches!(fault, Fault::RateLimited(_)));
        if let Fault::Slow(delay) = fault {
            assert!(started.elapsed() >= delay);
        }

        // with the same key, kept errors stay, and every other call starts over
        let is_kept = matches!(fault, Fault::ErrorAfter | Fault::ErrorBeforeKept);
        let again = caller.try_post(EVENTS, &name, &fields(&name, "1")).await.unwrap();
        assert_eq!(again.status, if is_kept { 500 } else { 200 }, "{fault:?}");
        assert_eq!(again.header("idempotent-replayed").is_some(), is_kept || is_taken, "{fault:?}");

        // with a new key, a recorded event is a duplicate
        let anew = caller.event(&name, "1").await;
        assert_eq!(anew.status, if fault == Fault::ErrorBeforeKept { 200 } else { 400 }, "{fault:?}");
    }
    assert_eq!(caller.total(), 9);
    assert_eq!(caller.fake.answers(Endpoint::Any, None), 2);
    assert_eq!(caller.fake.calls(Endpoint::MeterEvents), 27);
}

#[tokio::test]
async fn random_faults_repeat_with_the_same_seed() {
    let mut runs = Vec::new();
    for _ in 0..2 {
        let caller = Caller::start().await;
        let plan = Plan::seeded(7).next(Endpoint::Any, Fault::Unauthorized, 1);
        caller.fake.set_faults(plan.chance(Endpoint::MeterEvents, Fault::ErrorBefore, 0.5));
        let mut statuses = Vec::new();
        for number in 0..40 {
            statuses.push(caller.event(&number.to_string(), "1").await.status);
        }
        assert_eq!(statuses[0], 401);
        let failed = statuses.iter().filter(|status| **status == 500).count();
        assert!((8..=32).contains(&failed), "{failed}");
        runs.push(statuses);
    }
    assert_eq!(runs[0], runs[1]);
}

#[tokio::test]
async fn a_running_clock_can_be_advanced_and_set() {
    let caller = Caller::with(Options { clock: Clock::Running(0), ..Options::default() }).await;
    let system = i64::try_from(std::time::UNIX_EPOCH.elapsed().unwrap().as_secs()).unwrap();
    caller.fake.advance(Duration::from_hours(24));
    assert!((0..60).contains(&(caller.fake.now() - system - 86_400)));
    // webhooks are signed at the system's time, because their receiver checks it
    let signed = caller.fake.signature("x");
    let signed: i64 = signed.split(',').next().unwrap().trim_start_matches("t=").parse().unwrap();
    assert!((0..60).contains(&(signed - system)));
    caller.fake.set_clock(1_000_000);
    assert!((0..60).contains(&(caller.fake.now() - 1_000_000)));
    assert_eq!(caller.event("a", "1").await.status, 200);
}
