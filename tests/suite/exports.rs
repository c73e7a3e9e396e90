//! Exports to Stripe, against the fake: in the end Stripe has exactly the recorded usage.

mod away;
mod boundaries;
mod chaos;
mod corrections;
mod crashes;
mod doubts;
mod levels;
mod outcomes;
mod shapes;

use axum::http::StatusCode;
use metergate::engine::Ran;
use metergate::providers::stripe::{StripeAccount, StripeSettings};
use metergate_domain::base::Environment;
use secrecy::SecretString;
use serde_json::{Value, json};

use crate::support::service::{NOON, engine_settings};
use crate::support::stripe_fake::{Endpoint, Options, StripeFake, unix};
use crate::support::{TestService, at, cluster};

const METER: &str = "ai_tokens";

/// The service and the Stripe fake that it exports to; both clocks stand still.
struct Pair {
    service: TestService,
    stripe: StripeFake,
}

fn meters(scale: &Value) -> Value {
    json!([
        {"key": METER, "event_name": METER, "aggregation": "sum", "value_property": "value", "dimensions": ["model"],
         "stripe": {"event_name": METER, "scale": scale}},
        {"key": "requests", "event_name": METER, "aggregation": "count", "stripe": {"event_name": "requests"}},
        {"key": "free", "event_name": METER, "aggregation": "sum", "value_property": "value"},
    ])
}

impl Pair {
    async fn start() -> Self {
        Self::with(Options::default(), &json!({"meters": meters(&json!(1))})).await
    }

    async fn with(options: Options, catalog: &Value) -> Self {
        let stripe = StripeFake::start(options).await;
        stripe.meter(METER);
        stripe.meter("requests");
        stripe.set_clock(unix(NOON));
        let service = another(&stripe, &cluster::database_url().await).await;
        service.apply(catalog.clone()).await;
        Self { service, stripe }
    }

    /// Sets both clocks.
    fn set_clock(&self, to: &str) {
        self.service.clock.set(at(to));
        self.stripe.set_clock(unix(to));
    }

    async fn map(&self, subject: &str, customer: &str) {
        let answer = self
            .service
            .put(&format!("/v1/subjects/{subject}"), &json!({"stripe_customer_id": customer}))
            .await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
    }

    async fn track(&self, id: &str, subject: &str, value: Value, timestamp: &str) {
        let event = json!({"id": id, "event_name": METER, "subject": subject, "value": value, "timestamp": timestamp});
        let answer = self.service.post("/v1/events", &event).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
    }

    async fn void(&self, id: &str) {
        let answer = self.service.post(&format!("/v1/events/{id}/void"), &json!({})).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
    }

    async fn run(&self) -> Ran {
        let answer = self.service.post("/v1/exports/run", &Value::Null).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
        let ran = answer.json();
        let count = |name: &str| ran[name].as_i64().unwrap();
        Ran {
            created: count("created").unsigned_abs(),
            delivered: count("delivered").unsigned_abs(),
            dead: count("dead"),
            pending: count("pending"),
        }
    }

    /// Reports usage to Stripe at noon, outside the service.
    async fn report_elsewhere(&self, customer: &str, value: i64) {
        let form = format!(
            "event_name={METER}&payload[stripe_customer_id]={customer}&payload[value]={value}&timestamp={}",
            unix(NOON)
        );
        let answer = reqwest::Client::new()
            .post(format!("{}/v1/billing/meter_events", self.stripe.url()))
            .bearer_auth("sk_test_fake")
            .header("content-type", "application/x-www-form-urlencoded")
            .body(form)
            .send()
            .await
            .unwrap();
        assert!(answer.status().is_success());
    }

    /// Returns the exports, the oldest first.
    async fn exports(&self) -> Vec<Value> {
        let mut all = self.service.get("/v1/exports").await.json()["data"].as_array().unwrap().clone();
        all.reverse();
        all
    }

    /// Returns Stripe's total of a customer's tokens.
    fn total(&self, customer: &str, from: &str, to: &str) -> i128 {
        self.stripe.total(customer, METER, unix(from), unix(to))
    }

    fn all_of(&self, customer: &str) -> i128 {
        self.total(customer, "2026-10-01T00:00:00Z", "2027-06-01T00:00:00Z")
    }

    fn assert_lawful(&self) {
        assert_eq!(self.stripe.violations(), Vec::<String>::new());
    }
}

/// Starts one more replica on the same database and account.
async fn another(stripe: &StripeFake, url: &str) -> TestService {
    another_at(stripe.url(), url).await
}

async fn another_at(api_base: String, url: &str) -> TestService {
    let mut settings = engine_settings();
    let account =
        StripeAccount { api_key: Some(SecretString::from("sk_test_fake")), webhook_secrets: Vec::new() };
    settings.stripe = StripeSettings {
        api_base,
        calls_per_second: Some(10_000),
        accounts: [(Environment::Test, account), (Environment::Live, StripeAccount::default())],
    };
    TestService::at_url(url, settings).await
}

fn ran(created: u64, delivered: u64, dead: i64, pending: i64) -> Ran {
    Ran { created, delivered, dead, pending }
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_of_billed_customers_arrives_once() {
    let pair = Pair::start().await;
    pair.map("acme", "cus_acme").await;
    pair.service.put("/v1/subjects/ann", &json!({"parent": "acme"})).await;
    pair.track("a", "acme", json!(100), "2026-11-20T11:10:00Z").await;
    pair.track("b", "ann", json!(20), "2026-11-20T11:50:00Z").await;
    pair.track("c", "ann", json!(3), "2026-11-20T12:00:00Z").await;
    pair.track("d", "nobody", json!(1_000), "2026-11-20T11:50:00Z").await;
    // backfilled history is not billed
    let old = json!([{"id": "e", "event_name": METER, "subject": "acme", "value": 5_000, "timestamp": "2026-11-19T11:00:00Z"}]);
    pair.service.record(&old).await;

    assert_eq!(pair.run().await, ran(4, 4, 0, 0));
    assert_eq!(pair.run().await, ran(0, 0, 0, 0));
    assert_eq!(pair.total("cus_acme", "2026-11-20T11:00:00Z", "2026-11-20T12:00:00Z"), 120);
    assert_eq!(pair.total("cus_acme", "2026-11-20T12:00:00Z", "2026-11-20T13:00:00Z"), 3);
    assert_eq!(pair.stripe.total("cus_acme", "requests", 0, i64::MAX), 3);
    assert_eq!(pair.stripe.events().len(), 4);

    let exports = pair.exports().await;
    let of_ann = pair.service.get("/v1/events/b").await.json();
    assert_eq!(of_ann["exports"][0], exports[0], "{of_ann}");
    for export in &exports {
        assert_eq!(export["status"], "delivered");
        assert_eq!(export["attempts"], 1);
        assert_eq!(export["customer"], "cus_acme");
        assert!(export["carried_from"].is_null() && export["last_error"].is_null());
    }

    let query = "customer=cus_acme&meter=ai_tokens&from=2026-11-20T10:00:00Z&to=2026-11-20T13:00:00Z";
    let compared = pair.service.get(&format!("/v1/reconciliation?{query}")).await.json();
    let hours: Vec<_> = compared["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| {
            ["events", "recorded", "exported", "provider", "difference"]
                .map(|name| row[name].as_i64().unwrap())
        })
        .collect();
    assert_eq!(hours, [[0, 0, 0, 0, 0], [120, 120, 120, 120, 0], [3, 3, 3, 3, 0]]);
    pair.service.verify().await;
    pair.assert_lawful();
}

#[tokio::test(flavor = "multi_thread")]
async fn renewals_split_exported_usage() {
    let pair = Pair::with(
        Options::default(),
        &json!({
            "meters": meters(&json!(1)), "plans": [{"key": "pro", "limits": []}],
        }),
    )
    .await;
    pair.map("acme", "cus_acme").await;
    let subscription =
        json!({"plan": "pro", "cycle_start": "2026-10-20T10:23:45Z", "period_end": "2026-11-20T10:23:45Z"});
    pair.service.put("/v1/subjects/acme/subscription", &subscription).await;
    pair.track("a", "acme", json!(1), "2026-11-20T10:23:44Z").await;
    pair.track("b", "acme", json!(20), "2026-11-20T10:23:45Z").await;
    pair.track("c", "acme", json!(300), "2026-11-20T10:23:46Z").await;
    pair.set_clock("2026-11-20T10:40:00Z");
    pair.run().await;
    assert_eq!(pair.total("cus_acme", "2026-10-20T10:23:45Z", "2026-11-20T10:23:45Z"), 1);
    assert_eq!(pair.total("cus_acme", "2026-11-20T10:23:45Z", "2026-12-20T10:23:45Z"), 320);

    // late but within the grace, and too late for the period
    pair.set_clock("2026-11-20T11:23:44Z");
    pair.track("d", "acme", json!(2), "2026-11-20T09:00:00Z").await;
    pair.run().await;
    pair.set_clock("2026-11-20T11:23:45Z");
    pair.track("e", "acme", json!(5_000), "2026-11-20T09:00:00Z").await;
    pair.run().await;
    assert_eq!(pair.total("cus_acme", "2026-10-20T10:23:45Z", "2026-11-20T10:23:45Z"), 3);
    assert_eq!(pair.total("cus_acme", "2026-11-20T10:23:45Z", "2026-12-20T10:23:45Z"), 5_320);
    let carried: Vec<_> =
        pair.exports().await.into_iter().filter(|export| !export["carried_from"].is_null()).collect();
    assert_eq!(carried.len(), 2, "one export of each meter must be carried: {carried:?}");
    assert_eq!(carried[0]["carried_from"], "2026-11-20T09:00:00Z");
    assert_eq!(carried[0]["timestamp"], "2026-11-20T11:23:45Z");
    pair.assert_lawful();
}

#[tokio::test(flavor = "multi_thread")]
async fn fractions_are_carried_and_never_lost() {
    let pair = Pair::with(Options::default(), &json!({"meters": meters(&json!("0.001"))})).await;
    pair.map("acme", "cus_acme").await;
    for n in 0..5 {
        // 1.4999 thousand each
        pair.track(&format!("e{n}"), "acme", json!("1499.9"), &format!("2026-11-20T0{n}:30:00Z")).await;
        pair.run().await;
    }
    // 7.4995 in total
    assert_eq!(pair.all_of("cus_acme"), 7);
    pair.track("last", "acme", json!("0.5"), "2026-11-20T11:30:00Z").await;
    pair.run().await;
    assert_eq!(pair.all_of("cus_acme"), 7);
    pair.track("very_last", "acme", json!("500"), "2026-11-20T11:40:00Z").await;
    pair.run().await;
    assert_eq!(pair.all_of("cus_acme"), 8);
    pair.assert_lawful();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_interval_does_not_export_the_current_hour() {
    let pair = Pair::start().await;
    pair.map("acme", "cus_acme").await;
    pair.track("a", "acme", json!(1), "2026-11-20T11:59:59Z").await;
    pair.track("b", "acme", json!(2), "2026-11-20T12:00:00Z").await;
    let ran = pair.service.engine.export_ended(Environment::Test).await.unwrap();
    assert_eq!((ran.created, ran.delivered), (2, 2));
    assert_eq!(pair.all_of("cus_acme"), 1);
    pair.set_clock("2026-11-20T13:00:00Z");
    pair.service.engine.export_ended(Environment::Test).await.unwrap();
    assert_eq!(pair.all_of("cus_acme"), 3);
    pair.assert_lawful();
}

#[tokio::test(flavor = "multi_thread")]
async fn compares_yesterday_with_few_reads() {
    let pair = Pair::with(Options::default(), &json!({"meters": [meters(&json!(1))[0]]})).await;
    for n in 0..14 {
        pair.map(&format!("s{n}"), &format!("cus_{n}")).await;
        pair.track(&format!("e{n}"), &format!("s{n}"), json!(7), NOON).await;
    }
    pair.run().await;
    let reads = || pair.stripe.calls(Endpoint::Summaries);
    let check = async || pair.service.engine.check_exports(Environment::Test).await.unwrap();
    // the day is not over
    assert_eq!((check().await.len(), reads()), (0, 0));
    // another system has reported usage of one customer
    pair.report_elsewhere("cus_0", 2).await;
    pair.set_clock("2026-11-21T03:00:00Z");
    let drifts = check().await;
    let drifts: Vec<_> = drifts.iter().map(|it| (it.customer.as_str(), it.difference.to_string())).collect();
    assert_eq!((drifts, reads()), (vec![("cus_0", "-2".to_owned())], 12));
    // neither this replica nor another reads more within the hour, and none reads a pair twice
    let other = another(&pair.stripe, &pair.service.url).await;
    other.clock.set(at("2026-11-21T03:30:00Z"));
    assert!(other.engine.check_exports(Environment::Test).await.unwrap().is_empty());
    assert_eq!(reads(), 12);
    for hour in ["04", "05"] {
        pair.set_clock(&format!("2026-11-21T{hour}:00:01Z"));
        assert!(check().await.is_empty());
        assert_eq!(reads(), 14);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_exports_by_page_and_filter_and_rejects_bad_queries() {
    let pair = Pair::start().await;
    for n in 0..3 {
        pair.map(&format!("s{n}"), &format!("cus_{n}")).await;
        pair.track(&format!("e{n}"), &format!("s{n}"), json!(7), NOON).await;
    }
    pair.run().await;
    let get = async |path: &str| pair.service.get(path).await;
    let first = get("/v1/exports?limit=4").await.json();
    assert_eq!(first["data"].as_array().unwrap().len(), 4);
    let cursor = first["next_cursor"].as_str().unwrap();
    let second = get(&format!("/v1/exports?limit=4&cursor={cursor}")).await.json();
    assert_eq!(second["data"].as_array().unwrap().len(), 2);
    assert!(second["next_cursor"].is_null());
    let some = get("/v1/exports?customer=cus_1&meter=requests&status=delivered").await.json();
    assert_eq!(some["data"].as_array().unwrap().len(), 1);
    assert_eq!(some["data"][0]["value"], 1);
    let id = some["data"][0]["id"].as_str().unwrap();
    let cases = [
        ("/v1/exports?status=lost", 422, "invalid_choice"),
        ("/v1/exports?cursor=x", 422, "invalid_cursor"),
        ("/v1/reconciliation?customer=cus_1", 422, "required"),
        (
            "/v1/reconciliation?customer=cus_9&meter=ai_tokens&from=2026-11-20T10:00:00Z&to=2026-11-20T12:00:00Z",
            404,
            "customer_not_found",
        ),
        (
            "/v1/reconciliation?customer=cus_1&meter=free&from=2026-11-20T10:00:00Z&to=2026-11-20T12:00:00Z",
            422,
            "unknown_meter",
        ),
        (
            "/v1/reconciliation?customer=cus_1&meter=ai_tokens&from=2026-11-20T10:30:00Z&to=2026-11-20T12:00:00Z",
            422,
            "not_aligned",
        ),
        (
            "/v1/reconciliation?customer=cus_1&meter=ai_tokens&from=2026-11-20T10:00:00Z&to=2026-11-20T10:00:00Z",
            422,
            "invalid_range",
        ),
        (
            "/v1/reconciliation?customer=cus_1&meter=ai_tokens&window=day&from=2026-11-20T10:00:00Z&to=2026-11-21T00:00:00Z",
            422,
            "not_aligned",
        ),
    ];
    for (path, status, code) in cases {
        let answer = get(path).await;
        assert_eq!(answer.status.as_u16(), status, "{path}: {}", answer.text);
        assert!(answer.text.contains(code), "{path}: {}", answer.text);
    }
    let retried = pair.service.post(&format!("/v1/exports/{id}/retry"), &Value::Null).await;
    assert_eq!((retried.status, retried.code().as_str()), (StatusCode::CONFLICT, "export_not_dead"));
    let none =
        pair.service.post("/v1/exports/00000000-0000-7000-8000-000000000000/retry", &Value::Null).await;
    assert_eq!((none.status, none.code().as_str()), (StatusCode::NOT_FOUND, "export_not_found"));
}
