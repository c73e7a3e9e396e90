//! Limits that credits extend: the quota is used first, then the grants, and no balance is negative.

use axum::http::{Method, StatusCode};
use metergate_domain::base::Total;
use serde_json::{Value, json};

use super::{balance, granted, ledger, moved, start};
use crate::support::service::Answer;
use crate::support::{TestService, at};

async fn reserve(service: &TestService, id: &str, value: i64) -> Answer {
    let body = json!({"id": id, "subject": "a", "meter": "tokens", "value": value, "ttl_seconds": 60});
    service.post("/v1/reservations", &body).await
}

async fn settle(service: &TestService, id: &str, how: &str, body: Value) -> Value {
    let answer = service.post(&format!("/v1/reservations/{id}/{how}"), &body).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
    answer.json()
}

fn limit(answer: &Value) -> [i64; 4] {
    let limit = &answer["limits"][0];
    ["used", "held", "covered", "remaining"]
        .map(|name| limit[name].as_i64().unwrap_or_else(|| panic!("{answer}")))
}

async fn credits(amount: i64) -> TestService {
    let service = start().await;
    granted(&service, "a", &json!({"credit_unit": "credits", "amount": amount})).await;
    service
}

#[tokio::test]
async fn quota_is_used_before_credits() {
    let service = credits(40).await;
    let held = reserve(&service, "r1", 15).await;
    assert_eq!((held.status, limit(&held.json())), (StatusCode::CREATED, [0, 15, 5, 0]), "{}", held.text);
    assert_eq!(balance(&service, "a").await, (35, 5));
    let report = service.get("/v1/subjects/a/usage").await.json();
    assert_eq!(limit(&report), [0, 15, 5, 0], "{report}");
    assert_eq!(report["limits"][1]["covered"], 0);
    let denied = reserve(&service, "r2", 36).await.json();
    assert_eq!(
        (&denied["allowed"], &denied["reason"]),
        (&json!(false), &json!("insufficient_credits")),
        "{denied}"
    );
    assert_eq!(denied["denied_by"][0]["key"], "tokens");
    assert_eq!(reserve(&service, "r2", 35).await.status, StatusCode::CREATED);
    assert_eq!(balance(&service, "a").await, (0, 40));
    // a commit below the hold returns credits before quota
    assert_eq!(
        limit(&settle(&service, "r1", "commit", json!({"values": [{"meter": "tokens", "value": 12}]})).await),
        [12, 35, 37, 0]
    );
    assert_eq!(balance(&service, "a").await, (3, 35));
    settle(&service, "r2", "release", json!({})).await;
    assert_eq!(balance(&service, "a").await, (38, 0));
    assert_eq!(
        moved(&service, "a").await,
        ["grant 40", "hold 5", "hold 35", "settle 2", "release 3", "release 35"]
    );
    let rows = ledger(&service, "a").await;
    assert_eq!(
        (&rows[2]["reservation"], &rows[2]["used"]),
        (&json!("r1"), &json!({"meter": "tokens", "quantity": 2}))
    );
    service.verify().await;
}

#[tokio::test]
async fn checks_decide_like_reservations_and_gateways_ask_for_payment() {
    let service = credits(20).await;
    for (value, allowed) in [(10, true), (30, true), (31, false)] {
        let ask = json!({"subject": "a", "meter": "tokens", "value": value});
        let checked = service.post("/v1/check", &ask).await.json();
        assert_eq!(checked["allowed"], allowed, "{checked}");
        let gate = service.get(&format!("/v1/gate?subject=a&meter=tokens&value={value}")).await;
        let expected = if allowed { StatusCode::NO_CONTENT } else { StatusCode::PAYMENT_REQUIRED };
        assert_eq!(gate.status, expected, "{}", gate.text);
    }
    let up_to = json!({"subject": "a", "dry_run": true, "holds": [{"meter": "tokens", "value": 100, "grant": "up_to"}]});
    let answer = service.post("/v1/reservations", &up_to).await.json();
    assert_eq!(answer["holds"][0]["value"], 30, "{answer}");
    assert_eq!(balance(&service, "a").await, (20, 0), "nothing was held");
}

#[tokio::test]
async fn slices_have_their_own_costs_and_holds_share_grants() {
    let service = credits(45).await;
    let holds = |tokens: i64, calls: i64| {
        json!({"subject": "a", "holds": [
            {"meter": "tokens", "value": tokens, "properties": {"model": "big"}}, {"meter": "calls", "value": calls}]})
    };
    // 10 credits for each of 3 tokens, 5 for each of 3 calls
    assert_eq!(
        service.post("/v1/reservations", &holds(13, 6)).await.json()["reason"],
        "insufficient_credits"
    );
    let held = service.post("/v1/reservations", &holds(13, 5)).await;
    assert_eq!(held.status, StatusCode::CREATED, "{}", held.text);
    assert_eq!(balance(&service, "a").await, (0, 45));
    service.verify().await;
}

#[tokio::test]
async fn expired_holds_return_credits_and_held_credits_outlive_their_grant() {
    let service = start().await;
    let grant = json!({"credit_unit": "credits", "amount": 40, "expires_at": "2026-11-20T12:00:30Z"});
    granted(&service, "a", &grant).await;
    for id in ["r1", "r2", "r3"] {
        assert_eq!(reserve(&service, id, 15).await.status, StatusCode::CREATED);
    }
    assert_eq!(balance(&service, "a").await, (5, 35));
    service.clock.set(at("2026-11-20T12:00:40Z"));
    assert_eq!(balance(&service, "a").await, (0, 35), "held credits stay valid");
    settle(&service, "r2", "commit", json!({})).await;
    settle(&service, "r3", "release", json!({})).await;
    assert_eq!(balance(&service, "a").await, (0, 5));
    // at the expiry, which no writer has applied yet
    service.clock.set(at("2026-11-20T12:01:00Z"));
    assert_eq!(balance(&service, "a").await, (0, 0));
    assert_eq!(
        moved(&service, "a").await,
        [
            "grant 40",
            "hold 5",
            "hold 15",
            "hold 15",
            "expire 5",
            "settle 15",
            "release 15",
            "expire 15",
            "release 5",
            "expire 5"
        ]
    );
    // 15 above the quota were held and covered: all credits are available again
    let checked =
        service.post("/v1/check", &json!({"subject": "a", "meter": "tokens", "value": 10})).await.json();
    assert_eq!((&checked["allowed"], limit(&checked)), (&json!(true), [15, 0, 15, 10]), "{checked}");
    service.verify().await;
}

#[tokio::test]
async fn expiries_that_commit_spend_the_held_credits() {
    let service = credits(40).await;
    let body = json!({"id": "r", "subject": "a", "meter": "tokens", "value": 30, "ttl_seconds": 60, "on_expiry": "commit"});
    assert_eq!(service.post("/v1/reservations", &body).await.status, StatusCode::CREATED);
    service.clock.set(at("2026-11-20T12:02:00Z"));
    assert_eq!(balance(&service, "a").await, (20, 0));
    assert_eq!(moved(&service, "a").await, ["grant 40", "hold 20", "settle 20"]);
    service.verify().await;
}

#[tokio::test]
async fn recorded_usage_spends_available_credits_and_the_rest_is_uncovered() {
    let service = credits(8).await;
    let track = async |id: &str, value: i64| {
        service.record(&json!({"id": id, "event_name": "tokens", "subject": "a", "value": value})).await;
    };
    track("e1", 15).await;
    assert_eq!(balance(&service, "a").await, (3, 0));
    track("e2", 10).await;
    assert_eq!(balance(&service, "a").await, (0, 0));
    track("e3", 1).await;
    assert_eq!(moved(&service, "a").await, ["grant 8", "spend 5", "spend 3", "uncovered 7", "uncovered 1"]);
    let rows = ledger(&service, "a").await;
    assert_eq!((&rows[1]["event"], &rows[1]["kind"]), (&json!("e2"), &json!("uncovered")));
    let nothing = json!({"subject": "a", "meter": "tokens", "value": 0});
    assert_eq!(service.post("/v1/check", &nothing).await.json()["reason"], "insufficient_credits");
    // credits granted later pay only for new usage
    granted(&service, "a", &json!({"credit_unit": "credits", "amount": 20})).await;
    assert_eq!(service.post("/v1/check", &nothing).await.json()["allowed"], true);
    assert_eq!(balance(&service, "a").await, (20, 0));
    assert_eq!(reserve(&service, "r1", 21).await.json()["reason"], "insufficient_credits");
    let held = reserve(&service, "r1", 20).await;
    assert_eq!(limit(&held.json()), [26, 20, 28, 0], "{}", held.text);
    settle(&service, "r1", "release", json!({})).await;
    assert_eq!(balance(&service, "a").await, (20, 0));
    track("e4", 3).await;
    assert_eq!(balance(&service, "a").await, (17, 0));
    service.post("/v1/events/e4/void", &json!({})).await;
    assert_eq!(balance(&service, "a").await, (20, 0));
    service.verify().await;
    service.clock.set(at("2026-12-01T00:00:00Z"));
    assert_eq!(limit(&reserve(&service, "r2", 30).await.json()), [0, 30, 20, 0]);
    service.verify().await;
}

#[tokio::test]
async fn uses_pay_only_their_own_cost() {
    // ten uncovered units of one slice above the quota, then a use of the other slice, which pays only for
    // itself
    for (before, after, cost) in [("small", "big", 10), ("big", "small", 1)] {
        for tracked in [true, false] {
            let service = start().await;
            let event = |id: &str, model: &str, value: i64| json!({"id": id, "event_name": "tokens", "subject": "a", "value": value, "properties": {"model": model}});
            service.record(&event("e1", before, 20)).await;
            granted(&service, "a", &json!({"credit_unit": "credits", "amount": 100})).await;
            if tracked {
                service.record(&event("e2", after, 1)).await;
                assert_eq!(balance(&service, "a").await, (100 - cost, 0), "{before}");
                let spent = &ledger(&service, "a").await[0];
                assert_eq!((&spent["amount"], &spent["event"]), (&json!(cost), &json!("e2")), "{spent}");
                assert_eq!(spent["used"], json!({"meter": "tokens", "quantity": 1}), "{spent}");
            } else {
                let body =
                    json!({"subject": "a", "meter": "tokens", "value": 1, "properties": {"model": after}});
                let held = service.post("/v1/reservations", &body).await;
                assert_eq!(held.status, StatusCode::CREATED, "{}", held.text);
                assert_eq!(limit(&held.json()), [20, 1, 1, 0]);
                assert_eq!(balance(&service, "a").await, (100 - cost, cost), "{before}");
            }
            service.verify().await;
        }
    }
}

/// Starts a service in which calls cost 3 credits each, without a quota.
async fn calls_at_three(grants: &[i64]) -> TestService {
    let service = TestService::start().await;
    service.apply(super::calls_at_three()).await;
    for amount in grants {
        granted(&service, "a", &json!({"credit_unit": "credits", "amount": amount})).await;
    }
    service
}

#[tokio::test]
async fn indivisible_costs_are_covered_across_all_grants() {
    let call = json!({"event_name": "calls", "subject": "a"});
    let service = calls_at_three(&[1, 1, 1]).await;
    let checked =
        service.post("/v1/check", &json!({"subject": "a", "meter": "calls", "value": 1})).await.json();
    assert_eq!(checked["allowed"], true, "{checked}");
    let recorded = service.post("/v1/events", &call).await.json();
    assert_eq!(limit(&recorded), [1, 0, 1, 0], "{recorded}");
    assert_eq!(balance(&service, "a").await, (0, 0));
    assert_eq!(moved(&service, "a").await[3..], ["spend 1", "spend 1", "spend 1"]);
    service.verify().await;
    // beyond the balance: the uncovered units are recorded once
    let service = calls_at_three(&[1]).await;
    let recorded = service.post("/v1/events", &call).await.json();
    assert_eq!(recorded["limits"][0]["covered"].to_string(), "0.333333333");
    assert_eq!(moved(&service, "a").await, ["grant 1", "spend 1", "uncovered 0.666666667"]);
    assert_eq!(balance(&service, "a").await, (0, 0));
    service.verify().await;
    // a hold over several grants is settled in parts, exact to the last digit
    let service = calls_at_three(&[10, 10, 10]).await;
    let up_to =
        json!({"id": "r", "subject": "a", "holds": [{"meter": "calls", "value": 50, "grant": "up_to"}]});
    let held = service.post("/v1/reservations", &up_to).await.json();
    assert_eq!(held["holds"][0]["value"], 10, "{held}");
    for (value, is_final, expected) in [(4, false, (0, 18)), (5, false, (0, 15)), (5, true, (15, 0))] {
        let step = json!({"values": [{"meter": "calls", "value": value}], "final": is_final});
        settle(&service, "r", "commit", step).await;
        assert_eq!(balance(&service, "a").await, expected, "{value}");
        service.verify().await;
    }
    let told = ledger(&service, "a").await;
    let settled = told.iter().filter(|row| row["kind"] == "settle");
    let told = settled.map(|row| Total::from_decimal(&row["used"]["quantity"].to_string()).unwrap());
    assert_eq!(told.fold(Total::default(), |sum, quantity| sum + quantity), Total::from(5));
}

#[tokio::test]
async fn voided_events_return_their_credits() {
    let service = credits(8).await;
    for (id, value) in [("e1", 10), ("e2", 5)] {
        service.record(&json!({"id": id, "event_name": "tokens", "subject": "a", "value": value})).await;
    }
    assert_eq!(balance(&service, "a").await, (3, 0));
    for id in ["e2", "e2", "e1"] {
        let answer = service.post(&format!("/v1/events/{id}/void"), &json!({})).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
    }
    assert_eq!(balance(&service, "a").await, (8, 0));
    let rows = ledger(&service, "a").await;
    assert_eq!(
        (&rows[0]["kind"], &rows[0]["refunds"], &rows[0]["event"]),
        (&json!("refund"), &rows[1]["id"], &json!("e2"))
    );
    let checked =
        service.post("/v1/check", &json!({"subject": "a", "meter": "tokens", "value": 0})).await.json();
    assert_eq!(limit(&checked), [0, 0, 0, 10]);
    service.verify().await;
}

#[tokio::test]
async fn commits_above_their_hold_and_late_commits_spend_once() {
    let service = credits(50).await;
    reserve(&service, "r1", 15).await;
    let step = |value: i64, is_final: bool| json!({"values": [{"meter": "tokens", "value": value}], "final": is_final});
    for (value, expected) in [(8, (45, 5)), (12, (45, 3)), (12, (45, 3))] {
        settle(&service, "r1", "commit", step(value, false)).await;
        assert_eq!(balance(&service, "a").await, expected, "{value}");
    }
    // usage above the hold is covered like recorded usage
    let done = settle(&service, "r1", "commit", step(20, true)).await;
    assert_eq!((limit(&done), &done["over_hold"]), ([20, 0, 10, 0], &json!(true)));
    assert_eq!(balance(&service, "a").await, (40, 0));
    reserve(&service, "r2", 10).await;
    service.clock.set(at("2026-11-20T12:05:00Z"));
    assert_eq!(balance(&service, "a").await, (40, 0));
    let late = settle(&service, "r2", "commit", json!({})).await;
    assert_eq!((limit(&late), &late["late"]), ([30, 0, 20, 0], &json!(true)));
    assert_eq!(balance(&service, "a").await, (30, 0));
    // voiding the event of a commit returns its credits
    let event = late["events"][0].as_str().unwrap();
    assert_eq!(service.post(&format!("/v1/events/{event}/void"), &json!({})).await.status, StatusCode::OK);
    assert_eq!(balance(&service, "a").await, (40, 0));
    service.verify().await;
}

#[tokio::test]
async fn resized_holds_change_their_held_credits() {
    let service = credits(20).await;
    reserve(&service, "r1", 12).await;
    let extend = |value: i64| json!({"holds": [{"meter": "tokens", "value": value}], "ttl_seconds": 600});
    for (value, expected) in [(25, (5, 15)), (30, (0, 20)), (11, (19, 1)), (9, (20, 0)), (14, (16, 4))] {
        let answer = settle(&service, "r1", "extend", extend(value)).await;
        assert_eq!(answer["allowed"], true, "{answer}");
        assert_eq!(balance(&service, "a").await, expected, "{value}");
    }
    assert_eq!(settle(&service, "r1", "extend", extend(31)).await["reason"], "insufficient_credits");
    service.clock.set(at("2026-11-20T12:09:00Z"));
    assert_eq!(balance(&service, "a").await, (16, 4));
    service.verify().await;
}

#[tokio::test]
async fn holds_reduced_to_zero_spend_no_credits() {
    let service = start().await;
    service.record(&json!({"event_name": "tokens", "subject": "a", "value": 14})).await;
    granted(&service, "a", &json!({"credit_unit": "credits", "amount": 20})).await;
    reserve(&service, "r1", 5).await;
    assert_eq!(balance(&service, "a").await, (15, 5));
    let nothing = json!({"holds": [{"meter": "tokens", "value": 0}]});
    assert_eq!(limit(&settle(&service, "r1", "extend", nothing).await), [14, 0, 0, 0]);
    assert_eq!(balance(&service, "a").await, (20, 0));
    service.clock.set(at("2026-11-20T12:02:00Z"));
    let checked =
        service.post("/v1/check", &json!({"subject": "a", "meter": "tokens", "value": 0})).await.json();
    assert_eq!(limit(&checked), [14, 0, 0, 0]);
    service.verify().await;
}

#[tokio::test]
async fn only_limits_without_enough_credits_deny() {
    let service = start().await;
    service.put("/v1/subjects/seat", &json!({"parent": "org"})).await;
    for (subject, amount) in [("seat", 2), ("org", 100)] {
        let plan = json!({"plan": "free"});
        service.put(&format!("/v1/subjects/{subject}/subscription"), &plan).await;
        granted(&service, subject, &json!({"credit_unit": "credits", "amount": amount})).await;
    }
    // the quota is used up, and a call costs 5
    service
        .record(
            &json!([{"event_name": "calls", "subject": "seat"}, {"event_name": "calls", "subject": "seat"}]),
        )
        .await;
    let up_to = json!({"subject": "seat", "holds": [{"meter": "calls", "value": 1, "grant": "up_to"}]});
    for ask in [json!({"subject": "seat", "meter": "calls"}), up_to] {
        let denied = service.post("/v1/reservations", &ask).await.json();
        assert_eq!(denied["reason"], "insufficient_credits", "{denied}");
        let by: Vec<&Value> =
            denied["denied_by"].as_array().unwrap().iter().map(|denier| &denier["subject"]).collect();
        assert_eq!(by, ["seat"], "{ask}");
    }
}

#[tokio::test]
async fn several_limits_of_one_subject_are_paid_once() {
    let service = start().await;
    let mut catalog = super::catalog();
    catalog["plans"][0]["limits"] = json!([
        {"key": "day", "meter": "tokens", "quota": 5, "period": "day", "overage": "credits"},
        {"key": "month", "meter": "tokens", "quota": 10, "period": "month", "overage": "credits"},
        {"key": "minute", "meter": "tokens", "quota": 30, "period": "minute"}]);
    service.apply(catalog).await;
    granted(&service, "a", &json!({"meter": "tokens", "amount": 100})).await;
    let held = reserve(&service, "r1", 12).await.json();
    let covered: Vec<&Value> =
        held["limits"].as_array().unwrap().iter().map(|limit| &limit["covered"]).collect();
    assert_eq!(covered, [&json!(7), &json!(2), &Value::Null], "{held}");
    assert_eq!(balance(&service, "a").await, (93, 7));
    // a limit without credit overage denies regardless of the balance
    let denied = reserve(&service, "r2", 20).await.json();
    assert_eq!(
        (&denied["reason"], &denied["denied_by"][0]["key"]),
        (&json!("limit_reached"), &json!("minute"))
    );
    service.verify().await;
}

#[tokio::test]
async fn restored_limits_remember_paid_usage() {
    let service = credits(50).await;
    service.record(&json!({"event_name": "tokens", "subject": "a", "value": 25})).await;
    reserve(&service, "r1", 5).await;
    assert_eq!(balance(&service, "a").await, (30, 5));
    let mut without = super::catalog();
    without["plans"][0]["limits"].as_array_mut().unwrap().remove(0);
    service.apply(without).await;
    service.apply(super::catalog()).await;
    let checked =
        service.post("/v1/check", &json!({"subject": "a", "meter": "tokens", "value": 1})).await.json();
    assert_eq!(limit(&checked), [25, 5, 20, 0]);
    settle(&service, "r1", "commit", json!({})).await;
    assert_eq!(balance(&service, "a").await, (30, 0));
    service.verify().await;
}

#[tokio::test]
async fn money_covers_usage_only_at_plain_prices() {
    let service = start().await;
    let priced = |price: Value| {
        let mut catalog = super::catalog();
        catalog["plans"][0]["prices"] = json!([price]);
        catalog
    };
    service
        .apply(priced(
            json!({"key": "p", "meter": "tokens", "model": "per_unit", "currency": "usd", "unit_amount": 3}),
        ))
        .await;
    service.put("/v1/subjects/a/subscription", &json!({"plan": "free"})).await;
    granted(&service, "a", &json!({"currency": "usd", "amount": 31})).await;
    assert_eq!(reserve(&service, "r1", 21).await.json()["reason"], "insufficient_credits");
    assert_eq!(reserve(&service, "r1", 20).await.status, StatusCode::CREATED);
    assert_eq!(balance(&service, "a").await, (1, 30));
    let tiers = json!([{"up_to": 10, "unit_amount": 1}, {"up_to": null, "unit_amount": 2}]);
    service
        .apply(priced(
            json!({"key": "t", "meter": "tokens", "model": "graduated", "currency": "usd", "tiers": tiers}),
        ))
        .await;
    let refused = super::grant(&service, "a", &json!({"currency": "usd", "amount": 31})).await;
    assert_eq!(refused.code(), "uncoverable_price", "{}", refused.text);
    service.verify().await;
}

/// Each unit above the quota costs the price of its tier, and together they cost the price of all units.
#[tokio::test]
async fn money_pays_through_the_tiers_of_a_billing_period() {
    let service = start().await;
    service.apply(super::tiered()).await;
    service.put("/v1/subjects/a/subscription", &json!({"plan": "free"})).await;
    granted(&service, "a", &json!({"currency": "usd", "amount": 1000})).await;
    reserve(&service, "r1", 15).await;
    assert_eq!(balance(&service, "a").await, (990, 10), "5 units at 2");
    settle(&service, "r1", "commit", json!({})).await;
    reserve(&service, "r2", 10).await;
    assert_eq!(balance(&service, "a").await, (955, 35), "5 units at 2, and 5 at 5");
    settle(&service, "r2", "commit", json!({"values": [{"meter": "tokens", "value": 7}]})).await;
    assert_eq!(balance(&service, "a").await, (970, 0), "3 units at 5 are returned");
    let event = json!({"id": "late", "event_name": "tokens", "subject": "a", "value": 13});
    service.record(&event).await;
    // all 35 units cost 95, of which 20 are for the units of the quota
    assert_eq!(balance(&service, "a").await, (1000 - 75, 0));
    let voided = service.post("/v1/events/late/void", &json!({})).await;
    assert_eq!(voided.status, StatusCode::OK, "{}", voided.text);
    assert_eq!(balance(&service, "a").await, (970, 0), "8 units at 5 and 5 at 1 are returned");
    // 8 units at 5 cost 40, and the rest pays for 930 units at 1
    assert_eq!(reserve(&service, "r3", 939).await.json()["reason"], "insufficient_credits");
    assert_eq!(reserve(&service, "r3", 938).await.status, StatusCode::CREATED);
    assert_eq!(balance(&service, "a").await, (0, 970));
    settle(&service, "r3", "release", json!({})).await;
    assert_eq!(balance(&service, "a").await, (970, 0));
    service.verify().await;
}

#[tokio::test]
async fn money_pays_at_the_prices_of_the_subscription() {
    let service = start().await;
    let price = |amount: i64| json!([{"key": "p", "meter": "tokens", "model": "per_unit", "currency": "usd", "unit_amount": amount}]);
    let mut catalog = super::catalog();
    catalog["plans"][0]["prices"] = price(3);
    service.apply(catalog.clone()).await;
    service.put("/v1/subjects/a/subscription", &json!({"plan": "free", "prices": price(6)})).await;
    granted(&service, "a", &json!({"currency": "usd", "amount": 31})).await;
    reserve(&service, "r1", 15).await;
    assert_eq!(balance(&service, "a").await, (1, 30));
    // the catalog is refused, because no subject could spend the plan's grant
    catalog["plans"][0]["prices"][0]["free_units"] = json!(1);
    catalog["plans"][0]["credit_grants"] = json!([{"key": "monthly", "currency": "usd", "amount": 100}]);
    let refused = service.put("/v1/catalog", &catalog).await;
    assert_eq!(
        (refused.status, refused.code().as_str()),
        (StatusCode::UNPROCESSABLE_ENTITY, "uncoverable_price")
    );
    assert_eq!(refused.json()["errors"][0]["pointer"], "/plans/0/credit_grants/0/currency");
    service.verify().await;
}

#[tokio::test]
async fn low_balances_create_one_notice_per_crossing() {
    let service = start().await;
    let plan = json!({"plan": "pro", "cycle_start": "2026-11-20T00:00:00Z"});
    assert_eq!(service.put("/v1/subjects/a/subscription", &plan).await.status, StatusCode::OK);
    let notices = async |query: &str| {
        let page = service.get(&format!("/v1/notices{query}")).await.json();
        page["data"].as_array().unwrap_or_else(|| panic!("{page}")).clone()
    };
    reserve(&service, "r1", 90).await;
    assert_eq!(notices("").await, [] as [Value; 0]);
    reserve(&service, "r2", 1).await;
    let noted = notices("?subject=a").await;
    let kinds: Vec<&Value> = noted.iter().map(|notice| &notice["kind"]).collect();
    assert_eq!(kinds, ["top_up_due", "low_balance"], "{noted:?}");
    assert_eq!(
        (&noted[0]["pack"], &noted[0]["balance"], &noted[0]["threshold"]),
        (&json!("small"), &json!(19), &json!(20))
    );
    reserve(&service, "r3", 1).await;
    assert_eq!(
        notices("?kind=low_balance&limit=5").await.len(),
        1,
        "one notice until the balance rises again"
    );
    // the first read issues the plan's grant and spends it
    service.put("/v1/subjects/b/subscription", &plan).await;
    let first = json!({"subject": "b", "meter": "tokens", "value": 91, "ttl_seconds": 60});
    assert_eq!(service.post("/v1/reservations", &first).await.status, StatusCode::CREATED);
    assert_eq!(notices("?subject=b").await.len(), 2);
    let bad = service.send_json(Method::GET, "/v1/notices?kind=none", &Value::Null).await;
    assert_eq!(bad.status, StatusCode::UNPROCESSABLE_ENTITY);
}
