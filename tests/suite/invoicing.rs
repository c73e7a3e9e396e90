//! Invoices: drafts, numbering, and the comparison with the biller's invoices.

mod commitments;
mod comparing;
mod corrections;
mod customers;
mod documented;
mod drafts;
mod forms;
mod numbering;
mod statuses;

use axum::http::StatusCode;
use metergate::engine::{BillingRun, EngineSettings};
use metergate::providers::stripe::{StripeAccount, StripeSettings};
use metergate_domain::base::Environment;
use secrecy::SecretString;
use serde_json::{Value, json};

use crate::support::service::{Answer, engine_settings};
use crate::support::stripe_fake::{Clock, Options, StripeFake, Webhook, sign, unix};
use crate::support::{TestService, at, cluster};

/// The start of every test.
const START: &str = "2026-11-20T10:00:00Z";
const END: &str = "2026-12-20T10:00:00Z";
const SECRET: &str = "whsec_fake";

/// A service with a customer and a fixed clock.
struct Books {
    service: TestService,
}

/// A price of one cent per unit, and a fee of 500.
fn prices() -> Value {
    json!([
        {"key": "use", "meter": "m", "model": "per_unit", "currency": "usd", "unit_amount": 1},
        {"key": "fee", "model": "flat", "currency": "usd", "amount": 500},
    ])
}

fn catalog(prices: &Value) -> Value {
    json!({
        "meters": [{"key": "m", "event_name": "e", "aggregation": "sum", "dimensions": ["model"]}],
        "plans": [{"key": "free"}, {"key": "pro", "prices": prices},
                  {"key": "team", "prices": [{"key": "use", "meter": "m", "model": "per_unit", "currency": "usd", "unit_amount": 10}]}],
    })
}

impl Books {
    /// Opens a service with the subject `acme`, customer `cus_acme`, on the plan `pro` from [`START`].
    async fn open() -> Self {
        Self::open_with(&prices()).await
    }

    async fn open_with(prices: &Value) -> Self {
        let books = Self { service: TestService::start().await };
        books.service.clock.set(at(START));
        books.service.apply(catalog(prices)).await;
        books.enrol("acme", "pro").await;
        books
    }

    async fn put(&self, path: &str, body: &Value) -> Value {
        let answer = self.service.put(path, body).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
        answer.json()
    }

    /// Adds a subject that is a customer on a plan.
    async fn enrol(&self, subject: &str, plan: &str) {
        let customer = json!({"stripe_customer_id": format!("cus_{subject}")});
        self.put(&format!("/v1/subjects/{subject}"), &customer).await;
        self.subscribe(subject, &json!({"plan": plan})).await;
    }

    async fn subscribe(&self, subject: &str, statement: &Value) {
        self.put(&format!("/v1/subjects/{subject}/subscription"), statement).await;
    }

    fn set_clock(&self, to: &str) {
        self.service.clock.set(at(to));
    }

    async fn track(&self, id: &str, subject: &str, value: i64, timestamp: &str) {
        let event = json!({"id": id, "event_name": "e", "subject": subject, "value": value, "timestamp": timestamp,
                           "properties": {"model": "a"}});
        let answer = self.service.post("/v1/events", &event).await;
        assert_eq!(answer.json()["accepted"], 1, "{}", answer.text);
    }

    async fn bill(&self) -> (u64, u64) {
        let BillingRun { opened, finalized } = self.service.engine.bill(Environment::Test).await.unwrap();
        (opened, finalized)
    }

    async fn upcoming(&self, subject: &str) -> Value {
        get(&self.service, &format!("/v1/subjects/{subject}/invoices/upcoming")).await
    }

    /// Returns the invoices of a subject with their lines, the oldest first.
    async fn invoices(&self, subject: &str) -> Vec<Value> {
        invoices(&self.service, &format!("subject={subject}")).await
    }
}

async fn get(service: &TestService, path: &str) -> Value {
    let answer = service.get(path).await;
    assert_eq!(answer.status, StatusCode::OK, "{path}: {}", answer.text);
    answer.json()
}

/// Returns invoices with their lines, the oldest first.
async fn invoices(service: &TestService, query: &str) -> Vec<Value> {
    let page = get(service, &format!("/v1/invoices?{query}")).await;
    let mut shown = Vec::new();
    for listed in page["data"].as_array().unwrap().iter().rev() {
        let invoice = get(service, &format!("/v1/invoices/{}", listed["id"].as_str().unwrap())).await;
        assert_eq!(listed["lines"], Value::Null);
        assert_adds_up(&invoice);
        shown.push(invoice);
    }
    shown.sort_by_key(|invoice| invoice["period"]["start"].to_string());
    shown
}

/// Asserts that the total is the sum of the rounded lines.
fn assert_adds_up(invoice: &Value) {
    let lines = invoice["lines"].as_array().unwrap();
    let sum: i64 = lines.iter().map(|line| line["rounded_amount"].as_i64().unwrap()).sum();
    assert_eq!(invoice["total"], sum, "{invoice}");
}

/// Writes `number status start..end total: price quantity amount, …`; a line without a price shows its model.
fn told(invoice: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let day = |name: &str| text(&invoice["period"][name])[5..10].to_owned();
    let line = |line: &Value| {
        let kind = if line["kind"] == "correction" {
            format!(" of {}", text(&line["corrects"]))
        } else {
            String::new()
        };
        let name = line["price"].as_str().or(line["model"].as_str()).unwrap();
        format!("{name} {} {}{kind}", line["quantity"], line["rounded_amount"])
    };
    let lines: Vec<String> = invoice["lines"].as_array().unwrap().iter().map(line).collect();
    format!(
        "{} {} {}..{} {}: {}",
        text(&invoice["number"]),
        text(&invoice["status"]),
        day("start"),
        day("end"),
        invoice["total"],
        lines.join(", ")
    )
}

fn all_told(invoices: &[Value]) -> Vec<String> {
    invoices.iter().map(told).collect()
}

/// The service and a fake Stripe, with one customer subscribed to the prices of both.
struct Pair {
    books: Books,
    stripe: StripeFake,
    subscription: String,
}

/// A price in our form and in Stripe's.
struct Same {
    ours: Value,
    theirs: Vec<(&'static str, &'static str)>,
}

impl Pair {
    /// Starts both sides. Each price has its own meter, named `m0`, `m1` and so on.
    async fn with(currency: &'static str, prices: &[Same], options: Options, by_id: bool) -> Self {
        let stripe = StripeFake::start(Options { clock: Clock::fixed(START), ..options }).await;
        let service = TestService::at_url(&cluster::database_url().await, settings(&stripe)).await;
        service.clock.set(at(START));
        let (mut meters, mut ours, mut ids) = (Vec::new(), Vec::new(), Vec::new());
        for (index, price) in prices.iter().enumerate() {
            let name = format!("m{index}");
            let mut fields =
                vec![("currency", currency), ("recurring[interval]", "month"), ("product_data[name]", "it")];
            let mut own = json!({"key": format!("p{index}"), "currency": currency});
            own.as_object_mut().unwrap().extend(price.ours.as_object().unwrap().clone());
            let meter;
            if own["model"] != "flat" {
                meter = stripe.meter(&name);
                fields.extend([("recurring[usage_type]", "metered"), ("recurring[meter]", &meter)]);
                meters.push(json!({"key": name, "event_name": name, "aggregation": "sum", "stripe": {"event_name": name}}));
                own["meter"] = json!(name);
            }
            fields.extend(price.theirs.iter().copied());
            let id = stripe.post("/v1/prices", &fields)["id"].as_str().unwrap().to_owned();
            if by_id || own["model"] == "flat" {
                own["stripe_price_id"] = json!({"test": id});
            }
            ids.push(id);
            ours.push(own);
        }
        let plans = json!([{"key": "pro", "prices": ours, "stripe_price_ids": ids}]);
        service.apply(json!({"meters": meters, "plans": plans})).await;
        let customer = stripe.customer(&[("metadata[subject]", "acme")]);
        let names: Vec<String> = (0..ids.len()).map(|index| format!("items[{index}][price]")).collect();
        let mut fields = vec![("customer", customer.as_str())];
        fields.extend(names.iter().map(String::as_str).zip(ids.iter().map(String::as_str)));
        let subscription = stripe.post("/v1/subscriptions", &fields)["id"].as_str().unwrap().to_owned();
        let pair = Self { books: Books { service }, stripe, subscription };
        pair.hear().await;
        pair
    }

    /// Sets both clocks, Stripe's first, and applies the webhooks that Stripe sends.
    async fn set_clock(&self, to: &str) {
        self.stripe.set_clock(unix(to));
        self.books.set_clock(to);
        self.hear().await;
    }

    async fn deliver(&self, webhook: &Webhook) {
        let now = self.books.service.clock.outside(at(START)).unix_seconds();
        let request = self
            .books
            .service
            .request(axum::http::Method::POST, "/webhooks/stripe")
            .header("stripe-signature", sign(&[SECRET], now, &webhook.body));
        let answer = self.books.service.send(request.body(webhook.body.clone().into()).unwrap()).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
        while self.books.service.engine.apply_webhooks(Environment::Test).await.unwrap() > 0 {}
    }

    async fn hear(&self) {
        for webhook in self.stripe.take_webhooks() {
            self.deliver(&webhook).await;
        }
    }

    async fn export(&self) {
        let ran = self.books.service.post("/v1/exports/run", &Value::Null).await;
        assert_eq!(
            (ran.json()["pending"].clone(), ran.json()["dead"].clone()),
            (json!(0), json!(0)),
            "{}",
            ran.text
        );
    }

    async fn compare(&self, id: &Value) -> Answer {
        self.books.service.get(&format!("/v1/invoices/{}?compare=provider", id.as_str().unwrap())).await
    }
}

fn settings(stripe: &StripeFake) -> EngineSettings {
    let account = StripeAccount {
        api_key: Some(SecretString::from("sk_test_fake")),
        webhook_secrets: vec![SecretString::from(SECRET)],
    };
    EngineSettings {
        stripe: StripeSettings {
            api_base: stripe.url(),
            calls_per_second: Some(10_000),
            accounts: [(Environment::Test, account), (Environment::Live, StripeAccount::default())],
        },
        ..engine_settings()
    }
}
