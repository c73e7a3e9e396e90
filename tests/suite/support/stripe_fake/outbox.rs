//! Webhooks to send, in the order of their events.

use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use serde_json::{Map, Value, json};

use super::state::State;

const RETRY_MAX: Duration = Duration::from_mins(1);

/// A webhook event. Its body never changes; each delivery has a new signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Webhook {
    pub(crate) id: String,
    pub(crate) kind: String,
    pub(crate) created: i64,
    pub(crate) body: String,
}

/// Returns each webhook `times` times, in a random order that the seed repeats.
pub(crate) fn shuffled(webhooks: &[Webhook], times: usize, seed: u64) -> Vec<Webhook> {
    let mut all: Vec<Webhook> = (0..times).flat_map(|_| webhooks.iter().cloned()).collect();
    all.shuffle(&mut StdRng::seed_from_u64(seed));
    all
}

#[derive(Debug)]
struct Queued {
    webhook: Webhook,
    is_delivered: bool,
    attempts: u32,
    not_before: Option<Instant>,
}

#[derive(Debug, Default)]
pub(super) struct Outbox {
    queue: Vec<Queued>,
    /// The first webhook that is not delivered; all before it are.
    first_open: usize,
}

impl Outbox {
    pub(super) fn push(&mut self, webhook: Webhook) {
        self.queue.push(Queued { webhook, is_delivered: false, attempts: 0, not_before: None });
    }

    pub(super) fn all(&self) -> Vec<Webhook> {
        self.queue.iter().map(|queued| queued.webhook.clone()).collect()
    }

    pub(super) fn newest_first(&self) -> impl Iterator<Item = &Webhook> {
        self.queue.iter().rev().map(|queued| &queued.webhook)
    }

    /// Takes all webhooks that are not delivered, and marks them as delivered.
    pub(super) fn take(&mut self) -> Vec<Webhook> {
        let open = self.queue[self.first_open..].iter_mut().filter(|queued| !queued.is_delivered);
        let taken = open.map(|queued| {
            queued.is_delivered = true;
            queued.webhook.clone()
        });
        let taken = taken.collect();
        self.first_open = self.queue.len();
        taken
    }

    /// Returns the next due webhook with its position.
    pub(super) fn due(&self) -> Option<(usize, Webhook)> {
        let now = Instant::now();
        let is_due = |queued: &Queued| !queued.is_delivered && queued.not_before.is_none_or(|at| at <= now);
        let mut open = self.queue.iter().enumerate().skip(self.first_open);
        open.find(|(_, queued)| is_due(queued)).map(|(place, queued)| (place, queued.webhook.clone()))
    }

    pub(super) fn settle(&mut self, place: usize, is_delivered: bool) {
        let queued = &mut self.queue[place];
        queued.is_delivered |= is_delivered;
        if !queued.is_delivered {
            let wait = Duration::from_secs(1 << queued.attempts.min(6)).min(RETRY_MAX);
            queued.not_before = Some(Instant::now() + wait);
            queued.attempts += 1;
        }
        while self.queue.get(self.first_open).is_some_and(|queued| queued.is_delivered) {
            self.first_open += 1;
        }
    }
}

impl State {
    /// Adds a snapshot event, in the endpoint's version.
    pub(super) fn emit(&mut self, kind: &str, object: &Value, previous: Option<Value>) {
        let (id, created) = (self.next_id("evt"), self.now());
        self.settled_at = None; // the change may have made other events due
        let mut data = Map::new();
        data.insert("object".to_owned(), object.clone());
        if let Some(previous) = previous {
            data.insert("previous_attributes".to_owned(), previous);
        }
        let body = json!({
            "id": id,
            "object": "event",
            "api_version": self.endpoint_version.as_str(),
            "created": created,
            "data": data,
            "livemode": self.options.livemode,
            "pending_webhooks": 1,
            "request": {"id": null, "idempotency_key": null},
            "type": kind,
        });
        self.outbox.push(Webhook { id, kind: kind.to_owned(), created, body: body.to_string() });
    }

    /// Adds an event for a change of an object, unless nothing changed.
    pub(super) fn emit_change(&mut self, kind: &str, before: &Value, after: &Value) {
        if let Some(previous) = difference(before, after) {
            self.emit(kind, after, Some(previous));
        }
    }
}

/// Returns the previous values of changed fields.
fn difference(before: &Value, after: &Value) -> Option<Value> {
    let (before, after) = (before.as_object()?, after.as_object()?);
    let changed = |key: &String| before.get(key) != after.get(key);
    let keys = before.keys().chain(after.keys().filter(|key| !before.contains_key(*key)));
    let previous: Map<_, _> = keys
        .filter(|key| changed(key))
        .map(|key| (key.clone(), before.get(key).cloned().unwrap_or(Value::Null)))
        .collect();
    (!previous.is_empty()).then_some(Value::Object(previous))
}
