//! Subscriptions: putting a subject on a plan, renewing, ending. Changes hold the configuration lock,
//! so that no decision is made between the old and the new.

use serde::Serialize;
use serde_json::Value;
use sqlx::{Connection, PgConnection};

use crate::engine::{Clock, Engine, EngineError, detached};
use crate::store::subjects::subject::Which;
use crate::store::subjects::subscriptions::{HistoryRow, Holder, NewChange};
use crate::store::{self, StoreError, configuration};
use metergate_domain::base::environment::Environment;
use metergate_domain::base::fields::Violation;
use metergate_domain::base::limits::HISTORY_ROWS_MAX;
use metergate_domain::base::names::{PlanKey, SubjectId};
use metergate_domain::base::timestamp::Timestamp;
use metergate_domain::base::window::Span;
use metergate_domain::catalog::Catalog;
use metergate_domain::gate::catalog_index::CatalogIndex;
use metergate_domain::gate::counter::CounterKey;
use metergate_domain::gate::path::{Path, PathSubject};
use metergate_domain::pricing::commitment::Commitment;
use metergate_domain::pricing::price::Price;
use metergate_domain::subjects::subscription::{
    End, Status, Subscription, SubscriptionChangeKind, SubscriptionParams,
};

/// Ends carried out in one transaction.
const ENDS_MAX: i64 = 1_000;

#[derive(Debug, Clone, Serialize)]
pub struct SubscriptionView {
    pub subject: String,
    pub plan: PlanKey,
    pub status: Status,
    pub cycle_anchor: Timestamp,
    pub period: Span,
    pub ends_at: Option<Timestamp>,
    pub fallback_plan: Option<PlanKey>,
    pub overrides: Value,
    pub prices: Vec<Price>,
    pub commitments: Vec<Commitment>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub history: Option<Vec<HistoryRow>>,
}

fn view(
    subject: &SubjectId,
    subscription: &Subscription,
    (created_at, updated_at): (Timestamp, Timestamp),
    now: Timestamp,
) -> SubscriptionView {
    SubscriptionView {
        subject: subject.to_string(),
        plan: subscription.plan.clone(),
        status: subscription.status,
        cycle_anchor: subscription.cycle.anchor,
        period: subscription.cycle.billing_period(now),
        ends_at: subscription.ends_at,
        fallback_plan: subscription.fallback_plan.clone(),
        // keys and numbers always serialise
        overrides: serde_json::to_value(&subscription.overrides).unwrap_or_default(),
        prices: subscription.prices.clone(),
        commitments: subscription.commitments.clone(),
        created_at,
        updated_at,
        history: None,
    }
}

fn not_found(subject: &SubjectId) -> EngineError {
    EngineError::NotFound {
        code: "subscription_not_found",
        detail: format!("`{subject}` has no subscription; PUT one, or set a default_plan in the catalog"),
    }
}

impl Engine {
    /// Puts a subject on a plan, renews it there, or changes what holds for it alone.
    pub async fn put_subscription(
        &self,
        environment: Environment,
        subject: SubjectId,
        statement: SubscriptionParams,
    ) -> Result<SubscriptionView, EngineError> {
        let (database, clock) = (self.database().clone(), self.inner.clock.clone());
        detached(async move {
            let mut transaction = database.pool().begin().await?;
            configuration::lock_for_change(&mut transaction, environment).await?;
            let now = clock.now(environment, store::usage::now(&mut transaction).await?);
            let (catalog, _) = store::catalog::current(&mut transaction, environment).await?;
            statement.validate(&catalog)?;
            let scene = SubscriptionChange { environment, catalog: &catalog, now };
            let (member, before) = scene.enrolled(&mut transaction, &subject).await?;
            scene.validate_incomparable(&mut transaction, &member, &statement).await?;
            scene.state(&mut transaction, &member, before.as_ref(), statement).await?;
            let shown = shown(&mut transaction, &subject, member.subject_id, now).await?;
            transaction.commit().await?;
            Ok(shown)
        })
        .await
    }

    /// Ends a subscription, now or later; then it falls back to a plan, or is canceled.
    pub async fn end_subscription(
        &self,
        environment: Environment,
        subject: SubjectId,
        end: End,
        fallback_plan: Option<PlanKey>,
    ) -> Result<SubscriptionView, EngineError> {
        let (database, clock) = (self.database().clone(), self.inner.clock.clone());
        detached(async move {
            let mut transaction = database.pool().begin().await?;
            configuration::lock_for_change(&mut transaction, environment).await?;
            let now = clock.now(environment, store::usage::now(&mut transaction).await?);
            let (catalog, _) = store::catalog::current(&mut transaction, environment).await?;
            if let Some(key) = fallback_plan.as_ref().filter(|key| catalog.plan(key).is_none()) {
                let detail = format!("there is no plan `{key}`");
                return Err(EngineError::invalid(
                    Violation::new("unknown_plan", detail).under("fallback_plan"),
                ));
            }
            // one that is only to be taken for granted so far can be ended, too
            let is_root = subscription_and_path(&mut transaction, environment, &subject)
                .await?
                .is_none_or(|path| path.members.len() == 1);
            let scene = SubscriptionChange { environment, catalog: &catalog, now };
            let (member, before) = scene.enrolled(&mut transaction, &subject).await?;
            let before = match before {
                Some(before) => before,
                None => match catalog.default_plan.clone().filter(|_| is_root) {
                    Some(plan) => Subscription::begin(plan, now),
                    None => return Err(not_found(&subject)),
                },
            };
            scene.end(&mut transaction, &member, &before, end, fallback_plan).await?;
            let shown = shown(&mut transaction, &subject, member.subject_id, now).await?;
            transaction.commit().await?;
            Ok(shown)
        })
        .await
    }

    pub async fn get_subscription(
        &self,
        environment: Environment,
        subject: &SubjectId,
        with_history: bool,
    ) -> Result<SubscriptionView, EngineError> {
        let mut snapshot = store::usage::snapshot(self.database().pool()).await?;
        let now = self.inner.clock.now(environment, store::usage::now(&mut snapshot).await?);
        let terms = crate::engine::environment_cache::catalog_index(&mut snapshot, environment).await?;
        let path = subscription_and_path(&mut snapshot, environment, subject).await?;
        let path = path.unwrap_or_else(|| Path::of_stranger(subject)).settled(now, &terms);
        let own = path.members.first().and_then(|m| Some((m.subject_id, m.subscription.as_ref()?)));
        let Some((subject_id, subscription)) = own else { return Err(not_found(subject)) };
        let row = store::subjects::subscriptions::find(&mut snapshot, subject_id).await?;
        let times = row.map_or((now, now), |row| (row.created_at, row.updated_at));
        let mut shown = view(subject, subscription, times, now);
        if with_history {
            let rows =
                store::subjects::subscriptions::history(&mut snapshot, subject_id, HISTORY_ROWS_MAX).await?;
            shown.history = Some(rows);
        }
        snapshot.commit().await?;
        Ok(shown)
    }

    /// Carries out the ends of subscriptions that have come.
    pub async fn end_due_subscriptions(&self, environment: Environment) -> Result<(), EngineError> {
        let mut connection = self.database().pool().acquire().await?;
        let now = self.inner.clock.now(environment, store::usage::now(&mut connection).await?);
        if store::subjects::subscriptions::due(&mut connection, environment, now, 1).await?.is_empty() {
            return Ok(());
        }
        let clock = self.inner.clock.clone();
        detached(async move { Ok(carry_out_ends(&mut connection, environment, &clock).await?) }).await
    }
}

/// Where subscriptions change: in a transaction that holds the configuration lock.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SubscriptionChange<'a> {
    pub(crate) environment: Environment,
    pub(crate) catalog: &'a Catalog,
    pub(crate) now: Timestamp,
}

impl SubscriptionChange<'_> {
    /// A subject, made if need be, and its own subscription as it stands, a due end carried out.
    pub(crate) async fn enrolled(
        self,
        connection: &mut PgConnection,
        subject: &SubjectId,
    ) -> Result<(PathSubject, Option<Subscription>), EngineError> {
        let member = enrol(connection, self.environment, subject).await?;
        let before = current(connection, &member, self.catalog, self.now, self.environment).await?;
        Ok((member, before))
    }

    /// Prices of its own in a currency from which no rate leads to that of a cap, its plan's or its own, would
    /// leave the cap with nothing to compare.
    async fn validate_incomparable(
        self,
        connection: &mut PgConnection,
        member: &PathSubject,
        statement: &SubscriptionParams,
    ) -> Result<(), EngineError> {
        let Some(plan) = self.catalog.plan(&statement.plan).filter(|_| !statement.prices.is_empty()) else {
            return Ok(());
        };
        let rates = store::pricing::exchange_rates::all(connection, self.environment).await?;
        let caps = plan.spend_caps.iter().chain(member.caps.iter().map(|terms| &terms.cap));
        Ok(statement.validate_incomparable(self.catalog, caps, &rates, self.now)?)
    }

    /// Puts a subject on what is stated.
    pub(crate) async fn state(
        self,
        connection: &mut PgConnection,
        member: &PathSubject,
        before: Option<&Subscription>,
        statement: SubscriptionParams,
    ) -> Result<(), EngineError> {
        let Self { environment, catalog, now } = self;
        let mut next = Subscription::with_params(before, statement, catalog, now)?;
        if next.terms_since == now {
            // a clock that went back knows less than what was recorded
            let latest = store::usage::events::latest(connection, environment).await?;
            let at = latest.map_or(now, |latest| latest.max(now));
            next.terms_since = configuration::time_of_change(connection, environment, at).await?;
        }
        // what is made for a newcomer has nothing to be counted from
        if before.is_none() && !store::subjects::subject::has_record(connection, member.subject_id).await? {
            next.pristine_version = Some(configuration::version(connection, environment).await?);
        }
        if before != Some(&next) {
            let kind = SubscriptionChangeKind::between(before, &next, now);
            let subject_id = member.subject_id;
            let change = NewChange { subject_id, kind, subscription: &next, at: now };
            change_to(connection, environment, member, change).await?;
            carry_out_end(connection, environment, member, &next, catalog, now).await?;
        }
        Ok(())
    }

    /// Ends what a subject is on, now or later.
    pub(crate) async fn end(
        self,
        connection: &mut PgConnection,
        member: &PathSubject,
        before: &Subscription,
        end: End,
        fallback_plan: Option<PlanKey>,
    ) -> Result<(), EngineError> {
        let Self { environment, catalog, now } = self;
        let next = before.ending(end, fallback_plan, now);
        if before.status != Status::Canceled && (*before != next || member.subscription.is_none()) {
            let (subject_id, kind) = (member.subject_id, SubscriptionChangeKind::EndSet);
            let change = NewChange { subject_id, kind, subscription: &next, at: now };
            change_to(connection, environment, member, change).await?;
            carry_out_end(connection, environment, member, &next, catalog, now).await?;
        }
        Ok(())
    }
}

/// Carries out ends that have come, in a transaction of its own.
pub(crate) async fn carry_out_ends(
    connection: &mut PgConnection,
    environment: Environment,
    clock: &Clock,
) -> Result<(), StoreError> {
    let mut transaction = connection.begin().await?;
    configuration::lock_for_change(&mut transaction, environment).await?;
    let now = clock.now(environment, store::usage::now(&mut transaction).await?);
    let (catalog, _) = store::catalog::current(&mut transaction, environment).await?;
    for holder in store::subjects::subscriptions::due(&mut transaction, environment, now, ENDS_MAX).await? {
        let Holder { subject_id, subject, subscription } = holder;
        let member = PathSubject::new(subject_id, store::subjects::subject::subject(subject)?);
        carry_out_end(&mut transaction, environment, &member, &subscription, &catalog, now).await?;
    }
    Ok(transaction.commit().await?)
}

async fn carry_out_end(
    connection: &mut PgConnection,
    environment: Environment,
    member: &PathSubject,
    subscription: &Subscription,
    catalog: &Catalog,
    now: Timestamp,
) -> Result<(), StoreError> {
    let Some(mut ended) = subscription.ended(catalog, now) else { return Ok(()) };
    if ended.terms_since != subscription.terms_since {
        ended.terms_since = configuration::time_of_change(connection, environment, ended.terms_since).await?;
    }
    let at = subscription.ends_at.unwrap_or(now);
    let (subject_id, kind) = (member.subject_id, SubscriptionChangeKind::ended(&ended));
    let change = NewChange { subject_id, kind, subscription: &ended, at };
    change_to(connection, environment, member, change).await
}

/// The subject, made if need be, with its own subscription.
async fn enrol(
    connection: &mut PgConnection,
    environment: Environment,
    subject: &SubjectId,
) -> Result<PathSubject, EngineError> {
    store::subjects::subject::insert_missing(connection, environment, &[subject.to_string()]).await?;
    let path = subscription_and_path(connection, environment, subject).await?;
    let member = path.and_then(|path| path.members.into_iter().next());
    member.ok_or_else(|| EngineError::Internal("a subject vanished".to_owned()))
}

async fn subscription_and_path(
    connection: &mut PgConnection,
    environment: Environment,
    subject: &SubjectId,
) -> Result<Option<Path>, StoreError> {
    let names = [subject.to_string()];
    Ok(store::subjects::subject::paths(connection, environment, Which::Of(&names)).await?.into_iter().next())
}

/// The subscription as it stands, a due end carried out.
async fn current(
    connection: &mut PgConnection,
    member: &PathSubject,
    catalog: &Catalog,
    now: Timestamp,
    environment: Environment,
) -> Result<Option<Subscription>, StoreError> {
    let Some(subscription) = &member.subscription else { return Ok(None) };
    carry_out_end(connection, environment, member, subscription, catalog, now).await?;
    Ok(Some(subscription.ended(catalog, now).unwrap_or_else(|| subscription.clone())))
}

/// Writes a change, and drops the counters that its limits do not keep any more.
async fn change_to(
    connection: &mut PgConnection,
    environment: Environment,
    member: &PathSubject,
    change: NewChange<'_>,
) -> Result<(), StoreError> {
    store::subjects::subscriptions::write(connection, environment, change).await?;
    let terms = crate::engine::environment_cache::catalog_index(connection, environment).await?;
    let member = PathSubject { subscription: Some(change.subscription.clone()), ..member.clone() };
    let there = store::gate::counters::of_subject(connection, member.subject_id).await?;
    let dropped: Vec<CounterKey> = there
        .into_iter()
        .filter(|(key, end, since)| !keeps(&terms, &member, *key, *end, *since))
        .map(|(key, _, _)| key)
        .collect();
    store::gate::counters::delete(connection, dropped.into_iter()).await
}

/// Whether a counter is one that a subject's limits still keep, as it is.
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

async fn shown(
    connection: &mut PgConnection,
    subject: &SubjectId,
    subject_id: i64,
    now: Timestamp,
) -> Result<SubscriptionView, EngineError> {
    let row = store::subjects::subscriptions::find(connection, subject_id).await?;
    let row = row.ok_or_else(|| EngineError::Internal("a subscription vanished".to_owned()))?;
    Ok(view(subject, &row.subscription, (row.created_at, row.updated_at), now))
}
