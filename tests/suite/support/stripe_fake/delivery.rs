//! Delivery of webhooks: a test takes them in any order, or the fake sends them.

use std::sync::Arc;
use std::time::Duration;

use super::outbox::Webhook;
use super::server::{Shared, StripeFake};
use super::signatures::sign;
use super::version::Version;

/// Interval of the search for due webhooks.
const INTERVAL: Duration = Duration::from_millis(100);
const ANSWER_MAX: Duration = Duration::from_secs(10);

impl StripeFake {
    /// Pins the webhook endpoint to a version for future payloads.
    pub(crate) fn pin_webhooks(&self, version: &str) {
        self.shared.lock().endpoint_version = Version::read(version).expect("a valid API version");
    }

    /// Returns all webhooks since the start.
    pub(crate) fn webhooks(&self) -> Vec<Webhook> {
        self.shared.lock().outbox.all()
    }

    /// Takes the webhooks that were not yet taken or delivered. A test that skips this call simulates an
    /// outage of its endpoint.
    pub(crate) fn take_webhooks(&self) -> Vec<Webhook> {
        let mut state = self.shared.lock();
        state.settle();
        state.outbox.take()
    }

    /// Sets the secrets of the endpoint; there are several while a secret is rotated.
    pub(crate) fn set_webhook_secrets(&self, secrets: &[&str]) {
        self.shared.lock().options.webhook_secrets =
            secrets.iter().map(|&secret| secret.to_owned()).collect();
    }

    /// Returns the signature header of a body at the current time. `sign` serves other times and secrets.
    pub(crate) fn signature(&self, body: &str) -> String {
        self.shared.signature(body)
    }

    /// Sends the webhooks in this order and returns the statuses, with 0 for a missing answer.
    pub(crate) async fn deliver(&self, url: &str, webhooks: &[Webhook]) -> Vec<u16> {
        let client = reqwest::Client::new();
        let mut statuses = Vec::new();
        for webhook in webhooks {
            statuses.push(send(&client, url, &webhook.body, self.signature(&webhook.body)).await);
        }
        statuses
    }

    /// Pauses or resumes automatic delivery; webhooks of a pause are sent afterwards.
    pub(crate) fn set_silent(&self, is_silent: bool) {
        self.shared.lock().is_silent = is_silent;
    }
}

impl Shared {
    fn signature(&self, body: &str) -> String {
        let state = self.lock();
        sign(&state.options.webhook_secrets, state.clock.signing(), body)
    }
}

async fn send(client: &reqwest::Client, url: &str, body: &str, signature: String) -> u16 {
    let request = client.post(url).header("content-type", "application/json; charset=utf-8");
    let request = request.header("stripe-signature", signature).timeout(ANSWER_MAX).body(body.to_owned());
    request.send().await.map_or(0, |answer| answer.status().as_u16())
}

/// Sends due webhooks in order, retries refused ones, and lets time pass meanwhile.
pub(super) async fn run(shared: Arc<Shared>, url: Option<String>) {
    let client = reqwest::Client::new();
    loop {
        tokio::time::sleep(INTERVAL).await;
        shared.lock().settle();
        let Some(url) = &url else { continue };
        loop {
            let due = {
                let state = shared.lock();
                if state.is_silent { None } else { state.outbox.due() }
            };
            let Some((place, webhook)) = due else { break };
            let status = send(&client, url, &webhook.body, shared.signature(&webhook.body)).await;
            shared.lock().outbox.settle(place, (200..300).contains(&status));
        }
    }
}
