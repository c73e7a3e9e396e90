//! Spend caps: a call is denied before it is made, by the highest cost that it may have, under any
//! concurrency.

use axum::http::StatusCode;
use futures::future::join_all;
use serde_json::{Value, json};

use crate::support::service::{Answer, Process};
use crate::support::{TestService, at};

fn per_unit(key: &str, unit_amount: Value, more: Value) -> Value {
    let mut price = json!({"key": key, "meter": "tokens", "model": "per_unit", "currency": "usd", "unit_amount": unit_amount});
    price.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    price
}

/// All subjects are on `free`, which has spend caps and no other limits.
fn catalog(prices: Value, caps: Value) -> Value {
    json!({"default_plan": "free",
    "meters": [
        {"key": "tokens", "event_name": "ai", "aggregation": "sum", "dimensions": ["model"]},
        {"key": "calls", "event_name": "ai", "aggregation": "count"},
        {"key": "storage", "event_name": "stored", "aggregation": "max"},
        {"key": "seats", "event_name": "seen", "aggregation": "unique_count", "value_property": "who"},
        {"key": "rooms", "event_name": "rooms", "aggregation": "last", "dimensions": ["site"]},
        {"key": "paid", "event_name": "paid", "aggregation": "sum"},
    ],
    "plans": [
        {"key": "free", "unmatched": "allow", "limits": [], "prices": prices, "spend_caps": caps},
        {"key": "bare", "unmatched": "allow"},
    ]})
}

fn cap(amount: Value) -> Value {
    json!({"key": "budget", "amount": amount, "currency": "usd", "period": "month"})
}

async fn service(prices: Value, caps: Value) -> TestService {
    let service = TestService::start().await;
    service.apply(catalog(prices, caps)).await;
    service
}

fn ask(subject: &str, value: Value, more: Value) -> Value {
    let mut body = json!({"subject": subject, "meter": "tokens", "value": value, "ttl_seconds": 3600});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

async fn reserve(service: &TestService, body: Value) -> Answer {
    let answer = service.post("/v1/reservations", &body).await;
    assert!(answer.status.is_success(), "{body}: {}", answer.text);
    answer
}

fn is_held(answer: &Answer) -> bool {
    answer.status == StatusCode::CREATED
}

#[tokio::test]
async fn caps_count_used_held_and_requested_quantities() {
    let service = service(json!([per_unit("t", json!("0.5"), json!({}))]), json!([cap(json!(10))])).await;
    service.record(&json!({"event_name": "ai", "subject": "u", "value": 6})).await;
    assert!(is_held(&reserve(&service, ask("u", json!(8), json!({"id": "a"}))).await));
    let denied = reserve(&service, ask("u", json!(7), json!({}))).await.json();
    assert_eq!(denied["reason"], "spend_cap_reached");
    assert_eq!(
        denied["denied_by"],
        json!([{"subject": "u", "key": "budget", "cap": 10, "currency": "usd", "spent": 3, "held": 4, "requested": 3.5,
                "resets_at": "2026-12-01T00:00:00Z"}])
    );
    assert!(is_held(&reserve(&service, ask("u", json!(6), json!({"id": "b"}))).await), "exactly at the cap");
    assert!(!is_held(&reserve(&service, ask("u", json!("0.000000001"), json!({}))).await));
    assert!(
        is_held(&reserve(&service, ask("u", json!(0), json!({}))).await),
        "a zero-value use stays within the cap"
    );
    // a meter without a price is not denied
    let calls = json!({"subject": "u", "meter": "calls", "value": 1});
    assert!(is_held(&reserve(&service, calls).await));
    // less is used than held
    let done = service
        .post("/v1/reservations/a/commit", &json!({"values": [{"meter": "tokens", "value": 2}]}))
        .await;
    assert_eq!(done.status, StatusCode::OK, "{}", done.text);
    assert!(is_held(&reserve(&service, ask("u", json!(6), json!({"id": "c"}))).await));
    assert!(!is_held(&reserve(&service, ask("u", json!(1), json!({}))).await));
    service.post("/v1/reservations/b/release", &json!({})).await;
    // a hold expires at its instant, before any writer removes it
    service.clock.set(at("2026-11-20T13:00:00Z"));
    let shown = service.get("/v1/subjects/u/spend-caps").await.json();
    let shown = &shown["spend_caps"][0];
    assert_eq!((&shown["spent"], &shown["held"], &shown["remaining"]), (&json!(4), &json!(0), &json!(6)));
    assert_eq!(shown["source"], "plan");
    assert!(is_held(&reserve(&service, ask("u", json!(12), json!({"id": "d"}))).await));
    service.verify().await;
    // the next month
    service.clock.set(at("2026-12-01T00:00:00Z"));
    assert!(is_held(&reserve(&service, ask("u", json!(20), json!({}))).await));
    service.verify().await;
}

#[tokio::test]
async fn recorded_usage_may_pass_a_cap_and_then_holds_are_denied() {
    let service = service(json!([per_unit("t", json!(1), json!({}))]), json!([cap(json!(10))])).await;
    service.record(&json!({"id": "much", "event_name": "ai", "subject": "u", "value": 25})).await;
    let denied = reserve(&service, ask("u", json!(0), json!({}))).await.json();
    assert_eq!(
        (&denied["reason"], &denied["denied_by"][0]["spent"]),
        (&json!("spend_cap_reached"), &json!(25))
    );
    let gate = service.get("/v1/gate?subject=u&meter=tokens&value=1").await;
    assert_eq!((gate.status, gate.code()), (StatusCode::PAYMENT_REQUIRED, "spend_cap_reached".to_owned()));
    let check = service.post("/v1/check", &ask("u", json!(1), json!({}))).await.json();
    assert_eq!((&check["allowed"], &check["reason"]), (&json!(false), &json!("spend_cap_reached")));
    service.post("/v1/events/much/void", &json!({})).await;
    assert!(is_held(&reserve(&service, ask("u", json!(10), json!({}))).await));
    service.verify().await;
}

#[tokio::test]
async fn caps_count_by_the_prices_of_the_subscription() {
    let service = service(json!([per_unit("t", json!(1), json!({}))]), json!([cap(json!(10))])).await;
    let subscribe = async |subject: &str, prices: Value| {
        let path = format!("/v1/subjects/{subject}/subscription");
        let answer = service.put(&path, &json!({"plan": "free", "prices": prices})).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
    };
    let one = |amount: Value| json!([per_unit("t", amount, json!({}))]);
    let slice = per_unit("big", json!(4), json!({"filter": {"model": ["big"]}}));
    service.put("/v1/subjects/seat", &json!({"parent": "dear"})).await;
    // one plan, with different prices per subscription
    let cases = [
        ("dear", one(json!(5)), json!({}), 2),
        ("cheap", one(json!("0.5")), json!({}), 20),
        ("listed", json!([]), json!({}), 10),
        ("sliced", json!([slice]), json!({"properties": {"model": "big"}}), 2),
    ];
    for (subject, prices, _, _) in &cases {
        subscribe(subject, prices.clone()).await;
    }
    for (subject, _, properties, fits) in &cases {
        let ask = |value: i64| ask(subject, json!(value), properties.clone());
        assert!(!is_held(&reserve(&service, ask(fits + 1)).await), "{subject}");
        assert!(is_held(&reserve(&service, ask(*fits)).await), "{subject}");
        let denied = reserve(&service, ask(1)).await.json();
        assert_eq!(
            (&denied["reason"], &denied["denied_by"][0]["subject"]),
            (&json!("spend_cap_reached"), &json!(subject))
        );
        assert_eq!(
            service.post("/v1/check", &ask(1)).await.json()["reason"],
            "spend_cap_reached",
            "{subject}"
        );
    }
    // a child pays at the prices of its ancestor
    let denied = reserve(&service, ask("seat", json!(1), json!({}))).await.json();
    let by = &denied["denied_by"][0];
    assert_eq!((&by["subject"], &by["held"], &by["requested"]), (&json!("dear"), &json!(10), &json!(5)));
    // with other prices the holds are rated again
    subscribe("cheap", one(json!(1))).await;
    let denied = reserve(&service, ask("cheap", json!(0), json!({}))).await.json();
    assert_eq!(denied["denied_by"][0]["held"], 20, "{denied}");
    subscribe("dear", json!([])).await;
    assert!(is_held(&reserve(&service, ask("seat", json!(8), json!({}))).await));
    assert!(!is_held(&reserve(&service, ask("dear", json!(1), json!({}))).await));
    service.verify().await;
}

#[tokio::test]
async fn partial_holds_receive_the_rest_of_the_cap() {
    let price = per_unit("t", json!(1), json!({"per_units": 3}));
    let calls =
        json!({"key": "c", "meter": "calls", "model": "per_unit", "currency": "usd", "unit_amount": 2});
    let service = service(json!([price, calls]), json!([cap(json!(7))])).await;
    let granted = |answer: &Answer| answer.json()["holds"][0]["value"].clone();
    let all = reserve(&service, ask("u", json!(5), json!({"grant": "up_to"}))).await;
    assert_eq!(granted(&all), json!(5));
    let some = json!({"subject": "u", "meter": "calls", "value": 9, "grant": "up_to", "ttl_seconds": 3600});
    assert_eq!(granted(&reserve(&service, some.clone()).await), json!(2), "five thirds of seven are spent");
    let rest = reserve(&service, ask("u", json!(100), json!({"grant": "up_to"}))).await;
    assert_eq!(granted(&rest), json!(4));
    assert_eq!(reserve(&service, some).await.json()["reason"], "spend_cap_reached");
    service.verify().await;
}

#[tokio::test]
async fn volume_prices_count_at_their_highest_cost() {
    let tiers =
        json!([{"up_to": 100, "unit_amount": 2, "flat_amount": 10}, {"up_to": null, "unit_amount": 1}]);
    let price = json!({"key": "v", "meter": "tokens", "model": "volume", "currency": "usd", "tiers": tiers});
    let service = service(json!([price]), json!([cap(json!(150))])).await;
    // 120 units cost 120, but 100 of them would cost 210
    assert!(!is_held(&reserve(&service, ask("u", json!(120), json!({}))).await));
    assert!(is_held(&reserve(&service, ask("u", json!(70), json!({"id": "a"}))).await), "exactly 150");
    let commit = json!({"values": [{"meter": "tokens", "value": 101}]});
    assert_eq!(service.post("/v1/reservations/a/commit", &commit).await.json()["over_hold"], true);
    assert!(
        is_held(&reserve(&service, ask("u", json!(49), json!({}))).await),
        "from 101 to 150 units, the highest cost is 150"
    );
    assert!(!is_held(&reserve(&service, ask("u", json!("0.1"), json!({}))).await));
    service.verify().await;
}

#[tokio::test]
async fn caps_count_each_slice_and_time_by_its_own_price() {
    let prices = json!([
        per_unit("rest", json!(1), json!({})),
        per_unit(
            "gpt",
            json!(5),
            json!({"filter": {"model": ["gpt"]}, "effective_from": "2026-11-20T00:00:00Z"})
        ),
        per_unit(
            "gpt_before",
            json!(3),
            json!({"filter": {"model": ["gpt"]}, "effective_to": "2026-11-20T00:00:00Z"})
        ),
    ]);
    let service = service(prices, json!([cap(json!(100))])).await;
    let event = |value: i64, model: &str, timestamp: &str| json!({"event_name": "ai", "subject": "u", "value": value, "properties": {"model": model}, "timestamp": timestamp});
    for event in [
        event(5, "gpt", "2026-11-19T23:59:59Z"),
        event(5, "gpt", "2026-11-20T00:00:00Z"),
        event(5, "claude", "2026-11-19T12:00:00Z"),
        event(50, "gpt", "2026-10-31T23:59:59Z"),
    ] {
        service.record(&event).await;
    }
    let spent = service.get("/v1/subjects/u/spend-caps").await.json()["spend_caps"][0]["spent"].clone();
    assert_eq!(spent, json!(15 + 25 + 5));
    let gpt = json!({"properties": {"model": "gpt"}});
    assert!(!is_held(&reserve(&service, ask("u", json!("11.01"), gpt.clone())).await));
    assert!(is_held(&reserve(&service, ask("u", json!(11), gpt)).await));
    service.verify().await;
}

#[tokio::test]
async fn caps_count_percentage_fees_per_event() {
    let price = json!({"key": "p", "meter": "paid", "model": "percentage", "currency": "usd", "rate": 10,
                       "fixed_amount": 1, "event_minimum": 3, "event_maximum": 8});
    let service = service(json!([price]), json!([cap(json!(20))])).await;
    for (id, value) in [("a", 10), ("b", 80)] {
        service.record(&json!({"id": id, "event_name": "paid", "subject": "u", "value": value})).await;
    }
    let hold = |value: i64| json!({"subject": "u", "meter": "paid", "value": value, "ttl_seconds": 3600});
    assert!(is_held(&reserve(&service, hold(30)).await), "3 and 8 are spent, and 4 more are held");
    assert!(!is_held(&reserve(&service, hold(50)).await));
    service.post("/v1/events/b/void", &json!({})).await;
    assert!(is_held(&reserve(&service, hold(50)).await));
    let shown = service.get("/v1/subjects/u/spend-caps").await.json()["spend_caps"][0].clone();
    assert_eq!((&shown["spent"], &shown["held"]), (&json!(3), &json!(10)));
    service.verify().await;
}

#[tokio::test]
async fn fees_round_up_only_in_the_counters_of_caps() {
    let price = json!({"key": "p", "meter": "paid", "model": "percentage", "currency": "usd", "rate": 10,
                       "event_maximum": 8});
    let service = service(json!([price]), json!([cap(json!(20))])).await;
    for id in ["a", "b", "c"] {
        let event = json!({"id": id, "event_name": "paid", "subject": "u", "value": "0.000000001"});
        service.record(&event).await;
    }
    let spent = service.get("/v1/subjects/u/spend-caps").await.json()["spend_caps"][0]["spent"].to_string();
    let cost = service.get("/v1/subjects/u/usage").await.json()["cost"]["lines"][0]["amount"].to_string();
    assert_eq!((spent.as_str(), cost.as_str()), ("0.000000003", "0.0000000003"));
    // recorded events and counters agree
    service.verify().await;
}

#[tokio::test]
async fn spend_caps_check_gauges() {
    let storage =
        json!({"key": "s", "meter": "storage", "model": "per_unit", "currency": "usd", "unit_amount": 10});
    let service =
        service(json!([storage, per_unit("t", json!(1), json!({}))]), json!([cap(json!(100))])).await;
    service.record(&json!({"event_name": "stored", "subject": "u", "value": 9})).await;
    assert!(!is_held(&reserve(&service, ask("u", json!(11), json!({}))).await));
    assert!(is_held(&reserve(&service, ask("u", json!(10), json!({}))).await));
    service.verify().await;
}

/// Free units take their share off a bounded fee, too, so less usage may cost more.
#[tokio::test]
async fn percentages_with_free_units_count_the_excess_over_the_plain_share() {
    let price = |rate: i64| {
        json!([{"key": "p", "meter": "paid", "model": "percentage", "currency": "usd", "rate": rate,
                "event_minimum": 50, "event_maximum": 60, "free_units": 10_000}])
    };
    let service = service(price(10), json!([cap(json!(100))])).await;
    let hold = |id: &str, value: i64| json!({"id": id, "subject": "u", "meter": "paid", "value": value, "ttl_seconds": 3600});
    assert!(is_held(&reserve(&service, hold("a", 1000)).await));
    let denied = async |value: i64| {
        let denied = reserve(&service, hold("no", value)).await.json();
        denied["denied_by"][0]["requested"].clone()
    };
    assert!(is_held(&reserve(&service, hold("b", 2)).await), "50 and 50 at most");
    assert_eq!(denied(1).await, json!(50));
    for (id, value) in [("a", 1), ("b", 2)] {
        let commit = json!({"values": [{"meter": "paid", "value": value}]});
        service.post(&format!("/v1/reservations/{id}/commit"), &commit).await;
    }
    let spent =
        async || service.get("/v1/subjects/u/spend-caps").await.json()["spend_caps"][0]["spent"].clone();
    assert_eq!(spent().await, json!("99.7".parse::<serde_json::Number>().unwrap()));
    service.record(&json!({"id": "much", "event_name": "paid", "subject": "u", "value": 700})).await;
    service.record(&json!({"id": "back", "event_name": "paid", "subject": "u", "value": -3})).await;
    // the fees of four events, less a tenth of the 700 free units
    assert_eq!(spent().await, json!(50 + 50 + 60 + 50 - 70));
    service.verify().await;
    service.post("/v1/events/much/void", &json!({})).await;
    assert_eq!(spent().await, json!(150));
    service.verify().await;
    // another rate counts from the recorded events at once
    service.apply(catalog(price(20), json!([cap(json!(400))]))).await;
    assert_eq!(spent().await, json!(150));
    assert!(is_held(&reserve(&service, hold("c", 1)).await));
    service.verify().await;
    let without = json!([{"key": "p", "meter": "paid", "model": "percentage", "currency": "usd", "rate": 20, "fixed_amount": 5}]);
    service.apply(catalog(without, json!([cap(json!(400))]))).await;
    assert_eq!(spent().await, json!(15), "a fifth of zero, and three fees");
    service.verify().await;
}

#[tokio::test]
async fn checks_of_gauges_use_the_resulting_value() {
    let each = |key: &str, more: Value| {
        let mut price = per_unit(key, json!(1), more);
        price["meter"] = json!(key);
        price
    };
    let storage = each("storage", json!({"unit_amount": 2}));
    let seats = each("seats", json!({"unit_amount": 3}));
    let rooms = |key: &str, site: &str, from: Value| {
        let mut price = each("rooms", json!({"filter": {"site": [site]}, "effective_from": from}));
        price["key"] = json!(key);
        price
    };
    let prices = json!([
        storage,
        seats,
        rooms("new", "b", json!("2026-11-10T00:00:00Z")),
        rooms("old", "a", Value::Null)
    ]);
    let service = service(prices, json!([cap(json!(20))])).await;
    let who = |who: &str| json!({"event_name": "seen", "subject": "u", "properties": {"who": who}});
    let rooms = |value: i64, site: &str, day: &str| {
        json!({"event_name": "rooms", "subject": "u", "value": value, "properties": {"site": site},
               "timestamp": format!("2026-11-{day}T12:00:00Z")})
    };
    let stored = json!({"event_name": "stored", "subject": "u", "value": 5});
    service.record(&json!([stored, who("a"), who("b"), rooms(1, "a", "05"), rooms(2, "a", "15")])).await;
    let rows = [
        // 10 for storage, 6 for two seats, 2 for rooms, regardless of the time of the price change
        ("storage", json!(5), json!({}), json!(null)),
        ("storage", json!(4), json!({}), json!(null)),
        ("storage", json!(6), json!({}), json!(null)),
        ("storage", json!(7), json!({}), json!(4)),
        ("seats", json!("a"), json!({}), json!(null)),
        ("seats", json!("c"), json!({}), json!(3)),
        ("rooms", json!(4), json!({"site": "a"}), json!(null)),
        ("rooms", json!(5), json!({"site": "a"}), json!(3)),
        ("rooms", json!(2), json!({"site": "b"}), json!(null)),
        ("rooms", json!(3), json!({"site": "b"}), json!(3)),
    ];
    for (meter, value, properties, requested) in rows {
        let body = json!({"subject": "u", "meter": meter, "value": value, "properties": properties});
        let answer = service.post("/v1/check", &body).await.json();
        assert_eq!(answer["allowed"], requested.is_null(), "{body}: {answer}");
        assert_eq!(answer["denied_by"][0]["requested"], requested, "{body}");
    }
    // a gauge that falls frees part of the cap
    service.record(&rooms(30, "b", "20")).await;
    for (value, allowed) in [(3, false), (2, true)] {
        let body = json!({"subject": "u", "meter": "rooms", "value": value, "properties": {"site": "b"}});
        assert_eq!(service.post("/v1/check", &body).await.json()["allowed"], allowed, "{value}");
    }
}

/// A token never shows the usage of others.
#[tokio::test]
async fn tokens_see_spent_amounts_only_without_descendants() {
    let service = service(json!([per_unit("t", json!(1), json!({}))]), json!([cap(json!(100))])).await;
    service.put("/v1/subjects/ann", &json!({"parent": "org"})).await;
    for subject in ["ann", "org"] {
        service.record(&json!({"event_name": "ai", "subject": subject, "value": 10})).await;
    }
    let caps = json!({"spend_caps": [{"key": "own", "amount": 30, "currency": "usd", "period": "month"}]});
    let shown = async |subject: &str, seen: Value| {
        let token = TestService::token(subject, "usage:read caps:write");
        let path = format!("/v1/subjects/{subject}/spend-caps");
        for answer in [service.put_as(&token, &path, &caps).await, service.get_as(&token, &path).await] {
            assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
            for cap in answer.json()["spend_caps"].as_array().unwrap() {
                assert_eq!(cap["spent"], seen, "{cap}");
                assert_eq!(
                    (cap["held"].is_null(), cap["remaining"].is_null()),
                    (seen.is_null(), seen.is_null())
                );
            }
        }
    };
    shown("ann", json!(10)).await;
    shown("org", Value::Null).await;
    service.put("/v1/subjects/ann", &json!({"parent": null})).await;
    shown("org", Value::Null).await;
    let all = service.get("/v1/subjects/org/spend-caps").await.json();
    assert_eq!(all["spend_caps"][0]["spent"], 20);
}

#[tokio::test]
async fn own_prices_need_the_currency_of_the_caps_or_a_rate() {
    let service = service(json!([per_unit("t", json!(1), json!({}))]), json!([cap(json!(100))])).await;
    let own = |key: &str, currency: &str| {
        let price = per_unit(key, json!(2), json!({"currency": currency}));
        json!({"plan": "free", "prices": [per_unit("c", json!(1), json!({"meter": "calls"})), price]})
    };
    let put = async |body: Value| service.put("/v1/subjects/u/subscription", &body).await;
    let mut only = own("t", "eur");
    only["prices"][0]["currency"] = json!("eur");
    let refused = put(only.clone()).await;
    let error = refused.json()["errors"][0].clone();
    assert_eq!(
        (refused.status, &error["code"]),
        (StatusCode::UNPROCESSABLE_ENTITY, &json!("no_rate")),
        "{}",
        refused.text
    );
    assert_eq!(error["pointer"], "/prices/0/currency");
    // prices in the currency of the cap, and of another plan with other caps, are accepted
    assert_eq!(put(own("t", "eur")).await.status, StatusCode::OK);
    let mut bare = only.clone();
    bare["plan"] = json!("bare");
    assert_eq!(put(bare.clone()).await.status, StatusCode::OK);
    service.put("/v1/subjects/w/spend-caps", &json!({"spend_caps": [cap(json!(5))]})).await;
    let refused = service.put("/v1/subjects/w/subscription", &bare).await;
    assert_eq!(refused.json()["errors"][0]["code"], "no_rate", "{}", refused.text);
    service.put("/v1/rates", &json!({"from": "eur", "to": "usd", "rate": "1.1"})).await;
    assert_eq!(put(only).await.status, StatusCode::OK);
}

#[tokio::test]
async fn caps_of_a_payer_include_its_descendants() {
    let service = service(json!([per_unit("t", json!(1), json!({}))]), json!([cap(json!(100))])).await;
    for user in ["ann", "bob"] {
        assert_eq!(
            service.put(&format!("/v1/subjects/{user}"), &json!({"parent": "org"})).await.status,
            StatusCode::OK
        );
    }
    service.record(&json!({"event_name": "ai", "subject": "ann", "value": 10})).await;
    let token = TestService::token("org", "usage:read caps:write");
    let caps = json!({"spend_caps": [{"key": "own", "amount": 30, "currency": "usd", "period": "month"}]});
    let put = service.put_as(&token, "/v1/subjects/org/spend-caps", &caps).await;
    assert_eq!(put.status, StatusCode::OK, "{}", put.text);
    let own =
        put.json()["spend_caps"].as_array().unwrap().iter().find(|cap| cap["key"] == "own").cloned().unwrap();
    assert_eq!(own["source"], "subject");
    // a descendant may have a cap of its own, counted at the prices of the ancestor's plan
    let small = json!({"spend_caps": [{"key": "small", "amount": 15, "currency": "usd", "period": "day"}]});
    assert_eq!(service.put("/v1/subjects/ann/spend-caps", &small).await.status, StatusCode::OK);
    assert!(!is_held(&reserve(&service, ask("ann", json!(6), json!({}))).await), "the cap of `ann` itself");
    assert!(is_held(&reserve(&service, ask("ann", json!(5), json!({}))).await));
    assert!(!is_held(&reserve(&service, ask("bob", json!(16), json!({}))).await), "the cap of the payer");
    assert!(is_held(&reserve(&service, ask("bob", json!(15), json!({}))).await));
    service.verify().await;

    let other = service.put_as(&token, "/v1/subjects/ann/spend-caps", &caps).await;
    assert_eq!(other.status, StatusCode::FORBIDDEN);
    let reader = TestService::token("org", "usage:read");
    assert_eq!(
        service.put_as(&reader, "/v1/subjects/org/spend-caps", &caps).await.status,
        StatusCode::FORBIDDEN
    );
    assert_eq!(service.get_as(&reader, "/v1/subjects/org/spend-caps").await.status, StatusCode::OK);
    let gone = service.put("/v1/subjects/org/spend-caps", &json!({"spend_caps": []})).await.json();
    assert_eq!(gone["spend_caps"].as_array().unwrap().len(), 1, "the cap of the plan remains");
    assert!(is_held(&reserve(&service, ask("bob", json!(16), json!({}))).await));
    service.verify().await;
}

/// Usage stays counted when a subject moves away and back, or changes plans.
#[tokio::test]
async fn moves_and_plan_changes_keep_all_usage_counted() {
    let service = service(json!([per_unit("t", json!(1), json!({}))]), json!([])).await;
    let caps = json!({"spend_caps": [{"key": "own", "amount": 30, "currency": "usd", "period": "month"}]});
    service.put("/v1/subjects/org/subscription", &json!({"plan": "free"})).await;
    service.put("/v1/subjects/other/subscription", &json!({"plan": "bare"})).await;
    service.put("/v1/subjects/u", &json!({"parent": "org"})).await;
    service.put("/v1/subjects/u/spend-caps", &caps).await;
    let record = |value: i64| json!({"event_name": "ai", "subject": "u", "value": value});
    service.record(&record(10)).await;
    assert!(is_held(&reserve(&service, ask("u", json!(5), json!({"id": "open"}))).await));
    service.clock.set(at("2026-11-20T12:10:00Z"));
    service.put("/v1/subjects/u", &json!({"parent": "other"})).await;
    assert!(
        is_held(&reserve(&service, ask("u", json!(1000), json!({"id": "free"}))).await),
        "without prices nothing is spent"
    );
    service.post("/v1/reservations/free/release", &json!({})).await;
    service.record(&record(4)).await;
    service.clock.set(at("2026-11-20T12:20:00Z"));
    service.put("/v1/subjects/u", &json!({"parent": "org"})).await;
    assert!(!is_held(&reserve(&service, ask("u", json!(12), json!({}))).await), "14 used and 5 held of 30");
    assert!(is_held(&reserve(&service, ask("u", json!(11), json!({"id": "last"}))).await));
    service.verify().await;
    // a reservation from before the move is committed after it
    let commit = json!({"values": [{"meter": "tokens", "value": 3}]});
    assert_eq!(service.post("/v1/reservations/open/commit", &commit).await.status, StatusCode::OK);
    service.post("/v1/reservations/last/release", &json!({})).await;
    assert!(!is_held(&reserve(&service, ask("u", json!("13.1"), json!({}))).await));
    assert!(is_held(&reserve(&service, ask("u", json!(13), json!({}))).await));
    service.verify().await;
}

/// A new cap counts the earlier usage, even if the prices belong to an older plan of an ancestor.
#[tokio::test]
async fn new_caps_count_earlier_usage_at_inherited_prices() {
    let service = TestService::start().await;
    let price = per_unit("t", json!(1), json!({}));
    let dear = per_unit("t", json!(2), json!({}));
    let daily = json!({"key": "seat", "amount": 30, "currency": "usd", "period": "day"});
    let mut catalog = catalog(json!([price]), json!([]));
    catalog["plans"].as_array_mut().unwrap().extend([
        json!({"key": "seat", "unmatched": "allow", "spend_caps": [daily]}),
        json!({"key": "dear", "unmatched": "allow", "prices": [dear]}),
    ]);
    service.apply(catalog).await;
    let subscribe = async |subject: &str, plan: &str| {
        let path = format!("/v1/subjects/{subject}/subscription");
        assert!(service.put(&path, &json!({"plan": plan})).await.status.is_success());
    };
    let use_of = |value: i64| json!({"event_name": "ai", "subject": "u", "value": value});
    let shown = async || {
        let caps = service.get("/v1/subjects/u/spend-caps").await.json();
        caps["spend_caps"]
            .as_array()
            .unwrap()
            .iter()
            .map(|cap| (cap["spent"].clone(), cap["held"].clone()))
            .collect()
    };
    let is = |spent: i64, held: i64| vec![(json!(spent), json!(held))];
    service.put("/v1/subjects/team", &json!({"parent": "org"})).await;
    service.put("/v1/subjects/u", &json!({"parent": "team"})).await;
    for (subject, plan) in [("org", "free"), ("team", "bare"), ("u", "bare")] {
        subscribe(subject, plan).await;
    }
    // the day began long after the ancestors and their prices were set up
    service.clock.set(at("2026-11-21T12:00:00Z"));
    service.record(&use_of(8)).await;
    assert!(is_held(&reserve(&service, ask("u", json!(5), json!({"id": "open"}))).await));
    service.clock.set(at("2026-11-21T12:10:00Z"));
    subscribe("u", "seat").await;
    let found: Vec<(Value, Value)> = shown().await;
    assert_eq!(found, is(8, 5));
    assert!(!is_held(&reserve(&service, ask("u", json!(18), json!({}))).await));
    assert!(is_held(&reserve(&service, ask("u", json!(17), json!({"id": "full"}))).await));
    service.post("/v1/reservations/full/release", &json!({})).await;
    // the cap is removed and set again
    service.clock.set(at("2026-11-21T12:20:00Z"));
    subscribe("u", "bare").await;
    service.record(&use_of(2)).await;
    service.clock.set(at("2026-11-21T12:30:00Z"));
    subscribe("u", "seat").await;
    let found: Vec<(Value, Value)> = shown().await;
    assert_eq!(found, is(10, 5));
    // for some time a subject in between has prices
    service.clock.set(at("2026-11-21T12:40:00Z"));
    subscribe("team", "dear").await;
    service.record(&use_of(1)).await;
    let found: Vec<(Value, Value)> = shown().await;
    assert_eq!(found, is(22, 10));
    service.clock.set(at("2026-11-21T12:50:00Z"));
    subscribe("team", "bare").await;
    let found: Vec<(Value, Value)> = shown().await;
    assert_eq!(found, is(11, 5));
    assert!(!is_held(&reserve(&service, ask("u", json!(15), json!({}))).await));
    assert!(is_held(&reserve(&service, ask("u", json!(14), json!({}))).await));
    service.verify().await;
    // the next day begins at zero
    service.clock.set(at("2026-11-22T12:00:00Z"));
    let found: Vec<(Value, Value)> = shown().await;
    assert_eq!(found, is(0, 0));
    service.verify().await;
}

#[tokio::test]
async fn extensions_are_decided_by_the_limits_of_reservations() {
    let service = service(json!([per_unit("t", json!(1), json!({}))]), json!([cap(json!(10))])).await;
    reserve(&service, ask("u", json!(4), json!({"id": "a"}))).await;
    let extend = |value: i64| json!({"ttl_seconds": 60, "holds": [{"meter": "tokens", "value": value}]});
    let denied = service.post("/v1/reservations/a/extend", &extend(11)).await.json();
    assert_eq!(
        (&denied["allowed"], &denied["reason"]),
        (&json!(false), &json!("spend_cap_reached")),
        "{denied}"
    );
    let more = service.post("/v1/reservations/a/extend", &extend(10)).await;
    assert_eq!(more.json()["holds"][0]["value"], 10, "{}", more.text);
    assert!(!is_held(&reserve(&service, ask("u", json!(1), json!({}))).await));
    service.verify().await;
}

#[tokio::test]
async fn invalid_caps_are_refused() {
    let service = service(json!([per_unit("t", json!(1), json!({}))]), json!([])).await;
    let refused = |caps: Value| {
        let service = &service;
        async move {
            let answer = service.put("/v1/subjects/u/spend-caps", &caps).await;
            assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY, "{caps}: {}", answer.text);
            let error = answer.json()["errors"][0].clone();
            (error["pointer"].as_str().unwrap().to_owned(), error["code"].as_str().unwrap().to_owned())
        }
    };
    service.record(&json!({"event_name": "ai", "subject": "u", "value": 1})).await;
    let altered = |field: &str, value: Value| {
        let mut cap = json!({"key": "k", "amount": 1, "currency": "usd", "period": "month"});
        cap[field] = value;
        json!({"spend_caps": [cap]})
    };
    let cases = [
        ("amount", json!(-1), "negative_amount"),
        ("amount", json!("much"), "invalid_amount"),
        ("currency", json!("dollars"), "unknown_currency"),
        ("currency", json!("eur"), "no_rate"),
        ("period", json!("fortnight"), "invalid_choice"),
        ("quota", json!(5), "unknown_field"),
        ("key", json!(null), "missing_field"),
    ];
    for (field, value, code) in cases {
        assert_eq!(refused(altered(field, value)).await, (format!("/spend_caps/0/{field}"), code.to_owned()));
    }
    let twice = altered("amount", json!(1))["spend_caps"][0].clone();
    let (pointer, code) = refused(json!({"spend_caps": [twice, twice]})).await;
    assert_eq!((pointer.as_str(), code.as_str()), ("/spend_caps", "duplicate_key"));
    assert_eq!(service.get("/v1/subjects/u/spend-caps").await.json()["spend_caps"], json!([]));
}

/// Fifty calls fit, among two hundred callers on two processes.
#[tokio::test]
async fn concurrent_holds_fill_a_cap_exactly() {
    let prices = json!([
        per_unit("t", json!("0.7"), json!({})),
        {"key": "c", "meter": "calls", "model": "per_unit", "currency": "usd", "unit_amount": "0.3"},
    ]);
    let mut lifetime = cap(json!(50));
    lifetime["period"] = json!("lifetime");
    let service = service(prices, json!([lifetime])).await;
    let processes = [Process::start(&service.url).await, Process::start(&service.url).await];
    let callers = [processes[0].caller(&service.key), processes[1].caller(&service.key)];
    let body = json!({"subject": "u", "ttl_seconds": 86_400,
                      "holds": [{"meter": "tokens", "value": 1}, {"meter": "calls", "value": 1}]});
    let answers = join_all((0..200).map(|n| callers[n % 2].post("/v1/reservations", &body))).await;
    let held = answers.iter().filter(|answer| is_held(answer)).count();
    assert_eq!(held, 50);
    assert!(answers.iter().all(|answer| is_held(answer) || answer.json()["reason"] == "spend_cap_reached"));
    service.verify().await;
    for process in processes {
        process.stop().await;
    }
}
