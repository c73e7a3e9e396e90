//! Prices and caps in the catalog and in subscriptions: the refused ones, with their pointers.

use axum::http::StatusCode;
use serde_json::{Value, json};

use crate::support::TestService;

fn catalog(prices: Value, caps: Value) -> Value {
    let meter = |key: &str, aggregation: &str| json!({"key": key, "event_name": "e", "aggregation": aggregation, "dimensions": ["model", "region"]});
    json!({
        "meters": [meter("sum", "sum"), meter("max", "max"), meter("unique", "unique_count"), meter("avg", "avg"), meter("count", "count")],
        "plans": [{"key": "free"}, {"key": "pro", "prices": prices, "spend_caps": caps}],
    })
}

fn price(key: &str, meter: &str, filter: Value) -> Value {
    json!({"key": key, "meter": meter, "filter": filter, "model": "per_unit", "currency": "usd", "unit_amount": 1})
}

#[tokio::test]
async fn unratable_prices_are_refused_with_their_pointer() {
    let service = TestService::start().await;
    let (a, b) = (json!({"model": "a"}), json!({"model": ["b", "c"]}));
    let percentage =
        json!({"key": "p", "meter": "count", "model": "percentage", "currency": "usd", "rate": 1});
    let cases = [
        (json!([price("p", "none", json!({}))]), Some(("/plans/1/prices/0/meter", "unknown_meter"))),
        (json!([price("p", "avg", json!({}))]), Some(("/plans/1/prices/0/meter", "unpriceable_meter"))),
        (json!([percentage]), Some(("/plans/1/prices/0/meter", "unpriceable_meter"))),
        (
            json!([price("p", "sum", json!({"tier": "x"}))]),
            Some(("/plans/1/prices/0/filter/tier", "unknown_dimension")),
        ),
        (
            json!([price("p", "sum", a.clone()), price("p", "sum", b.clone())]),
            Some(("/plans/1/prices", "duplicate_key")),
        ),
        (
            json!([price("p", "sum", a.clone()), price("q", "sum", a.clone())]),
            Some(("/plans/1/prices/1", "overlapping_prices")),
        ),
        // precedence separates sums, but not gauges
        (json!([price("p", "sum", a.clone()), price("q", "sum", json!({}))]), None),
        (
            json!([price("p", "max", a.clone()), price("q", "max", json!({}))]),
            Some(("/plans/1/prices/1/filter", "unsupported_slice")),
        ),
        (
            json!([price("p", "unique", json!({})), price("q", "unique", a.clone())]),
            Some(("/plans/1/prices/1/filter", "unsupported_slice")),
        ),
        (
            json!([price("p", "max", a.clone()), price("q", "max", json!({"region": "eu"}))]),
            Some(("/plans/1/prices/1/filter", "unsupported_slice")),
        ),
        (json!([price("p", "max", a.clone()), price("q", "max", b)]), None),
    ];
    for (prices, expected) in cases {
        let answer = service.put("/v1/catalog?dry_run=true", &catalog(prices.clone(), json!([]))).await;
        match expected {
            None => assert_eq!(answer.status, StatusCode::OK, "{prices}: {}", answer.text),
            Some((pointer, code)) => {
                assert_eq!(
                    (answer.status, answer.code()),
                    (StatusCode::UNPROCESSABLE_ENTITY, code.to_owned()),
                    "{prices}"
                );
                assert_eq!(answer.json()["errors"][0]["pointer"], pointer, "{prices}");
            }
        }
    }
}

#[tokio::test]
async fn caps_need_a_currency_with_prices_or_an_exchange_rate() {
    let service = TestService::start().await;
    let cap = |currency: &str| json!([{"key": "c", "amount": 100, "currency": currency, "period": "month"}]);
    let prices = json!([price("p", "sum", json!({}))]);
    let apply = async |prices: &Value, currency: &str| {
        let answer = service.put("/v1/catalog", &catalog(prices.clone(), cap(currency))).await;
        (
            answer.status,
            answer.json()["errors"][0]["pointer"].as_str().map(str::to_owned),
            answer.json()["code"].clone(),
        )
    };
    assert_eq!(apply(&prices, "usd").await.0, StatusCode::OK);
    let (status, pointer, code) = apply(&prices, "eur").await;
    assert_eq!((status, code), (StatusCode::UNPROCESSABLE_ENTITY, json!("no_rate")));
    assert_eq!(pointer.as_deref(), Some("/plans/1/spend_caps/0/currency"));
    assert_eq!(
        apply(&json!([]), "eur").await.0,
        StatusCode::OK,
        "a plan without prices accepts any currency"
    );
    // a rate in the opposite direction does not count
    service.put("/v1/rates", &json!({"from": "eur", "to": "usd", "rate": 1.1})).await;
    assert_eq!(apply(&prices, "eur").await.0, StatusCode::UNPROCESSABLE_ENTITY);
    service.put("/v1/rates", &json!({"from": "usd", "to": "eur", "rate": 0.9})).await;
    assert_eq!(apply(&prices, "eur").await.0, StatusCode::OK);
}

#[tokio::test]
async fn subscriptions_may_have_prices_of_their_own() {
    let service = TestService::start().await;
    let listed = json!([price("p", "sum", json!({})), price("q", "sum", json!({"model": "a"}))]);
    service.apply(catalog(listed, json!([]))).await;
    let path = "/v1/subjects/s/subscription";
    let own = |key: &str, filter: Value, amount: Value| {
        let mut own = price(key, "sum", filter);
        own["unit_amount"] = amount;
        own
    };
    let cases = [
        (json!([own("p", json!({}), json!(-1))]), "/prices/0/unit_amount", "negative_amount"),
        (json!([price("x", "none", json!({}))]), "/prices/0/meter", "unknown_meter"),
        (
            json!([price("x", "sum", json!({"region": "eu"})), price("y", "sum", json!({}))]),
            "/prices/1",
            "overlapping_prices",
        ),
        (
            json!([price("x", "sum", json!({})), price("x", "sum", json!({"region": "eu"}))]),
            "/prices",
            "duplicate_key",
        ),
    ];
    for (prices, pointer, code) in cases {
        let answer = service.put(path, &json!({"plan": "pro", "prices": prices})).await;
        assert_eq!(
            (answer.status, answer.code()),
            (StatusCode::UNPROCESSABLE_ENTITY, code.to_owned()),
            "{prices}"
        );
        assert_eq!(answer.json()["errors"][0]["pointer"], pointer, "{prices}");
    }
    let prices = json!([own("p", json!({}), json!(5)), own("new", json!({"region": "eu"}), json!(7))]);
    let answer = service.put(path, &json!({"plan": "pro", "prices": prices})).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
    let use_of = |value: i64, properties: Value| json!({"event_name": "e", "subject": "s", "value": value, "properties": properties});
    service
        .record(&json!([
            use_of(1, json!({})),
            use_of(10, json!({"model": "a"})),
            use_of(100, json!({"region": "eu"}))
        ]))
        .await;
    let cost = service.get("/v1/subjects/s/usage").await.json()["cost"].clone();
    let lines: Vec<String> = cost["lines"]
        .as_array()
        .unwrap()
        .iter()
        .map(|l| format!("{} {} {}", l["price"], l["quantity"], l["amount"]))
        .collect();
    assert_eq!(lines, ["\"p\" 1 5", "\"q\" 10 10", "\"new\" 100 700"]);
    let shown = service.get(&format!("{path}?history=true")).await.json();
    assert_eq!(shown["prices"].as_array().unwrap().len(), 2);
    assert_eq!(shown["prices"], shown["history"][0]["prices"]);
    assert_eq!(service.put(path, &json!({"plan": "pro"})).await.json()["prices"], json!([]));
}
