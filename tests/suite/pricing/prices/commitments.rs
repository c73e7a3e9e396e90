//! The minimum and maximum of a bill: in quotes, in the cost of the usage report, and per customer.

use axum::http::StatusCode;
use serde_json::{Value, json};

use crate::support::TestService;

/// A plan with a fee of 2000, a price of one cent per unit, and commitments in dollars only.
fn catalog(commitments: &Value) -> Value {
    json!({
        "meters": [{"key": "m", "event_name": "e", "aggregation": "sum"}],
        "plans": [
            {"key": "pro", "unmatched": "allow", "commitments": commitments, "prices": [
                {"key": "base", "model": "flat", "currency": "usd", "amount": 2000},
                {"key": "use", "meter": "m", "model": "per_unit", "currency": "usd", "unit_amount": 1},
                {"key": "euros", "meter": "m", "model": "per_unit", "currency": "eur", "unit_amount": 2}],
             "spend_caps": [{"key": "budget", "amount": 2400, "currency": "usd", "period": "month"}]},
            {"key": "free"}],
    })
}

fn bounds(minimum: i64, maximum: i64) -> Value {
    json!([{"currency": "usd", "minimum_amount": minimum, "maximum_amount": maximum}])
}

async fn service() -> TestService {
    let service = TestService::start().await;
    service.apply(catalog(&bounds(4000, 4800))).await;
    subscribe(&service, &json!({"plan": "pro", "cycle_start": "2026-11-01T00:00:00Z"})).await;
    service.put("/v1/subjects/child", &json!({"parent": "s"})).await;
    service
}

async fn subscribe(service: &TestService, statement: &Value) {
    let answer = service.put("/v1/subjects/s/subscription", statement).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
}

/// Writes `price or bound, exact amount; … = total`, and asserts that the total is the sum of the rounded
/// lines.
fn told(cost: &Value) -> String {
    let lines = cost["lines"].as_array().unwrap_or_else(|| panic!("{cost}"));
    let sum: i64 = lines.iter().map(|line| line["rounded_amount"].as_i64().unwrap()).sum();
    assert_eq!(cost["total"], sum, "{cost}");
    let name = |line: &Value| match line["price"].as_str() {
        Some(price) => price.to_owned(),
        None => format!("{} of {}", line["model"].as_str().unwrap(), line["bound"]),
    };
    let line = |line: &Value| format!("{} {}", name(line), line["amount"]);
    format!("{} = {sum}", lines.iter().map(line).collect::<Vec<_>>().join(", "))
}

#[tokio::test]
async fn quotes_of_a_plan_lie_within_its_commitments() {
    let service = service().await;
    service.put("/v1/rates", &json!({"from": "usd", "to": "kwd", "rate": "0.3"})).await;
    let cases = [
        ("usd", 0, "base 2000, use 0, minimum of 4000 2000 = 4000"),
        ("usd", 1999, "base 2000, use 1999, minimum of 4000 1 = 4000"),
        ("usd", 2000, "base 2000, use 2000 = 4000"),
        ("usd", 2800, "base 2000, use 2800 = 4800"),
        ("usd", 5000, "base 2000, use 5000, maximum of 4800 -2200 = 4800"),
        // prices in euros make a separate bill without a commitment
        ("eur", 1, "euros 2 = 2"),
        // one cent is three thousandths of a dinar
        ("kwd", 1000, "base 6000, use 3000, minimum of 12000 3000 = 12000"),
    ];
    for (currency, quantity, expected) in cases {
        let usage = json!([{"meter": "m", "quantity": quantity}]);
        let body = json!({"plan": "pro", "currency": currency, "usage": usage});
        let answer = service.post("/v1/quotes", &body).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
        assert_eq!(told(&answer.json()), expected, "{currency} {quantity}");
    }
    let fee = json!([{"key": "fee", "model": "flat", "currency": "usd", "amount": "10.4"}]);
    let given = |currency: &str| json!([{"currency": currency, "minimum_amount": 15}]);
    let quote = async |body: Value| service.post("/v1/quotes", &body).await;
    let quoted = quote(json!({"prices": fee, "commitments": given("usd"), "usage": []})).await;
    assert_eq!(told(&quoted.json()), "fee 10.4, minimum of 15 5 = 15");
    let refused = [
        (
            json!({"plan": "pro", "commitments": given("usd"), "usage": []}),
            "/commitments",
            "conflicting_fields",
        ),
        (
            json!({"prices": fee, "commitments": given("eur"), "usage": []}),
            "/commitments/0/currency",
            "unpriced_currency",
        ),
    ];
    for (body, pointer, code) in refused {
        let answer = quote(body.clone()).await;
        assert_eq!(
            (answer.status, answer.code()),
            (StatusCode::UNPROCESSABLE_ENTITY, code.to_owned()),
            "{body}"
        );
        assert_eq!(answer.json()["errors"][0]["pointer"], pointer);
    }
}

/// Returns the cost, its increase per day, and its forecast.
async fn report(service: &TestService, subject: &str) -> (String, Vec<i64>, i64) {
    let report = service.get(&format!("/v1/subjects/{subject}/usage")).await.json();
    let days: Vec<i64> =
        report["trend"].as_array().unwrap().iter().map(|day| day["cost"].as_i64().unwrap()).collect();
    assert_eq!(days.iter().sum::<i64>(), report["cost"]["total"].as_i64().unwrap(), "{report}");
    let rises = days.into_iter().filter(|cost| *cost != 0).collect();
    (told(&report["cost"]), rises, report["forecast"]["cost"]["total"].as_i64().unwrap())
}

#[tokio::test]
async fn period_costs_lie_within_the_commitment_from_the_start() {
    let service = service().await;
    let event = |subject: &str, day: u32, value: i64| {
        json!({"event_name": "e", "subject": subject, "value": value,
        "timestamp": format!("2026-11-{day}T00:00:00Z")})
    };
    let told = |cost: &str, days: &[i64], forecast: i64| (cost.to_owned(), days.to_vec(), forecast);
    assert_eq!(
        report(&service, "s").await,
        told("base 2000, use 0, minimum of 4000 2000 = 4000", &[4000], 4000)
    );
    service.record(&json!([event("child", 12, 1950), event("s", 15, 100)])).await;
    // 2050 in 19.5 of 30 days lead to a forecast above the maximum
    assert_eq!(report(&service, "s").await, told("base 2000, use 2050 = 4050", &[4000, 50], 4800));
    service.record(&json!(event("s", 16, 1000))).await;
    let expected = told("base 2000, use 3050, maximum of 4800 -250 = 4800", &[4000, 50, 750], 4800);
    assert_eq!(report(&service, "s").await, expected);
    // only the subject on the plan has the bill
    assert_eq!(report(&service, "child").await.0, "base 2000, use 1950 = 3950");
    // a ranking may cover any span and has no bill
    let top = service.get("/v1/usage/top?by=cost&from=2026-11-01T00:00:00Z&to=2026-12-01T00:00:00Z").await;
    assert_eq!(top.json()["data"][0]["total"], 5050, "{}", top.text);
}

/// A cap counts the cost of usage; the maximum of a bill does not lower it.
#[tokio::test]
async fn commitments_do_not_change_the_cost_that_a_cap_counts() {
    let service = TestService::start().await;
    service.apply(catalog(&bounds(0, 100))).await;
    subscribe(&service, &json!({"plan": "pro"})).await;
    let reserve = async |value: i64| {
        let body = json!({"subject": "s", "meter": "m", "value": value});
        service.post("/v1/reservations", &body).await.json()
    };
    assert_eq!(reserve(2400).await["allowed"], true);
    let denied = reserve(1).await;
    assert_eq!(denied["reason"], "spend_cap_reached");
    assert_eq!(denied["denied_by"][0]["held"], 2400);
}

#[tokio::test]
async fn subscriptions_may_have_commitments_of_their_own() {
    let service = service().await;
    let stated = |commitments: Value| json!({"plan": "pro", "commitments": commitments});
    let euros =
        json!({"key": "more", "meter": "m", "model": "per_unit", "currency": "jpy", "unit_amount": 2});
    let cases = [
        (stated(bounds(5000, 5000)), "base 2000, use 0, minimum of 5000 3000 = 5000"),
        (
            stated(json!([{"currency": "usd", "maximum_amount": 1500}])),
            "base 2000, use 0, maximum of 1500 -500 = 1500",
        ),
        (stated(json!([{"currency": "usd", "minimum_amount": 0}])), "base 2000, use 0 = 2000"),
        (
            stated(json!([{"currency": "eur", "minimum_amount": 7}])),
            "base 2000, use 0, minimum of 4000 2000 = 4000",
        ),
        (
            json!({"plan": "pro", "prices": [euros], "commitments": [{"currency": "jpy", "minimum_amount": 7}]}),
            "base 2000, use 0, minimum of 4000 2000 = 4000",
        ),
        (json!({"plan": "pro"}), "base 2000, use 0, minimum of 4000 2000 = 4000"),
    ];
    for (statement, expected) in cases {
        subscribe(&service, &statement).await;
        assert_eq!(report(&service, "s").await.0, expected, "{statement}");
        let shown = service.get("/v1/subjects/s/subscription?history=true").await.json();
        let own = statement.get("commitments").cloned().unwrap_or_else(|| json!([]));
        assert_eq!(shown["commitments"], own);
        assert_eq!(shown["history"].as_array().unwrap().last().unwrap()["commitments"], own);
    }
    let refused = [
        (json!([{"currency": "jpy", "minimum_amount": 1}]), "/commitments/0/currency", "unpriced_currency"),
        (bounds(2, 1), "/commitments/0/maximum_amount", "invalid_range"),
    ];
    for (commitments, pointer, code) in refused {
        let answer = service.put("/v1/subjects/s/subscription", &stated(commitments)).await;
        assert_eq!((answer.status, answer.code()), (StatusCode::UNPROCESSABLE_ENTITY, code.to_owned()));
        assert_eq!(answer.json()["errors"][0]["pointer"], pointer);
    }
}

#[tokio::test]
async fn catalogs_show_the_commitments_of_their_plans() {
    let service = service().await;
    let shown = service.get("/v1/catalog").await.json();
    assert_eq!(shown["plans"][0]["commitments"], bounds(4000, 4800));
    let apply = async |commitments: Value| service.put("/v1/catalog", &catalog(&commitments)).await;
    let cases = [
        (json!([{"currency": "usd", "minimum_amount": -1}]), "/0/minimum_amount", "negative_amount"),
        (json!([{"currency": "xyz", "minimum_amount": 1}]), "/0/currency", "unknown_currency"),
        (json!([{"currency": "jpy", "minimum_amount": 1}]), "/0/currency", "unpriced_currency"),
        (bounds(2, 1), "/0/maximum_amount", "invalid_range"),
    ];
    for (commitments, pointer, code) in cases {
        let answer = apply(commitments.clone()).await;
        assert_eq!((answer.status, answer.code()), (StatusCode::UNPROCESSABLE_ENTITY, code.to_owned()));
        assert_eq!(answer.json()["errors"][0]["pointer"], format!("/plans/0/commitments{pointer}"));
    }
    let changed = apply(bounds(1, 2)).await.json();
    assert_eq!(changed["changes"][0]["fields"], json!(["commitments"]), "{changed}");
}
