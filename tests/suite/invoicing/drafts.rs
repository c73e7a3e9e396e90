//! Drafts: computed on every read from the usage that was recorded for their customer.

use axum::http::StatusCode;
use serde_json::json;

use super::{Books, START, all_told, told};

#[tokio::test]
async fn drafts_follow_recorded_usage() {
    let books = Books::open().await;
    assert_eq!(told(&books.upcoming("acme").await), "- draft 11-20..12-20 500: use 0 0, fee 0 500");
    books.set_clock("2026-11-21T10:00:00Z");
    books.track("a", "acme", 120, "2026-11-21T09:00:00Z").await;
    assert_eq!(told(&books.upcoming("acme").await), "- draft 11-20..12-20 620: use 120 120, fee 0 500");
    books.service.fold().await;
    books.track("b", "acme", 3, "2026-11-21T09:30:00Z").await;
    books.service.post("/v1/events/a/void", &json!({})).await;
    let draft = books.upcoming("acme").await;
    assert_eq!(told(&draft), "- draft 11-20..12-20 503: use 3 3, fee 0 500");
    assert_eq!(draft["finalizes_at"], "2026-12-20T11:00:00Z");
    // there is one draft, regardless of the caller that opens it
    assert_eq!(books.bill().await, (0, 0));
    assert_eq!(all_told(&books.invoices("acme").await).len(), 1);
    assert_eq!(books.invoices("acme").await[0]["id"], draft["id"]);
}

#[tokio::test]
async fn usage_stays_with_the_nearest_customer_at_recording_time() {
    let books = Books::open().await;
    books.enrol("unit", "team").await;
    books.put("/v1/subjects/unit", &json!({"parent": "acme", "stripe_customer_id": "cus_unit"})).await;
    books.put("/v1/subjects/ann", &json!({"parent": "unit"})).await;
    books.put("/v1/subjects/bob", &json!({"parent": "acme"})).await;
    books.track("before", "stranger", 1_000, START).await;
    for (id, subject, value) in [("a", "ann", 1), ("b", "bob", 20), ("c", "acme", 300), ("d", "unit", 4_000)]
    {
        books.track(id, subject, value, START).await;
    }
    let used = async |subject: &str| books.upcoming(subject).await["lines"][0]["quantity"].to_string();
    assert_eq!((used("acme").await, used("unit").await), ("320".to_owned(), "4001".to_owned()));
    // recorded usage stays with its customer
    books.put("/v1/subjects/bob", &json!({"parent": "unit"})).await;
    books.put("/v1/subjects/stranger", &json!({"parent": "acme"})).await;
    books.track("e", "bob", 50_000, START).await;
    assert_eq!((used("acme").await, used("unit").await), ("320".to_owned(), "54001".to_owned()));
    books.service.fold().await;
    assert_eq!((used("acme").await, used("unit").await), ("320".to_owned(), "54001".to_owned()));
    // the customer is mapped to another subject
    books.put("/v1/subjects/unit", &json!({"parent": "acme", "stripe_customer_id": null})).await;
    books.track("f", "ann", 600_000, START).await;
    assert_eq!(used("acme").await, "600320");
    let drafts = super::invoices(&books.service, "customer=cus_unit").await;
    assert_eq!(drafts[0]["lines"][0]["quantity"], 54_001, "{drafts:?}");
}

#[tokio::test]
async fn uses_are_rated_by_the_plan_and_price_of_their_time() {
    let books = Books::open_with(&json!([
        {"key": "old", "meter": "m", "model": "per_unit", "currency": "usd", "unit_amount": 1, "effective_to": "2026-11-25T00:00:00Z"},
        {"key": "new", "meter": "m", "model": "per_unit", "currency": "usd", "unit_amount": 2, "effective_from": "2026-11-25T00:00:00Z"},
        {"key": "fee", "model": "flat", "currency": "usd", "amount": 500},
    ]))
    .await;
    books.set_clock("2026-12-01T00:00:00Z");
    books.track("a", "acme", 5, "2026-11-24T23:59:59.999999Z").await;
    books.track("b", "acme", 7, "2026-11-25T00:00:00Z").await;
    books.subscribe("acme", &json!({"plan": "team"})).await;
    books.track("c", "acme", 9, "2026-12-01T00:00:00Z").await;
    assert_eq!(
        told(&books.upcoming("acme").await),
        "- draft 11-20..12-20 109: old 5 5, new 7 14, use 9 90",
        "only the last plan charges its fee"
    );
}

#[tokio::test]
async fn events_at_the_end_of_a_period_belong_to_the_next() {
    let books = Books::open().await;
    // a new anchor from the first moment of the subscription
    books.subscribe("acme", &json!({"plan": "pro", "cycle_start": "2026-10-31T00:00:00Z"})).await;
    books.set_clock("2026-12-01T00:00:00Z");
    for (id, value, when) in [
        ("a", 1, "2026-11-29T23:59:59.999999Z"),
        ("b", 20, "2026-11-30T00:00:00Z"),
        ("c", 300, "2026-11-30T23:59:59.999999Z"),
    ] {
        books.track(id, "acme", value, when).await;
    }
    // the 31st is the 30th in November, and the 31st again in December
    assert_eq!(
        all_told(&books.invoices("acme").await),
        ["- draft 11-20..11-30 501: use 1 1, fee 0 500", "- draft 11-30..12-31 820: use 320 320, fee 0 500"]
    );
}

#[tokio::test]
async fn subjects_without_charges_have_no_invoice() {
    let books = Books::open().await;
    books.enrol("cheap", "free").await;
    books.put("/v1/subjects/nobody", &json!({})).await;
    books.subscribe("nobody", &json!({"plan": "pro"})).await;
    books.enrol("trying", "free").await;
    books.subscribe("trying", &json!({"plan": "pro", "status": "trialing"})).await;
    assert_eq!(books.bill().await, (1, 0));
    for (subject, why) in [
        ("cheap", "is on a plan with prices"),
        ("nobody", "has no customer"),
        ("trying", "is `trialing`"),
        ("unknown", "has no customer"),
    ] {
        let path = format!("/v1/subjects/{subject}/invoices/upcoming");
        let answer = books.service.get(&path).await;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (StatusCode::NOT_FOUND, "no_upcoming_invoice"),
            "{subject}"
        );
        assert!(answer.text.contains(why), "{subject}: {}", answer.text);
        assert_eq!(books.invoices(subject).await.len(), 0, "{subject}");
    }
}

#[tokio::test]
async fn gauges_unique_counts_and_event_fees_are_billed() {
    let books = Books { service: crate::support::TestService::start().await };
    books.set_clock(START);
    let meter = |key: &str, aggregation: &str| {
        json!({"key": key, "event_name": "e", "aggregation": aggregation, "dimensions": ["model"],
        "value_property": if aggregation == "unique_count" { "who" } else { "value" }})
    };
    let price = |meter: &str, more: serde_json::Value| {
        let mut price = json!({"key": meter, "meter": meter, "currency": "usd"});
        price.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        price
    };
    let per_unit = || json!({"model": "per_unit", "unit_amount": 1});
    books
        .service
        .apply(json!({
            "meters": [meter("top", "max"), meter("latest", "last"), meter("members", "unique_count"), meter("calls", "count"), meter("paid", "sum")],
            "plans": [{"key": "pro", "prices": [
                price("top", per_unit()), price("latest", per_unit()), price("members", per_unit()), price("calls", per_unit()),
                price("paid", json!({"model": "percentage", "rate": "2.5", "fixed_amount": "0.3", "event_minimum": 1, "event_maximum": 20})),
                {"key": "of_b", "meter": "calls", "filter": {"model": ["b"]}, "model": "per_unit", "unit_amount": 100, "currency": "usd"},
            ]}],
        }))
        .await;
    books.enrol("acme", "pro").await;
    for (id, value, who, model) in
        [("1", 10, "x", "a"), ("2", 900, "y", "b"), ("3", 100, "x", "a"), ("4", 5_000, "z", "a")]
    {
        let event = json!({"id": id, "event_name": "e", "subject": "acme", "value": value,
            "properties": {"who": who, "model": model}, "timestamp": format!("2026-11-20T10:0{id}:00Z")});
        assert_eq!(books.service.post("/v1/events", &event).await.json()["accepted"], 1);
    }
    books.service.post("/v1/events/4/void", &json!({})).await;
    // 2.5 % and 0.3: 0.55 → 1, 22.8 → 20, 2.8; a voided event returns its fee
    assert_eq!(
        told(&books.upcoming("acme").await),
        "- draft 11-20..12-20 1128: top 900 900, latest 100 100, members 2 2, calls 2 2, paid 1010 24, of_b 1 100",
    );
}
