//! The cost of a subject's usage in the usage report, with the same result before and after folding.

use axum::http::StatusCode;
use serde_json::{Value, json};

use crate::http::access::{sign, with};
use crate::support::TestService;
use crate::support::service::TEST_SECRET;

/// Starts a service with these prices in the default plan `pro`.
async fn with_prices(prices: Value) -> TestService {
    let service = TestService::start().await;
    let meter = |key: &str, aggregation: &str| json!({"key": key, "event_name": "e", "aggregation": aggregation, "dimensions": ["model", "region"]});
    let meters: Vec<Value> =
        [("sum", "sum"), ("count", "count"), ("max", "max"), ("last", "last"), ("unique", "unique_count")]
            .map(|(key, aggregation)| meter(key, aggregation))
            .into();
    service
        .apply(json!({"meters": meters, "default_plan": "pro",
            "plans": [{"key": "pro", "unmatched": "allow", "prices": prices}, {"key": "other"}]}))
        .await;
    // the period is November
    service
        .put("/v1/subjects/s/subscription", &json!({"plan": "pro", "cycle_start": "2026-11-01T00:00:00Z"}))
        .await;
    service
}

fn event(id: &str, time: &str, value: Value, properties: Value) -> Value {
    json!({"id": id, "event_name": "e", "subject": "s", "value": value, "properties": properties,
        "timestamp": format!("2026-11-{time}Z")})
}

fn price(key: &str, mut fields: Value) -> Value {
    for (name, value) in [("key", key), ("meter", "sum"), ("currency", "usd"), ("model", "per_unit")] {
        if fields.get(name).is_none() {
            fields[name] = json!(value);
        }
    }
    fields
}

async fn cost_of(service: &TestService, path: &str) -> Value {
    let answer = service.get(path).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
    answer.json()["cost"].clone()
}

fn lines_of(cost: &Value) -> Vec<String> {
    let line = |l: &Value| format!("{} {} {}", l["price"].as_str().unwrap(), l["quantity"], l["amount"]);
    cost["lines"].as_array().unwrap_or_else(|| panic!("{cost}")).iter().map(line).collect()
}

/// Returns the lines of the cost, and asserts that folding does not change them.
async fn lines(service: &TestService) -> Vec<String> {
    let before = cost_of(service, "/v1/subjects/s/usage").await;
    service.fold().await;
    assert_eq!(cost_of(service, "/v1/subjects/s/usage").await, before);
    lines_of(&before)
}

#[tokio::test]
async fn uses_are_rated_by_the_most_specific_price_in_force_at_their_time() {
    let service = with_prices(json!([
        price("base", json!({"meter": null, "model": "flat", "amount": 2000})),
        price("old", json!({"unit_amount": 1, "effective_to": "2026-11-10T06:30:00Z"})),
        price("new", json!({"unit_amount": 2, "effective_from": "2026-11-10T06:30:00Z"})),
        price("a", json!({"filter": {"model": "a"}, "unit_amount": 10})),
        price("a_in_europe", json!({"filter": {"model": "a", "region": ["eu", "uk"]}, "unit_amount": 100})),
        price("later", json!({"meter": "count", "unit_amount": 1, "effective_from": "2026-11-25T00:00:00Z"})),
    ]))
    .await;
    service
        .record(&json!([
            event("1", "09T23:00:00", json!(3), json!({})),
            // the same hour, before and after the change
            event("2", "10T06:29:59.999999", json!(4), json!({"model": "b"})),
            event("3", "10T06:30:00", json!(5), json!({"region": "eu"})),
            event("4", "12T00:00:00", json!(6), json!({"model": "a"})),
            event("5", "12T00:00:00", json!(7), json!({"model": "a", "region": "uk"})),
            event("6", "12T00:00:00", json!(8), json!({"model": "a", "region": "us"})),
            event("7", "12T00:00:00", json!(0.5), json!({"model": 1})),
        ]))
        .await;
    let expected = ["base 0 2000", "old 7 7", "new 5.5 11", "a 14 140", "a_in_europe 7 700"];
    assert_eq!(lines(&service).await, expected);
    assert_eq!(cost_of(&service, "/v1/subjects/s/usage").await["total"].to_string(), "2858");
}

#[tokio::test]
async fn costs_show_voided_late_and_unpriced_usage() {
    let service = with_prices(json!([
        price("a", json!({"filter": {"model": "a"}, "model": "percentage", "rate": "12.5", "fixed_amount": 10})),
        price("b", json!({"filter": {"model": "b"}, "model": "percentage", "rate": "2.9", "fixed_amount": 30, "event_minimum": 50,
            "event_maximum": "500.000000000001"})),
    ]))
    .await;
    let (a, b) = (json!({"model": "a"}), json!({"model": "b"}));
    service
        .record(&json!([
            event("1", "05T00:10:00", json!(1000), a.clone()),
            event("2", "05T00:10:00", json!(100), b.clone()),
            event("3", "06T00:10:00", json!(100_000), b.clone()),
            event("4", "06T00:10:00", json!("0.000000001"), a),
            event("5", "06T00:10:00", json!(9), json!({})),
        ]))
        .await;
    assert_eq!(lines(&service).await, ["a 1000.000000001 145.000000000125", "b 100100 550.000000000001"]);
    let cost = cost_of(&service, "/v1/subjects/s/usage").await;
    // the unrated part of meters with prices, and all usage of meters without prices
    let unpriced = [("count", 5), ("last", 9), ("max", 100_000), ("sum", 9), ("unique", 5)]
        .map(|(meter, quantity)| json!({"meter": meter, "quantity": quantity}));
    assert_eq!(cost["unpriced"], json!(unpriced));
    // after folding: a late event, and two voided events
    service.record(&json!(event("6", "02T00:00:00", json!(1), b))).await;
    for id in ["1", "3"] {
        let answer = service.post(&format!("/v1/events/{id}/void"), &json!({})).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
    }
    assert_eq!(lines(&service).await, ["a 0.000000001 10.000000000125", "b 101 100"]);
}

#[tokio::test]
async fn gauges_are_rated_by_their_last_value() {
    let service = with_prices(json!([
        price("peak_a", json!({"meter": "max", "filter": {"model": "a"}, "unit_amount": 1})),
        price("peak_b", json!({"meter": "max", "filter": {"model": "b"}, "unit_amount": 10})),
        price(
            "seats",
            json!({"meter": "unique", "unit_amount": 100, "effective_from": "2026-11-05T00:00:00Z"})
        ),
        price(
            "seats_before",
            json!({"meter": "unique", "unit_amount": 7, "effective_to": "2026-11-05T00:00:00Z"})
        ),
        price("at_the_end", json!({"meter": "last", "unit_amount": 1})),
    ]))
    .await;
    service
        .record(&json!([
            event("1", "04T00:00:00", json!(5), json!({"model": "a"})),
            event("2", "06T00:00:00", json!(9), json!({"model": "a"})),
            event("3", "06T00:00:00", json!(7), json!({"model": "b"})),
            event("4", "07T00:00:00", json!(7), json!({"model": "a"})),
            event("5", "08T00:00:00", json!(3), json!({"model": "c"})),
        ]))
        .await;
    let expected = ["peak_a 9 9", "peak_b 7 70", "seats 3 300", "seats_before 1 7", "at_the_end 3 3"];
    assert_eq!(lines(&service).await, expected);
}

#[tokio::test]
async fn costs_equal_the_quote_of_the_same_usage() {
    let prices = json!([
        price("base", json!({"meter": null, "model": "flat", "amount": "999.5"})),
        price(
            "tokens",
            json!({"model": "graduated", "tiers": [{"up_to": 100, "unit_amount": 0}, {"up_to": null, "unit_amount": "0.333333333333"}]})
        ),
        price(
            "big",
            json!({"filter": {"model": "big"}, "model": "volume", "free_units": 5, "minimum_amount": 50,
            "tiers": [{"up_to": 10, "unit_amount": 3, "flat_amount": 7}, {"up_to": null, "unit_amount": 2}]})
        ),
        price("calls", json!({"meter": "count", "model": "package", "unit_amount": 9, "per_units": 2})),
    ]);
    let service = with_prices(prices).await;
    let big = json!({"model": "big"});
    let (mut events, mut sums, mut counts) = (Vec::new(), Vec::new(), Vec::new());
    for n in 0..40 {
        let properties = if n % 3 == 0 { big.clone() } else { json!({"model": "small"}) };
        let value = json!(format!("{n}.{n:02}"));
        events.push(event(
            &n.to_string(),
            &format!("{:02}T{:02}:15:00", 1 + n % 18, n % 24),
            value.clone(),
            properties.clone(),
        ));
        sums.push(json!({"meter": "sum", "quantity": value, "properties": properties}));
        counts.push(json!({"meter": "count", "quantity": 1}));
    }
    service.record(&json!(events)).await;
    sums.append(&mut counts);
    for (meter, quantity) in [("last", "17.17"), ("max", "39.39"), ("unique", "40")] {
        sums.push(json!({"meter": meter, "quantity": quantity}));
    }
    service.put("/v1/rates", &json!({"from": "usd", "to": "jpy", "rate": "154.3"})).await;
    for currency in ["usd", "jpy"] {
        let quote = service
            .post("/v1/quotes", &json!({"plan": "pro", "usage": sums, "currency": currency}))
            .await
            .json();
        let cost = cost_of(&service, &format!("/v1/subjects/s/usage?currency={currency}")).await;
        assert_eq!(cost, quote, "{currency}");
    }
    let unknown = service.get("/v1/subjects/s/usage?currency=eur").await;
    assert_eq!((unknown.status, unknown.code()), (StatusCode::UNPROCESSABLE_ENTITY, "no_rate".to_owned()));
    assert_eq!(service.get("/v1/subjects/s/usage?currency=euro").await.code(), "unknown_currency");
}

#[tokio::test]
async fn costs_include_descendants_and_end_users_see_their_own() {
    let service = with_prices(json!([price("p", json!({"unit_amount": 3}))])).await;
    service.put("/v1/subjects/user", &json!({"parent": "s"})).await;
    // a nearer plan without prices
    service
        .put(
            "/v1/subjects/user/subscription",
            &json!({"plan": "other", "cycle_start": "2026-11-01T00:00:00Z"}),
        )
        .await;
    let of = |subject: &str, value: i64| json!({"event_name": "e", "subject": subject, "value": value});
    service.record(&json!([of("s", 10), of("user", 1)])).await;
    assert_eq!(lines_of(&cost_of(&service, "/v1/subjects/s/usage").await), ["p 11 33"]);
    assert_eq!(lines_of(&cost_of(&service, "/v1/subjects/user/usage").await), ["p 1 3"]);
    for (subject, expected) in [("s", "p 10 30"), ("user", "p 1 3")] {
        let token = sign(&with("sub", json!(subject)), TEST_SECRET);
        let answer = service.get_as(&token, &format!("/v1/subjects/{subject}/usage")).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
        assert_eq!(lines_of(&answer.json()["cost"]), [expected]);
    }
    let stranger = cost_of(&service, "/v1/subjects/stranger/usage").await;
    assert_eq!(lines_of(&stranger), ["p 0 0"], "the default plan has prices");
}

#[tokio::test]
async fn reports_without_prices_have_no_cost() {
    let service = with_prices(json!([])).await;
    service.record(&json!({"event_name": "e", "subject": "s"})).await;
    assert_eq!(cost_of(&service, "/v1/subjects/s/usage?currency=eur").await, Value::Null);
}
