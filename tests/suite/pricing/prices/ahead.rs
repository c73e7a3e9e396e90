//! The trend and the forecast of a period.

use axum::http::StatusCode;
use serde_json::{Value, json};

use crate::support::{TestService, at};

async fn service(prices: Value) -> TestService {
    let service = TestService::start().await;
    let meters: Vec<Value> = ["sum", "count", "min", "max", "avg", "last", "unique_count"]
        .map(|aggregation| {
            json!({"key": aggregation, "event_name": "e", "aggregation": aggregation, "dimensions": ["model"]})
        })
        .into();
    service
        .apply(json!({"meters": meters, "plans": [{"key": "pro", "unmatched": "allow", "prices": prices}]}))
        .await;
    let cycle = json!({"plan": "pro", "cycle_start": "2026-11-05T09:30:00Z"});
    service.put("/v1/subjects/s/subscription", &cycle).await;
    service
}

fn event(id: &str, time: &str, value: i64) -> Value {
    json!({"id": id, "event_name": "e", "subject": "s", "value": value, "timestamp": format!("2026-{time}Z")})
}

async fn report(service: &TestService) -> Value {
    let answer = service.get("/v1/subjects/s/usage").await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
    answer.json()
}

/// Returns the values of the period's meters.
fn meters(report: &Value) -> Vec<String> {
    let of = |meter: &Value| format!("{}={}", meter["meter"].as_str().unwrap(), meter["value"]);
    report["meters"].as_array().unwrap().iter().map(of).collect()
}

fn days(report: &Value, meter: &str) -> Vec<String> {
    let day = |day: &Value| {
        let found = day["meters"].as_array().unwrap().iter().find(|found| found["meter"] == meter)?;
        Some(format!("{} {}", day["window_start"].as_str().unwrap(), found["value"]))
    };
    report["trend"].as_array().unwrap().iter().filter_map(day).collect()
}

fn forecast(report: &Value, meter: &str) -> String {
    let meters = report["forecast"]["meters"].as_array().unwrap();
    let found = meters.iter().find(|found| found["meter"] == meter).unwrap_or_else(|| panic!("{report}"));
    format!("{} {}", found["value"], found["method"].as_str().unwrap())
}

#[tokio::test]
async fn forecast_days_start_with_the_period_and_sum_to_it() {
    let service = service(json!([
        {"key": "base", "model": "flat", "currency": "usd", "amount": 1000},
        {"key": "sum", "meter": "sum", "model": "graduated", "currency": "usd",
         "tiers": [{"up_to": 10, "unit_amount": 0.4}, {"up_to": null, "unit_amount": 2.5}]},
        {"key": "peak", "meter": "max", "model": "per_unit", "currency": "usd", "unit_amount": 10},
        {"key": "members", "meter": "unique_count", "model": "per_unit", "currency": "usd", "unit_amount": 100},
        {"key": "members_c", "meter": "sum", "filter": {"model": "c"}, "model": "per_unit", "currency": "usd", "unit_amount": 1}
    ]))
    .await;
    service
        .record(&json!([
            event("before", "11-05T09:29:59", 50),
            event("1", "11-05T09:30:00", 3),
            event("2", "11-05T23:59:59", 4),
            event("3", "11-07T12:00:00", 4),
            event("4", "11-07T13:00:00", 9),
            event("5", "11-20T11:00:00", 1),
        ]))
        .await;
    for folded in [false, true] {
        if folded {
            service.fold().await;
        }
        let report = report(&service).await;
        let expected = ["avg=4.2", "count=5", "last=1", "max=9", "min=1", "sum=21", "unique_count=4"];
        assert_eq!(meters(&report), expected);
        assert_eq!(
            days(&report, "sum"),
            ["2026-11-05T09:30:00Z 7", "2026-11-07T00:00:00Z 13", "2026-11-20T00:00:00Z 1"]
        );
        // unique members of each day; the total counts members of other days once
        assert_eq!(
            days(&report, "unique_count"),
            ["2026-11-05T09:30:00Z 2", "2026-11-07T00:00:00Z 2", "2026-11-20T00:00:00Z 1"]
        );
        let trend = report["trend"].as_array().unwrap();
        assert_eq!(trend.len(), 16, "every day so far, with or without usage");
        let costs: Vec<String> =
            trend.iter().map(|day| day["cost"].to_string()).filter(|cost| cost != "0").collect();
        // base + 7 * 0.4, rounded + 4 * 10 + 2 * 100; then 4 + 10 * 2.5 in all, a peak of 9, another member
        assert_eq!(costs, ["1243", "176", "103"]);
        assert_eq!(report["cost"]["total"], 1243 + 176 + 103);
    }
}

#[tokio::test]
async fn forecasts_follow_the_weekdays_with_four_weeks_of_history() {
    let service = service(json!([
        {"key": "base", "model": "flat", "currency": "usd", "amount": 1000},
        {"key": "sum", "meter": "sum", "model": "per_unit", "currency": "usd", "unit_amount": 2}
    ]))
    .await;
    // 2026-10-23 is a Friday, four weeks before today
    let of_day = |day: i64| [5, 1, 1, 10, 10, 10, 10][usize::try_from(day % 7).unwrap()];
    let (first, micros) = (at("2026-10-23T06:00:00Z").micros(), 86_400_000_000);
    let day = |day: i64| {
        let time = metergate_domain::base::timestamp::Timestamp::from_micros(first + day * micros).unwrap();
        json!({"id": format!("d{day}"), "event_name": "e", "subject": "s", "value": of_day(day), "timestamp": time.to_string()})
    };
    let events: Vec<Value> = (0..28).map(day).collect();
    service.record(&json!(events)).await;
    service.clock.set(at("2026-11-20T00:00:00Z"));
    let seen = report(&service).await;
    // the rest up to 2026-12-05T09:30: fifteen whole days, and 9.5 hours of a Saturday; the period begins on
    // 2026-11-05, so its first whole day is 2026-11-06
    let so_far: i64 = (14..28).map(of_day).sum();
    let rest: i64 = (28..43).map(of_day).sum();
    let expected = format!("{}.{}", so_far + rest, "395833334");
    assert_eq!(forecast(&seen, "sum"), format!("{expected} weekday"));
    assert_eq!(seen["forecast"]["cost"]["method"], "weekday");
    // two cents per unit
    assert_eq!(seen["forecast"]["cost"]["total"], 1000 + 2 * (so_far + rest) + 1);
    assert_eq!(seen["forecast"]["cost"]["currency"], "usd");

    // one day of the four weeks has no usage; usage in the week before shows that the history is complete
    service.post("/v1/events/d0/void", &json!({})).await;
    assert!(forecast(&report(&service).await, "sum").ends_with(" linear"));
    service.record(&event("earlier", "10-22T12:00:00", 1)).await;
    assert!(forecast(&report(&service).await, "sum").ends_with(" weekday"));
    service.post("/v1/events/earlier/void", &json!({})).await;
    let seen = report(&service).await;
    let elapsed = at("2026-11-20T00:00:00Z").micros() - at("2026-11-05T09:30:00Z").micros();
    assert_eq!(elapsed, 14 * micros + micros * 29 / 48);
    // 30 days at the rate of the last 14 29/48 days
    let nanos = (i128::from(so_far) * 30 * 48 * 1_000_000_000 + (14 * 48 + 29) - 1) / (14 * 48 + 29);
    let expected = format!("{}.{:09}", nanos / 1_000_000_000, nanos % 1_000_000_000);
    assert_eq!(forecast(&seen, "sum"), format!("{} linear", expected.trim_end_matches('0')));
    assert_eq!(seen["forecast"]["cost"]["method"], "linear");
}

#[tokio::test]
async fn subjects_without_usage_have_days_of_zero() {
    let service = service(json!([])).await;
    let seen = report(&service).await;
    assert_eq!(seen["cost"], Value::Null);
    assert_eq!(seen["forecast"]["cost"], Value::Null);
    assert_eq!(forecast(&seen, "sum"), "0 linear");
    assert_eq!(seen["trend"].as_array().unwrap().len(), 16);
    assert_eq!(
        seen["trend"][0],
        json!({"window_start": "2026-11-05T09:30:00Z", "window_end": "2026-11-06T00:00:00Z", "meters": []})
    );
    let expected = ["avg=null", "count=0", "last=null", "max=null", "min=null", "sum=0", "unique_count=0"];
    assert_eq!(meters(&seen), expected);
}
