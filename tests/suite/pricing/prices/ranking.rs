//! Rankings: by usage, by cost, and by percentage of a limit.

use axum::http::StatusCode;
use serde_json::{Value, json};

use crate::support::TestService;

const MONTH: &str = "from=2026-11-01T00:00:00Z&to=2026-12-01T00:00:00Z";

async fn service() -> TestService {
    let service = TestService::start().await;
    let meter = |key: &str, aggregation: &str| json!({"key": key, "event_name": "e", "aggregation": aggregation, "dimensions": ["model"]});
    let limit = |quota: i64| json!([{"key": "l", "meter": "sum", "quota": quota, "period": "month"}]);
    let per_unit = |key: &str, meter: &str, amount: i64| json!({"key": key, "meter": meter, "model": "per_unit", "currency": "usd", "unit_amount": amount});
    let meters: Vec<Value> =
        [("sum", "sum"), ("avg", "avg"), ("max", "max"), ("unique", "unique_count"), ("last", "last")]
            .map(|(key, aggregation)| meter(key, aggregation))
            .into();
    service
        .apply(json!({
            "meters": meters, "default_plan": "free",
            "plans": [
                {"key": "free", "limits": limit(100)},
                {"key": "pro", "limits": limit(1000), "prices": [per_unit("p", "sum", 2),
                    {"key": "base", "model": "flat", "currency": "usd", "amount": 10}]},
                {"key": "levels", "unmatched": "allow", "prices": [per_unit("unique", "unique", 100), per_unit("last", "last", 1)]},
            ],
        }))
        .await;
    for (subject, body) in [
        ("org", json!({"plan": "pro"})),
        ("member", json!({"plan": "levels"})),
        ("deal", json!({"plan": "pro", "prices": [per_unit("p", "sum", 1)]})),
        ("roomy", json!({"plan": "free", "overrides": {"l": 1000}})),
        ("boundless", json!({"plan": "free", "overrides": {"l": null}})),
        ("idle", json!({"plan": "pro"})),
    ] {
        let answer = service.put(&format!("/v1/subjects/{subject}/subscription"), &body).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
    }
    service.put("/v1/subjects/member", &json!({"parent": "org"})).await;
    let of = |subject: &str, value: i64| json!({"event_name": "e", "subject": subject, "value": value});
    service
        .record(&json!([
            of("org", 5),
            of("member", 30),
            of("member", 40),
            of("member", 30),
            of("deal", 90),
            of("roomy", 95),
            of("free", 95),
            of("free", -5),
            of("boundless", 1),
            of("full", 100)
        ]))
        .await;
    service
}

async fn top(service: &TestService, query: &str, show: impl Fn(&Value) -> String) -> Vec<String> {
    let answer = service.get(&format!("/v1/usage/top?{query}")).await;
    assert_eq!(answer.status, StatusCode::OK, "{query}: {}", answer.text);
    let page = answer.json();
    let ranks = page["data"].as_array().unwrap().iter().enumerate();
    ranks
        .map(|(place, ranked)| {
            assert_eq!(ranked["rank"], place + 1);
            format!("{} {}", ranked["subject"].as_str().unwrap(), show(ranked))
        })
        .collect()
}

#[tokio::test]
async fn rankings_by_usage_cover_every_aggregation() {
    let service = service().await;
    let cases = [
        ("sum", ["full 100", "member 100", "roomy 95", "deal 90", "free 90", "org 5", "boundless 1"]),
        (
            "avg",
            ["full 100", "roomy 95", "deal 90", "free 45", "member 33.333333333", "org 5", "boundless 1"],
        ),
        ("max", ["full 100", "free 95", "roomy 95", "deal 90", "member 40", "org 5", "boundless 1"]),
        ("unique", ["free 2", "member 2", "boundless 1", "deal 1", "full 1", "org 1", "roomy 1"]),
        ("last", ["full 100", "roomy 95", "deal 90", "member 30", "org 5", "boundless 1", "free -5"]),
    ];
    for folded in [false, true] {
        if folded {
            service.fold().await;
        }
        for (meter, expected) in cases {
            let found = top(&service, &format!("meter={meter}&{MONTH}"), |r| r["value"].to_string()).await;
            assert_eq!(found, expected, "{meter}");
        }
    }
}

#[tokio::test]
async fn pages_continue_after_the_last_rank() {
    let service = service().await;
    let (mut found, mut query) = (Vec::new(), format!("/v1/usage/top?meter=sum&{MONTH}&limit=3"));
    loop {
        let page = service.get(&query).await.json();
        found.extend(
            page["data"]
                .as_array()
                .unwrap()
                .iter()
                .map(|r| format!("{} {}", r["rank"], r["subject"].as_str().unwrap())),
        );
        let Some(cursor) = page["next_cursor"].as_str() else { break };
        query = format!("/v1/usage/top?meter=sum&{MONTH}&limit=3&cursor={cursor}");
    }
    assert_eq!(found, ["1 full", "2 member", "3 roomy", "4 deal", "5 free", "6 org", "7 boundless"]);
}

#[tokio::test]
async fn rankings_by_cost_include_descendants_and_own_prices() {
    let service = service().await;
    let show = |r: &Value| {
        format!("{} {} {}", r["plan"].as_str().unwrap(), r["total"], r["currency"].as_str().unwrap())
    };
    for folded in [false, true] {
        if folded {
            service.fold().await;
        }
        // two members and a last value of 30; 105 units and the fee; 90 units at their own price
        let expected = ["member levels 230 usd", "org pro 220 usd", "deal pro 100 usd", "idle pro 10 usd"];
        assert_eq!(top(&service, &format!("by=cost&{MONTH}"), show).await, expected);
    }
    let unknown = service.get(&format!("/v1/usage/top?by=cost&{MONTH}&currency=jpy")).await;
    assert_eq!((unknown.status, unknown.code()), (StatusCode::UNPROCESSABLE_ENTITY, "no_rate".to_owned()));
    service.put("/v1/rates", &json!({"from": "usd", "to": "jpy", "rate": 150})).await;
    let in_yen = top(&service, &format!("by=cost&{MONTH}&currency=jpy&limit=1"), show).await;
    assert_eq!(in_yen, ["member levels 345 jpy"]);
    let page = service.get(&format!("/v1/usage/top?by=cost&{MONTH}&currency=jpy&limit=1")).await.json();
    let rate = &page["data"][0]["exchange_rate"];
    assert_eq!((&rate["from"], &rate["to"], &rate["rate"]), (&json!("usd"), &json!("jpy"), &json!(150)));
    let before = "from=2026-10-01T00:00:00Z&to=2026-11-01T00:00:00Z";
    let fees = top(&service, &format!("by=cost&{before}"), |r| r["total"].to_string()).await;
    assert_eq!(fees, ["deal 10", "idle 10", "org 10", "member 0"]);
}

#[tokio::test]
async fn subjects_without_known_cost_take_no_rank() {
    let service = service().await;
    let prices = json!([
        {"key": "p", "meter": "sum", "model": "per_unit", "currency": "eur", "unit_amount": 1},
        {"key": "base", "model": "flat", "currency": "eur", "amount": 10}
    ]);
    service.put("/v1/subjects/deal/subscription", &json!({"plan": "pro", "prices": prices})).await;
    let cases = [
        ("usd", vec!["member 230", "org 220", "idle 10"], vec!["deal pro eur"]),
        ("eur", vec!["deal 100"], vec!["idle pro usd", "member levels usd", "org pro usd"]),
    ];
    for (currency, ranked, unranked) in cases {
        let query = format!("by=cost&{MONTH}&currency={currency}");
        assert_eq!(top(&service, &query, |r| r["total"].to_string()).await, ranked, "{currency}");
        let page = service.get(&format!("/v1/usage/top?{query}&limit=1")).await.json();
        let text = |of: &Value, name: &str| of[name].as_str().unwrap().to_owned();
        let named = |s: &Value| ["subject", "plan", "currency"].map(|name| text(s, name)).join(" ");
        let named: Vec<String> = page["unranked"]["subjects"].as_array().unwrap().iter().map(named).collect();
        assert_eq!((named, &page["unranked"]["count"]), (own(&unranked), &json!(unranked.len())));
    }
    service.put("/v1/rates", &json!({"from": "eur", "to": "usd", "rate": 2})).await;
    let page = service.get(&format!("/v1/usage/top?by=cost&{MONTH}")).await.json();
    assert_eq!((page["data"].as_array().unwrap().len(), &page["unranked"]), (4, &Value::Null));
}

fn own(names: &[&str]) -> Vec<String> {
    names.iter().map(ToString::to_string).collect()
}

#[tokio::test]
async fn rankings_by_limit_use_the_percentage_of_each_quota() {
    let service = service().await;
    let show = |r: &Value| {
        format!("{} of {}: {} {}", r["used"], r["quota"], r["percent"], r["state"].as_str().unwrap())
    };
    let expected = [
        "full 100 of 100: 100 exceeded",
        "free 90 of 100: 90 critical",
        "org 105 of 1000: 10.5 ok",
        "roomy 95 of 1000: 9.5 ok",
        "deal 90 of 1000: 9 ok",
    ];
    assert_eq!(top(&service, "by=limit", show).await, expected);
    assert_eq!(top(&service, "by=limit&meter=sum&limit=1", show).await, expected[..1]);
    assert_eq!(top(&service, "by=limit&meter=max", show).await, Vec::<String>::new());
}

#[tokio::test]
async fn invalid_rankings_are_refused_with_their_pointer() {
    let service = service().await;
    let cases = [
        ("", "missing_parameter"),
        ("by=cost", "missing_parameter"),
        ("by=size", "invalid_choice"),
        ("by=limit&from=2026-11-01T00:00:00Z", "unknown_parameter"),
        ("by=limit&meter=none", "unknown_meter"),
        ("by=cost&meter=sum&from=2026-11-01T00:00:00Z&to=2026-11-01T00:00:00Z", "unknown_parameter"),
        ("by=cost&from=2026-11-02T00:00:00Z&to=2026-11-01T00:00:00Z", "invalid_range"),
        ("meter=none&from=2026-11-01T00:00:00Z&to=2026-11-02T00:00:00Z", "unknown_meter"),
        ("meter=sum&from=2026-11-01T00:00:00Z&to=2026-11-02T00:00:00Z&cursor=10000", "invalid_cursor"),
        ("meter=sum&from=2026-11-01T00:00:00Z&to=2026-11-02T00:00:00Z&limit=0", "invalid_value"),
    ];
    for (query, code) in cases {
        let answer = service.get(&format!("/v1/usage/top?{query}")).await;
        assert_eq!(
            (answer.status, answer.code()),
            (StatusCode::UNPROCESSABLE_ENTITY, code.to_owned()),
            "{query}"
        );
    }
}
