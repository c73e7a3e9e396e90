//! Applies the provider's subscriptions: finds the subject of each subscription and the leading
//! subscription of each subject. Then changes the subject's own subscription. All changes hold the
//! configuration lock.

use super::fetch::FetchedSubscription;
use super::mapping::map_within;
use crate::engine::change::ChangeTransaction;
use crate::engine::error::EngineError;
use crate::engine::services::Engine;
use crate::engine::subjects::subscription_changes::SubscriptionTransaction;
use crate::store::subjects::stripe_subscriptions::{ProviderSubscriptionRow, SubscriptionOwner, Unmapped};
use crate::store::subjects::{stripe_customers, stripe_subscriptions};
use crate::store::{self, Scope, webhook_events};
use metergate_domain::base::Environment;
use metergate_domain::base::names::SubjectId;
use metergate_domain::subjects::End;
use metergate_domain::subjects::provider_subscription::leading;
use metergate_domain::webhook::WebhookStatus;

impl Engine {
    /// Applies a fetched subscription, and records the result of its events.
    pub(super) async fn follow(
        &self,
        environment: Environment,
        fetched: &FetchedSubscription,
        seqs: &[i64],
    ) -> Result<(), EngineError> {
        let mut connection = self.database().pool().acquire().await?;
        let scope = &mut Scope::new(&mut connection, environment);
        let now = self.inner.clock.outside(store::usage::now(scope.connection).await?);
        let id = &fetched.billed.id;
        // most events change nothing here, so they need no lock
        let row = stripe_subscriptions::find(scope, id).await?;
        let is_done = row.as_ref().is_some_and(|row| row.settled && row.owner.unmapped.is_none());
        if (is_done && !fetched.is_newer_than(row.as_ref())) || confirm(scope, fetched).await? {
            return Ok(
                webhook_events::settle(scope.connection, seqs, WebhookStatus::Applied, None, now).await?
            );
        }
        drop(connection);
        self.settle(environment, id, Some(fetched), seqs).await
    }

    /// Applies a subscription again after its mapping may have changed.
    pub(super) async fn settle_again(&self, environment: Environment, id: &str) -> Result<(), EngineError> {
        self.settle(environment, id, None, &[]).await
    }

    async fn settle(
        &self,
        environment: Environment,
        id: &str,
        fetched: Option<&FetchedSubscription>,
        seqs: &[i64],
    ) -> Result<(), EngineError> {
        let change = ChangeTransaction::begin(self.database().pool(), environment, &self.inner.clock).await?;
        let mut change = SubscriptionTransaction::new(change).await?;
        let mut row = stripe_subscriptions::find(&mut change.scope(), id).await?;
        if let Some(fetched) = fetched.filter(|fetched| fetched.is_newer_than(row.as_ref())) {
            let FetchedSubscription { billed, event_created, fetched_at } = fetched;
            let scope = &mut change.scope();
            stripe_subscriptions::write(scope, billed, *event_created, *fetched_at).await?;
            row = stripe_subscriptions::find(scope, id).await?;
        }
        let Some(row) = row else { return Ok(()) };
        let owner = resolve_owner(&mut change, &row).await?;
        let scope = &mut change.scope();
        let mut settled = webhook_events::unmapped(scope, id).await?;
        settled.extend_from_slice(seqs);
        let now = self.inner.clock.outside(store::usage::now(scope.connection).await?);
        let (status, reason) = match owner.unmapped {
            None => (WebhookStatus::Applied, None),
            Some(why) => (WebhookStatus::Unmapped, Some(why.as_str())),
        };
        webhook_events::settle(scope.connection, &settled, status, reason, now).await?;
        Ok(change.commit().await?)
    }
}

async fn confirm(scope: &mut Scope<'_>, fetched: &FetchedSubscription) -> Result<bool, EngineError> {
    let FetchedSubscription { billed, event_created, fetched_at } = fetched;
    Ok(stripe_subscriptions::confirm(scope, billed, *event_created, *fetched_at).await?)
}

/// Finds the owner and the plan of a subscription, and updates the subjects that gain or lose it.
async fn resolve_owner(
    change: &mut SubscriptionTransaction<'_>,
    row: &ProviderSubscriptionRow,
) -> Result<SubscriptionOwner, EngineError> {
    let (billed, environment) = (&row.billed, change.environment());
    let subject = subject_of(change, row).await?;
    let found = change.catalog.plan_of_prices(environment, &billed.prices).map(|plan| plan.key.clone());
    // a price that the catalog does not know yet keeps the earlier plan
    let plan = found.clone().or_else(|| row.owner.plan.clone());
    let missing_plan = plan.is_none() || (found.is_none() && !billed.is_over());
    let owner = SubscriptionOwner {
        subject_id: subject.as_ref().map(|(id, _)| *id),
        plan,
        unmapped: match &subject {
            None => Some(Unmapped::NoSubject),
            Some(_) => missing_plan.then_some(Unmapped::NoPlan),
        },
    };
    let left = row.owner.subject_id.filter(|left| Some(*left) != owner.subject_id);
    if let Some(left) = left.filter(|_| row.governs) {
        stripe_subscriptions::release(change.connection(), left).await?;
    }
    stripe_subscriptions::settle(&mut change.scope(), &billed.id, &owner).await?;
    if let Some(left) = left {
        take_leave(change, left, row.governs).await?;
    }
    if let Some((subject_id, subject)) = &subject {
        lead(change, *subject_id, subject).await?;
    }
    Ok(owner)
}

fn known(name: String) -> Result<SubjectId, EngineError> {
    SubjectId::parse(name).map_err(|why| EngineError::Internal(why.to_string()))
}

/// Finds the subject of a subscription: by the mapping of its customer, otherwise by metadata or
/// checkout, otherwise the earlier subject.
async fn subject_of(
    change: &mut SubscriptionTransaction<'_>,
    row: &ProviderSubscriptionRow,
) -> Result<Option<(i64, SubjectId)>, EngineError> {
    let billed = &row.billed;
    let scope = &mut change.scope();
    if let Some((id, name)) = store::subjects::subject::of_mapping(scope, &billed.customer).await? {
        return Ok(Some((id, known(name)?)));
    }
    let mut told = billed.subject.clone();
    if told.is_none() {
        let customer = stripe_customers::find(scope, &billed.customer).await?;
        told = customer.and_then(|row| row.subject.or(row.reference)).map(known).transpose()?;
    }
    if let Some(subject) = told {
        map_within(&mut change.change, &subject, &billed.customer).await?;
        let (member, _) = change.enrolled(&subject).await?;
        return Ok(Some((member.subject_id, subject)));
    }
    let Some(before) = row.owner.subject_id else { return Ok(None) };
    let name = store::subjects::subject::name(scope.connection, before).await?;
    Ok(name.map(known).transpose()?.map(|name| (before, name)))
}

/// Applies the leading subscription of a subject.
async fn lead(
    change: &mut SubscriptionTransaction<'_>,
    subject_id: i64,
    subject: &SubjectId,
) -> Result<(), EngineError> {
    let rows = stripe_subscriptions::of_subject(change.connection(), subject_id).await?;
    let Some(leader) = leading(&rows, |row| &row.billed) else { return Ok(()) };
    let plan = leader.owner.plan.as_ref().and_then(|key| change.catalog.plan(key));
    let Some(plan) = plan.cloned() else { return Ok(()) };
    let terms = leader.billed.terms(&plan.key);
    if leader.governs && leader.stated == Some(terms) {
        return Ok(());
    }
    let (member, before) = change.enrolled(subject).await?;
    let followed = rows.iter().find(|row| row.governs).and_then(|row| row.stated_plan.as_ref());
    let default_plan = change.catalog.default_plan.as_ref();
    if leader.billed.leaves_alone(&plan.key, before.as_ref(), followed, default_plan) {
        if followed.is_none() {
            return Ok(());
        }
    } else {
        let statement = leader.billed.statement(&plan, before.as_ref(), change.now());
        change.state(&member, before.as_ref(), statement).await?;
    }
    let (connection, id) = (change.connection(), &leader.billed.id);
    Ok(stripe_subscriptions::set_governing(connection, subject_id, id, terms, &plan.key).await?)
}

/// Applies the next subscription of a subject that lost its leading subscription. Without a next one,
/// ends the subject's own subscription.
async fn take_leave(
    change: &mut SubscriptionTransaction<'_>,
    subject_id: i64,
    followed: bool,
) -> Result<(), EngineError> {
    let connection = change.connection();
    let Some(name) = store::subjects::subject::name(connection, subject_id).await? else { return Ok(()) };
    let subject = known(name)?;
    if !stripe_subscriptions::of_subject(connection, subject_id).await?.is_empty() {
        return lead(change, subject_id, &subject).await;
    }
    let (member, before) = change.enrolled(&subject).await?;
    match before.filter(|_| followed) {
        Some(before) => change.end(&member, &before, End::Now, None).await,
        None => Ok(()),
    }
}
