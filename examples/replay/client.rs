//! The few calls of Metergate that the replay makes, with retries.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use jiff::Timestamp;
use reqwest::header::RETRY_AFTER;
use reqwest::{RequestBuilder, Response, StatusCode};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// The time after which a failing call ends the load.
const GIVE_UP_AFTER: Duration = Duration::from_mins(2);
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);
const CALL_MAX: Duration = Duration::from_secs(40);

#[derive(Debug)]
pub(crate) struct Client {
    http: reqwest::Client,
    url: String,
    key: String,
    retries: AtomicU64,
}

/// The results of the events of one call, or of all calls.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sent {
    pub(crate) accepted: u64,
    pub(crate) duplicates: u64,
    pub(crate) rejected: u64,
}

impl Sent {
    pub(crate) fn add(&mut self, other: Self) {
        self.accepted += other.accepted;
        self.duplicates += other.duplicates;
        self.rejected += other.rejected;
    }

    pub(crate) fn count(self) -> u64 {
        self.accepted + self.duplicates + self.rejected
    }
}

#[derive(Debug, Deserialize)]
struct Recorded {
    accepted: u64,
    duplicates: u64,
    rejected: Vec<Value>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct UsageRow {
    pub(crate) window_start: String,
    pub(crate) subject: Option<String>,
    value: Value,
}

impl UsageRow {
    /// Returns the number as written, because it may have more digits than a float.
    pub(crate) fn value(&self) -> String {
        self.value.to_string()
    }
}

#[derive(Debug, Deserialize)]
struct Meter {
    key: String,
}

#[derive(Debug, Deserialize)]
struct List<T> {
    data: Vec<T>,
}

impl Client {
    pub(crate) fn new(url: &str, key: String) -> anyhow::Result<Self> {
        let http = reqwest::Client::builder().timeout(CALL_MAX).build()?;
        Ok(Self { http, url: url.trim_end_matches('/').to_owned(), key, retries: AtomicU64::new(0) })
    }

    pub(crate) fn retries(&self) -> u64 {
        self.retries.load(Ordering::Relaxed)
    }

    pub(crate) async fn meters(&self) -> anyhow::Result<Vec<String>> {
        let meters: List<Meter> = self.get("/v1/meters").await?;
        Ok(meters.data.into_iter().map(|meter| meter.key).collect())
    }

    pub(crate) async fn usage(
        &self,
        meter: &str,
        from: Timestamp,
        to: Timestamp,
        asked: &str,
    ) -> anyhow::Result<Vec<UsageRow>> {
        let rows: List<UsageRow> =
            self.get(&format!("/v1/usage?meter={meter}&from={from}&to={to}{asked}")).await?;
        Ok(rows.data)
    }

    /// Sends a batch. A repetition after a lost answer is safe, because event ids count once.
    #[expect(clippy::print_stderr, reason = "errors are separate from the progress on stdout")]
    pub(crate) async fn send(&self, events: Vec<Value>, backfill: bool) -> anyhow::Result<Sent> {
        let url = format!("{}/v1/events?backfill={backfill}", self.url);
        let events = Value::Array(events);
        let answer = self.patiently(|| self.http.post(&url).json(&events)).await?;
        let recorded: Recorded = answer.json().await?;
        if let Some(first) = recorded.rejected.first() {
            eprintln!("{} events were rejected, the first: {first}", recorded.rejected.len());
        }
        let rejected = recorded.rejected.len() as u64;
        Ok(Sent { accepted: recorded.accepted, duplicates: recorded.duplicates, rejected })
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        let url = format!("{}{path}", self.url);
        let answer = self.patiently(|| self.http.get(&url)).await?;
        Ok(answer.json().await?)
    }

    /// Repeats a call until its answer is final.
    #[expect(clippy::print_stderr, reason = "the user must see why the program waits")]
    async fn patiently(&self, request: impl Fn() -> RequestBuilder) -> anyhow::Result<Response> {
        let started = Instant::now();
        let mut pause = PAUSE_MIN;
        loop {
            let wait = match request().bearer_auth(&self.key).send().await {
                Ok(answer) if answer.status().is_success() => return Ok(answer),
                Ok(answer) if is_passing(answer.status()) && started.elapsed() < GIVE_UP_AFTER => {
                    retry_after(&answer).unwrap_or(pause)
                }
                Ok(answer) => bail!("{}: {}", answer.status(), answer.text().await.unwrap_or_default()),
                Err(why) if started.elapsed() < GIVE_UP_AFTER => {
                    if pause == PAUSE_MIN {
                        eprintln!("no answer from {}, trying again: {why}", self.url);
                    }
                    pause
                }
                Err(why) => return Err(why).context("the service did not answer"),
            };
            self.retries.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(wait).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }
}

fn is_passing(status: StatusCode) -> bool {
    matches!(status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS)
}

fn retry_after(answer: &Response) -> Option<Duration> {
    let seconds = answer.headers().get(RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds))
}
