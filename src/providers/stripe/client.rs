//! Calls of Stripe with the key and a pinned version, and the meaning of failures
//! (<https://docs.stripe.com/api/errors>).

use std::time::Duration;

use reqwest::{Method, Response, StatusCode, header};
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;

use crate::providers::Failure;

/// The version that requests are pinned to.
pub const API_VERSION: &str = "2026-07-29.dahlia";

/// The longest wait for an answer; after it, the outcome is unknown.
const CALL_MAX: Duration = Duration::from_secs(20);
const CONNECT_MAX: Duration = Duration::from_secs(5);
const MESSAGE_CHARS_MAX: usize = 500;
/// The most rows of a page.
const PAGE_MAX: usize = 100;
/// The most pages of a list. No list of this service has so many.
const PAGES_MAX: usize = 50;

/// The client of an account. `Debug` hides its key.
#[derive(Debug)]
pub struct Client {
    http: reqwest::Client,
    api_base: String,
    key: SecretString,
}

/// A call that did not succeed.
#[derive(Debug, Clone)]
pub struct Fault {
    /// The status; none without an answer.
    pub status: Option<u16>,
    pub failure: Failure,
    /// The pause that `Retry-After` asks for.
    pub after: Option<Duration>,
    /// True if Stripe may have carried out the call.
    pub may_be_done: bool,
    /// True if the answer looks like Stripe's own; an answer of a proxy does not.
    pub is_stripes: bool,
}

impl Fault {
    /// Returns whether the same call may succeed later.
    pub fn is_transient(&self) -> bool {
        match self.status {
            None => true,
            Some(status) => !self.is_stripes || status == 409 || status == 429 || status >= 500,
        }
    }

    /// Returns whether Stripe refused the credentials.
    pub fn is_refusal(&self) -> bool {
        self.is_stripes && matches!(self.status, Some(401 | 403))
    }
}

impl Client {
    pub(super) fn new(api_base: &str, key: SecretString) -> Result<Self, reqwest::Error> {
        let http = reqwest::Client::builder()
            .timeout(CALL_MAX)
            .connect_timeout(CONNECT_MAX)
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("metergate/", env!("CARGO_PKG_VERSION")))
            .build()?;
        Ok(Self { http, api_base: api_base.trim_end_matches('/').to_owned(), key })
    }

    /// Reads an object.
    pub async fn get(&self, path: &str, query: &[(&str, String)]) -> Result<Value, Fault> {
        let mut url = format!("{}{path}", self.api_base);
        if !query.is_empty() {
            url.push('?');
            url.push_str(&form(query));
        }
        self.send(self.request(Method::GET, url)).await
    }

    /// Reads the rows of a list page by page, after a given row, until the list ends or `is_enough`
    /// accepts a page.
    pub async fn list(
        &self,
        path: &str,
        query: &[(&str, String)],
        mut after: Option<String>,
        is_enough: impl Fn(&[Value]) -> bool,
    ) -> Result<Vec<Value>, Fault> {
        let mut rows = Vec::new();
        for _ in 0..PAGES_MAX {
            let mut query = query.to_vec();
            query.push(("limit", PAGE_MAX.to_string()));
            query.extend(after.take().map(|id| ("starting_after", id)));
            let mut page = self.get(path, &query).await?;
            let Some(Value::Array(found)) = page.get_mut("data").map(Value::take) else { break };
            after = found.last().and_then(|row| row["id"].as_str()).map(str::to_owned);
            let is_last = is_enough(&found) || after.is_none() || page["has_more"] != true;
            rows.extend(found);
            if is_last {
                break;
            }
        }
        Ok(rows)
    }

    /// Posts a form. A repeated call with the same `idempotency_key` gets the first answer again.
    pub async fn post(
        &self,
        path: &str,
        fields: &[(&str, String)],
        idempotency_key: &str,
    ) -> Result<Value, Fault> {
        let request = self
            .request(Method::POST, format!("{}{path}", self.api_base))
            .header("idempotency-key", idempotency_key)
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(form(fields));
        self.send(request).await
    }

    fn request(&self, method: Method, url: String) -> reqwest::RequestBuilder {
        self.http
            .request(method, url)
            .bearer_auth(self.key.expose_secret())
            .header("stripe-version", API_VERSION)
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Result<Value, Fault> {
        let response = request.send().await.map_err(|why| no_answer(&why))?;
        let status = response.status();
        if status.is_success() {
            return response.json().await.map_err(|why| no_answer(&why));
        }
        Err(refused(status, response).await)
    }
}

fn form(fields: &[(&str, String)]) -> String {
    let mut form = form_urlencoded::Serializer::new(String::new());
    for (name, value) in fields {
        form.append_pair(name, value);
    }
    form.finish()
}

/// Returns the fault of a call without an answer. Stripe may have carried out the call, unless the
/// connection failed.
fn no_answer(why: &reqwest::Error) -> Fault {
    let code = if why.is_timeout() { "timeout" } else { "no_answer" };
    // without the URL: its query may name a customer
    let message = format!("no answer from Stripe: {}", causes(why));
    Fault {
        status: None,
        failure: Failure { code: code.to_owned(), message: shortened(&message) },
        after: None,
        may_be_done: !why.is_connect(),
        is_stripes: false,
    }
}

fn causes(why: &reqwest::Error) -> String {
    let mut words = Vec::new();
    let mut cause = std::error::Error::source(why);
    while let Some(inner) = cause {
        words.push(inner.to_string());
        cause = inner.source();
    }
    if words.is_empty() { "the connection failed".to_owned() } else { words.join(": ") }
}

async fn refused(status: StatusCode, response: Response) -> Fault {
    let header =
        |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let after = header("retry-after").and_then(|text| text.parse().ok()).map(Duration::from_secs);
    let reason = header("stripe-rate-limited-reason");
    let body: Value = response.json().await.unwrap_or_default();
    let error = &body["error"];
    let text = |name: &str| error[name].as_str().map(str::to_owned);
    let code = text("code")
        .or(reason)
        .or_else(|| text("type"))
        .unwrap_or_else(|| format!("http_{}", status.as_u16()));
    let message = text("message").unwrap_or_else(|| format!("Stripe answered {status}"));
    Fault {
        status: Some(status.as_u16()),
        failure: Failure { code, message: shortened(&message) },
        after,
        may_be_done: status.is_server_error() || !error.is_object(),
        is_stripes: error.is_object(),
    }
}

fn shortened(message: &str) -> String {
    message.chars().take(MESSAGE_CHARS_MAX).collect()
}
