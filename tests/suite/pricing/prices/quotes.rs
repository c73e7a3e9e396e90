//! Quotes: given quantities rated by given prices, exact to the minor unit.

use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use metergate::engine::access::keys::KeyKind;
use metergate_domain::base::Environment;
use serde_json::{Value, json};

use crate::support::TestService;

/// Returns a price of the meter `m`, in dollars by default.
fn price(mut fields: Value) -> Value {
    for (name, value) in [("key", "p"), ("meter", "m"), ("currency", "usd")] {
        if fields.get(name).is_none() {
            fields[name] = json!(value);
        }
    }
    fields
}

async fn quote(service: &TestService, body: &Value) -> Value {
    let answer = service.post("/v1/quotes", body).await;
    assert_eq!(answer.status, StatusCode::OK, "{body}: {}", answer.text);
    answer.json()
}

/// Returns the exact amount and the total of a quantity by one price.
async fn amounts(service: &TestService, price: &Value, quantity: &str) -> (String, String) {
    let usage = json!([{"meter": "m", "quantity": quantity}]);
    let quote = quote(service, &json!({"prices": [price], "usage": usage})).await;
    (quote["lines"][0]["amount"].to_string(), quote["total"].to_string())
}

/// Prices, each followed by a bar and by quantities with the exact amounts in minor units. The amounts come
/// from the tests of other billing systems. After a slash follows the total, if the amount needs rounding.
const EXPECTED: &str = r#"
{"model":"graduated","tiers":[{"up_to":10,"unit_amount":1000,"flat_amount":200},{"up_to":20,"unit_amount":500,"flat_amount":300},{"up_to":null,"unit_amount":500,"flat_amount":300}]} | 0=200 1=1200 10=10200 11=11000 12=11500 21=16300
{"model":"package","unit_amount":10000,"per_units":10} | 121=130000
{"model":"package","unit_amount":10000,"per_units":10,"free_units":10} | 121=120000
{"model":"package","unit_amount":10000,"per_units":10,"free_units":200} | 121=0
{"model":"volume","tiers":[{"up_to":100,"unit_amount":200,"flat_amount":1000},{"up_to":200,"unit_amount":100},{"up_to":null,"unit_amount":50,"flat_amount":5000}]} | 0=1000 1=1200 100=21000 100.5=10050 101=10100 200=20000 300=20000
{"model":"graduated","tiers":[{"up_to":100,"unit_amount":100},{"up_to":200,"unit_amount":50},{"up_to":null,"unit_amount":25}]} | 150=12500
{"model":"volume","tiers":[{"up_to":100,"unit_amount":100},{"up_to":200,"unit_amount":50},{"up_to":null,"unit_amount":25}]} | 150=7500
{"model":"graduated","tiers":[{"up_to":1,"unit_amount":1000},{"up_to":2,"unit_amount":2000},{"up_to":null,"unit_amount":3000}]} | 2.5=4500
{"model":"graduated","tiers":[{"up_to":10,"unit_amount":20000},{"up_to":null,"unit_amount":6000}]} | 15=230000
{"model":"graduated","tiers":[{"up_to":100000,"unit_amount":0},{"up_to":1000000,"unit_amount":0.001},{"up_to":null,"unit_amount":0.0008}]} | 100000=0 100001=0.001/0 1000000=900 1500000=1300
{"model":"package","unit_amount":5,"per_units":1000} | 0=0 1=5 1000=5 1001=10
{"model":"package","unit_amount":50,"per_units":15000} | 15001=100
{"model":"package","unit_amount":500,"per_units":200000} | 200001=1000
{"model":"package","unit_amount":5,"per_units":1000,"round":"down"} | 999=0 1000=5 1999.9=5
{"model":"volume","tiers":[{"up_to":99,"unit_amount":100},{"up_to":null,"unit_amount":50}]} | 99.5=4975
{"model":"per_unit","unit_amount":0.5} | 1=0.5/1 -1=-0.5/-1
{"model":"per_unit","unit_amount":"267.5"} | 1=267.5/268
{"model":"per_unit","unit_amount":1,"per_units":3} | 1=0.333333333333333333333333/0 3=1 4.5=1.5/2
{"model":"per_unit","unit_amount":1.5,"currency":"jpy"} | 3=4.5/5
{"model":"per_unit","unit_amount":1234,"currency":"kwd"} | 2=2468
{"model":"per_unit","unit_amount":10,"charge_when_unused":false,"minimum_amount":500,"maximum_amount":600} | 0=0 1=500 51=510 99=600
{"model":"graduated_percentage","tiers":[{"up_to":1000,"rate":3},{"up_to":null,"rate":1,"flat_amount":5}]} | 500=15 2000=45
"#;

#[tokio::test]
async fn quotes_match_the_amounts_of_other_billing_systems() {
    let service = TestService::start().await;
    for row in EXPECTED.trim().lines() {
        let (fields, expected) = row.split_once(" | ").unwrap();
        let price = price(serde_json::from_str(fields).unwrap());
        for case in expected.split(' ') {
            let (quantity, amounts_expected) = case.split_once('=').unwrap();
            let (amount, total) =
                amounts_expected.split_once('/').unwrap_or((amounts_expected, amounts_expected));
            let found = amounts(&service, &price, quantity).await;
            assert_eq!(found, (amount.to_owned(), total.to_owned()), "{quantity} of {fields}");
        }
    }
}

#[tokio::test]
async fn percentage_fees_are_bounded_per_event() {
    let service = TestService::start().await;
    let bounded = price(json!({"model": "percentage", "rate": 2.9, "fixed_amount": 30,
        "event_minimum": 50, "event_maximum": 500}));
    // 29 + 30; 2.9 + 30, below the minimum; 2900 + 30, above the maximum
    let usage = json!([{"meter": "m", "values": [1000, 100, 100_000]}]);
    let quote = quote(&service, &json!({"prices": [bounded], "usage": usage})).await;
    assert_eq!(quote["lines"][0]["amount"].to_string(), "609");
    assert_eq!(quote["lines"][0]["quantity"], 101_100);
}

#[tokio::test]
async fn plans_are_quoted_by_slices_with_fees_in_any_currency() {
    let service = TestService::start().await;
    service
        .apply(json!({
            "meters": [{"key": "m", "event_name": "e", "aggregation": "sum", "dimensions": ["model"]},
                       {"key": "n", "event_name": "e", "aggregation": "count"}],
            "plans": [{"key": "pro", "prices": [
                {"key": "base", "model": "flat", "currency": "usd", "amount": 2000},
                {"key": "rest", "meter": "m", "model": "per_unit", "currency": "usd", "unit_amount": 1},
                {"key": "big", "meter": "m", "filter": {"model": "big"}, "model": "per_unit", "currency": "usd", "unit_amount": 10},
                {"key": "euros", "meter": "m", "model": "per_unit", "currency": "eur", "unit_amount": 2}]},
                {"key": "free"}],
        }))
        .await;
    let usage = json!([
        {"meter": "m", "quantity": 5, "properties": {"model": "big"}},
        {"meter": "m", "quantity": 7, "properties": {"model": "small"}},
        {"meter": "m", "quantity": 1},
        {"meter": "n", "quantity": 3}]);
    let in_dollars = quote(&service, &json!({"plan": "pro", "usage": usage})).await;
    let lines = |quote: &Value| -> Vec<String> {
        let lines = quote["lines"].as_array().unwrap();
        lines
            .iter()
            .map(|l| format!("{} {} {}", l["price"].as_str().unwrap(), l["quantity"], l["amount"]))
            .collect()
    };
    assert_eq!(lines(&in_dollars), ["base 0 2000", "rest 8 8", "big 5 50"]);
    assert_eq!(
        (in_dollars["total"].to_string(), in_dollars["currency"].as_str()),
        ("2058".to_owned(), Some("usd"))
    );
    assert_eq!(in_dollars["unpriced"], json!([{"meter": "n", "quantity": 3}]));
    let in_euros = quote(&service, &json!({"plan": "pro", "currency": "eur", "usage": usage})).await;
    assert_eq!(lines(&in_euros), ["euros 13 26"]);

    let refused =
        service.post("/v1/quotes", &json!({"plan": "pro", "currency": "kwd", "usage": usage})).await;
    assert_eq!((refused.status, refused.code()), (StatusCode::UNPROCESSABLE_ENTITY, "no_rate".to_owned()));
    assert_eq!(refused.json()["errors"][0]["pointer"], "/currency");
    service.put("/v1/rates", &json!({"from": "usd", "to": "kwd", "rate": "0.3"})).await;
    let in_dinars = quote(&service, &json!({"plan": "pro", "currency": "kwd", "usage": usage})).await;
    // one cent is three thousandths of a dinar
    assert_eq!(lines(&in_dinars), ["base 0 6000", "rest 8 24", "big 5 150"]);
    assert_eq!(in_dinars["exchange_rate"]["rate"].to_string(), "0.3");
    let free = quote(&service, &json!({"plan": "free", "currency": "usd", "usage": usage})).await;
    assert_eq!((free["total"].to_string(), free["lines"].as_array().unwrap().len()), ("0".to_owned(), 0));
}

#[tokio::test]
async fn invalid_quotes_are_refused_with_their_pointer() {
    let service =
        TestService::with_meters(json!([{"key": "m", "event_name": "e", "aggregation": "sum"}])).await;
    let one = |fields: Value| json!({"prices": [price(fields)], "usage": [{"meter": "m", "quantity": 1}]});
    let tiers = |tiers: Value| one(json!({"model": "graduated", "tiers": tiers}));
    let cases = [
        (json!({"usage": []}), "/plan", "missing_field"),
        (json!({"plan": "p", "prices": [], "usage": []}), "", "conflicting_fields"),
        (json!({"plan": "none", "usage": []}), "/plan", "unknown_plan"),
        (json!({"prices": [], "usage": []}), "/currency", "missing_field"),
        (one(json!({"model": "per_unit", "unit_amount": -1})), "/prices/0/unit_amount", "negative_amount"),
        (one(json!({"model": "per_unit", "unit_amount": "a"})), "/prices/0/unit_amount", "invalid_amount"),
        (
            one(json!({"model": "per_unit", "unit_amount": 1, "currency": "zzz"})),
            "/prices/0/currency",
            "unknown_currency",
        ),
        (
            one(json!({"model": "per_unit", "unit_amount": 1, "currency": "USD"})),
            "/prices/0/currency",
            "unknown_currency",
        ),
        (one(json!({"model": "per_unit"})), "/prices/0/unit_amount", "missing_field"),
        (one(json!({"model": "cheap"})), "/prices/0/model", "invalid_choice"),
        (tiers(json!([])), "/prices/0/tiers", "empty"),
        (tiers(json!([{"up_to": 5, "unit_amount": 1}])), "/prices/0/tiers/0/up_to", "gapped_tiers"),
        (
            tiers(json!([{"up_to": null, "unit_amount": 1}, {"up_to": null, "unit_amount": 1}])),
            "/prices/0/tiers/0/up_to",
            "open_tier",
        ),
        (
            tiers(
                json!([{"up_to": 5, "unit_amount": 1}, {"up_to": 5, "unit_amount": 1}, {"up_to": null, "unit_amount": 1}]),
            ),
            "/prices/0/tiers/1/up_to",
            "overlapping_tiers",
        ),
        (
            tiers(
                json!([{"up_to": 5, "unit_amount": 1}, {"up_to": 4, "unit_amount": 1}, {"up_to": null, "unit_amount": 1}]),
            ),
            "/prices/0/tiers/1/up_to",
            "unsorted_tiers",
        ),
        (
            json!({"prices": [], "currency": "usd", "usage": [{"meter": "x", "quantity": 1}]}),
            "/usage/0/meter",
            "unknown_meter",
        ),
        (
            json!({"prices": [], "currency": "usd", "usage": [{"meter": "m"}]}),
            "/usage/0/quantity",
            "missing_field",
        ),
        (
            json!({"prices": [], "currency": "usd", "usage": [{"meter": "m", "quantity": "1e3"}]}),
            "/usage/0/quantity",
            "invalid_value",
        ),
        (json!({"prices": [], "currency": "usd", "usage": [], "tax": 1}), "/tax", "unknown_field"),
    ];
    for (body, pointer, code) in cases {
        let answer = service.post("/v1/quotes", &body).await;
        assert_eq!(
            (answer.status, answer.code()),
            (StatusCode::UNPROCESSABLE_ENTITY, code.to_owned()),
            "{body}"
        );
        assert_eq!(answer.json()["errors"][0]["pointer"], pointer, "{body}");
    }
    let empty = service.send_typed(Method::POST, "/v1/quotes", "application/json", Vec::new()).await;
    assert_eq!((empty.status, empty.code()), (StatusCode::BAD_REQUEST, "empty_body".to_owned()));
}

#[tokio::test]
async fn publishable_keys_may_quote_but_set_nothing() {
    let service = TestService::start().await;
    let pk = service.engine.create_key(Environment::Test, KeyKind::Publishable, "page").await.unwrap();
    let send = async |method: Method, path: &str, body: &Value| {
        let request =
            Request::builder().method(method).uri(path).header("authorization", format!("Bearer {pk}"));
        let request =
            request.header("content-type", "application/json").header("origin", "https://app.example");
        service.send(request.body(Body::from(body.to_string())).unwrap()).await
    };
    let body = json!({"prices": [price(json!({"model": "per_unit", "unit_amount": 3}))], "usage": [{"meter": "m", "quantity": 2}]});
    let answer = send(Method::POST, "/v1/quotes", &body).await;
    assert_eq!((answer.status, answer.json()["total"].to_string()), (StatusCode::OK, "6".to_owned()));
    assert_eq!(answer.headers["access-control-allow-origin"], "https://app.example");
    for (method, path) in
        [(Method::PUT, "/v1/rates"), (Method::GET, "/v1/rates"), (Method::GET, "/v1/subjects/s/usage")]
    {
        assert_eq!(send(method, path, &json!({})).await.status, StatusCode::FORBIDDEN, "{path}");
    }
    let preflight =
        Request::builder().method(Method::OPTIONS).uri("/v1/quotes").header("origin", "https://app.example");
    let preflight = preflight
        .header("access-control-request-method", "POST")
        .header("access-control-request-headers", "authorization,content-type");
    let allowed = service.send(preflight.body(Body::empty()).unwrap()).await;
    let header = |name: &str| allowed.headers[name].to_str().unwrap().to_ascii_lowercase();
    assert!(header("access-control-allow-methods").contains("post"));
    assert!(header("access-control-allow-headers").contains("content-type"));
    assert_eq!(header("access-control-allow-origin"), "https://app.example");
}
