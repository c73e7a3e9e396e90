//! Stripe is unavailable for thirty hours, longer than it remembers identifiers. In the end no usage is
//! billed twice, and none is missing.

use metergate_domain::base::Environment;
use serde_json::{Value, json};

use super::{METER, Pair, meters};
use crate::support::stripe_fake::{Endpoint, Fault, Options, Plan, unix};

const CUSTOMERS: usize = 300;
const RENEWAL: &str = "2026-11-20T10:23:45Z";
const BATCH: usize = 300;

/// Loses half of all calls and half of all answers, so that no delivery is ever confirmed.
fn away(seed: u64) -> Plan {
    Plan::seeded(seed).chance(Endpoint::Any, Fault::ResetAfter, 0.5).chance(
        Endpoint::Any,
        Fault::ResetBefore,
        1.0,
    )
}

async fn record(pair: &Pair, round: usize, timestamps: &[&str]) {
    let events: Vec<Value> = (0..CUSTOMERS)
        .flat_map(|n| {
            timestamps.iter().enumerate().map(move |(k, at)| {
                json!({"id": format!("r{round}c{n}k{k}"), "event_name": METER, "subject": format!("s{n}"),
                       "value": 1_000 * round + n + k, "timestamp": at})
            })
        })
        .collect();
    for batch in events.chunks(BATCH) {
        let answer = pair.service.post("/v1/events", &json!(batch)).await.json();
        assert_eq!(answer["accepted"], batch.len(), "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bills_each_unit_once_after_thirty_hours_without_stripe() {
    let catalog = json!({"meters": meters(&json!(1)), "plans": [{"key": "pro", "limits": []}]});
    let pair = Pair::with(Options::default(), &catalog).await;
    let period = json!({"plan": "pro", "cycle_start": "2026-10-20T10:23:45Z", "period_end": RENEWAL});
    for n in 0..CUSTOMERS {
        pair.map(&format!("s{n}"), &format!("cus_{n}")).await;
        pair.service.put(&format!("/v1/subjects/s{n}/subscription"), &period).await;
    }
    pair.set_clock("2026-11-20T11:00:00Z");
    pair.stripe.set_faults(away(3));
    record(
        &pair,
        0,
        &["2026-11-20T10:20:00Z", "2026-11-20T10:23:44Z", "2026-11-20T10:23:45Z", "2026-11-20T10:59:00Z"],
    )
    .await;
    for (round, hour) in
        [(1, "2026-11-20T11:30:00Z"), (2, "2026-11-20T20:30:00Z"), (3, "2026-11-21T09:30:00Z")]
    {
        let ran = pair.run().await;
        assert_eq!((ran.delivered, ran.dead), (0, 0));
        pair.set_clock(hour);
        record(&pair, round, &[hour]).await;
        pair.service.engine.export_ended(Environment::Test).await.unwrap();
    }
    pair.run().await;
    let taken = pair.stripe.events().len();
    assert!(taken >= CUSTOMERS, "Stripe must have taken many calls without an answer; took {taken}");
    // Stripe has forgotten the identifiers
    pair.set_clock("2026-11-21T17:00:00Z");
    pair.stripe.set_faults(Plan::seeded(0));
    let mut ran = pair.run().await;
    while ran.pending > 0 {
        ran = pair.run().await;
    }
    assert_eq!(ran.dead, 0);
    for n in 0..CUSTOMERS {
        let customer = format!("cus_{n}");
        let value = i128::try_from(n).unwrap();
        let before = pair.total(&customer, "2026-10-20T10:23:45Z", RENEWAL);
        let after = pair.total(&customer, RENEWAL, "2026-12-20T10:23:45Z");
        assert_eq!((before, after), (2 * value + 1, 5 * value + 5 + 6_000), "{customer}");
        let requests = |from: &str, to: &str| pair.stripe.total(&customer, "requests", unix(from), unix(to));
        assert_eq!(requests("2026-10-20T10:23:45Z", RENEWAL), 2);
        assert_eq!(requests(RENEWAL, "2026-12-20T10:23:45Z"), 5);
        let query = format!(
            "customer={customer}&meter={METER}&window=day&from=2026-11-20T00:00:00Z&to=2026-11-22T00:00:00Z"
        );
        let compared = pair.service.get(&format!("/v1/reconciliation?{query}")).await.json();
        assert_eq!(compared["total"]["difference"], 0, "{compared}");
        assert_eq!(compared["total"]["events"], compared["total"]["provider"], "{compared}");
    }
    // no export was taken twice and then canceled
    assert!(pair.stripe.events().iter().all(|event| !event.is_canceled));
    pair.service.verify().await;
    pair.assert_lawful();
}
