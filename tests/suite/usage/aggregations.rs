//! Answers of every aggregation, before and after folding.

use serde_json::{Value, json};

use crate::support::TestService;

const DAY: &str = "from=2026-11-10T00:00:00Z&to=2026-11-12T00:00:00Z";

/// Runs the query before and after folding, checks that both answers agree, and verifies.
async fn ask(service: &TestService, query: &str) -> Vec<Value> {
    let before = service.usage(query).await;
    service.verify().await;
    service.fold().await;
    let after = service.usage(query).await;
    assert_eq!(before, after, "{query}");
    service.verify().await;
    after
}

fn values(rows: &[Value]) -> Vec<String> {
    rows.iter().map(|row| row["value"].to_string()).collect()
}

#[tokio::test]
async fn sums_by_window_and_subject() {
    let service =
        TestService::with_meters(json!([{"key": "m", "event_name": "e", "aggregation": "sum"}])).await;
    let mut events = Vec::new();
    for subject in ["a", "b", "c", "d", "e"] {
        for time in ["10T00:00:00Z", "10T00:01:00Z", "10T01:00:00Z", "11T00:00:00Z"] {
            events.push(json!({"event_name": "e", "subject": subject, "value": 100,
                "timestamp": format!("2026-11-{time}")}));
        }
    }
    service.record(&json!(events)).await;
    let cases = [
        ("", vec!["2000"]),
        ("&window=minute", vec!["500"; 4]),
        ("&window=hour", vec!["1000", "500", "500"]),
        ("&window=day", vec!["1500", "500"]),
        ("&group_by=subject", vec!["400"; 5]),
        ("&subject=a&subject=b", vec!["800"]),
        ("&subject=a&window=day&group_by=subject", vec!["300", "100"]),
    ];
    for (query, expected) in cases {
        assert_eq!(values(&ask(&service, &format!("meter=m&{DAY}{query}")).await), expected, "{query}");
    }
    let filled = service.usage(&format!("meter=m&{DAY}&window=hour&fill=true")).await;
    assert_eq!(filled.len(), 48);
    assert_eq!(filled[2]["value"], 0);
}

#[tokio::test]
async fn decimals_are_exact_and_only_count_includes_events_without_the_property() {
    let meters: Vec<Value> = ["sum", "count", "avg", "min", "max"]
        .map(|aggregation| {
            json!({"key": aggregation, "event_name": "e", "aggregation": aggregation, "value_property": "n"})
        })
        .into();
    let service = TestService::with_meters(json!(meters)).await;
    let event = |properties: Value| {
        json!({"event_name": "e", "subject": "s", "properties": properties,
            "timestamp": "2026-11-10T05:00:00Z"})
    };
    service
        .record(&json!([event(json!({"n": 123})), event(json!({"n": "0.456789012"})), event(json!({}))]))
        .await;
    for (meter, expected, count) in [
        ("sum", "123.456789012", 2),
        ("count", "3", 3),
        ("avg", "61.728394506", 2),
        ("min", "0.456789012", 2),
        ("max", "123", 2),
    ] {
        let rows = ask(&service, &format!("meter={meter}&{DAY}")).await;
        assert_eq!(rows[0]["value"].to_string(), expected, "{meter}");
        assert_eq!(rows[0]["event_count"], count, "{meter}");
    }
}

#[tokio::test]
async fn empty_usage_is_zero_or_null_by_aggregation() {
    let aggregations = ["sum", "count", "unique_count", "min", "max", "avg", "last"];
    let meters = aggregations.map(|aggregation| {
        json!({"key": aggregation, "event_name": "e", "aggregation": aggregation, "value_property": "n"})
    });
    let service = TestService::with_meters(json!(meters)).await;
    for aggregation in aggregations {
        let expected = if matches!(aggregation, "sum" | "count" | "unique_count") { "0" } else { "null" };
        for query in [DAY, "from=2026-11-10T00:00:00Z&to=2026-11-10T00:00:00Z"] {
            let rows = service.usage(&format!("meter={aggregation}&{query}&subject=nobody")).await;
            assert_eq!(values(&rows), [expected], "{aggregation}");
            assert_eq!(rows[0]["event_count"], 0);
        }
        assert!(service.usage(&format!("meter={aggregation}&{DAY}&window=day")).await.is_empty());
        let filled = service.usage(&format!("meter={aggregation}&{DAY}&window=day&fill=true")).await;
        assert_eq!(values(&filled), [expected, expected]);
    }
}

#[tokio::test]
async fn last_goes_by_timestamp_then_arrival() {
    let service =
        TestService::with_meters(json!([{"key": "m", "event_name": "e", "aggregation": "last"}])).await;
    let event = |id: &str, value: i32, time: &str| json!({"id": id, "event_name": "e", "subject": "s", "value": value, "timestamp": time});
    service.record(&event("1", 5, "2026-11-10T05:00:00Z")).await;
    service.record(&event("2", 9, "2026-11-10T03:00:00Z")).await;
    assert_eq!(values(&ask(&service, &format!("meter=m&{DAY}")).await), ["5"]);
    service.record(&event("3", 7, "2026-11-10T05:00:00Z")).await;
    assert_eq!(
        values(&ask(&service, &format!("meter=m&{DAY}")).await),
        ["7"],
        "at the same time, the later arrival wins"
    );
    service.post("/v1/events/3/void", &json!({})).await;
    assert_eq!(values(&ask(&service, &format!("meter=m&{DAY}")).await), ["5"]);
}

#[tokio::test]
async fn a_voided_minimum_is_no_longer_the_minimum() {
    let meters = ["sum", "count", "avg", "min", "max", "unique_count"]
        .map(|aggregation| json!({"key": aggregation, "event_name": "e", "aggregation": aggregation}));
    let service = TestService::with_meters(json!(meters)).await;
    for (id, value) in [("a", 1), ("b", 5), ("c", 5), ("d", 10)] {
        let time = format!("2026-11-10T05:{value:02}:00Z");
        let event = json!({"id": id, "event_name": "e", "subject": "s", "value": value, "timestamp": time});
        service.record(&event).await;
    }
    let ask_all = async || {
        let mut found = Vec::new();
        for meter in ["sum", "count", "avg", "min", "max", "unique_count"] {
            found.extend(values(&ask(&service, &format!("meter={meter}&{DAY}")).await));
        }
        found
    };
    assert_eq!(ask_all().await, ["21", "4", "5.25", "1", "10", "3"]);
    // the event is folded by now, so the void has to correct rollups
    let void = service.post("/v1/events/a/void", &json!({"reason": "a mistake"})).await;
    assert_eq!((void.status.as_u16(), void.json()["reason"].clone()), (200, json!("a mistake")));
    assert_eq!(ask_all().await, ["20", "3", "6.666666667", "5", "10", "2"]);
    service.post("/v1/events/b/void", &json!({})).await;
    assert_eq!(ask_all().await, ["15", "2", "7.5", "5", "10", "2"], "another event still has the value 5");
    service.post("/v1/events/d/void", &json!({})).await;
    // neither this event nor its void is folded
    service
        .record(&json!({"id": "e", "event_name": "e", "subject": "s", "value": 0, "timestamp": "2026-11-10T05:30:00Z"}))
        .await;
    service.post("/v1/events/e/void", &json!({})).await;
    assert_eq!(ask_all().await, ["5", "1", "5", "5", "5", "1"]);
    service.post("/v1/events/c/void", &json!({})).await;
    assert_eq!(ask_all().await, ["0", "0", "null", "null", "null", "0"]);
}

#[tokio::test]
async fn dimensions_group_and_filter_usage() {
    let service = TestService::with_meters(json!([
        {"key": "m", "event_name": "e", "aggregation": "sum", "dimensions": ["model", "region"]},
        {"key": "big", "event_name": "e", "aggregation": "sum", "filter": {"model": ["large", "huge"]}},
        {"key": "who", "event_name": "e", "aggregation": "unique_count", "value_property": "user", "dimensions": ["model"]},
    ]))
    .await;
    let event = |value: i32, properties: Value| {
        json!({"event_name": "e", "subject": "s", "value": value, "properties": properties,
            "timestamp": "2026-11-10T05:00:00Z"})
    };
    service
        .record(&json!([
            event(1, json!({"model": "large", "region": "eu", "user": "u1"})),
            event(2, json!({"model": "large", "region": "us", "user": "u2"})),
            event(4, json!({"model": "huge", "user": "u1"})),
            event(8, json!({"model": 7, "region": true, "user": "u1"})),
            event(16, json!({"region": null})),
            event(32, json!({"model": {"name": "x"}, "region": "it's \"quoted\", {and} NULL"})),
        ]))
        .await;
    let grouped = ask(&service, &format!("meter=m&{DAY}&group_by=model,region")).await;
    let found: Vec<(Value, Value, Value)> = grouped
        .iter()
        .map(|row| (row["group"]["model"].clone(), row["group"]["region"].clone(), row["value"].clone()))
        .collect();
    let expected = [
        (json!(null), json!(null), json!(16)),
        (json!(null), json!("it's \"quoted\", {and} NULL"), json!(32)),
        (json!("7"), json!("true"), json!(8)),
        (json!("huge"), json!(null), json!(4)),
        (json!("large"), json!("eu"), json!(1)),
        (json!("large"), json!("us"), json!(2)),
    ];
    assert_eq!(found, expected);
    let cases = [
        ("meter=m&filter[model]=large", vec!["3"]),
        ("meter=m&filter[model]=large&filter[region]=us", vec!["2"]),
        ("meter=m&filter[model]=large&filter[model]=huge&group_by=model", vec!["4", "3"]),
        ("meter=m&filter[model]=none", vec!["0"]),
        ("meter=big", vec!["7"]),
        ("meter=who", vec!["2"]),
        ("meter=who&group_by=model", vec!["1", "1", "2"]),
    ];
    for (query, expected) in cases {
        assert_eq!(values(&ask(&service, &format!("{query}&{DAY}")).await), expected, "{query}");
    }
}
