//! Stripe's webhooks: signatures, storage, and effects.

mod effects;
mod fetching;
mod lives;
mod mapping;

use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use metergate::engine::EngineSettings;
use metergate::providers::stripe::{StripeAccount, StripeSettings};
use metergate_domain::base::Environment;
use secrecy::SecretString;
use serde_json::{Value, json};

use crate::support::service::{Answer, NOON, engine_settings};
use crate::support::stripe_fake::{Clock, Options, StripeFake, Webhook, sign, unix};
use crate::support::{TestService, at, cluster};

const SECRET: &str = "whsec_fake";

/// The service and the Stripe fake that it follows; both clocks stand still.
struct Rig {
    service: TestService,
    stripe: StripeFake,
    /// The price of the plan of the same name; `pro` and `team` are, too.
    starter: String,
    pro: String,
    team: String,
}

fn settings(stripe: &StripeFake, fetching: bool) -> EngineSettings {
    let account = |prefix: &str, secrets: &[&str]| StripeAccount {
        api_key: (fetching && prefix == "sk_test").then(|| SecretString::from("sk_test_fake")),
        webhook_secrets: secrets.iter().map(|secret| SecretString::from(*secret)).collect(),
    };
    EngineSettings {
        stripe: StripeSettings {
            api_base: stripe.url(),
            accounts: [
                (Environment::Test, account("sk_test", &["whsec_older", SECRET])),
                (Environment::Live, account("sk_live", &["whsec_live"])),
            ],
            ..StripeSettings::default()
        },
        ..engine_settings()
    }
}

fn limit(quota: i64) -> Value {
    json!([{"key": "l", "meter": "m", "quota": quota, "period": "billing"}])
}

impl Rig {
    async fn start(fetching: bool) -> Self {
        Self::start_at(NOON, fetching).await
    }

    async fn start_at(time: &str, fetching: bool) -> Self {
        let stripe = StripeFake::start(Options { clock: Clock::fixed(time), ..Options::default() }).await;
        let service = TestService::at_url(&cluster::database_url().await, settings(&stripe, fetching)).await;
        let price = |name: &str| stripe.price(name, "month");
        let (starter, pro, team) = (price("starter"), price("pro"), price("team"));
        let rig = Self { service, stripe, starter, pro, team };
        rig.service.clock.set(at(time));
        rig.apply_catalog(&[&rig.starter, &rig.pro, &rig.team]).await;
        rig.stripe.take_webhooks();
        rig
    }

    /// Returns the catalog; the plans in `known` have Stripe prices.
    fn catalog(&self, known: &[&String]) -> Value {
        let of = |price: &String| if known.contains(&price) { json!([price]) } else { json!([]) };
        json!({
            "meters": [{"key": "m", "event_name": "e", "aggregation": "sum"}],
            "plans": [
                {"key": "free", "limits": limit(1)},
                {"key": "starter", "limits": limit(10), "stripe_price_ids": of(&self.starter)},
                {"key": "pro", "limits": limit(100), "stripe_price_ids": {"test": of(&self.pro), "live": []}},
                {"key": "team", "limits": limit(1000), "fallback_plan": "free",
                 "stripe_price_ids": of(&self.team)},
            ],
        })
    }

    async fn apply_catalog(&self, known: &[&String]) {
        self.service.apply(self.catalog(known)).await;
    }

    /// Sets both clocks.
    fn set_clock(&self, to: &str) {
        self.service.clock.set(at(to));
        self.stripe.set_clock(unix(to));
    }

    /// Creates a customer, mapped to a subject.
    async fn customer_of(&self, subject: &str) -> String {
        let customer = self.stripe.customer(&[]);
        self.map(subject, &customer).await;
        customer
    }

    async fn map(&self, subject: &str, customer: &str) {
        let path = format!("/v1/subjects/{subject}");
        let answer = self.service.put(&path, &json!({"stripe_customer_id": customer})).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
    }

    async fn deliver(&self, webhook: &Webhook) {
        let answer = post(&self.service, &webhook.body, SECRET).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
    }

    /// Applies due webhooks.
    async fn work(&self) {
        while self.service.engine.apply_webhooks(Environment::Test).await.unwrap() > 0 {}
    }

    /// Delivers and applies all webhooks that Stripe has sent so far.
    async fn hear(&self) {
        for webhook in self.stripe.take_webhooks() {
            self.deliver(&webhook).await;
        }
        self.work().await;
    }

    async fn subscription(&self, subject: &str) -> Value {
        self.service.get(&format!("/v1/subjects/{subject}/subscription")).await.json()
    }

    /// Returns plan, status and end.
    async fn subject_path(&self, subject: &str) -> String {
        let shown = self.subscription(subject).await;
        let word = |name: &str| shown[name].as_str().unwrap_or("-").to_owned();
        format!("{} {} {}", word("plan"), word("status"), word("ends_at"))
    }

    /// Returns whether a use is allowed, or the reason for its denial.
    async fn check(&self, subject: &str, value: i64) -> String {
        let ask = json!({"subject": subject, "meter": "m", "value": value});
        let answer = self.service.post("/v1/check", &ask).await.json();
        if answer["allowed"] == true { "allowed" } else { answer["reason"].as_str().unwrap() }.to_owned()
    }

    /// Returns the types and reasons of the events with a status, the latest first.
    async fn events(&self, status: &str) -> Vec<(String, String)> {
        let page = self.service.get(&format!("/v1/webhook-events?limit=1000&status={status}")).await.json();
        let word = |event: &Value, name: &str| event[name].as_str().unwrap_or_default().to_owned();
        let events = page["data"].as_array().unwrap_or_else(|| panic!("{page}"));
        events.iter().map(|event| (word(event, "type"), word(event, "reason"))).collect()
    }
}

/// Returns the service's time, in seconds.
fn seconds(service: &TestService) -> i64 {
    service.clock.outside(at(NOON)).unix_seconds()
}

/// Changes the price of a subscription.
fn switch_of(stripe: &StripeFake, subscription: &str, price: &str) {
    let path = format!("/v1/subscriptions/{subscription}");
    let item = stripe.get(&path)["items"]["data"][0]["id"].as_str().unwrap().to_owned();
    stripe.post(&path, &[("items[0][id]", &item), ("items[0][price]", price)]);
}

async fn post(service: &TestService, body: &str, secret: &str) -> Answer {
    let header = sign(&[secret], seconds(service), body);
    post_with(service, body, Some(&header)).await
}

async fn post_with(service: &TestService, body: &str, signature: Option<&str>) -> Answer {
    let request = Request::builder().method(Method::POST).uri("/webhooks/stripe");
    let request = request.header("content-type", "application/json; charset=utf-8");
    let request = match signature {
        Some(signature) => request.header("stripe-signature", signature),
        None => request,
    };
    service.send(request.body(Body::from(body.to_owned())).unwrap()).await
}

fn event(id: &str, kind: &str, livemode: bool) -> String {
    json!({"id": id, "object": "event", "api_version": "2026-07-29.dahlia", "created": unix(NOON), "livemode": livemode,
        "type": kind, "data": {"object": {"id": "x_1", "object": "x"}}})
    .to_string()
}

#[tokio::test]
async fn accepts_only_webhooks_with_a_recent_valid_signature() {
    let rig = Rig::start(false).await;
    let body = event("evt_1", "price.created", false);
    let now = unix(NOON);
    let signed = |secrets: &[&str], at: i64| Some(sign(secrets, at, &body));
    let cases = [
        (signed(&[SECRET], now), 200, ""),
        (signed(&["whsec_older"], now), 200, ""),
        // while a secret is rolled, Stripe signs with both
        (signed(&["whsec_newest", SECRET], now), 200, ""),
        (signed(&[SECRET], now - 300), 200, ""),
        (signed(&[SECRET], now + 300), 200, ""),
        (signed(&[SECRET], now - 301), 400, "signature_too_old"),
        (signed(&[SECRET], now + 301), 400, "signature_in_future"),
        (signed(&["whsec_wrong"], now), 400, "invalid_signature"),
        (signed(&["whsec_live"], now), 400, "livemode_mismatch"),
        (Some(signed(&[SECRET], now).unwrap().replace("v1=", "v0=")), 400, "invalid_signature"),
        (Some("t=now".to_owned()), 400, "invalid_signature"),
        (Some(String::new()), 400, "invalid_signature"),
        (None, 400, "missing_signature"),
    ];
    for (header, status, code) in cases {
        let answer = post_with(&rig.service, &body, header.as_deref()).await;
        assert_eq!(answer.status.as_u16(), status, "{header:?}: {}", answer.text);
        if status == 200 {
            assert_eq!(answer.text, "");
        } else {
            assert_eq!(answer.code(), code, "{header:?}");
            assert_eq!(answer.headers["content-type"], "application/problem+json");
        }
    }
    // a valid signature, but the wrong environment
    let live = event("evt_2", "price.created", true);
    assert_eq!(post(&rig.service, &live, SECRET).await.code(), "livemode_mismatch");
    assert_eq!(post(&rig.service, &live, "whsec_live").await.status, StatusCode::OK);
    assert_eq!(post(&rig.service, "{\"id\": \"evt_3\"", SECRET).await.code(), "malformed_json");
    assert_eq!(post(&rig.service, "[]", SECRET).await.code(), "malformed_event");
    assert_eq!(post(&rig.service, "", SECRET).await.code(), "empty_body");
    // the smallest event; the secret of its signature determines the environment
    let smallest = r#"{"id":"evt_1s","object":"event"}"#;
    assert_eq!(post(&rig.service, smallest, SECRET).await.status, StatusCode::OK);
    // each event is stored once, and none of the other environment
    let ids = rig.service.get("/v1/webhook-events").await.json();
    let ids: Vec<&Value> = ids["data"].as_array().unwrap().iter().map(|event| &event["id"]).collect();
    assert_eq!(ids, ["evt_1s", "evt_1"]);
}

#[tokio::test]
async fn accepts_no_webhook_without_a_secret() {
    let service = TestService::start().await;
    let answer = post(&service, &event("evt_1", "price.created", false), SECRET).await;
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (StatusCode::SERVICE_UNAVAILABLE, "webhooks_not_configured")
    );
}

#[tokio::test]
async fn every_signed_webhook_is_stored() {
    let rig = Rig::start(false).await;
    let filled = |bytes: usize| {
        let body = |fill: usize| {
            json!({"id": "evt_large", "livemode": false, "type": "invoice.paid", "created": 1, "fill": "x".repeat(fill)})
                .to_string()
        };
        body(bytes - body(0).len())
    };
    let mebibyte = 1024 * 1024;
    assert_eq!(post(&rig.service, &filled(mebibyte), SECRET).await.status, StatusCode::OK);
    let larger = post(&rig.service, &filled(mebibyte + 1), SECRET).await;
    assert_eq!((larger.status, larger.code().as_str()), (StatusCode::PAYLOAD_TOO_LARGE, "body_too_large"));
    // a payload that PostgreSQL's jsonb would refuse
    let odd = r#"{"id": "evt_odd", "livemode": false, "type": "a.type.nobody.knows", "created": "yesterday",
        "data": {"object": {"id": {"not": "text"}, "nul": "\u0000", "number": 1e999999}}}"#;
    assert_eq!(post(&rig.service, odd, SECRET).await.status, StatusCode::OK);
    for kind in ["price.updated", "product.created", "invoice.upcoming", "billing.alert.triggered"] {
        assert_eq!(post(&rig.service, &event(kind, kind, false), SECRET).await.status, StatusCode::OK);
    }
    rig.work().await;
    assert_eq!(rig.events("ignored").await.len(), 5);
    // a type that has effects, but without the needed fields
    let failed = rig.events("failed").await;
    assert_eq!(failed.len(), 1, "{failed:?}");
    assert_eq!(failed[0].0, "invoice.paid");
    // a manually repeated event is tried again
    post(&rig.service, &filled(mebibyte), SECRET).await;
    assert_eq!(rig.events("pending").await.len(), 1);
}

#[tokio::test]
async fn webhook_events_are_listed_in_pages() {
    let rig = Rig::start(false).await;
    for n in 0..5 {
        post(&rig.service, &event(&format!("evt_{n}"), "price.created", false), SECRET).await;
    }
    let mut found = Vec::new();
    let mut path = "/v1/webhook-events?limit=2&status=ignored".to_owned();
    loop {
        let page = rig.service.get(&path).await.json();
        found.extend(page["data"].as_array().unwrap().iter().map(|e| e["id"].as_str().unwrap().to_owned()));
        let Some(cursor) = page["next_cursor"].as_str() else { break };
        path = format!("/v1/webhook-events?limit=2&status=ignored&cursor={cursor}");
    }
    assert_eq!(found, ["evt_4", "evt_3", "evt_2", "evt_1", "evt_0"]);
    let shown = &rig.service.get("/v1/webhook-events?limit=1").await.json()["data"][0];
    assert_eq!(
        (&shown["type"], &shown["object"], &shown["created"], &shown["api_version"]),
        (&json!("price.created"), &json!("x_1"), &json!(NOON), &json!("2026-07-29.dahlia"))
    );
    assert!(shown.get("payload").is_none(), "a list must not show payloads, which may contain personal data");
    for (query, code) in
        [("status=lost", "invalid_choice"), ("cursor=x", "invalid_cursor"), ("limit=0", "invalid_value")]
    {
        let answer = rig.service.get(&format!("/v1/webhook-events?{query}")).await;
        assert_eq!((answer.status, answer.code().as_str()), (StatusCode::UNPROCESSABLE_ENTITY, code));
    }
    let stranger = rig.service.get_as("mg_sk_test_x", "/v1/webhook-events").await;
    assert_eq!(stranger.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn settled_webhook_events_are_deleted_after_retention() {
    let rig = Rig::start(false).await;
    let customer = rig.stripe.customer(&[]);
    rig.stripe.subscribe(&customer, &rig.pro, &[]);
    rig.hear().await;
    let done = rig.events("applied").await.len();
    assert!(done > 0 && !rig.events("unmapped").await.is_empty());
    rig.service.clock.set(at("2027-01-19T11:59:59Z"));
    rig.service.engine.forget_old_webhooks().await.unwrap();
    assert_eq!(rig.events("applied").await.len(), done);
    rig.service.clock.set(at("2027-01-19T12:00:01Z"));
    rig.service.engine.forget_old_webhooks().await.unwrap();
    assert_eq!((rig.events("applied").await.len(), rig.events("unmapped").await.len()), (0, 1));
}
