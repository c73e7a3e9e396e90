//! Usage that arrives too late for an invoice is a line of the next one.

use serde_json::json;

use super::{Books, all_told};

#[tokio::test]
async fn late_events_and_voids_are_corrected_once() {
    let books = Books::open().await;
    books.set_clock("2026-12-20T09:00:00Z");
    books.track("a", "acme", 100, "2026-12-19T00:00:00Z").await;
    books.set_clock("2026-12-20T11:00:00Z");
    books.bill().await;
    books.track("late", "acme", 40, "2026-12-20T09:59:59Z").await;
    let draft = books.upcoming("acme").await;
    assert_eq!(super::told(&draft), "- draft 12-20..01-20 540: use 0 0, fee 0 500, use 40 40 of MG-000001");
    assert_eq!(
        draft["lines"][2]["period"],
        json!({"start": "2026-11-20T10:00:00Z", "end": "2026-12-20T10:00:00Z"})
    );
    books.set_clock("2027-01-20T11:00:00Z");
    books.bill().await;
    // voided after its correction
    books.service.post("/v1/events/late/void", &json!({})).await;
    books.service.post("/v1/events/a/void", &json!({})).await;
    books.set_clock("2027-02-20T11:00:00Z");
    books.bill().await;
    let told = all_told(&books.invoices("acme").await);
    assert_eq!(told[0], "MG-000001 final 11-20..12-20 600: use 100 100, fee 0 500");
    assert_eq!(told[1], "MG-000002 final 12-20..01-20 540: use 0 0, fee 0 500, use 40 40 of MG-000001");
    assert_eq!(told[2], "MG-000003 final 01-20..02-20 360: use 0 0, fee 0 500, use -140 -140 of MG-000001");
    assert_eq!(told[3], "- draft 02-20..03-20 500: use 0 0, fee 0 500");
}

/// A correction rates the whole period by its original prices, with all tiers.
#[tokio::test]
async fn corrections_bill_the_whole_period_less_the_billed_amount() {
    let tiers = |last: i64| {
        json!([{"key": "use", "meter": "m", "model": "graduated", "currency": "usd",
                "tiers": [{"up_to": 100, "unit_amount": 10}, {"up_to": null, "unit_amount": last, "flat_amount": 50}]}])
    };
    let books = Books::open_with(&tiers(1)).await;
    books.set_clock("2026-12-20T09:00:00Z");
    books.track("a", "acme", 90, "2026-12-19T00:00:00Z").await;
    books.set_clock("2026-12-20T11:00:00Z");
    books.bill().await;
    books.service.apply(super::catalog(&tiers(77))).await;
    books.track("late", "acme", 20, "2026-12-20T09:00:00Z").await;
    let told = all_told(&books.invoices("acme").await);
    assert_eq!(told[0], "MG-000001 final 11-20..12-20 900: use 90 900");
    // ten more units in the first tier, ten in the second tier, and its flat amount
    assert_eq!(told[1], "- draft 12-20..01-20 160: use 0 0, use 20 160 of MG-000001");
}

#[tokio::test]
async fn corrections_after_the_end_make_an_invoice_of_their_own() {
    let books = Books::open().await;
    books.set_clock("2026-12-01T00:00:00Z");
    books.track("a", "acme", 10, "2026-11-30T00:00:00Z").await;
    let ended = books
        .service
        .send_json(axum::http::Method::DELETE, "/v1/subjects/acme/subscription", &json!({}))
        .await;
    assert_eq!(ended.json()["status"], "canceled", "{}", ended.text);
    books.set_clock("2026-12-01T01:00:00Z");
    assert_eq!(books.bill().await.1, 1);
    books.track("late", "acme", 7, "2026-11-30T01:00:00Z").await;
    books.track("after", "acme", 1_000, "2026-12-01T00:30:00Z").await;
    books.set_clock("2026-12-20T11:00:00Z");
    books.bill().await;
    books.set_clock("2027-02-20T11:00:00Z");
    books.bill().await;
    let told = all_told(&books.invoices("acme").await);
    assert_eq!(
        told,
        [
            "MG-000001 final 11-20..12-01 510: use 10 10, fee 0 500",
            "MG-000002 final 12-01..12-20 7: use 7 7 of MG-000001"
        ]
    );
}
