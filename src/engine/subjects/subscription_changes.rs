//! Changes of subscriptions, in a transaction that holds the configuration lock, so that no decision
//! mixes the old and the new state.

use sqlx::{Connection, PgConnection};

use crate::engine::change::ChangeTransaction;
use crate::engine::clock::Clock;
use crate::engine::error::EngineError;
use crate::store::subjects::subject::Which;
use crate::store::subjects::subscriptions::{Holder, NewChange};
use crate::store::{self, Scope, StoreError, configuration};
use metergate_domain::base::names::{PlanKey, SubjectId};
use metergate_domain::base::{Environment, Timestamp};
use metergate_domain::catalog::Catalog;
use metergate_domain::gate::{CatalogIndex, CounterKey, Path, PathSubject};
use metergate_domain::subjects::subscription::{SubscriptionChangeKind, SubscriptionStatus};
use metergate_domain::subjects::{End, Subscription, SubscriptionParams};

/// The most ends in one transaction.
const ENDS_MAX: i64 = 1_000;

/// A transaction that changes subscriptions, with the catalog in force.
#[derive(Debug)]
pub(crate) struct SubscriptionTransaction<'c> {
    pub(crate) change: ChangeTransaction<'c>,
    pub(crate) catalog: Catalog,
}

impl<'c> SubscriptionTransaction<'c> {
    pub(crate) async fn new(mut change: ChangeTransaction<'c>) -> Result<Self, StoreError> {
        let (catalog, _) = change.catalog().await?;
        Ok(Self { change, catalog })
    }

    pub(crate) async fn commit(self) -> Result<(), StoreError> {
        self.change.commit().await
    }

    pub(crate) fn connection(&mut self) -> &mut PgConnection {
        &mut self.change.transaction
    }

    /// Returns the environment on the connection of this transaction.
    pub(crate) fn scope(&mut self) -> Scope<'_> {
        self.change.scope()
    }

    pub(crate) fn environment(&self) -> Environment {
        self.change.environment
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.change.now
    }

    /// Returns a subject and its own subscription, after any due end. Creates the subject if it does
    /// not exist.
    pub(crate) async fn enrolled(
        &mut self,
        subject: &SubjectId,
    ) -> Result<(PathSubject, Option<Subscription>), EngineError> {
        let scope = &mut self.scope();
        store::subjects::subject::insert_missing(scope, &[subject.to_string()]).await?;
        let path = subscription_and_path(scope, subject).await?;
        let member = path.and_then(|path| path.members.into_iter().next());
        let member = member.ok_or_else(|| {
            EngineError::Internal("a subject that was just written does not exist".to_owned())
        })?;
        let Some(subscription) = &member.subscription else { return Ok((member, None)) };
        self.carry_out_end(&member, subscription).await?;
        let current = subscription.ended(&self.catalog, self.now()).unwrap_or_else(|| subscription.clone());
        Ok((member, Some(current)))
    }

    /// Refuses own prices if their currency has no exchange rate to the currency of a spend cap: the cap
    /// could not compare the costs.
    pub(crate) async fn validate_incomparable(
        &mut self,
        member: &PathSubject,
        statement: &SubscriptionParams,
    ) -> Result<(), EngineError> {
        let Some(plan) = self.catalog.plan(&statement.plan).filter(|_| !statement.prices.is_empty()) else {
            return Ok(());
        };
        let rates = store::pricing::exchange_rates::all(&mut self.change.scope()).await?;
        let caps = plan.spend_caps.iter().chain(member.caps.iter().map(|terms| &terms.cap));
        Ok(statement.validate_incomparable(&self.catalog, caps, &rates, self.change.now)?)
    }

    /// Applies parameters to a subject's subscription.
    pub(crate) async fn state(
        &mut self,
        member: &PathSubject,
        before: Option<&Subscription>,
        statement: SubscriptionParams,
    ) -> Result<(), EngineError> {
        let now = self.now();
        let mut next = Subscription::with_params(before, statement, &self.catalog, now)?;
        if next.terms_since == now {
            next.terms_since = self.change.time_of_change().await?;
        }
        // a new subject without any record has no earlier usage to be counted
        if before.is_none()
            && !store::subjects::subject::has_record(self.connection(), member.subject_id).await?
        {
            next.pristine_version = Some(configuration::version(&mut self.scope()).await?);
        }
        if before != Some(&next) {
            let (subject_id, kind) = (member.subject_id, SubscriptionChangeKind::between(before, &next, now));
            self.write(member, NewChange { subject_id, kind, subscription: &next, at: now }).await?;
            self.carry_out_end(member, &next).await?;
        }
        Ok(())
    }

    /// Ends a subject's subscription, now or later.
    pub(crate) async fn end(
        &mut self,
        member: &PathSubject,
        before: &Subscription,
        end: End,
        fallback_plan: Option<PlanKey>,
    ) -> Result<(), EngineError> {
        let now = self.now();
        let next = before.ending(end, fallback_plan, now);
        if before.status != SubscriptionStatus::Canceled && (*before != next || member.subscription.is_none())
        {
            let (subject_id, kind) = (member.subject_id, SubscriptionChangeKind::EndSet);
            self.write(member, NewChange { subject_id, kind, subscription: &next, at: now }).await?;
            self.carry_out_end(member, &next).await?;
        }
        Ok(())
    }

    async fn carry_out_end(
        &mut self,
        member: &PathSubject,
        subscription: &Subscription,
    ) -> Result<(), StoreError> {
        let now = self.now();
        let Some(mut ended) = subscription.ended(&self.catalog, now) else { return Ok(()) };
        if ended.terms_since != subscription.terms_since {
            let at = ended.terms_since;
            ended.terms_since = configuration::time_of_change(&mut self.scope(), at).await?;
        }
        let at = subscription.ends_at.unwrap_or(now);
        let (subject_id, kind) = (member.subject_id, SubscriptionChangeKind::ended(&ended));
        self.write(member, NewChange { subject_id, kind, subscription: &ended, at }).await
    }

    /// Writes a change, and drops the counters that the subject's limits no longer keep.
    async fn write(&mut self, member: &PathSubject, change: NewChange<'_>) -> Result<(), StoreError> {
        let scope = &mut self.scope();
        store::subjects::subscriptions::write(scope, change).await?;
        let terms = crate::engine::environment_cache::catalog_index(scope).await?;
        let member = PathSubject { subscription: Some(change.subscription.clone()), ..member.clone() };
        let there = store::gate::counters::of_subject(scope.connection, member.subject_id).await?;
        let dropped: Vec<CounterKey> = there
            .into_iter()
            .filter(|(key, end, since)| !keeps(&terms, &member, *key, *end, *since))
            .map(|(key, _, _)| key)
            .collect();
        store::gate::counters::delete(scope.connection, dropped.into_iter()).await
    }
}

/// Carries out due ends, in a transaction of its own.
pub(crate) async fn carry_out_ends(scope: &mut Scope<'_>, clock: &Clock) -> Result<(), StoreError> {
    let change = ChangeTransaction::within(scope.connection.begin().await?, scope.environment, clock).await?;
    let mut change = SubscriptionTransaction::new(change).await?;
    let now = change.now();
    for holder in store::subjects::subscriptions::due(&mut change.scope(), now, ENDS_MAX).await? {
        let Holder { subject_id, subject, subscription } = holder;
        let member = PathSubject::new(subject_id, store::subjects::subject::subject(subject)?);
        change.carry_out_end(&member, &subscription).await?;
    }
    change.commit().await
}

/// Finds the path of a subject, with its subscription.
pub(crate) async fn subscription_and_path(
    scope: &mut Scope<'_>,
    subject: &SubjectId,
) -> Result<Option<Path>, StoreError> {
    let names = [subject.to_string()];
    Ok(store::subjects::subject::paths(scope, Which::Of(&names)).await?.into_iter().next())
}

/// Returns whether a subject's limits still keep a counter unchanged.
fn keeps(
    terms: &CatalogIndex,
    member: &PathSubject,
    key: CounterKey,
    end: Timestamp,
    since: Timestamp,
) -> bool {
    terms.of_member(member).filter(|found| found.terms.definition == key.definition).any(|found| {
        let kept = found.counter_at(key.period_start.max(since));
        kept.is_some_and(|kept| kept.key == key && kept.period.to == end && kept.since == since)
    })
}
