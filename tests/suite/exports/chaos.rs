//! All faults at once. In the end Stripe has exactly the recorded usage.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::future::join_all;
use metergate_domain::base::Environment;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};

use super::{METER, Pair, another, meters};
use crate::support::at;
use crate::support::stripe_fake::{Endpoint, Fault, Options, Plan, unix};

const CUSTOMERS: usize = 25;
const RENEWAL: &str = "2026-11-20T10:23:45Z";

fn faults(seed: u64) -> Plan {
    let (events, adjustments) = (Endpoint::MeterEvents, Endpoint::Adjustments);
    Plan::seeded(seed)
        .chance(events, Fault::ResetAfter, 0.1)
        .chance(events, Fault::ResetBefore, 0.1)
        .chance(events, Fault::ErrorBeforeKept, 0.1)
        .chance(events, Fault::ErrorAfter, 0.1)
        .chance(events, Fault::LockTimeout, 0.1)
        .chance(events, Fault::RateLimited("endpoint-rate"), 0.1)
        .chance(events, Fault::Slow(Duration::from_millis(30)), 0.1)
        .chance(adjustments, Fault::ErrorBefore, 0.2)
        .chance(adjustments, Fault::ResetBefore, 0.1)
        .chance(adjustments, Fault::ResetAfter, 0.1)
}

/// Recorded usage by customer, meter, and whether it is after the renewal.
type Expected = BTreeMap<(usize, &'static str, bool), i128>;

#[tokio::test(flavor = "multi_thread")]
async fn two_replicas_with_every_fault_bill_each_unit_once() {
    let seed = 20_261_120;
    let mut rng = StdRng::seed_from_u64(seed);
    let pair = Pair::with(
        Options { latency: Duration::from_millis(2), ..Options::default() },
        &json!({"meters": meters(&json!(1)), "plans": [{"key": "pro", "limits": []}]}),
    )
    .await;
    let replica = another(&pair.stripe, &pair.service.url).await;
    let period = json!({"plan": "pro", "cycle_start": "2026-10-20T10:23:45Z", "period_end": RENEWAL});
    for n in 0..CUSTOMERS {
        pair.map(&format!("s{n}"), &format!("cus_{n}")).await;
        pair.service.put(&format!("/v1/subjects/s{n}/subscription"), &period).await;
    }
    // within the grace, so that the ended period still accepts its usage
    pair.set_clock("2026-11-20T11:00:00Z");
    replica.clock.set(at("2026-11-20T11:00:00Z"));
    pair.stripe.set_faults(faults(seed));

    let mut expected = Expected::new();
    let mut events: Vec<(String, usize, i64, bool)> = Vec::new();
    for round in 0..6 {
        let mut batch = Vec::new();
        for n in 0..250 {
            let (id, who) = (format!("e{round}_{n}"), rng.random_range(0..CUSTOMERS));
            let (value, later) = (rng.random_range(1..1_000), rng.random_bool(0.5));
            // within the hour of the period's end, or some hours before or after
            let offset: i64 = if later { rng.random_range(0..2_000) } else { -rng.random_range(1..9_000) };
            let timestamp = jiff::Timestamp::from_second(unix(RENEWAL) + offset).unwrap().to_string();
            batch.push(json!({"id": id, "event_name": METER, "subject": format!("s{who}"), "value": value, "timestamp": timestamp}));
            *expected.entry((who, METER, later)).or_default() += i128::from(value);
            *expected.entry((who, "requests", later)).or_default() += 1;
            events.push((id, who, value, later));
        }
        let answer = pair.service.post("/v1/events", &Value::Array(batch)).await;
        assert_eq!(answer.json()["accepted"], 250, "{}", answer.text);
        for _ in 0..8 {
            let (id, who, value, later) = events.swap_remove(rng.random_range(0..events.len()));
            pair.void(&id).await;
            *expected.get_mut(&(who, METER, later)).unwrap() -= i128::from(value);
            *expected.get_mut(&(who, "requests", later)).unwrap() -= 1;
        }
        let runs = [&pair.service, &replica].map(|each| each.engine.run_exports(Environment::Test));
        for ran in join_all(runs).await {
            ran.unwrap_or_else(|why| panic!("round {round}: {why}"));
        }
    }
    let mut left = pair.run().await;
    for _ in 0..30 {
        if left.pending == 0 && left.created == 0 {
            break;
        }
        left = pair.run().await;
    }
    if (left.pending, left.dead) != (0, 0) {
        let mut found = BTreeMap::new();
        for export in pair.service.get("/v1/exports?limit=1000").await.json()["data"].as_array().unwrap() {
            *found.entry(format!("{} {}", export["status"], export["last_error"])).or_insert(0) += 1;
        }
        panic!("{left:?}: {found:#?}");
    }

    for ((who, meter, later), value) in &expected {
        let span = if *later { (unix(RENEWAL), i64::MAX) } else { (0, unix(RENEWAL)) };
        let there = pair.stripe.total(&format!("cus_{who}"), meter, span.0, span.1);
        assert_eq!(there, *value, "cus_{who}, {meter}, after the renewal: {later}; seed {seed}");
    }
    pair.stripe.set_faults(Plan::seeded(0));
    for who in 0..CUSTOMERS {
        let query =
            format!("customer=cus_{who}&meter={METER}&from=2026-11-20T00:00:00Z&to=2026-11-21T00:00:00Z");
        let compared = pair.service.get(&format!("/v1/reconciliation?{query}")).await.json();
        assert_eq!(compared["total"]["difference"], 0, "{compared}");
        assert_eq!(compared["total"]["events"], compared["total"]["provider"], "{compared}");
    }
    pair.service.verify().await;
    pair.assert_lawful();
}
