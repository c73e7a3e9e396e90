//! Credits as callers see them: granting, showing and voiding.

mod burning;
mod kills;
mod ledger;
mod packs;
mod races;
mod random;
mod refunds;

use axum::http::StatusCode;
use metergate_domain::base::{Environment, Total};
use metergate_domain::catalog::Catalog;
use serde_json::{Value, json};

use crate::support::service::Answer;
use crate::support::{TestService, at};

/// A catalog with monthly quotas that credits extend.
fn catalog() -> Value {
    json!({
        "default_plan": "free",
        "meters": [
            {"key": "tokens", "event_name": "tokens", "aggregation": "sum", "dimensions": ["model"]},
            {"key": "calls", "event_name": "calls", "aggregation": "count"},
            {"key": "peak", "event_name": "peak", "aggregation": "max"},
        ],
        "credit_units": [{"key": "credits", "costs": [
            {"meter": "tokens", "cost": 1},
            {"meter": "tokens", "filter": {"model": ["big"]}, "cost": 10},
            {"meter": "calls", "cost": 5}]}],
        "credit_packs": [{"key": "small", "credit_unit": "credits", "amount": 100}],
        "plans": [
            {"key": "free", "limits": [
                {"key": "tokens", "meter": "tokens", "quota": 10, "period": "month", "overage": "credits"},
                {"key": "calls", "meter": "calls", "quota": 2, "period": "month", "overage": "credits"}]},
            {"key": "pro",
             "limits": [{"key": "tokens", "meter": "tokens", "quota": 10, "period": "month", "overage": "credits"}],
             "credit_grants": [{"key": "monthly", "credit_unit": "credits", "amount": 100, "rollover": {"max": 50}}],
             "credit_alerts": [{"credit_unit": "credits", "below": 20, "top_up": "small"}]},
        ],
    })
}

/// The quota of `free` counts per billing period, and tiers price the usage above it.
fn tiered() -> Value {
    let tiers = json!([{"up_to": 20, "unit_amount": 2}, {"up_to": 30, "unit_amount": 5}, {"up_to": null, "unit_amount": 1}]);
    let mut catalog = catalog();
    catalog["plans"][0]["limits"][0]["period"] = json!("billing");
    catalog["plans"][0]["prices"] =
        json!([{"key": "t", "meter": "tokens", "model": "graduated", "currency": "usd", "tiers": tiers}]);
    catalog
}

/// A call costs 3 credits, without a quota.
fn calls_at_three() -> Value {
    let limit =
        json!({"key": "calls", "meter": "calls", "quota": 0, "period": "month", "overage": "credits"});
    json!({
        "default_plan": "free",
        "meters": [{"key": "calls", "event_name": "calls", "aggregation": "count"}],
        "credit_units": [{"key": "credits", "costs": [{"meter": "calls", "cost": 3}]}],
        "plans": [{"key": "free", "limits": [limit]}],
    })
}

async fn start() -> TestService {
    let service = TestService::start().await;
    service.apply(catalog()).await;
    service
}

async fn grant(service: &TestService, subject: &str, request: &Value) -> Answer {
    service.post(&format!("/v1/subjects/{subject}/credits/grants"), request).await
}

async fn granted(service: &TestService, subject: &str, request: &Value) -> Value {
    let answer = grant(service, subject, request).await;
    assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.text);
    answer.json()
}

async fn balances(service: &TestService, subject: &str) -> Vec<Value> {
    let answer = service.get(&format!("/v1/subjects/{subject}/credits")).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
    answer.json()["balances"].as_array().unwrap().clone()
}

/// Returns the available and the held credits.
async fn balance(service: &TestService, subject: &str) -> (i64, i64) {
    let shown = balances(service, subject).await;
    let sum = |name: &str| shown.iter().map(|balance| balance[name].as_i64().unwrap()).sum();
    (sum("balance"), sum("pending"))
}

/// Returns the ledger, the latest movement first. Asserts that the entries of each movement sum to zero, and
/// that each balance follows from the previous one.
pub(crate) async fn ledger(service: &TestService, subject: &str) -> Vec<Value> {
    let (mut rows, mut cursor) = (Vec::new(), String::new());
    loop {
        let path = format!("/v1/subjects/{subject}/credits/ledger?limit=7{cursor}");
        let page = service.get(&path).await.json();
        rows.extend(page["data"].as_array().unwrap().iter().cloned());
        let Some(next) = page["next_cursor"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    let mut running: std::collections::BTreeMap<String, Total> = std::collections::BTreeMap::new();
    for row in rows.iter().rev() {
        let number = |value: &Value| Total::from_decimal(&value.to_string()).unwrap();
        let entries = row["entries"].as_array().unwrap();
        let sum = entries.iter().fold(Total::default(), |sum, entry| sum + number(&entry["amount"]));
        assert_eq!(sum, Total::default(), "{row}");
        let unit = ["meter", "credit_unit", "currency"].map(|name| row[name].to_string()).concat();
        let balance = running.entry(unit).or_default();
        *balance = *balance + number(&row["change"]);
        assert_eq!(*balance, number(&row["balance"]), "{row}");
    }
    rows
}

/// Returns the movements as `kind amount`, the earliest first.
async fn moved(service: &TestService, subject: &str) -> Vec<String> {
    let said = |row: &Value| format!("{} {}", row["kind"].as_str().unwrap(), row["amount"]);
    ledger(service, subject).await.iter().rev().map(said).collect()
}

#[tokio::test]
async fn grants_are_idempotent() {
    let service = start().await;
    let request =
        json!({"credit_unit": "credits", "amount": 40, "external_ref": "order-1", "source": "purchase"});
    let first = grant(&service, "a", &request).await;
    assert_eq!((first.status, first.is_replay()), (StatusCode::CREATED, false), "{}", first.text);
    let again = grant(&service, "a", &request).await;
    assert_eq!((again.status, again.is_replay()), (StatusCode::CREATED, true));
    assert_eq!(again.json()["id"], first.json()["id"]);
    for (subject, amount) in [("a", 41), ("b", 40)] {
        let mut other = request.clone();
        other["amount"] = json!(amount);
        let refused = grant(&service, subject, &other).await;
        assert_eq!((refused.status, refused.code().as_str()), (StatusCode::CONFLICT, "external_ref_reused"));
    }
    assert_eq!(balance(&service, "a").await, (40, 0));
    assert_eq!(balance(&service, "b").await, (0, 0));
    assert_eq!(moved(&service, "a").await, ["grant 40"]);
    service.verify().await;
}

#[tokio::test]
async fn invalid_grants_are_refused_with_their_pointer() {
    let service = start().await;
    let cases = [
        (json!({"meter": "tokens", "amount": 0}), "/amount", "invalid_value"),
        (json!({"meter": "tokens", "amount": -5}), "/amount", "invalid_value"),
        (json!({"meter": "none", "amount": 5}), "/meter", "unknown_meter"),
        (json!({"meter": "peak", "amount": 5}), "/meter", "uncoverable_meter"),
        (json!({"credit_unit": "none", "amount": 5}), "/credit_unit", "unknown_credit_unit"),
        (json!({"amount": 5}), "", "missing_field"),
        (
            json!({"meter": "tokens", "amount": 5, "expires_at": "2026-01-01T00:00:00Z"}),
            "/expires_at",
            "invalid_range",
        ),
        (
            json!({"meter": "tokens", "amount": 5, "source": "refund", "refund_of": 99}),
            "/refund_of",
            "unknown_spend",
        ),
        (json!({"meter": "tokens", "amount": 5, "rollover": {"max": 2}}), "/rollover", "missing_field"),
    ];
    for (request, pointer, code) in cases {
        let answer = grant(&service, "a", &request).await;
        assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY, "{request}");
        let violation = &answer.json()["errors"][0];
        assert_eq!(
            (violation["pointer"].as_str().unwrap(), violation["code"].as_str().unwrap()),
            (pointer, code),
            "{request}"
        );
    }
    assert_eq!(moved(&service, "a").await, [] as [&str; 0]);
    // a balance is limited to the largest quantity
    let most = json!({"credit_unit": "credits", "amount": "9999999999999999998"});
    granted(&service, "a", &most).await;
    for (amount, status) in [("2", 422), ("1.9", 201), ("0.1", 422), ("0.099999999", 201)] {
        let answer = grant(&service, "a", &json!({"credit_unit": "credits", "amount": amount})).await;
        assert_eq!(answer.status.as_u16(), status, "{amount}: {}", answer.text);
        if status == 422 {
            assert_eq!(
                (answer.code().as_str(), &answer.json()["errors"][0]["pointer"]),
                ("balance_too_large", &json!("/amount"))
            );
        }
    }
    granted(&service, "a", &json!({"meter": "tokens", "amount": "9999999999999999998"})).await;
}

#[tokio::test]
async fn catalogs_with_unusable_credits_are_refused() {
    let service = start().await;
    let limit = |more: Value| {
        let mut limit =
            json!({"key": "l", "meter": "tokens", "quota": 1, "period": "month", "overage": "credits"});
        limit.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({"plans": [{"key": "p", "limits": [limit]}]})
    };
    let cases = [
        (limit(json!({"period": "minute"})), "/plans/0/limits/0/overage", "uncoverable_period"),
        (limit(json!({"meter": "peak"})), "/plans/0/limits/0/overage", "uncoverable_meter"),
        (limit(json!({"enforcement": "soft"})), "/plans/0/limits/0/overage", "uncoverable_enforcement"),
        (
            json!({"credit_units": [{"key": "u", "costs": [{"meter": "none", "cost": 1}]}]}),
            "/credit_units/0/costs/0/meter",
            "unknown_meter",
        ),
        (
            json!({"credit_units": [{"key": "u", "costs": [{"meter": "tokens", "filter": {"x": ["y"]}, "cost": 1}]}]}),
            "/credit_units/0/costs/0/filter/x",
            "unknown_dimension",
        ),
        (
            json!({"credit_units": [{"key": "u", "costs": [{"meter": "tokens", "cost": 0}]}]}),
            "/credit_units/0/costs/0/cost",
            "invalid_value",
        ),
        (
            json!({"credit_units": [{"key": "u", "costs": [{"meter": "peak", "cost": 1}]}]}),
            "/credit_units/0/costs/0/meter",
            "uncoverable_meter",
        ),
        (
            json!({"credit_packs": [{"key": "k", "meter": "tokens", "amount": 1, "stripe_price_ids": ["price_1"]},
                                    {"key": "l", "meter": "tokens", "amount": 2, "stripe_price_ids": {"test": ["price_1"]}}]}),
            "/credit_packs/1/stripe_price_ids",
            "duplicate_stripe_price",
        ),
        (
            json!({"credit_packs": [{"key": "k", "credit_unit": "none", "amount": 1}]}),
            "/credit_packs/0/credit_unit",
            "unknown_credit_unit",
        ),
        (
            json!({"plans": [{"key": "p", "credit_grants": [{"key": "g", "meter": "tokens", "amount": 0}]}]}),
            "/plans/0/credit_grants/0/amount",
            "invalid_value",
        ),
        (
            json!({"plans": [{"key": "p", "credit_grants": [{"key": "g", "meter": "tokens", "amount": 1, "period": "hour"}]}]}),
            "/plans/0/credit_grants/0/period",
            "period_too_short",
        ),
        (
            json!({"plans": [{"key": "p", "credit_alerts": [{"meter": "tokens", "below": 1, "top_up": "none"}]}]}),
            "/plans/0/credit_alerts/0/top_up",
            "unknown_pack",
        ),
    ];
    for (more, pointer, code) in cases {
        let mut changed = json!({"meters": catalog()["meters"]});
        changed.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let answer = service.put("/v1/catalog", &changed).await;
        let violation = &answer.json()["errors"][0];
        assert_eq!(
            (violation["pointer"].as_str(), violation["code"].as_str()),
            (Some(pointer), Some(code)),
            "{more}"
        );
    }
    // a unit with granted credits must stay in the catalog
    granted(&service, "a", &json!({"credit_unit": "credits", "amount": 5})).await;
    let mut without = catalog();
    without.as_object_mut().unwrap().retain(|name, _| name != "credit_units" && name != "credit_packs");
    without["plans"].as_array_mut().unwrap().truncate(1);
    let answer = service.put("/v1/catalog", &without).await;
    assert_eq!(answer.code(), "credit_unit_in_use", "{}", answer.text);
}

#[tokio::test]
async fn documentation_of_credits_works_on_the_sample_catalog() {
    let page = include_str!("../../docs/concepts/credits.md");
    let service = TestService::start().await;
    let sample = Catalog::read_yaml(include_str!("../../config/catalog.yaml")).unwrap();
    let mut catalog = serde_json::to_value(sample).unwrap();
    service.apply(catalog.clone()).await;
    let blocks: Vec<&str> = page.split("```").skip(1).step_by(2).collect();
    let [grant, packs] = blocks[..] else { panic!("{blocks:?}") };
    let (line, body) = grant.trim().split_once('\n').unwrap();
    let path = line.strip_prefix("POST ").unwrap();
    let answer = service.post(path, &serde_json::from_str(body).unwrap()).await;
    assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.text);
    let packs: Value = serde_json::from_str(&format!("{{{packs}}}")).unwrap();
    catalog["credit_packs"] = packs["credit_packs"].clone();
    for name in ["credit_grants", "credit_alerts"] {
        let said = page.split(&format!("`{name}`, such as")).nth(1).unwrap().split('`').nth(1).unwrap();
        catalog["plans"][1][name] = serde_json::from_str(said).unwrap();
    }
    service.apply(catalog).await;
    // the limit that the credits extend
    service.put("/v1/subjects/user_42/subscription", &json!({"plan": "pro"})).await;
    service.record(&json!({"event_name": "image_generated", "subject": "user_42", "value": 1})).await;
    let ask = |images: i64| json!({"subject": "user_42", "meter": "images", "value": images});
    for (images, allowed) in [(999, true), (1199, true), (1200, false)] {
        assert_eq!(service.post("/v1/check", &ask(images)).await.json()["allowed"], allowed, "{images}");
    }
}

#[tokio::test]
async fn catalog_credits_are_shown_as_applied() {
    let service = start().await;
    let shown = service.get("/v1/catalog").await.json();
    let again = service.put("/v1/catalog", &shown).await.json();
    assert_eq!(again["changes"], json!([]), "{again}");
    assert_eq!(shown["plans"][1]["credit_grants"][0]["rollover"], json!({"min": 0, "max": 50}));
}

#[tokio::test]
async fn grants_take_effect_and_expire_at_their_times() {
    let service = start().await;
    service.clock.set(at("2026-01-31T10:00:00Z"));
    let give = |more: Value| {
        let mut request = json!({"credit_unit": "credits", "amount": 10});
        request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        request
    };
    granted(&service, "a", &give(json!({"expires_after": "1d"}))).await;
    granted(&service, "a", &give(json!({"effective_at": "2026-02-28T00:00:00Z"}))).await;
    // periods count from the first start and end on the last day of short months
    granted(&service, "a", &give(json!({"period": "month", "rollover": {"max": 3}}))).await;
    let shown = &balances(&service, "a").await[0];
    assert_eq!((&shown["balance"], &shown["upcoming"]), (&json!(20), &json!(10)), "{shown}");
    assert_eq!(shown["expiring"][0]["expires_at"], "2026-02-01T10:00:00Z");
    let cases = [
        ("2026-02-01T09:59:59Z", 20),
        ("2026-02-01T10:00:00Z", 10),
        ("2026-02-28T00:00:00Z", 20),
        ("2026-02-28T09:59:59Z", 20),
        ("2026-02-28T10:00:00Z", 23),
        ("2026-03-31T10:00:00Z", 23),
        ("2026-04-30T09:59:59Z", 23),
    ];
    for (now, expected) in cases {
        service.clock.set(at(now));
        assert_eq!(balance(&service, "a").await, (expected, 0), "{now}");
    }
    assert_eq!(
        moved(&service, "a").await,
        [
            "grant 10",
            "grant 10",
            "expire 10",
            "grant 10",
            "carry_out 3",
            "expire 7",
            "grant 10",
            "carry_in 3",
            "carry_out 3",
            "expire 10",
            "grant 10",
            "carry_in 3"
        ]
    );
    let times: Vec<String> = ledger(&service, "a").await.iter().map(|row| row["at"].to_string()).collect();
    assert!(times.is_sorted_by(|later, earlier| later >= earlier), "{times:?}");
    service.verify().await;
}

/// A backdated grant has passed through its periods when it is first read.
#[tokio::test]
async fn backdated_recurring_grants_catch_up_with_their_periods() {
    let service = start().await;
    let given = json!({"credit_unit": "credits", "amount": 10, "period": "day", "rollover": {"max": 5},
                       "effective_at": "2026-11-18T12:00:00Z"});
    granted(&service, "a", &given).await;
    assert_eq!(balance(&service, "a").await, (15, 0));
    // a start so long ago that some periods are skipped
    let given = json!({"credit_unit": "credits", "amount": 10, "period": "day", "effective_at": "2012-01-01T00:00:00Z"});
    granted(&service, "b", &given).await;
    assert_eq!(balance(&service, "b").await, (10, 0));
    service.clock.set(at("2026-11-22T00:00:00Z"));
    assert_eq!(balance(&service, "b").await, (10, 0));
    service.verify().await;
}

#[tokio::test]
async fn voids_take_the_remainder_once() {
    let service = start().await;
    let id = granted(&service, "a", &json!({"credit_unit": "credits", "amount": 10})).await["id"].clone();
    let path = format!("/v1/subjects/a/credits/grants/{}/void", id.as_str().unwrap());
    let first = service.post(&path, &json!({"reason": "a mistake"})).await;
    assert_eq!((first.status, first.is_replay()), (StatusCode::OK, false), "{}", first.text);
    assert_eq!(first.json()["status"], "voided");
    let again = service.post(&path, &json!({})).await;
    assert_eq!((again.status, again.is_replay()), (StatusCode::OK, true));
    assert_eq!(balance(&service, "a").await, (0, 0));
    let rows = ledger(&service, "a").await;
    assert_eq!((&rows[0]["kind"], &rows[0]["reason"]), (&json!("void"), &json!("a mistake")));
    let other = service.post("/v1/subjects/a/credits/grants/not-an-id/void", &json!({})).await;
    assert_eq!(other.status, StatusCode::UNPROCESSABLE_ENTITY);
    let path = format!("/v1/subjects/b/credits/grants/{}/void", id.as_str().unwrap());
    assert_eq!(service.post(&path, &json!({})).await.code(), "grant_not_found");
    service.verify().await;
}

#[tokio::test]
async fn plan_credits_are_granted_each_period_with_rollover() {
    let service = start().await;
    service.clock.set(at("2027-01-31T00:00:00Z"));
    let plan = json!({"plan": "pro", "cycle_start": "2027-01-31T00:00:00Z"});
    assert_eq!(service.put("/v1/subjects/a/subscription", &plan).await.status, StatusCode::OK);
    assert_eq!(balance(&service, "a").await, (100, 0));
    assert_eq!(balance(&service, "a").await, (100, 0));
    for (now, expected) in
        [("2027-02-27T23:59:59Z", 100), ("2027-02-28T00:00:00Z", 150), ("2027-03-31T00:00:00Z", 150)]
    {
        service.clock.set(at(now));
        // the due changes are applied by nobody, by a job, or by a reader
        service.engine.settle_due_wallets(Environment::Test).await.unwrap();
        assert_eq!(balance(&service, "a").await, (expected, 0), "{now}");
    }
    assert_eq!(
        moved(&service, "a").await,
        [
            "grant 100",
            "carry_out 50",
            "expire 50",
            "grant 100",
            "carry_in 50",
            "carry_out 50",
            "expire 100",
            "grant 100",
            "carry_in 50"
        ]
    );
    service.verify().await;
}

#[tokio::test]
async fn ended_subscriptions_grant_no_more_credits() {
    let service = start().await;
    let plan =
        json!({"plan": "pro", "cycle_start": "2026-11-20T00:00:00Z", "ends_at": "2026-12-20T00:00:00Z"});
    assert_eq!(service.put("/v1/subjects/a/subscription", &plan).await.status, StatusCode::OK);
    service.record(&json!({"id": "e", "event_name": "tokens", "subject": "a", "value": 30})).await;
    assert_eq!(balance(&service, "a").await, (80, 0));
    // the end of the subscription is not applied when the wallet is opened
    service.clock.set(at("2026-12-20T00:00:00Z"));
    granted(&service, "a", &json!({"credit_unit": "credits", "amount": 7})).await;
    assert_eq!(balance(&service, "a").await, (7, 0));
    let answer = service.post("/v1/events/e/void", &json!({})).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
    assert_eq!(balance(&service, "a").await, (7, 0));
    service.verify().await;
}

#[tokio::test]
async fn tokens_see_only_their_own_credits() {
    let service = start().await;
    granted(&service, "a", &json!({"credit_unit": "credits", "amount": 10})).await;
    let token = TestService::token("a", "usage:read");
    for path in ["credits", "credits/ledger", "credits/grants"] {
        let own = service.get_as(&token, &format!("/v1/subjects/a/{path}")).await;
        assert_eq!(own.status, StatusCode::OK, "{path}: {}", own.text);
        let other = service.get_as(&token, &format!("/v1/subjects/b/{path}")).await;
        assert_eq!(other.status, StatusCode::FORBIDDEN, "{path}");
    }
}
