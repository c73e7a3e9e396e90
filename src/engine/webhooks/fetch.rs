//! Fetches the present state of a subscription: from the provider if there is an API key, otherwise from the
//! latest payloads.

use serde_json::Value;

use crate::engine::error::EngineError;
use crate::engine::services::Engine;
use crate::providers::stripe::webhook::{self, SUBSCRIPTION_DELETED, SUBSCRIPTION_EVENTS};
use crate::providers::stripe::{Fault, Stripe, order};
use crate::store::subjects::stripe_customers;
use crate::store::subjects::stripe_subscriptions::ProviderSubscriptionRow;
use crate::store::webhook_events::SubscriptionTypes;
use crate::store::{self, Scope, webhook_events};
use metergate_domain::base::limits::WEBHOOK_TIES_MAX;
use metergate_domain::base::names::SubjectId;
use metergate_domain::base::{Environment, Timestamp};
use metergate_domain::subjects::ProviderSubscription;
use metergate_domain::subjects::subscription::SubscriptionStatus;

/// The result of a fetch.
pub(super) enum Fetched {
    Subscription(FetchedSubscription),
    /// A subscription without any usable payload.
    Nothing,
    Later(Fault),
}

/// The provider's state of a subscription, with the time of this state.
#[derive(Debug)]
pub(super) struct FetchedSubscription {
    pub(super) billed: ProviderSubscription,
    /// The time of the latest event that the state includes.
    pub(super) event_created: Timestamp,
    /// The time at which the request began; none for a state from payloads.
    pub(super) fetched_at: Option<Timestamp>,
}

impl FetchedSubscription {
    /// Returns whether this state is newer than the stored one. The later fetch wins: a change between
    /// two fetches has an event that is still to be applied. An end is always final.
    pub(super) fn is_newer_than(&self, row: Option<&ProviderSubscriptionRow>) -> bool {
        let Some(row) = row else { return true };
        if row.billed.is_over() || self.billed.is_over() {
            return !row.billed.is_over();
        }
        match (self.fetched_at, row.fetched_at) {
            (Some(asked), Some(before)) => asked >= before,
            (Some(_), None) => true,
            (None, _) => self.event_created >= row.event_created,
        }
    }
}

impl Engine {
    /// Fetches a subscription that has events up to `newest`.
    pub(super) async fn fetch_subscription(
        &self,
        environment: Environment,
        id: &str,
        newest: Timestamp,
    ) -> Result<Fetched, EngineError> {
        let Some(stripe) = self.stripe(environment).filter(|_| is_plain(id)) else {
            return self.fetch_from_payloads(environment, id).await;
        };
        let mut connection = self.database().pool().acquire().await?;
        let asked_at = self.inner.clock.outside(store::usage::now(&mut connection).await?);
        drop(connection);
        match stripe.client().get(&format!("/v1/subscriptions/{id}"), &[]).await {
            Ok(object) => {
                let Some(billed) = webhook::subscription(&object) else { return Ok(Fetched::Nothing) };
                if billed.subject.is_none()
                    && let Some(fault) = self.learn_customer(environment, &stripe, &billed.customer).await?
                {
                    return Ok(Fetched::Later(fault));
                }
                Ok(Fetched::Subscription(FetchedSubscription {
                    billed,
                    event_created: newest,
                    fetched_at: Some(asked_at),
                }))
            }
            Err(fault) if fault.status == Some(404) => self.on_missing(environment, &stripe, id).await,
            Err(fault) => Ok(Fetched::Later(fault)),
        }
    }

    /// Reads the state from the latest stored payloads.
    pub(super) async fn fetch_from_payloads(
        &self,
        environment: Environment,
        id: &str,
    ) -> Result<Fetched, EngineError> {
        let mut connection = self.database().pool().acquire().await?;
        let types = SubscriptionTypes { prefix: SUBSCRIPTION_EVENTS, deleted: SUBSCRIPTION_DELETED };
        let limit = WEBHOOK_TIES_MAX;
        let payloads =
            webhook_events::latest_payloads(&mut Scope::new(&mut connection, environment), id, types, limit)
                .await?;
        let events: Vec<Value> =
            payloads.iter().filter_map(|payload| serde_json::from_str(payload.get()).ok()).collect();
        let Some((last, billed)) = order::last(&events).and_then(|e| Some((e, webhook::subscription_of(e)?)))
        else {
            return Ok(Fetched::Nothing);
        };
        let seconds = last["created"].as_i64().and_then(|seconds| seconds.checked_mul(1_000_000));
        let event_created = seconds.and_then(Timestamp::from_micros).unwrap_or(Timestamp::MIN);
        Ok(Fetched::Subscription(FetchedSubscription { billed, event_created, fetched_at: None }))
    }

    /// Handles a subscription that the provider does not know. If its customer is deleted, the
    /// subscription has ended, even if a payload shows otherwise. If not, the key belongs to another
    /// account, and the signed payloads count.
    async fn on_missing(
        &self,
        environment: Environment,
        stripe: &Stripe,
        id: &str,
    ) -> Result<Fetched, EngineError> {
        let mut found = self.fetch_from_payloads(environment, id).await?;
        let Fetched::Subscription(fetched) = &mut found else { return Ok(found) };
        if fetched.billed.is_over() || !is_plain(&fetched.billed.customer) {
            return Ok(found);
        }
        match stripe.client().get(&format!("/v1/customers/{}", fetched.billed.customer), &[]).await {
            Ok(customer) => {
                if webhook::customer(&customer).is_some_and(|customer| customer.deleted) {
                    fetched.billed.status = SubscriptionStatus::Canceled;
                    fetched.billed.ended_at = Some(fetched.event_created);
                }
                Ok(found)
            }
            Err(fault) if fault.status == Some(404) => Ok(found),
            Err(fault) => Ok(Fetched::Later(fault)),
        }
    }

    /// Fetches the subject in a customer's metadata, if neither a mapping nor an event names one.
    async fn learn_customer(
        &self,
        environment: Environment,
        stripe: &Stripe,
        id: &str,
    ) -> Result<Option<Fault>, EngineError> {
        let mut connection = self.database().pool().acquire().await?;
        let scope = &mut Scope::new(&mut connection, environment);
        let mapped = store::subjects::subject::of_mapping(scope, id).await?.is_some();
        // the events of a known customer report later changes
        let known = stripe_customers::find(scope, id).await?.is_some();
        if mapped || known || !is_plain(id) {
            return Ok(None);
        }
        drop(connection);
        match stripe.client().get(&format!("/v1/customers/{id}"), &[]).await {
            Ok(object) => {
                let subject = webhook::customer(&object).and_then(|customer| customer.subject);
                let subject = subject.as_ref().map(SubjectId::as_str);
                let mut connection = self.database().pool().acquire().await?;
                // any event about the customer is newer
                let at = Timestamp::MIN;
                stripe_customers::write(&mut Scope::new(&mut connection, environment), id, subject, at)
                    .await?;
                Ok(None)
            }
            Err(fault) if fault.status == Some(404) => Ok(None),
            Err(fault) => Ok(Some(fault)),
        }
    }
}

/// Returns whether an id is safe in a URL path, as all ids of the provider are.
pub(super) fn is_plain(id: &str) -> bool {
    !id.is_empty() && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}
