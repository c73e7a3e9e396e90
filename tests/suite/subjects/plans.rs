//! Plans and subscriptions over time: periods, renewals, changes of plan and quota, and the tree.

use axum::http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{TestService, at};

fn meters() -> Value {
    json!([
        {"key": "m", "event_name": "e", "aggregation": "sum", "dimensions": ["model"]},
        {"key": "n", "event_name": "e", "aggregation": "count"},
    ])
}

async fn with_plans(plans: Value) -> TestService {
    let service = TestService::start().await;
    service.apply(json!({"meters": meters(), "plans": plans})).await;
    service
}

async fn subscribe(service: &TestService, subject: &str, body: Value) -> Value {
    let answer = service.put(&format!("/v1/subjects/{subject}/subscription"), &body).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
    answer.json()
}

async fn record(service: &TestService, subject: &str, value: i64) {
    service.record(&json!({"event_name": "e", "subject": subject, "value": value})).await;
}

/// Returns used, held and remaining of a limit in the usage report.
async fn limit(service: &TestService, subject: &str, key: &str) -> String {
    let report = service.get(&format!("/v1/subjects/{subject}/usage")).await.json();
    let limits = report["limits"].as_array().unwrap();
    let limit = limits.iter().find(|limit| limit["key"] == key).unwrap_or_else(|| panic!("{report}"));
    format!("{} {} {}", limit["used"], limit["held"], limit["remaining"])
}

async fn allowed(service: &TestService, subject: &str, value: i64) -> bool {
    let body = json!({"subject": subject, "meter": "m", "value": value});
    let answer = service.post("/v1/reservations", &body).await.json();
    answer["allowed"].as_bool().unwrap_or_else(|| panic!("{answer}"))
}

#[tokio::test]
async fn a_cycle_of_january_31_renews_on_the_last_of_february_and_on_march_31() {
    let limits =
        json!([{"key": "l", "meter": "m", "quota": 10, "period": "month", "anchor": "subscription"}]);
    let service = with_plans(json!([{"key": "p", "limits": limits}])).await;
    service.clock.set(at("2026-01-31T09:00:00Z"));
    subscribe(&service, "s", json!({"plan": "p"})).await;
    let turns = [
        ("2026-02-28T08:59:59Z", "2026-02-28T09:00:00Z"),
        ("2026-03-31T08:59:59Z", "2026-03-31T09:00:00Z"),
        ("2026-04-30T08:59:59Z", "2026-04-30T09:00:00Z"),
        ("2028-02-29T08:59:59Z", "2028-02-29T09:00:00Z"),
    ];
    for (before, after) in turns {
        service.clock.set(at(before));
        record(&service, "s", 10).await;
        assert!(!allowed(&service, "s", 1).await, "{before}");
        service.clock.set(at(after));
        assert_eq!(limit(&service, "s", "l").await, "0 0 10", "{after}");
        assert!(allowed(&service, "s", 10).await, "{after}");
        // the provider reports the same period, so the anchor stays
        for _ in 0..2 {
            let renewed = subscribe(&service, "s", json!({"plan": "p", "cycle_start": after})).await;
            assert_eq!(renewed["cycle_anchor"], "2026-01-31T09:00:00Z");
            assert_eq!(renewed["period"]["start"], after);
        }
        service.engine.sweep(metergate_domain::base::environment::Environment::Test).await.unwrap();
    }
    let shown = service.get("/v1/subjects/s/subscription?history=true").await.json();
    let changes = shown["history"].as_array().unwrap().iter().map(|row| row["change"].as_str().unwrap());
    assert_eq!(changes.filter(|change| *change == "renewed").count(), turns.len(), "{shown}");
    service.verify().await;
}

#[tokio::test]
async fn a_weekly_limit_starts_at_zero_in_the_second_week() {
    let limits = json!([{"key": "l", "meter": "m", "quota": 10, "period": "week", "anchor": "subscription"}]);
    let service = with_plans(json!([{"key": "p", "limits": limits}])).await;
    subscribe(&service, "s", json!({"plan": "p"})).await;
    record(&service, "s", 9).await;
    service.clock.set(at("2026-11-27T11:59:59Z"));
    assert_eq!(limit(&service, "s", "l").await, "9 0 1");
    service.clock.set(at("2026-11-27T12:00:00Z"));
    assert_eq!(limit(&service, "s", "l").await, "0 0 10");
    record(&service, "s", 4).await;
    assert_eq!(limit(&service, "s", "l").await, "4 0 6");
    service.verify().await;
}

#[tokio::test]
async fn a_raised_quota_counts_earlier_use_and_a_lowered_one_denies() {
    let plans = |quota: i64| json!([{"key": "p", "limits": [{"key": "l", "meter": "m", "quota": quota, "period": "month"}]}]);
    let service = with_plans(plans(10)).await;
    subscribe(&service, "s", json!({"plan": "p"})).await;
    record(&service, "s", 8).await;
    assert!(!allowed(&service, "s", 3).await);
    service.apply(json!({"meters": meters(), "plans": plans(20)})).await;
    assert!(allowed(&service, "s", 3).await);
    assert_eq!(limit(&service, "s", "l").await, "8 3 9");
    service.apply(json!({"meters": meters(), "plans": plans(5)})).await;
    assert_eq!(limit(&service, "s", "l").await, "8 3 0");
    assert!(!allowed(&service, "s", 0).await);
    subscribe(&service, "s", json!({"plan": "p", "overrides": {"l": 12}})).await;
    assert_eq!(limit(&service, "s", "l").await, "8 3 1");
    subscribe(&service, "s", json!({"plan": "p", "overrides": {"l": null}})).await;
    assert_eq!(limit(&service, "s", "l").await, "8 3 null");
    assert!(allowed(&service, "s", 1_000_000).await);
    service.verify().await;
}

#[tokio::test]
async fn a_new_limit_counts_earlier_use_and_open_holds() {
    let old = json!([{"key": "p", "unmatched": "allow", "limits": []}]);
    let service = with_plans(old).await;
    subscribe(&service, "s", json!({"plan": "p"})).await;
    service.put("/v1/subjects/kid", &json!({"parent": "s"})).await;
    let event = |value: i64, model: &str, time: &str| json!({"event_name": "e", "subject": "kid", "value": value, "properties": {"model": model}, "timestamp": time});
    service
        .record(&json!([
            event(3, "a", "2026-11-20T00:30:00Z"),
            event(4, "b", "2026-11-20T11:00:00Z"),
            event(5, "a", "2026-11-19T23:00:00Z")
        ]))
        .await;
    service.fold().await;
    service.record(&event(1, "a", "2026-11-20T11:30:00Z")).await;
    let hold = json!({"id": "h", "subject": "kid", "meter": "m", "value": 7, "properties": {"model": "a"}, "ttl_seconds": 600});
    assert_eq!(service.post("/v1/reservations", &hold).await.status, StatusCode::CREATED);
    let new = json!([{"key": "p", "limits": [
        {"key": "day", "meter": "m", "quota": 100, "period": "day"},
        {"key": "a", "meter": "m", "filter": {"model": "a"}, "quota": 100, "period": "month"},
        {"key": "ever", "meter": "n", "quota": 100, "period": "lifetime"}]}]);
    service.apply(json!({"meters": meters(), "plans": new})).await;
    for _ in 0..2 {
        assert_eq!(limit(&service, "s", "day").await, "8 7 85");
        assert_eq!(limit(&service, "s", "a").await, "9 7 84");
        assert_eq!(limit(&service, "s", "ever").await, "4 0 96");
        // the same values once counters exist
        let more = json!({"subject": "s", "meter": "m", "value": 0, "properties": {"model": "a"}});
        assert_eq!(service.post("/v1/reservations", &more).await.status, StatusCode::CREATED);
        service.verify().await;
    }
    let commit = json!({"values": [{"meter": "m", "value": 2}]});
    let settled = service.post("/v1/reservations/h/commit", &commit).await.json();
    assert_eq!(settled["limits"][0]["used"], 10, "{settled}");
    assert_eq!(limit(&service, "s", "a").await, "11 0 89");
    service.verify().await;
}

#[tokio::test]
async fn plans_change_with_their_counters_kept_or_reset() {
    let limits = |quota: i64| json!([{"key": "l", "meter": "m", "quota": quota, "period": "month"}]);
    let plans = json!([
        {"key": "a", "limits": limits(10)}, {"key": "b", "limits": limits(20)},
        {"key": "c", "limits": limits(30), "on_plan_change": "reset"},
        {"key": "d", "limits": [{"key": "l", "meter": "m", "quota": 5, "period": "day"}]}]);
    let service = with_plans(plans).await;
    subscribe(&service, "s", json!({"plan": "a"})).await;
    record(&service, "s", 6).await;
    subscribe(&service, "s", json!({"plan": "b"})).await;
    assert_eq!(limit(&service, "s", "l").await, "6 0 14");
    service.clock.set(at("2026-11-20T13:00:00Z"));
    subscribe(&service, "s", json!({"plan": "c"})).await;
    assert_eq!(limit(&service, "s", "l").await, "0 0 30");
    record(&service, "s", 1).await;
    let late = json!({"event_name": "e", "subject": "s", "value": 50, "timestamp": "2026-11-20T12:30:00Z"});
    service.record(&late).await;
    assert_eq!(limit(&service, "s", "l").await, "1 0 29", "use before the change must not count");
    subscribe(&service, "s", json!({"plan": "b"})).await;
    assert_eq!(limit(&service, "s", "l").await, "1 0 19", "the counter must be kept");
    service.verify().await;
    subscribe(&service, "s", json!({"plan": "d"})).await;
    assert_eq!(limit(&service, "s", "l").await, "57 0 0");
    record(&service, "s", 1).await;
    service.verify().await;
    subscribe(&service, "s", json!({"plan": "a"})).await;
    assert_eq!(limit(&service, "s", "l").await, "2 0 8", "a dropped counter must be counted again");
    record(&service, "s", 1).await;
    assert_eq!(limit(&service, "s", "l").await, "3 0 7");
    service.verify().await;
}

#[tokio::test]
async fn a_moved_cycle_counts_earlier_use_of_its_new_period() {
    let limits = json!([
        {"key": "l", "meter": "m", "quota": 10, "period": "month", "anchor": "subscription"},
        {"key": "b", "meter": "m", "quota": 10, "period": "billing"}]);
    let service = TestService::start().await;
    service
        .apply(json!({"default_plan": "p", "meters": meters(), "plans": [{"key": "p", "limits": limits}]}))
        .await;
    record(&service, "s", 1).await;
    service.clock.set(at("2026-11-22T12:00:00Z"));
    record(&service, "s", 2).await;
    service.clock.set(at("2026-11-23T12:00:00Z"));
    record(&service, "s", 4).await;
    let moved =
        json!({"plan": "p", "cycle_start": "2026-11-22T00:00:00Z", "period_end": "2026-11-29T00:00:00Z"});
    subscribe(&service, "s", moved).await;
    record(&service, "s", 1).await;
    for key in ["l", "b"] {
        assert_eq!(limit(&service, "s", key).await, "7 0 3", "{key}");
    }
    service.verify().await;
    // the renewal of the next week is not announced yet
    service.clock.set(at("2026-11-29T00:00:00Z"));
    assert_eq!(limit(&service, "s", "b").await, "0 0 10");
    record(&service, "s", 3).await;
    let next =
        json!({"plan": "p", "cycle_start": "2026-11-29T00:00:00Z", "period_end": "2026-12-06T00:00:00Z"});
    subscribe(&service, "s", next).await;
    assert_eq!(limit(&service, "s", "b").await, "3 0 7");
    record(&service, "s", 1).await;
    assert_eq!(limit(&service, "s", "b").await, "4 0 6");
    service.verify().await;
}

#[tokio::test]
async fn each_subject_on_the_path_has_the_limits_of_its_own_plan() {
    let plans = json!([
        {"key": "org", "limits": [{"key": "pool", "meter": "m", "quota": 10, "period": "month"}]},
        {"key": "seat", "limits": [{"key": "own", "meter": "m", "quota": 6, "period": "month"}]}]);
    let service = with_plans(plans).await;
    for seat in ["a", "b"] {
        service.put(&format!("/v1/subjects/{seat}"), &json!({"parent": "org"})).await;
        subscribe(&service, seat, json!({"plan": "seat"})).await;
    }
    subscribe(&service, "org", json!({"plan": "org"})).await;
    let ask = |subject: &str, value: i64| json!({"subject": subject, "meter": "m", "value": value});
    assert!(allowed(&service, "a", 6).await);
    let own = service.post("/v1/reservations", &ask("a", 1)).await.json();
    assert_eq!(
        (&own["denied_by"][0]["subject"], own["denied_by"].as_array().unwrap().len()),
        (&json!("a"), 1)
    );
    let pool = service.post("/v1/reservations", &ask("b", 5)).await.json();
    assert_eq!(
        (&pool["denied_by"][0]["subject"], &pool["denied_by"][0]["key"]),
        (&json!("org"), &json!("pool"))
    );
    let keys: Vec<&str> =
        pool["limits"].as_array().unwrap().iter().map(|l| l["key"].as_str().unwrap()).collect();
    assert_eq!(keys, ["own", "pool"], "the nearest subject's limits come first");
    record(&service, "b", 4).await;
    assert_eq!(limit(&service, "org", "pool").await, "4 6 0");
    // a later change of parent affects later usage only
    service.put("/v1/subjects/b", &json!({"parent": null})).await;
    record(&service, "b", 1).await;
    assert_eq!(limit(&service, "org", "pool").await, "4 6 0");
    assert_eq!(limit(&service, "b", "own").await, "5 0 1");
    service.verify().await;
}

#[tokio::test]
async fn denials_of_unusable_subscriptions_name_the_reason() {
    let plans = json!([
        {"key": "p", "limits": [{"key": "l", "meter": "m", "filter": {"model": "a"}, "quota": 1, "period": "month"}]},
        {"key": "open", "unmatched": "allow", "limits": []}]);
    let service = with_plans(plans).await;
    let ask = json!({"subject": "s", "meter": "m", "value": 1});
    let reason = async || {
        let answer = service.post("/v1/reservations", &ask).await.json();
        assert_eq!(answer["denied_by"], json!([]), "{answer}");
        answer["reason"].as_str().unwrap_or_default().to_owned()
    };
    assert_eq!(reason().await, "no_subscription");
    assert_eq!(service.get("/v1/subjects/s/subscription").await.code(), "subscription_not_found");
    for status in ["unpaid", "paused", "canceled", "incomplete", "incomplete_expired"] {
        subscribe(&service, "s", json!({"plan": "p", "status": status})).await;
        assert_eq!(reason().await, "subscription_inactive", "{status}");
        assert_eq!(service.get("/v1/gate?subject=s&meter=m").await.status, StatusCode::PAYMENT_REQUIRED);
    }
    for status in ["trialing", "active", "past_due"] {
        subscribe(&service, "s", json!({"plan": "p", "status": status})).await;
        assert_eq!(reason().await, "unmatched", "{status}");
        assert_eq!(service.get("/v1/gate?subject=s&meter=m").await.status, StatusCode::FORBIDDEN);
    }
    subscribe(&service, "s", json!({"plan": "open"})).await;
    assert_eq!(service.post("/v1/reservations", &ask).await.status, StatusCode::CREATED);
    let ended = service.send_json(Method::DELETE, "/v1/subjects/s/subscription", &json!({})).await.json();
    assert_eq!(ended["status"], "canceled");
    assert_eq!(reason().await, "subscription_inactive");
    let shown = service.get("/v1/subjects/s/subscription").await;
    assert_eq!((shown.status, &shown.json()["status"]), (StatusCode::OK, &json!("canceled")));
}

#[tokio::test]
async fn the_default_plan_is_assigned_at_the_first_recording_only() {
    let service = TestService::start().await;
    let plans =
        json!([{"key": "free", "limits": [{"key": "l", "meter": "m", "quota": 5, "period": "month"}]}]);
    service.apply(json!({"default_plan": "free", "meters": meters(), "plans": plans})).await;
    let ask = json!({"subject": "s", "meter": "m", "value": 5});
    assert_eq!(service.post("/v1/check", &ask).await.json()["allowed"], true);
    assert_eq!(limit(&service, "s", "l").await, "0 0 5");
    let dry = json!({"subject": "s", "meter": "m", "value": 6, "dry_run": true});
    assert_eq!(service.post("/v1/reservations", &dry).await.json()["reason"], "limit_reached");
    assert_eq!(
        service.get("/v1/subjects/s").await.status,
        StatusCode::NOT_FOUND,
        "a read must not create the subject"
    );
    record(&service, "s", 2).await;
    service.clock.set(at("2026-11-21T12:00:00Z"));
    let shown = service.get("/v1/subjects/s/subscription?history=true").await.json();
    assert_eq!((&shown["plan"], &shown["created_at"]), (&json!("free"), &json!("2026-11-20T12:00:00Z")));
    assert_eq!(shown["history"].as_array().unwrap().len(), 1);
    assert_eq!(service.post("/v1/check", &ask).await.json()["allowed"], false);
    service.verify().await;
}

#[tokio::test]
async fn a_new_period_starts_without_counting() {
    let service = TestService::start().await;
    let plans =
        json!([{"key": "free", "limits": [{"key": "l", "meter": "m", "quota": 5, "period": "month"}]}]);
    service.apply(json!({"default_plan": "free", "meters": meters(), "plans": plans})).await;
    record(&service, "s", 5).await;
    // the events cannot be read, so a recount would fail
    crate::support::cluster::sqlx_execute(
        &service.url,
        "alter table events rename to hidden; alter table rollups rename to hidden_rollups",
    )
    .await;
    service.clock.set(at("2026-12-01T00:00:00Z"));
    assert!(allowed(&service, "s", 5).await);
    assert!(allowed(&service, "t", 5).await);
    let check = service.post("/v1/check", &json!({"subject": "s", "meter": "m", "value": 1})).await.json();
    assert_eq!((&check["allowed"], &check["limits"][0]["held"]), (&json!(false), &json!(5)));
}

#[tokio::test]
async fn gauges_are_checked_not_held() {
    let service = TestService::start().await;
    service
        .apply(json!({
            "default_plan": "p",
            "meters": [
                {"key": "gb", "event_name": "g", "aggregation": "max"},
                {"key": "now", "event_name": "g", "aggregation": "last"},
                {"key": "seats", "event_name": "seat", "aggregation": "unique_count", "value_property": "user", "dimensions": ["team"]},
                {"key": "mean", "event_name": "g", "aggregation": "avg"}],
            "plans": [{"key": "p", "limits": [
                {"key": "gb", "meter": "gb", "quota": 10, "period": "month"},
                {"key": "now", "meter": "now", "quota": 10, "period": "month"},
                {"key": "seats", "meter": "seats", "quota": 2, "period": "month"},
                {"key": "red", "meter": "seats", "filter": {"team": "red"}, "quota": 1, "period": "month"}]}],
        }))
        .await;
    let seat = |user: &str, team: &str| json!({"event_name": "seat", "subject": "s", "properties": {"user": user, "team": team}});
    service.record(&json!({"event_name": "g", "subject": "s", "value": 8})).await;
    service.record(&json!([seat("ann", "red"), seat("ann", "red"), seat("bob", "blue")])).await;
    let check = async |body: Value| {
        let mut body = body;
        body["subject"] = json!("s");
        service.post("/v1/check", &body).await.json()["allowed"] == true
    };
    for folded in [false, true] {
        assert!(check(json!({"meter": "gb", "value": 10})).await, "{folded}");
        assert!(!check(json!({"meter": "gb", "value": 10.5})).await);
        assert!(check(json!({"meter": "now", "value": 1})).await);
        assert!(check(json!({"meter": "seats", "value": "ann", "properties": {"team": "red"}})).await);
        assert!(!check(json!({"meter": "seats", "value": "eve", "properties": {"team": "blue"}})).await);
        assert!(!check(json!({"meter": "seats", "value": "bob", "properties": {"team": "red"}})).await);
        assert_eq!(limit(&service, "s", "seats").await, "2 0 0");
        assert_eq!(limit(&service, "s", "gb").await, "8 0 2");
        service.fold().await;
    }
    for meter in ["gb", "seats", "mean"] {
        let answer =
            service.post("/v1/reservations", &json!({"subject": "s", "meter": meter, "value": 1})).await;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (StatusCode::UNPROCESSABLE_ENTITY, "not_reservable")
        );
    }
    let tracked =
        service.post("/v1/events", &json!({"event_name": "g", "subject": "s", "value": 9})).await.json();
    assert_eq!(tracked["limits"][0]["used"], 9, "{tracked}");
}

#[tokio::test]
async fn removing_plans_with_subscribers_is_rejected_by_name() {
    let service = with_plans(json!([{"key": "p", "limits": []}, {"key": "q", "limits": []}])).await;
    subscribe(&service, "s", json!({"plan": "p"})).await;
    let without = |key: &str| json!({"meters": meters(), "plans": [{"key": key, "limits": []}]});
    let refused = service.put("/v1/catalog", &without("q")).await;
    assert_eq!((refused.status, refused.code().as_str()), (StatusCode::UNPROCESSABLE_ENTITY, "plan_in_use"));
    assert_eq!(service.put("/v1/catalog", &without("p")).await.status, StatusCode::OK);
    for limit in [
        json!({"key": "l", "meter": "m", "filter": {"colour": "red"}, "quota": 1, "period": "day"}),
        json!({"key": "l", "meter": "x", "quota": 1, "period": "day"}),
    ] {
        let plans = json!([{"key": "p", "limits": [limit]}]);
        let refused = service.put("/v1/catalog", &json!({"meters": meters(), "plans": plans})).await;
        assert_eq!(refused.status, StatusCode::UNPROCESSABLE_ENTITY, "{}", refused.text);
    }
}
