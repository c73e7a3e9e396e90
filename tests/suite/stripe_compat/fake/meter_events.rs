//! Meters, their events, adjustments and summaries.

use std::time::Duration;

use serde_json::json;

use super::{Answer, Caller, fields, noon};
use crate::support::stripe_fake::{Options, unix};

#[tokio::test]
async fn an_event_is_recorded_with_stripes_answer() {
    let caller = Caller::start().await;
    let at = (noon() - 60).to_string();
    let mut sent = fields("a", "5").to_vec();
    sent.push(("timestamp", &at));
    let answer = caller.post("/v1/billing/meter_events", &sent).await;
    let expected = json!({
        "object": "billing.meter_event",
        "created": noon(),
        "event_name": "tokens",
        "identifier": "a",
        "livemode": false,
        "payload": {"stripe_customer_id": "cus_1", "value": "5"},
        "timestamp": noon() - 60,
    });
    assert_eq!((answer.status, &answer.body), (200, &expected));
    assert!(answer.header("request-id").is_some());
    let taken = &caller.fake.events()[0];
    assert_eq!((taken.identifier.as_str(), taken.value, taken.received_at), ("a", 5, noon()));
    assert_eq!(caller.fake.total("cus_1", "tokens", noon() - 60, noon() - 59), 5);
    assert_eq!(caller.fake.total("cus_1", "tokens", noon() - 59, noon()), 0);
    assert_eq!(caller.fake.violations(), Vec::<String>::new());
}

#[tokio::test]
async fn invalid_events_are_refused() {
    let caller = Caller::start().await;
    let long = "x".repeat(101);
    let (too_old, oldest) = ((noon() - 35 * 86_400 - 1).to_string(), (noon() - 35 * 86_400).to_string());
    let (too_new, newest) = ((noon() + 301).to_string(), (noon() + 300).to_string());
    let cases: Vec<(&str, &str, u16, &str)> = vec![
        ("bogus", "1", 400, "parameter_unknown"),
        ("payload[a][b]", "1", 400, ""),
        ("event_name", "", 400, "parameter_missing"),
        ("event_name", "unknown", 400, "no_meter"),
        ("event_name", &long, 400, ""),
        ("identifier", &long, 400, ""),
        ("payload[value]", "1.5", 400, "payload_invalid_value"),
        ("payload[value]", "-1", 400, "payload_invalid_value"),
        ("payload[value]", "1e3", 400, "payload_invalid_value"),
        ("payload[value]", "", 400, "payload_invalid_value"),
        ("payload[value]", "1000000000000000", 400, "payload_invalid_value"),
        ("payload[value]", "999999999999999", 200, ""),
        ("payload[stripe_customer_id]", "", 400, "payload_no_customer_defined"),
        ("payload[model]", "gpt-4o", 200, ""),
        ("timestamp", "soon", 400, ""),
        ("timestamp", &too_old, 400, "timestamp_too_far_in_past"),
        ("timestamp", &too_new, 400, "timestamp_in_future"),
        ("timestamp", &oldest, 200, ""),
        ("timestamp", &newest, 200, ""),
        ("expand[]", "x", 200, ""),
    ];
    for (number, (name, value, status, code)) in cases.into_iter().enumerate() {
        let identifier = format!("e{number}");
        let mut sent: Vec<_> =
            fields(&identifier, "1").into_iter().filter(|(known, _)| *known != name).collect();
        sent.push((name, value));
        let answer = caller.post("/v1/billing/meter_events", &sent).await;
        assert_eq!((answer.status, answer.code()), (status, code), "{name}={value}: {}", answer.body);
    }
    for missing in ["event_name", "payload[value]", "payload[stripe_customer_id]"] {
        let sent: Vec<_> = fields("m", "1").into_iter().filter(|(name, _)| *name != missing).collect();
        let answer = caller.post("/v1/billing/meter_events", &sent).await;
        assert_eq!(answer.status, 400, "{missing}");
    }
    assert_eq!(caller.fake.violations(), ["a negative value for cus_1 and tokens: -1"]);
}

#[tokio::test]
async fn negative_values_need_an_option() {
    let caller = Caller::with(Options { negative_values: true, ..Options::default() }).await;
    assert_eq!(caller.event("a", "5").await.status, 200);
    assert_eq!(caller.event("b", "-2").await.status, 200);
    assert_eq!(caller.total(), 3);
}

#[tokio::test]
async fn an_identifier_counts_once_in_24_hours() {
    let caller = Caller::start().await;
    assert_eq!(caller.event("a", "5").await.status, 200);
    caller.fake.advance(Duration::from_secs(24 * 3600 - 1));
    let answer = caller.event("a", "5").await;
    assert_eq!((answer.status, answer.header("stripe-should-retry")), (400, Some("false")));
    assert_eq!(answer.message(), "An event already exists with identifier a.");
    assert_eq!(answer.body["error"]["type"], "invalid_request_error");
    assert_eq!(caller.total(), 5);
    caller.fake.advance(Duration::from_secs(1));
    assert_eq!(caller.event("a", "5").await.status, 200);
    assert_eq!(caller.total(), 10);
}

#[tokio::test]
async fn an_adjustment_cancels_within_24_hours() {
    let caller = Caller::start().await;
    let cancel = async |event_name: &str, identifier: &str| -> Answer {
        let sent = [("event_name", event_name), ("type", "cancel"), ("cancel[identifier]", identifier)];
        caller.post("/v1/billing/meter_event_adjustments", &sent).await
    };
    caller.event("a", "5").await;
    caller.event("b", "7").await;
    assert_eq!(cancel("tokens", "c").await.code(), "resource_missing");
    assert_eq!(cancel("others", "a").await.code(), "resource_missing");
    let answer = cancel("tokens", "a").await;
    assert_eq!((answer.status, &answer.body["status"]), (200, &json!("pending")));
    assert_eq!(answer.body["cancel"], json!({"identifier": "a"}));
    assert_eq!(cancel("tokens", "a").await.status, 400);
    assert_eq!(caller.total(), 7);
    // a canceled event cannot be sent again
    assert_eq!(caller.event("a", "5").await.status, 400);
    caller.fake.advance(Duration::from_hours(24));
    assert_eq!(cancel("tokens", "b").await.status, 400);
    assert_eq!(caller.total(), 7);
    let sent = [("event_name", "tokens"), ("type", "void"), ("cancel[identifier]", "b")];
    assert_eq!(caller.post("/v1/billing/meter_event_adjustments", &sent).await.status, 400);
}

#[tokio::test]
async fn meters_can_be_created_listed_and_archived() {
    let caller = Caller::start().await;
    let made = [
        ("display_name", "Images"),
        ("event_name", "images"),
        ("default_aggregation[formula]", "last"),
        ("customer_mapping[event_payload_key]", "who"),
        ("customer_mapping[type]", "by_id"),
        ("value_settings[event_payload_key]", "count"),
    ];
    let meter = caller.post("/v1/billing/meters", &made).await;
    assert_eq!((meter.status, &meter.body["customer_mapping"]["event_payload_key"]), (200, &json!("who")));
    assert_eq!(caller.post("/v1/billing/meters", &made).await.status, 400);
    let path = format!("/v1/billing/meters/{}", meter.id());
    assert_eq!(caller.get(&path).await.body, meter.body);

    let send = async |value: &str| -> Answer {
        let sent = [("event_name", "images"), ("payload[who]", "cus_1"), ("payload[count]", value)];
        caller.post("/v1/billing/meter_events", &sent).await
    };
    assert_eq!(send("3").await.status, 200);
    assert_eq!(send("2").await.status, 200);
    assert_eq!(caller.fake.total("cus_1", "images", 0, i64::MAX), 2);

    assert_eq!(caller.post(&format!("{path}/deactivate"), &[]).await.body["status"], "inactive");
    assert_eq!(send("1").await.code(), "archived_meter");
    let inactive = caller.get("/v1/billing/meters?status=inactive").await;
    assert_eq!(inactive.body["data"][0]["id"], meter.id());
    assert_eq!(caller.post(&format!("{path}/reactivate"), &[]).await.body["status"], "active");
    assert_eq!(send("1").await.status, 200);
    assert_eq!(caller.get("/v1/billing/meters/mtr_none").await.status, 404);
    assert_eq!(caller.post(&path, &[("display_name", "Pictures")]).await.body["display_name"], "Pictures");
    let page = caller.get("/v1/billing/meters?limit=1").await;
    assert_eq!((&page.body["has_more"], &page.body["data"][0]["id"]), (&json!(true), &json!(meter.id())));
    let next = caller.get(&format!("/v1/billing/meters?starting_after={}", meter.id())).await;
    assert_eq!(
        (&next.body["has_more"], &next.body["data"][0]["event_name"]),
        (&json!(false), &json!("tokens"))
    );
}

#[tokio::test]
async fn windowed_meters_keep_the_latest_event_of_a_window() {
    let caller = Caller::start().await;
    caller.fake.meter_with("hourly", "sum", Some("hour"));
    caller.fake.meter_with("calls", "count", None);
    for (name, value, minutes) in
        [("hourly", "5", 70), ("hourly", "7", 65), ("hourly", "9", 1), ("calls", "5", 1), ("calls", "8", 1)]
    {
        let at = (noon() - minutes * 60).to_string();
        let mut sent = fields("", value).to_vec();
        sent[0].1 = name;
        sent[3] = ("timestamp", &at);
        assert_eq!(caller.post("/v1/billing/meter_events", &sent).await.status, 200);
    }
    assert_eq!(caller.fake.total("cus_1", "hourly", 0, i64::MAX), 16);
    assert_eq!(caller.fake.total("cus_1", "calls", 0, i64::MAX), 2);
}

#[tokio::test]
async fn summaries_are_aligned_grouped_paged_and_delayed() {
    let lag = Duration::from_mins(5);
    let caller = Caller::with(Options { summary_lag: lag, ..Options::default() }).await;
    let meter = caller.fake.meter("images");
    for hours in 1..=3_i64 {
        let (at, value) = ((noon() - hours * 3600).to_string(), hours.to_string());
        let mut sent = fields("", &value).to_vec();
        sent[0].1 = "images";
        sent[3] = ("timestamp", &at);
        caller.post("/v1/billing/meter_events", &sent).await;
    }
    let midnight = unix("2026-11-20T00:00:00Z");
    let summaries = async |from: i64, to: i64, more: &str| -> Answer {
        let asked = format!("customer=cus_1&start_time={from}&end_time={to}{more}");
        caller.get(&format!("/v1/billing/meters/{meter}/event_summaries?{asked}")).await
    };
    let values = |answer: &Answer| -> Vec<i64> {
        let rows = answer.body["data"].as_array().unwrap().iter();
        rows.map(|row| row["aggregated_value"].as_i64().unwrap()).collect()
    };
    assert_eq!(values(&summaries(midnight, noon(), "").await), [0]);
    caller.fake.advance(lag);
    assert_eq!(values(&summaries(midnight, noon(), "").await), [6]);
    assert_eq!(values(&summaries(midnight, noon() - 3600, "").await), [5]);
    let hours = summaries(midnight, noon(), "&value_grouping_window=hour").await;
    assert_eq!(values(&hours), [1, 2, 3]);
    assert_eq!(hours.body["data"][0]["start_time"], noon() - 3600);
    assert_eq!(hours.body["data"][0]["end_time"], noon());
    let first = summaries(midnight, noon(), "&value_grouping_window=hour&limit=2").await;
    assert_eq!((values(&first), &first.body["has_more"]), (vec![1, 2], &json!(true)));
    let last = first.body["data"][1]["id"].as_str().unwrap();
    let more = format!("&value_grouping_window=hour&starting_after={last}");
    assert_eq!(values(&summaries(midnight, noon(), &more).await), [3]);
    assert_eq!(values(&summaries(midnight, midnight + 86_400, "&value_grouping_window=day").await), [6]);

    assert_eq!(summaries(midnight + 1, noon(), "").await.status, 400);
    assert_eq!(summaries(midnight + 60, noon(), "").await.status, 200);
    assert_eq!(summaries(midnight + 60, noon(), "&value_grouping_window=hour").await.status, 400);
    assert_eq!(summaries(midnight, noon(), "&value_grouping_window=day").await.status, 400);
    assert_eq!(summaries(midnight, noon(), "&limit=101").await.status, 400);
    assert_eq!(summaries(noon(), midnight, "").await.status, 400);
    let path = format!("/v1/billing/meters/{meter}/event_summaries?start_time=0&end_time=60");
    assert_eq!(caller.get(&path).await.code(), "parameter_missing");
}
