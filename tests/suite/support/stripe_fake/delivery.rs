//! Webhooks on their way: taken by a test in any order it likes, or sent by the fake itself.

use std::sync::Arc;
use std::time::Duration;

use super::outbox::Webhook;
use super::server::{Shared, StripeFake};
use super::signatures::sign;
use super::version::Version;

/// How often the fake looks for what is due.
const INTERVAL: Duration = Duration::from_millis(100);
const ANSWER_MAX: Duration = Duration::from_secs(10);

impl StripeFake {
    /// The version that payloads of events take from now on.
    pub(crate) fn pin_webhooks(&self, version: &str) {
        self.shared.lock().endpoint_version = Version::read(version).expect("a version of Stripe's");
    }

    /// All there ever were.
    pub(crate) fn webhooks(&self) -> Vec<Webhook> {
        self.shared.lock().outbox.all()
    }

    /// Those that were not yet taken or delivered. Who takes none for days has days of silence.
    pub(crate) fn take_webhooks(&self) -> Vec<Webhook> {
        let mut state = self.shared.lock();
        state.settle();
        state.outbox.take()
    }

    /// The secrets of the endpoint; several while they are rolled.
    pub(crate) fn set_webhook_secrets(&self, secrets: &[&str]) {
        self.shared.lock().options.webhook_secrets =
            secrets.iter().map(|&secret| secret.to_owned()).collect();
    }

    /// The header that goes with a body now; for another time or other secrets see `sign`.
    pub(crate) fn signature(&self, body: &str) -> String {
        self.shared.signature(body)
    }

    /// Sends each in this order, and answers the statuses; 0 where there was no answer.
    pub(crate) async fn deliver(&self, url: &str, webhooks: &[Webhook]) -> Vec<u16> {
        let client = reqwest::Client::new();
        let mut statuses = Vec::new();
        for webhook in webhooks {
            statuses.push(send(&client, url, &webhook.body, self.signature(&webhook.body)).await);
        }
        statuses
    }

    /// While silent the fake sends nothing by itself; what happens meanwhile is sent afterwards.
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

/// Sends by itself what is due, in order, and again what was not taken; lets time pass meanwhile.
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
