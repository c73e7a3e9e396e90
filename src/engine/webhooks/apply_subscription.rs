//! Following the biller's subscriptions: whose each is, which of a subject's counts, and what that makes of
//! the subject's own. All of it under the configuration lock, and through the one place where
//! subscriptions change.

use sqlx::PgConnection;

use super::fetch::SubscriptionSnapshot;
use super::mapping::map_within;
use super::{Engine, EngineError};
use crate::engine::subjects::subscriptions::SubscriptionChange;
use crate::store::subjects::stripe_subscriptions::{ProviderSubscriptionRow, SubscriptionOwner, Unmapped};
use crate::store::subjects::{stripe_customers, stripe_subscriptions};
use crate::store::{self, configuration, webhook_events};
use metergate_domain::base::environment::Environment;
use metergate_domain::base::names::SubjectId;
use metergate_domain::subjects::provider_subscription::leading;
use metergate_domain::subjects::subscription::End;

impl Engine {
    /// Follows what was heard of a subscription, and notes what came of the events that told it.
    pub(super) async fn follow(
        &self,
        environment: Environment,
        fetched: &SubscriptionSnapshot,
        seqs: &[i64],
    ) -> Result<(), EngineError> {
        let mut connection = self.database().pool().acquire().await?;
        let now = self.inner.clock.outside(store::usage::now(&mut connection).await?);
        let id = &fetched.billed.id;
        // most of what is told changes nothing for us: nobody needs to wait for that
        let row = stripe_subscriptions::find(&mut connection, environment, id).await?;
        let is_done = row.as_ref().is_some_and(|row| row.settled && row.whose.unmapped.is_none());
        if (is_done && !fetched.is_newer_than(row.as_ref()))
            || confirm(&mut connection, environment, fetched).await?
        {
            return Ok(webhook_events::settle(&mut connection, seqs, "applied", None, now).await?);
        }
        drop(connection);
        self.settle(environment, id, Some(fetched), seqs).await
    }

    /// Looks again at a subscription whose mapping may have changed.
    pub(super) async fn settle_again(&self, environment: Environment, id: &str) -> Result<(), EngineError> {
        self.settle(environment, id, None, &[]).await
    }

    async fn settle(
        &self,
        environment: Environment,
        id: &str,
        fetched: Option<&SubscriptionSnapshot>,
        seqs: &[i64],
    ) -> Result<(), EngineError> {
        let mut transaction = self.database().pool().begin().await?;
        configuration::lock_for_change(&mut transaction, environment).await?;
        let postgres_now = store::usage::now(&mut transaction).await?;
        let (catalog, _) = store::catalog::current(&mut transaction, environment).await?;
        let scene = SubscriptionChange {
            environment,
            catalog: &catalog,
            now: self.inner.clock.now(environment, postgres_now),
        };
        let mut row = stripe_subscriptions::find(&mut transaction, environment, id).await?;
        if let Some(fetched) = fetched.filter(|fetched| fetched.is_newer_than(row.as_ref())) {
            let SubscriptionSnapshot { billed, event_created, fetched_at } = fetched;
            stripe_subscriptions::write(&mut transaction, environment, billed, *event_created, *fetched_at)
                .await?;
            row = stripe_subscriptions::find(&mut transaction, environment, id).await?;
        }
        let Some(row) = row else { return Ok(()) };
        let whose = resolve_owner(&mut transaction, scene, &row).await?;
        let mut settled = webhook_events::unmapped(&mut transaction, environment, id).await?;
        settled.extend_from_slice(seqs);
        let now = self.inner.clock.outside(postgres_now);
        let (status, reason) = match whose.unmapped {
            None => ("applied", None),
            Some(why) => ("unmapped", Some(why.as_str())),
        };
        webhook_events::settle(&mut transaction, &settled, status, reason, now).await?;
        Ok(transaction.commit().await?)
    }
}

async fn confirm(
    connection: &mut PgConnection,
    environment: Environment,
    fetched: &SubscriptionSnapshot,
) -> Result<bool, EngineError> {
    let SubscriptionSnapshot { billed, event_created, fetched_at } = fetched;
    Ok(stripe_subscriptions::confirm(connection, environment, billed, *event_created, *fetched_at).await?)
}

/// Finds whose a subscription is and which plan it is for, and has all whom it concerns follow.
async fn resolve_owner(
    connection: &mut PgConnection,
    scene: SubscriptionChange<'_>,
    row: &ProviderSubscriptionRow,
) -> Result<SubscriptionOwner, EngineError> {
    let billed = &row.billed;
    let subject = owner(connection, scene, row).await?;
    let found = scene.catalog.plan_of_prices(scene.environment, &billed.prices).map(|plan| plan.key.clone());
    // a price that the catalog does not know yet leaves the plan as it was
    let plan = found.clone().or_else(|| row.whose.plan.clone());
    let missing_plan = plan.is_none() || (found.is_none() && !billed.is_over());
    let whose = SubscriptionOwner {
        subject_id: subject.as_ref().map(|(id, _)| *id),
        plan,
        unmapped: match &subject {
            None => Some(Unmapped::NoSubject),
            Some(_) => missing_plan.then_some(Unmapped::NoPlan),
        },
    };
    let left = row.whose.subject_id.filter(|left| Some(*left) != whose.subject_id);
    if let Some(left) = left.filter(|_| row.governs) {
        stripe_subscriptions::release(connection, left).await?;
    }
    stripe_subscriptions::settle(connection, scene.environment, &billed.id, &whose).await?;
    if let Some(left) = left {
        take_leave(connection, scene, left, row.governs).await?;
    }
    if let Some((subject_id, subject)) = &subject {
        lead(connection, scene, *subject_id, subject).await?;
    }
    Ok(whose)
}

/// Whose a subscription is: by the mapping of its customer, else as the biller was told, else as before.
async fn owner(
    connection: &mut PgConnection,
    scene: SubscriptionChange<'_>,
    row: &ProviderSubscriptionRow,
) -> Result<Option<(i64, SubjectId)>, EngineError> {
    let (billed, environment) = (&row.billed, scene.environment);
    let known = |name: String| SubjectId::parse(name).map_err(|why| EngineError::Internal(why.to_string()));
    if let Some((id, name)) =
        store::subjects::subject::of_mapping(connection, environment, &billed.customer).await?
    {
        return Ok(Some((id, known(name)?)));
    }
    let mut told = billed.subject.clone();
    if told.is_none() {
        let customer = stripe_customers::find(connection, environment, &billed.customer).await?;
        told = customer.and_then(|row| row.subject.or(row.reference)).map(known).transpose()?;
    }
    if let Some(subject) = told {
        map_within(connection, environment, &subject, &billed.customer, scene.now).await?;
        let (member, _) = scene.enrolled(connection, &subject).await?;
        return Ok(Some((member.subject_id, subject)));
    }
    let Some(before) = row.whose.subject_id else { return Ok(None) };
    let name = store::subjects::subject::name(connection, before).await?;
    Ok(name.map(known).transpose()?.map(|name| (before, name)))
}

/// Has a subject follow that of its subscriptions that counts.
async fn lead(
    connection: &mut PgConnection,
    scene: SubscriptionChange<'_>,
    subject_id: i64,
    subject: &SubjectId,
) -> Result<(), EngineError> {
    let rows = stripe_subscriptions::of_subject(connection, subject_id).await?;
    let Some(leader) = leading(&rows, |row| &row.billed) else { return Ok(()) };
    let plan = leader.whose.plan.as_ref().and_then(|key| scene.catalog.plan(key));
    let Some(plan) = plan else { return Ok(()) };
    let terms = leader.billed.terms(&plan.key);
    if leader.governs && leader.stated == Some(terms) {
        return Ok(());
    }
    let (member, before) = scene.enrolled(connection, subject).await?;
    let followed = rows.iter().find(|row| row.governs).and_then(|row| row.stated_plan.as_ref());
    let default_plan = scene.catalog.default_plan.as_ref();
    if leader.billed.leaves_alone(&plan.key, before.as_ref(), followed, default_plan) {
        if followed.is_none() {
            return Ok(());
        }
    } else {
        let statement = leader.billed.statement(plan, before.as_ref(), scene.now);
        scene.state(connection, &member, before.as_ref(), statement).await?;
    }
    Ok(stripe_subscriptions::set_governing(connection, subject_id, &leader.billed.id, terms, &plan.key)
        .await?)
}

/// A subscription has become somebody else's: its subject follows another of its own, or has none now.
async fn take_leave(
    connection: &mut PgConnection,
    scene: SubscriptionChange<'_>,
    subject_id: i64,
    followed: bool,
) -> Result<(), EngineError> {
    let Some(name) = store::subjects::subject::name(connection, subject_id).await? else { return Ok(()) };
    let subject = SubjectId::parse(name).map_err(|why| EngineError::Internal(why.to_string()))?;
    if !stripe_subscriptions::of_subject(connection, subject_id).await?.is_empty() {
        return lead(connection, scene, subject_id, &subject).await;
    }
    let (member, before) = scene.enrolled(connection, &subject).await?;
    match before.filter(|_| followed) {
        Some(before) => scene.end(connection, &member, &before, End::Now, None).await,
        None => Ok(()),
    }
}
