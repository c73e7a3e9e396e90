//! Exchange rates: setting, replacing and listing them.

use axum::http::StatusCode;
use serde_json::{Value, json};

use crate::support::{TestService, at};

async fn in_force(service: &TestService) -> Vec<String> {
    let page = service.get("/v1/rates").await.json();
    let shown = |rate: &Value| {
        format!("{} {} {}", rate["from"].as_str().unwrap(), rate["to"].as_str().unwrap(), rate["rate"])
    };
    page["data"].as_array().unwrap().iter().map(shown).collect()
}

async fn put(service: &TestService, body: Value) {
    let answer = service.put("/v1/rates", &body).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
}

/// Returns the cost of 100 cents in yen at an instant.
async fn yen(service: &TestService, at: &str) -> String {
    let body = json!({"prices": [{"key": "p", "model": "flat", "currency": "usd", "amount": 100}], "currency": "jpy",
        "usage": [], "at": at});
    let answer = service.post("/v1/quotes", &body).await;
    if answer.status == StatusCode::OK { answer.json()["total"].to_string() } else { answer.code() }
}

#[tokio::test]
async fn latest_exchange_rates_hold_and_earlier_ones_remain() {
    let service = TestService::start().await;
    put(&service, json!({"from": "usd", "to": "jpy", "rate": 150, "as_of": "2026-11-01T00:00:00Z"})).await;
    put(&service, json!({"rates": [{"from": "usd", "to": "jpy", "rate": 155}, {"from": "eur", "to": "usd", "rate": "1.08"}]})).await;
    assert_eq!(in_force(&service).await, ["eur usd 1.08", "usd jpy 155"]);
    // a rate from a moment ahead does not hold yet
    put(&service, json!({"from": "usd", "to": "jpy", "rate": 160, "as_of": "2026-11-20T12:05:00Z"})).await;
    assert_eq!(in_force(&service).await, ["eur usd 1.08", "usd jpy 155"]);
    let times = [
        ("2026-10-31T23:59:59Z", "no_rate"),
        ("2026-11-01T00:00:00Z", "150"),
        ("2026-11-20T12:00:00Z", "155"),
        ("2026-11-20T12:05:00Z", "160"),
    ];
    for (time, expected) in times {
        assert_eq!(yen(&service, time).await, expected, "{time}");
    }
    put(&service, json!({"from": "usd", "to": "jpy", "rate": 149, "as_of": "2026-11-01T00:00:00Z"})).await;
    assert_eq!(yen(&service, "2026-11-10T00:00:00Z").await, "149");
    service.clock.set(at("2026-11-20T12:06:00Z"));
    assert_eq!(in_force(&service).await, ["eur usd 1.08", "usd jpy 160"]);
}

#[tokio::test]
async fn rates_page_by_currency_pair() {
    let service = TestService::start().await;
    let rates: Vec<Value> =
        ["usd", "gbp", "jpy", "chf"].map(|to| json!({"from": "eur", "to": to, "rate": 1})).into();
    put(&service, json!({ "rates": rates })).await;
    let (mut found, mut query) = (Vec::new(), "/v1/rates?limit=3".to_owned());
    loop {
        let page = service.get(&query).await.json();
        found.extend(
            page["data"].as_array().unwrap().iter().map(|rate| rate["to"].as_str().unwrap().to_owned()),
        );
        let Some(cursor) = page["next_cursor"].as_str() else { break };
        query = format!("/v1/rates?limit=3&cursor={cursor}");
    }
    assert_eq!(found, ["chf", "gbp", "jpy", "usd"]);
    assert_eq!(service.get("/v1/rates?cursor=nonsense").await.code(), "invalid_cursor");
}

#[tokio::test]
async fn invalid_rates_are_refused_with_their_pointer_and_set_nothing() {
    let service = TestService::start().await;
    let good = json!({"from": "usd", "to": "eur", "rate": 0.9});
    let altered = |field: &str, value: Value| {
        let mut rate = good.clone();
        rate[field] = value;
        json!({"rates": [{"from": "usd", "to": "gbp", "rate": 0.8}, rate]})
    };
    let cases = [
        (altered("rate", json!(0)), "/rates/1/rate", "invalid_value"),
        (altered("rate", json!(-1)), "/rates/1/rate", "negative_amount"),
        (altered("rate", json!("much")), "/rates/1/rate", "invalid_amount"),
        (altered("from", json!("dollar")), "/rates/1/from", "unknown_currency"),
        (altered("to", json!("usd")), "/rates/1/to", "same_currency"),
        (altered("to", json!(null)), "/rates/1/to", "missing_field"),
        (altered("as_of", json!("2026-11-20T12:05:01Z")), "/rates/1/as_of", "timestamp_in_future"),
        (altered("as_of", json!("now")), "/rates/1/as_of", "invalid_timestamp"),
        (altered("inverse", json!(1)), "/rates/1/inverse", "unknown_field"),
        (json!({"rates": [good, good]}), "/rates", "duplicate_key"),
        (json!({"rates": []}), "/rates", "empty"),
        (json!({}), "/from", "missing_field"),
    ];
    for (body, pointer, code) in cases {
        let answer = service.put("/v1/rates", &body).await;
        assert_eq!(
            (answer.status, answer.code()),
            (StatusCode::UNPROCESSABLE_ENTITY, code.to_owned()),
            "{body}"
        );
        assert_eq!(answer.json()["errors"][0]["pointer"], pointer, "{body}");
    }
    assert_eq!(in_force(&service).await, Vec::<String>::new());
}
