//! Invoices with a minimum and a maximum.

use serde_json::{Value, json};

use super::{Books, Pair, Same, all_told, catalog, get, prices, told};
use crate::support::stripe_fake::Options;

const UPCOMING: &str = "/v1/subjects/acme/invoices/upcoming";

/// A price of one cent per unit, a fee of 500, and a commitment between 1000 and 2000.
fn bounded() -> Value {
    let mut bounded = catalog(&prices());
    bounded["plans"][1]["commitments"] =
        json!([{"currency": "usd", "minimum_amount": 1000, "maximum_amount": 2000}]);
    bounded
}

#[tokio::test]
async fn minimum_charges_are_reduced_by_late_usage() {
    let books = Books::open().await;
    books.service.apply(bounded()).await;
    let draft = books.upcoming("acme").await;
    assert_eq!(told(&draft), "- draft 11-20..12-20 1000: use 0 0, fee 0 500, minimum 0 500");
    let line = &draft["lines"][2];
    assert_eq!(
        (&line["kind"], &line["price"], &line["bound"]),
        (&json!("minimum"), &Value::Null, &json!(1000))
    );
    assert_eq!(line["period"], draft["period"]);
    books.track("a", "acme", 200, super::START).await;
    books.set_clock("2026-12-20T11:00:00Z");
    books.bill().await;
    // late usage that stays below the minimum
    books.track("b", "acme", 50, "2026-12-20T09:00:00Z").await;
    let first = "MG-000001 final 11-20..12-20 1000: use 200 200, fee 0 500, minimum 0 300";
    let late = "use 50 50 of MG-000001, minimum 0 -50 of MG-000001";
    let told = all_told(&books.invoices("acme").await);
    assert_eq!(told[0], first);
    assert_eq!(told[1], format!("- draft 12-20..01-20 1000: use 0 0, fee 0 500, minimum 0 500, {late}"));
    // beyond the maximum, of which 1000 are billed
    books.set_clock("2027-01-18T00:00:00Z");
    books.track("c", "acme", 3000, "2026-12-20T09:00:00Z").await;
    books.set_clock("2027-01-20T11:00:00Z");
    books.bill().await;
    // and below the minimum again
    books.service.post("/v1/events/c/void", &json!({})).await;
    let told = all_told(&books.invoices("acme").await);
    assert_eq!(told[0], first);
    let beyond = "use 3050 3050 of MG-000001, minimum 0 -300 of MG-000001, maximum 0 -1750 of MG-000001";
    assert_eq!(
        told[1],
        format!("MG-000002 final 12-20..01-20 2000: use 0 0, fee 0 500, minimum 0 500, {beyond}")
    );
    let back = "use -3000 -3000 of MG-000001, minimum 0 250 of MG-000001, maximum 0 1750 of MG-000001";
    assert_eq!(told[2], format!("- draft 01-20..02-20 0: use 0 0, fee 0 500, minimum 0 500, {back}"));
}

/// Invoices use the own commitments of a subscription. The commitment of the last plan bounds the whole
/// invoice.
#[tokio::test]
async fn own_prices_and_commitments_of_a_subscription_are_billed() {
    let books = Books::open().await;
    books.service.apply(bounded()).await;
    let own = json!({"plan": "pro", "commitments": [{"currency": "usd", "maximum_amount": 600}],
        "prices": [{"key": "use", "meter": "m", "model": "per_unit", "currency": "usd", "unit_amount": 2}]});
    books.subscribe("acme", &own).await;
    books.track("a", "acme", 100, super::START).await;
    let draft = books.upcoming("acme").await;
    assert_eq!(told(&draft), "- draft 11-20..12-20 600: use 100 200, fee 0 500, maximum 0 -100");
    books.set_clock("2026-12-01T00:00:00Z");
    books.subscribe("acme", &json!({"plan": "pro"})).await;
    books.track("b", "acme", 30, "2026-12-01T00:00:00Z").await;
    let draft = books.upcoming("acme").await;
    assert_eq!(told(&draft), "- draft 11-20..12-20 1000: use 100 200, use 30 30, fee 0 500, minimum 0 270");
    assert_eq!(draft["lines"][3]["period"], draft["period"]);
    books.set_clock("2026-12-10T00:00:00Z");
    books.subscribe("acme", &json!({"plan": "team"})).await;
    books.track("c", "acme", 5, "2026-12-10T00:00:00Z").await;
    let draft = books.upcoming("acme").await;
    assert_eq!(told(&draft), "- draft 11-20..12-20 280: use 100 200, use 30 30, use 5 50");
}

#[tokio::test]
async fn commitments_appear_in_every_invoice_format() {
    let books = Books::open().await;
    books.service.apply(bounded()).await;
    let csv = books.as_type(UPCOMING, "text/csv").await.text;
    let period = "2026-11-20T10:00:00Z,2026-12-20T10:00:00Z";
    let row = format!(",draft,acme,cus_acme,minimum,pro,,,,{period},,0,500,500,usd\n");
    assert!(csv.ends_with(&row), "{csv}");
    let page = books.as_type(UPCOMING, "text/html").await.text;
    assert!(page.contains("<strong>minimum</strong>"), "{page}");
    assert!(page.contains("all lines total at least 10"), "{page}");
}

#[tokio::test(flavor = "multi_thread")]
async fn provider_comparison_leaves_commitments_out() {
    let same = Same { ours: json!({"model": "flat", "amount": 900}), theirs: vec![("unit_amount", "900")] };
    let pair = Pair::with("usd", &[same], Options::default(), true).await;
    let mut catalog = get(&pair.books.service, "/v1/catalog").await;
    catalog["plans"][0]["commitments"] = json!([{"currency": "usd", "minimum_amount": 1000}]);
    pair.books.service.apply(catalog).await;
    let compared = get(&pair.books.service, &format!("{UPCOMING}?compare=provider")).await;
    assert_eq!(
        compared["lines"][1],
        json!({"prices": [], "meter": null, "commitment": "minimum", "provider_price": null,
               "ours": 100, "theirs": 0, "difference": 100})
    );
    assert_eq!(compared["lines"][0]["difference"], 0);
    assert_eq!(compared["total"], json!({"ours": 1000, "theirs": 900, "difference": 100}));
}
