//! Numbering: once, in order, without gaps, and permanent.

use metergate_domain::base::Environment;
use serde_json::json;

use super::{Books, END, all_told, get, told};
use crate::support::TestService;
use crate::support::service::{Process, engine_settings};

#[tokio::test]
async fn periods_are_numbered_after_their_grace() {
    let books = Books::open().await;
    books.set_clock("2026-12-20T09:59:59Z");
    books.track("a", "acme", 1, "2026-12-20T09:59:59Z").await;
    let id = books.upcoming("acme").await["id"].clone();
    books.set_clock("2026-12-20T10:59:59.999999Z");
    assert_eq!(books.bill().await, (1, 0), "the next period is open, and no invoice is final");
    // recorded late, but within the grace
    books.track("b", "acme", 20, "2026-12-20T09:59:59.999999Z").await;
    books.track("c", "acme", 300, END).await;
    books.set_clock("2026-12-20T11:00:00Z");
    assert_eq!(books.bill().await, (0, 1));
    assert_eq!(books.bill().await, (0, 0));
    let invoices = books.invoices("acme").await;
    assert_eq!(
        all_told(&invoices),
        [
            "MG-000001 final 11-20..12-20 521: use 21 21, fee 0 500",
            "- draft 12-20..01-20 800: use 300 300, fee 0 500"
        ]
    );
    assert_eq!((&invoices[0]["id"], &invoices[0]["finalized_at"]), (&id, &json!("2026-12-20T11:00:00Z")));
}

#[tokio::test]
async fn numbered_invoices_never_change() {
    let books = Books::open().await;
    books.set_clock("2026-12-20T12:00:00Z");
    books.track("a", "acme", 30, "2026-12-01T00:00:00Z").await;
    books.bill().await;
    let before = books.invoices("acme").await[0].clone();
    let path = format!("/v1/invoices/{}", before["id"].as_str().unwrap());
    // prices, plans, mappings and usage change
    books
        .service
        .apply(super::catalog(
            &json!([{"key": "use", "meter": "m", "model": "per_unit", "currency": "usd", "unit_amount": 7}]),
        ))
        .await;
    books.track("b", "acme", 5, "2026-12-01T00:00:00Z").await;
    books.service.post("/v1/events/a/void", &json!({})).await;
    books.subscribe("acme", &json!({"plan": "team", "cycle_start": "2026-12-01T00:00:00Z"})).await;
    books.put("/v1/subjects/acme", &json!({"stripe_customer_id": null})).await;
    books.bill().await;
    assert_eq!(get(&books.service, &path).await, before);
    // the database refuses changes, too
    let refused = sqlx_refuses(&books.service, "update invoices set total = 0 where status = 'final'").await;
    assert!(refused.contains("is final"), "{refused}");
    let refused = sqlx_refuses(&books.service, "delete from invoices where status = 'final'").await;
    assert!(refused.contains("is final"), "{refused}");
    let refused = sqlx_refuses(&books.service, "truncate invoices").await;
    assert!(refused.contains("never emptied"), "{refused}");
}

async fn sqlx_refuses(service: &TestService, sql: &'static str) -> String {
    let pool = service.engine.database().pool();
    sqlx::query(sql).execute(pool).await.unwrap_err().to_string()
}

#[tokio::test]
async fn missed_periods_are_numbered_in_order() {
    let books = Books::open().await;
    books.set_clock("2026-12-01T00:00:00Z");
    books.track("a", "acme", 1, "2026-11-30T00:00:00Z").await;
    books.set_clock("2027-03-01T00:00:00Z");
    assert_eq!(books.bill().await, (4, 3));
    let told = all_told(&books.invoices("acme").await);
    assert_eq!(told[0], "MG-000001 final 11-20..12-20 501: use 1 1, fee 0 500");
    assert_eq!(told[2], "MG-000003 final 01-20..02-20 500: use 0 0, fee 0 500");
    assert_eq!(told.len(), 4);
}

/// With many customers, two replicas and a process, each customer has one invoice, and no number is missing.
#[tokio::test(flavor = "multi_thread")]
async fn concurrent_replicas_number_each_invoice_once_without_gaps() {
    let books = Books::open().await;
    for n in 0..12 {
        books.enrol(&format!("s{n}"), "pro").await;
        books.track(&format!("e{n}"), &format!("s{n}"), n, super::START).await;
    }
    let other = TestService::at_url(&books.service.url, engine_settings()).await;
    for service in [&books.service, &other] {
        service.clock.set(crate::support::at("2027-01-20T12:00:00Z"));
    }
    let rounds = async |service: &TestService| {
        let mut finalized = 0;
        for _ in 0..4 {
            finalized += service.engine.bill(Environment::Test).await.unwrap().finalized;
        }
        finalized
    };
    let (ours, theirs) = tokio::join!(rounds(&books.service), rounds(&other));
    assert_eq!(ours + theirs, 26, "{ours} {theirs}");
    let page = get(&books.service, "/v1/invoices?limit=1000&status=final").await;
    let mut numbers: Vec<String> =
        page["data"].as_array().unwrap().iter().map(|it| it["number"].as_str().unwrap().to_owned()).collect();
    numbers.sort();
    let expected: Vec<String> = (1..=26).map(|n| format!("MG-{n:06}")).collect();
    assert_eq!(numbers, expected);
    for n in 0..12 {
        let invoices = books.invoices(&format!("s{n}")).await;
        assert_eq!(invoices.len(), 3);
        assert!(told(&invoices[0]).contains(&format!("{}: use {n} {n}, fee 0 500", 500 + n)), "{invoices:?}");
    }
}

/// A process that is killed at any moment leaves whole invoices and drafts, and the next process continues.
#[tokio::test(flavor = "multi_thread")]
async fn killed_billing_runs_leave_no_partial_invoice() {
    let books = Books::open().await;
    // over for long by any clock: the process goes by Postgres's
    books.set_clock("2024-01-01T00:00:00Z");
    for n in 0..10 {
        books.enrol(&format!("s{n}"), "pro").await;
    }
    books.set_clock(END);
    for pause in [30_u64, 120, 400] {
        let process = Process::start(&books.service.url).await;
        tokio::time::sleep(std::time::Duration::from_millis(pause)).await;
        process.kill().await;
    }
    // the server may keep the lock of a killed run for a moment
    let pool = books.service.engine.database().pool();
    let count_final =
        || sqlx::query_scalar("select count(*) from invoices where status = 'final'").fetch_one(pool);
    let mut done: i64 = 0;
    while books.bill().await.1 > 0 || done < 10 {
        done = count_final().await.unwrap();
    }
    let numbers: Vec<(i64, i64, bool)> = sqlx::query_as(
        "select count(*), max(number), bool_and(total = (select sum((l ->> 'rounded_amount')::numeric)
                                                         from jsonb_array_elements(lines) l))
         from invoices where status = 'final' having count(*) > 0",
    )
    .fetch_all(pool)
    .await
    .unwrap();
    let (count, last, adds_up) = numbers[0];
    assert!(count >= 10 && count == last && adds_up, "{numbers:?}");
    let invoices = books.invoices("s3").await;
    for pair in invoices.windows(2) {
        assert_eq!(pair[0]["period"]["end"], pair[1]["period"]["start"]);
    }
}
