//! Meters that are exported by their last or greatest value.

use serde_json::{Value, json};

use super::{METER, Pair};
use crate::support::stripe_fake::{Options, unix};

async fn with_levels() -> Pair {
    let meter = |key: &str, aggregation: &str| {
        json!({"key": key, "event_name": METER, "aggregation": aggregation, "value_property": "value",
               "stripe": {"event_name": key, "formula": "last"}})
    };
    let catalog = json!({
        "meters": [meter("seats", "last"), meter("peak", "max")], "plans": [{"key": "pro", "limits": []}],
    });
    let pair = Pair::with(Options::default(), &catalog).await;
    pair.stripe.meter_with("seats", "last", None);
    pair.stripe.meter_with("peak", "last", None);
    pair.map("acme", "cus_acme").await;
    let period =
        json!({"plan": "pro", "cycle_start": "2026-10-20T11:30:00Z", "period_end": "2026-11-20T11:30:00Z"});
    pair.service.put("/v1/subjects/acme/subscription", &period).await;
    pair
}

impl Pair {
    /// Returns the values that Stripe would bill for a meter before and after 11:30.
    fn levels(&self, meter: &str) -> [i128; 2] {
        let renewal = unix("2026-11-20T11:30:00Z");
        [(0, renewal), (renewal, i64::MAX)].map(|(from, to)| self.stripe.total("cus_acme", meter, from, to))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn last_gauge_value_of_each_period_is_exported() {
    let pair = with_levels().await;
    pair.track("a", "acme", json!(5), "2026-11-20T10:10:00Z").await;
    pair.track("b", "acme", json!(9), "2026-11-20T11:20:00Z").await;
    pair.track("c", "acme", json!(2), "2026-11-20T11:40:00Z").await;
    pair.track("d", "acme", json!("3.7"), "2026-11-20T11:50:00Z").await;
    pair.run().await;
    assert_eq!(pair.levels("seats"), [9, 3]);
    assert_eq!(pair.levels("peak"), [9, 3]);
    // an earlier value that arrives later changes nothing; a later one does, even zero
    pair.track("late", "acme", json!(70), "2026-11-20T11:35:00Z").await;
    pair.run().await;
    assert_eq!(pair.levels("seats"), [9, 3]);
    assert_eq!(pair.levels("peak"), [9, 70]);
    pair.set_clock("2026-11-20T12:10:00Z");
    pair.track("e", "acme", json!(0), "2026-11-20T12:05:00Z").await;
    pair.run().await;
    assert_eq!(pair.levels("seats"), [9, 0]);
    assert_eq!(pair.levels("peak"), [9, 70]);
    assert_eq!(pair.run().await.created, 0);
    pair.assert_lawful();
}

#[tokio::test(flavor = "multi_thread")]
async fn voided_gauge_values_restore_the_value_before() {
    let pair = with_levels().await;
    pair.track("a", "acme", json!(5), "2026-11-20T11:40:00Z").await;
    pair.track("b", "acme", json!(9), "2026-11-20T11:50:00Z").await;
    pair.track("c", "acme", json!(4), "2026-11-20T12:00:00Z").await;
    pair.run().await;
    assert_eq!([pair.levels("seats")[1], pair.levels("peak")[1]], [4, 9]);
    pair.void("c").await;
    pair.run().await;
    assert_eq!([pair.levels("seats")[1], pair.levels("peak")[1]], [9, 9]);
    pair.void("b").await;
    pair.run().await;
    assert_eq!([pair.levels("seats")[1], pair.levels("peak")[1]], [5, 5]);
    let statuses: Vec<Value> = pair.exports().await.iter().map(|export| export["status"].clone()).collect();
    assert!(statuses.iter().all(|status| *status != "pending" && *status != "dead"), "{statuses:?}");
    pair.service.verify().await;
    pair.assert_lawful();
}

#[tokio::test(flavor = "multi_thread")]
async fn gauges_are_not_reconciled_as_sums() {
    let pair = with_levels().await;
    pair.track("a", "acme", json!(5), "2026-11-20T11:40:00Z").await;
    pair.track("b", "acme", json!(9), "2026-11-20T12:00:00Z").await;
    pair.run().await;
    pair.set_clock("2026-11-21T03:00:00Z");
    let drifts =
        pair.service.engine.check_exports(metergate_domain::base::environment::Environment::Test).await;
    assert!(drifts.unwrap().is_empty());
    let query = "customer=cus_acme&meter=seats&from=2026-11-20T11:00:00Z&to=2026-11-20T12:00:00Z";
    let answer = pair.service.get(&format!("/v1/reconciliation?{query}")).await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (422, "not_summed"));
}
