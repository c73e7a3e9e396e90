//! Usage near the boundaries of periods that open, close and move.

use serde_json::json;

use super::{METER, Pair, meters, ran};
use crate::support::stripe_fake::Options;

const RENEWAL: &str = "2026-11-20T10:23:45Z";

async fn with_period() -> Pair {
    let catalog = json!({"meters": [meters(&json!(1))[0]], "plans": [{"key": "pro", "limits": []}]});
    let pair = Pair::with(Options::default(), &catalog).await;
    pair.map("acme", "cus_acme").await;
    pair
}

impl Pair {
    async fn subscribe(&self, cycle_start: &str, period_end: &str) {
        let period = json!({"plan": "pro", "cycle_start": cycle_start, "period_end": period_end});
        let answer = self.service.put("/v1/subjects/acme/subscription", &period).await;
        assert_eq!(answer.status, axum::http::StatusCode::OK, "{}", answer.text);
    }

    /// Returns Stripe's totals before and after the renewal.
    fn periods(&self) -> (i128, i128) {
        let total = |from, to| self.total("cus_acme", from, to);
        (total("2026-10-01T00:00:00Z", RENEWAL), total(RENEWAL, "2027-10-01T00:00:00Z"))
    }
}

/// The old period has a final invoice. A cancelation would not change that invoice, and sending the
/// remaining usage again would bill it twice.
#[tokio::test(flavor = "multi_thread")]
async fn carries_voids_after_the_period_although_stripe_could_cancel() {
    let pair = with_period().await;
    pair.subscribe("2026-10-20T10:23:45Z", RENEWAL).await;
    pair.set_clock("2026-11-20T11:00:00Z");
    pair.track("a", "acme", json!(100), "2026-11-20T10:10:00Z").await;
    pair.track("b", "acme", json!(20), "2026-11-20T10:11:00Z").await;
    pair.run().await;
    assert_eq!(pair.periods(), (120, 0));
    // within the grace, the void cancels in its own period
    pair.set_clock("2026-11-20T11:20:00Z");
    pair.void("b").await;
    pair.run().await;
    assert_eq!(pair.periods(), (100, 0));
    pair.set_clock("2026-11-20T15:00:00Z");
    pair.track("c", "acme", json!(300), "2026-11-20T14:00:00Z").await;
    pair.void("a").await;
    pair.run().await;
    assert_eq!(pair.periods(), (100, 200));
    pair.assert_lawful();
}

/// Carried usage counts in the present period, so its void cancels there.
#[tokio::test(flavor = "multi_thread")]
async fn voids_carried_usage_in_the_period_it_was_carried_to() {
    let pair = with_period().await;
    pair.subscribe("2026-10-20T10:23:45Z", RENEWAL).await;
    pair.set_clock("2026-11-20T15:00:00Z");
    pair.track("a", "acme", json!(100), "2026-11-20T10:10:00Z").await;
    pair.track("b", "acme", json!(20), "2026-11-20T10:11:00Z").await;
    pair.run().await;
    assert_eq!(pair.periods(), (0, 120));
    pair.void("a").await;
    pair.run().await;
    assert_eq!(pair.periods(), (0, 20));
    pair.assert_lawful();
}

/// The hour's first usage was recorded before the renewal was known, so the hour was not split then.
#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_within_an_hour_splits_the_usage_of_that_hour() {
    let pair = with_period().await;
    pair.track("before", "acme", json!(5), "2026-11-20T10:20:00Z").await;
    pair.service.fold().await;
    pair.subscribe(RENEWAL, "2026-11-20T23:00:00Z").await;
    pair.track("after", "acme", json!(70), "2026-11-20T10:40:00Z").await;
    pair.run().await;
    assert_eq!(pair.periods(), (5, 70));
    for export in pair.exports().await {
        let timestamp = export["timestamp"].as_str().unwrap();
        assert_eq!(timestamp < RENEWAL, export["value"] == 5, "{export}");
    }
    pair.assert_lawful();
}

/// Two of our meters may feed one Stripe meter, which takes one call at a time per customer.
#[tokio::test(flavor = "multi_thread")]
async fn sends_two_meters_of_one_stripe_meter_one_at_a_time() {
    let meter = |key: &str, model: &str| {
        json!({"key": key, "event_name": METER, "aggregation": "sum", "filter": {"model": [model]},
               "stripe": {"event_name": METER}})
    };
    let options = Options { latency: std::time::Duration::from_millis(20), ..Options::default() };
    let pair = Pair::with(options, &json!({"meters": [meter("small", "s"), meter("large", "l")]})).await;
    for n in 0..5 {
        pair.map(&format!("s{n}"), &format!("cus_{n}")).await;
        for (model, value) in [("s", 1), ("l", 20)] {
            let event = json!({"event_name": METER, "subject": format!("s{n}"), "value": value,
                               "properties": {"model": model}, "timestamp": "2026-11-20T11:00:00Z"});
            assert_eq!(pair.service.post("/v1/events", &event).await.json()["accepted"], 1);
        }
    }
    assert_eq!(pair.run().await, ran(10, 10, 0, 0));
    for n in 0..5 {
        assert_eq!(pair.all_of(&format!("cus_{n}")), 21);
    }
    pair.assert_lawful();
}
