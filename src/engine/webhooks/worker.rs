//! The webhook worker: claims due events and applies each. Events about one subscription are applied
//! together, after one fetch of its state.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;
use tokio::task::JoinSet;

use super::fetch::Fetched;
use crate::engine::error::EngineError;
use crate::engine::services::Engine;
use crate::providers::stripe::Fault;
use crate::providers::stripe::webhook::{self, Topic};
use crate::store::subjects::{stripe_customers, stripe_subscriptions};
use crate::store::webhook_events::ClaimedEvent;
use crate::store::{self, Scope, StoreError, webhook_events};
use metergate_domain::base::limits::{
    WEBHOOK_ATTEMPTS_MAX, WEBHOOK_FETCHES_MAX, WEBHOOK_LEASE, WEBHOOK_PAUSE_MAX, WEBHOOK_ROUND_EVENTS_MAX,
};
use metergate_domain::base::{Environment, Timestamp};
use metergate_domain::webhook::WebhookStatus;

/// The result of an event.
#[derive(Debug)]
pub(super) enum WebhookOutcome {
    Applied,
    Ignored(&'static str),
    Failed(String),
    /// The provider did not answer, so the event is tried again.
    Later(Fault),
    /// A fact is still missing, so the event is tried again.
    Waits(&'static str),
}

impl WebhookOutcome {
    /// Returns the outcome of an event without the needed fields.
    pub(super) fn malformed() -> Self {
        Self::Failed("the object in the event is not valid".to_owned())
    }
}

impl Engine {
    /// Applies some due webhooks, and applies subscriptions again after changes of their mapping.
    /// Returns the number of due events and subscriptions.
    pub async fn apply_webhooks(&self, environment: Environment) -> Result<usize, EngineError> {
        let taken = self.take_webhooks(environment).await?;
        let mut done = taken.len();
        let mut subscriptions: BTreeMap<String, Vec<ClaimedEvent>> = BTreeMap::new();
        for event in taken {
            if Topic::of(&event.kind) == Topic::Subscription
                && let Some(id) = event.object_id.clone()
            {
                subscriptions.entry(id).or_default().push(event);
                continue;
            }
            let outcome = self.apply_one(environment, &event).await;
            self.conclude(&[event], outcome).await?;
        }
        let subscriptions: Vec<(String, Vec<ClaimedEvent>)> = subscriptions.into_iter().collect();
        for some in subscriptions.chunks(WEBHOOK_FETCHES_MAX) {
            self.apply_to_subscriptions(environment, some).await?;
        }
        done += self.settle_subscriptions(environment).await?;
        Ok(done)
    }

    async fn take_webhooks(&self, environment: Environment) -> Result<Vec<ClaimedEvent>, EngineError> {
        let mut connection = self.database().pool().acquire().await?;
        let now = self.inner.clock.outside(store::usage::now(&mut connection).await?);
        let until = now.saturating_add(WEBHOOK_LEASE);
        let limit = WEBHOOK_ROUND_EVENTS_MAX;
        let mut taken =
            webhook_events::claim(&mut Scope::new(&mut connection, environment), now, until, limit).await?;
        taken.sort_by_key(|event| event.seq);
        Ok(taken)
    }

    /// Fetches all at once, then applies one after the other: the configuration lock allows no more.
    async fn apply_to_subscriptions(
        &self,
        environment: Environment,
        batches: &[(String, Vec<ClaimedEvent>)],
    ) -> Result<(), EngineError> {
        let mut asking = JoinSet::new();
        for (index, (id, events)) in batches.iter().enumerate() {
            let (engine, id) = (self.clone(), id.clone());
            let newest = events.iter().map(|event| event.created).max().unwrap_or(Timestamp::MIN);
            let deleted = events.iter().any(|event| event.kind == webhook::SUBSCRIPTION_DELETED);
            asking.spawn(async move {
                let fetched = if deleted {
                    // a deletion is the final state
                    engine.fetch_from_payloads(environment, &id).await
                } else {
                    engine.fetch_subscription(environment, &id, newest).await
                };
                (index, fetched)
            });
        }
        while let Some(asked) = asking.join_next().await {
            let (index, fetched) = asked.map_err(|why| EngineError::Internal(why.to_string()))?;
            let (_, events) = &batches[index];
            let seqs: Vec<i64> = events.iter().map(|event| event.seq).collect();
            let outcome = match fetched {
                Ok(Fetched::Subscription(fetched)) => match self.follow(environment, &fetched, &seqs).await {
                    Ok(()) => continue,
                    Err(why) => Err(why),
                },
                Ok(Fetched::Nothing) => Ok(WebhookOutcome::malformed()),
                Ok(Fetched::Later(fault)) => Ok(WebhookOutcome::Later(fault)),
                Err(why) => Err(why),
            };
            self.conclude(events, outcome).await?;
        }
        Ok(())
    }

    async fn apply_one(
        &self,
        environment: Environment,
        event: &ClaimedEvent,
    ) -> Result<WebhookOutcome, EngineError> {
        let Some(payload) = self.payload(event.seq).await? else { return Ok(WebhookOutcome::malformed()) };
        let object = &payload["data"]["object"];
        match Topic::of(&event.kind) {
            Topic::Checkout => {
                let mapped = self.on_checkout(environment, object).await?;
                let granted = self.grant_packs(environment, webhook::bought_by_checkout(object)).await?;
                Ok(granted.unwrap_or(mapped))
            }
            Topic::Customer => {
                let deleted = event.kind == webhook::CUSTOMER_DELETED;
                self.on_customer(environment, object, event.created, deleted).await
            }
            Topic::Invoice => {
                let noted = self.note_invoice(environment, object, event.created).await?;
                let paid = (event.kind == webhook::INVOICE_PAID).then(|| webhook::bought_by_invoice(object));
                let granted = self.grant_packs(environment, paid.flatten()).await?;
                Ok(granted.unwrap_or(noted))
            }
            Topic::MeterErrors => self.on_meter_errors(environment, &event.id).await,
            Topic::Subscription => Ok(WebhookOutcome::malformed()),
            Topic::Other => Ok(WebhookOutcome::Ignored("events of this type have no effect")),
        }
    }

    async fn payload(&self, seq: i64) -> Result<Option<Value>, EngineError> {
        let mut connection = self.database().pool().acquire().await?;
        let payload = webhook_events::payload(&mut connection, seq).await?;
        Ok(payload.and_then(|payload| serde_json::from_str(payload.get()).ok()))
    }

    async fn note_invoice(
        &self,
        environment: Environment,
        object: &Value,
        created: Timestamp,
    ) -> Result<WebhookOutcome, EngineError> {
        let Some(invoice) = webhook::invoice(object) else { return Ok(WebhookOutcome::malformed()) };
        let mut connection = self.database().pool().acquire().await?;
        stripe_customers::write_invoice(&mut Scope::new(&mut connection, environment), &invoice, created)
            .await?;
        Ok(WebhookOutcome::Applied)
    }

    /// Applies subscriptions again after their mapping may have changed.
    async fn settle_subscriptions(&self, environment: Environment) -> Result<usize, EngineError> {
        let mut connection = self.database().pool().acquire().await?;
        let limit = WEBHOOK_ROUND_EVENTS_MAX;
        let ids =
            stripe_subscriptions::unsettled(&mut Scope::new(&mut connection, environment), limit).await?;
        drop(connection);
        let mut settled = 0;
        for id in ids {
            match self.settle_again(environment, &id).await {
                Ok(()) => settled += 1,
                Err(why @ EngineError::Unavailable { .. }) => return Err(why),
                // a failure must not block the other subscriptions
                Err(why) => tracing::error!(subscription = id, %why, "a subscription cannot be settled"),
            }
        }
        Ok(settled)
    }

    /// Records the result of events.
    async fn conclude(
        &self,
        events: &[ClaimedEvent],
        outcome: Result<WebhookOutcome, EngineError>,
    ) -> Result<(), EngineError> {
        let seqs: Vec<i64> = events.iter().map(|event| event.seq).collect();
        let attempts = events.iter().map(|event| event.attempts).max().unwrap_or_default();
        let (reason, after) = match outcome {
            Ok(WebhookOutcome::Applied) => {
                return Ok(self.note_webhooks(&seqs, WebhookStatus::Applied, None).await?);
            }
            Ok(WebhookOutcome::Ignored(why)) => {
                return Ok(self.note_webhooks(&seqs, WebhookStatus::Ignored, Some(why)).await?);
            }
            Ok(WebhookOutcome::Failed(why)) => {
                tracing::error!(events = ?events, why, "a webhook event cannot be applied");
                return Ok(self.note_webhooks(&seqs, WebhookStatus::Failed, Some(&why)).await?);
            }
            Ok(WebhookOutcome::Later(fault)) => {
                (format!("{}: {}", fault.failure.code, fault.failure.message), fault.after)
            }
            Ok(WebhookOutcome::Waits(why)) => (why.to_owned(), None),
            // the database is unavailable: the events become due again when their lease ends
            Err(why @ EngineError::Unavailable { .. }) => return Err(why),
            Err(why) => (why.to_string(), None),
        };
        tracing::warn!(attempts, reason, "webhook events could not be applied yet");
        if attempts >= WEBHOOK_ATTEMPTS_MAX {
            return Ok(self.note_webhooks(&seqs, WebhookStatus::Failed, Some(&reason)).await?);
        }
        let mut connection = self.database().pool().acquire().await?;
        let now = self.inner.clock.outside(store::usage::now(&mut connection).await?);
        let at = now.saturating_add(pause(attempts).max(after.unwrap_or_default()).min(WEBHOOK_PAUSE_MAX));
        Ok(webhook_events::postpone(&mut connection, &seqs, at, &reason).await?)
    }

    async fn note_webhooks(
        &self,
        seqs: &[i64],
        status: WebhookStatus,
        reason: Option<&str>,
    ) -> Result<(), StoreError> {
        let mut connection = self.database().pool().acquire().await?;
        let now = self.inner.clock.outside(store::usage::now(&mut connection).await?);
        webhook_events::settle(&mut connection, seqs, status, reason, now).await
    }
}

/// Returns the pause after a failed attempt, in seconds: two to the power of `attempts`.
fn pause(attempts: i32) -> Duration {
    let doublings = u32::try_from(attempts.clamp(0, 16)).unwrap_or_default();
    Duration::from_secs(1 << doublings)
}
