//! Tests of the fake of Stripe: it keeps Stripe's rules, so that tests against it are meaningful.

mod calls;
mod meter_events;
mod subscriptions;
mod webhooks;

use reqwest::Method;
use serde_json::Value;

use crate::support::stripe_fake::{Options, StripeFake, unix};

const NOON: &str = "2026-11-20T12:00:00Z";

/// A caller that follows all of Stripe's rules.
struct Caller {
    client: reqwest::Client,
    fake: StripeFake,
    version: &'static str,
}

#[derive(Debug, PartialEq)]
struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Value,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    fn code(&self) -> &str {
        self.body["error"]["code"].as_str().unwrap_or_default()
    }

    fn message(&self) -> &str {
        self.body["error"]["message"].as_str().unwrap_or_default()
    }

    fn id(&self) -> String {
        self.body["id"].as_str().unwrap_or_else(|| panic!("{self:?}")).to_owned()
    }
}

impl Caller {
    async fn start() -> Self {
        Self::with(Options::default()).await
    }

    async fn with(options: Options) -> Self {
        let fake = StripeFake::start(options).await;
        fake.meter("tokens");
        Self { client: reqwest::Client::new(), fake, version: "2026-07-29.dahlia" }
    }

    fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let request = self.client.request(method, format!("{}{path}", self.fake.url()));
        request.bearer_auth("sk_test_fake").header("stripe-version", self.version)
    }

    async fn try_send(&self, request: reqwest::RequestBuilder) -> Option<Answer> {
        let answer = request.send().await.ok()?;
        let status = answer.status().as_u16();
        let text = |value: &reqwest::header::HeaderValue| value.to_str().unwrap().to_owned();
        let headers = answer.headers().iter().map(|(name, value)| (name.to_string(), text(value))).collect();
        Some(Answer { status, headers, body: answer.json().await.ok()? })
    }

    async fn get(&self, path: &str) -> Answer {
        self.try_send(self.request(Method::GET, path)).await.unwrap()
    }

    /// Returns `None` if the connection broke.
    async fn try_post(&self, path: &str, key: &str, fields: &[(&str, &str)]) -> Option<Answer> {
        let request = self.request(Method::POST, path).header("idempotency-key", key);
        let body = form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish();
        self.try_send(request.header("content-type", "application/x-www-form-urlencoded").body(body)).await
    }

    /// Posts with a new idempotency key.
    async fn post(&self, path: &str, fields: &[(&str, &str)]) -> Answer {
        let key = uuid::Uuid::now_v7().to_string();
        self.try_post(path, &key, fields).await.unwrap()
    }

    async fn event(&self, identifier: &str, value: &str) -> Answer {
        self.post("/v1/billing/meter_events", &fields(identifier, value)).await
    }

    fn total(&self) -> i128 {
        self.fake.total("cus_1", "tokens", 0, i64::MAX)
    }
}

fn fields<'a>(identifier: &'a str, value: &'a str) -> [(&'a str, &'a str); 4] {
    [
        ("event_name", "tokens"),
        ("payload[stripe_customer_id]", "cus_1"),
        ("payload[value]", value),
        ("identifier", identifier),
    ]
}

fn noon() -> i64 {
    unix(NOON)
}
