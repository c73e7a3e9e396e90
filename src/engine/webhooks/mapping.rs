//! Maps customers to subjects. A mapping by the application stays. Otherwise the provider may name the
//! subject: in the metadata of a subscription or a customer, or in a checkout.

use serde_json::Value;

use super::worker::WebhookOutcome;
use crate::engine::change::ChangeTransaction;
use crate::engine::error::EngineError;
use crate::engine::services::Engine;
use crate::engine::subjects::subject::{existing, set_customer};
use crate::providers::stripe::webhook;
use crate::store::subjects::{stripe_customers, stripe_subscriptions};
use crate::store::{self, Scope, StoreError};
use metergate_domain::base::names::SubjectId;
use metergate_domain::base::{Environment, Timestamp};

impl Engine {
    /// Maps the customer of a checkout to the subject in `client_reference_id`.
    pub(super) async fn on_checkout(
        &self,
        environment: Environment,
        object: &Value,
    ) -> Result<WebhookOutcome, EngineError> {
        let Some((subject, customer)) = webhook::checkout(object) else {
            return Ok(WebhookOutcome::Ignored("the checkout has no `client_reference_id` or no `customer`"));
        };
        let mut connection = self.database().pool().acquire().await?;
        stripe_customers::set_reference(
            &mut Scope::new(&mut connection, environment),
            &customer,
            subject.as_str(),
        )
        .await?;
        drop(connection);
        self.map(environment, &subject, &customer).await?;
        Ok(WebhookOutcome::Applied)
    }

    /// Maps a customer to the subject in its metadata, or unmaps a deleted customer.
    pub(super) async fn on_customer(
        &self,
        environment: Environment,
        object: &Value,
        created: Timestamp,
        deleted: bool,
    ) -> Result<WebhookOutcome, EngineError> {
        let Some(customer) = webhook::customer(object) else { return Ok(WebhookOutcome::malformed()) };
        let mut connection = self.database().pool().acquire().await?;
        let scope = &mut Scope::new(&mut connection, environment);
        if deleted || customer.deleted {
            stripe_customers::set_deleted(scope, &customer.id).await?;
            drop(connection);
            self.unmap(environment, &customer.id).await?;
            return Ok(WebhookOutcome::Applied);
        }
        let subject = customer.subject.as_ref().map(SubjectId::as_str);
        stripe_customers::write(scope, &customer.id, subject, created).await?;
        drop(connection);
        if let Some(subject) = &customer.subject {
            self.map(environment, subject, &customer.id).await?;
        }
        Ok(WebhookOutcome::Applied)
    }

    /// Maps an unmapped customer, and marks its subscriptions to be applied again.
    async fn map(
        &self,
        environment: Environment,
        subject: &SubjectId,
        customer: &str,
    ) -> Result<(), EngineError> {
        let mut transaction = self.database().pool().begin().await?;
        if store::subjects::subject::of_mapping(&mut Scope::new(&mut transaction, environment), customer)
            .await?
            .is_some()
        {
            return Ok(());
        }
        let mut change = ChangeTransaction::within(transaction, environment, &self.inner.clock).await?;
        map_within(&mut change, subject, customer).await?;
        // their owner may be known now, even without a mapping
        stripe_subscriptions::unsettle_customer(&mut change.scope(), customer).await?;
        Ok(change.commit().await?)
    }

    /// Unmaps a deleted customer, which cannot be billed any more. The earlier subject stays recorded.
    async fn unmap(&self, environment: Environment, customer: &str) -> Result<(), EngineError> {
        let mut transaction = self.database().pool().begin().await?;
        if store::subjects::subject::of_mapping(&mut Scope::new(&mut transaction, environment), customer)
            .await?
            .is_none()
        {
            return Ok(());
        }
        let mut change = ChangeTransaction::within(transaction, environment, &self.inner.clock).await?;
        let scope = &mut change.scope();
        if let Some((subject_id, subject)) = store::subjects::subject::of_mapping(scope, customer).await? {
            stripe_customers::set_reference(scope, customer, &subject).await?;
            set_customer(&mut change, subject_id, None).await?;
        }
        Ok(change.commit().await?)
    }
}

/// Maps an unmapped customer to a subject, unless the subject has another customer with a live
/// subscription. Creates the subject if it does not exist.
pub(super) async fn map_within(
    change: &mut ChangeTransaction<'_>,
    subject: &SubjectId,
    customer: &str,
) -> Result<(), EngineError> {
    let scope = &mut change.scope();
    if store::subjects::subject::of_mapping(scope, customer).await?.is_some()
        || is_deleted(scope, customer).await?
    {
        return Ok(());
    }
    store::subjects::subject::insert_missing(scope, &[subject.to_string()]).await?;
    let row = existing(scope, subject).await?;
    if let Some(present) = &row.stripe_customer_id
        && !is_deleted(scope, present).await?
        && !stripe_subscriptions::is_spent(scope, present).await?
    {
        tracing::warn!(%subject, customer, present, "the subject keeps its present customer; the new customer stays unmapped");
        return Ok(());
    }
    Ok(set_customer(change, row.id, Some(customer)).await?)
}

async fn is_deleted(scope: &mut Scope<'_>, customer: &str) -> Result<bool, StoreError> {
    Ok(stripe_customers::find(scope, customer).await?.is_some_and(|row| row.deleted))
}
