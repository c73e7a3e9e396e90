//! Usage near the edges of periods that open, close and move.

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

    /// Before the renewal, and since.
    fn periods(&self) -> (i128, i128) {
        let total = |from, to| self.total("cus_acme", from, to);
        (total("2026-10-01T00:00:00Z", RENEWAL), total(RENEWAL, "2027-10-01T00:00:00Z"))
    }
}

/// The old period's invoice is made: taking its usage back there changes no invoice, and sending the
/// rest again would bill it a second time.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_voided_after_its_period_is_carried_though_it_could_be_canceled() {
    let pair = with_period().await;
    pair.subscribe("2026-10-20T10:23:45Z", RENEWAL).await;
    pair.set_clock("2026-11-20T11:00:00Z");
    pair.track("a", "acme", json!(100), "2026-11-20T10:10:00Z").await;
    pair.track("b", "acme", json!(20), "2026-11-20T10:11:00Z").await;
    pair.run().await;
    assert_eq!(pair.periods(), (120, 0));
    // within the grace it is taken back in its own period
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

/// What was carried into the present period lies in it, and is taken back there.
#[tokio::test(flavor = "multi_thread")]
async fn carried_usage_is_voided_in_the_period_it_was_carried_to() {
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

/// The hour was not parted when its first usage was recorded: nobody knew of the renewal.
#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_that_begins_within_an_hour_leaves_the_usage_before_it_there() {
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

/// Two meters of ours may feed one of Stripe's, which takes one call at a time for a customer.
#[tokio::test(flavor = "multi_thread")]
async fn two_meters_that_feed_one_of_stripes_take_turns() {
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
