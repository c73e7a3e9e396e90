//! Subscribes subjects to plans, renews and ends subscriptions. Changes hold the configuration lock, so
//! that no decision mixes the old and the new state.

use serde::Serialize;
use serde_json::Value;

use super::subscription_changes::{SubscriptionTransaction, subscription_and_path};
use crate::engine::change::ChangeTransaction;
use crate::engine::error::EngineError;
use crate::engine::services::{Engine, detached};
pub(crate) use crate::engine::subjects::subscription_changes::carry_out_ends;
use crate::store;
use crate::store::Scope;
use crate::store::subjects::subscriptions::{HistoryRow, SubscriptionRow};
use metergate_domain::base::limits::HISTORY_ROWS_MAX;
use metergate_domain::base::names::{PlanKey, SubjectId};
use metergate_domain::base::{Environment, Span, Timestamp, Violation};
use metergate_domain::gate::Path;
use metergate_domain::pricing::{Commitment, Price};
use metergate_domain::subjects::subscription::SubscriptionStatus;
use metergate_domain::subjects::{End, Subscription, SubscriptionParams};

/// A subscription as shown in answers.
#[derive(Debug, Clone, Serialize)]
pub struct SubscriptionView {
    pub subject: String,
    pub plan: PlanKey,
    pub status: SubscriptionStatus,
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

/// The times in a subscription's row.
#[derive(Debug, Clone, Copy)]
struct ChangeTimes {
    created_at: Timestamp,
    updated_at: Timestamp,
}

impl ChangeTimes {
    fn of(row: &SubscriptionRow) -> Self {
        Self { created_at: row.created_at, updated_at: row.updated_at }
    }
}

fn view(
    subject: &SubjectId,
    subscription: &Subscription,
    times: ChangeTimes,
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
        created_at: times.created_at,
        updated_at: times.updated_at,
        history: None,
    }
}

fn not_found(subject: &SubjectId) -> EngineError {
    EngineError::NotFound {
        code: "subscription_not_found",
        detail: format!(
            "`{subject}` has no subscription; create one with PUT or set `default_plan` in the catalog"
        ),
    }
}

impl Engine {
    /// Puts a subject on a plan, renews its subscription, or changes the subject's own terms.
    pub async fn put_subscription(
        &self,
        environment: Environment,
        subject: SubjectId,
        statement: SubscriptionParams,
    ) -> Result<SubscriptionView, EngineError> {
        let (database, clock) = (self.database().clone(), self.inner.clock.clone());
        detached(async move {
            let change = ChangeTransaction::begin(database.pool(), environment, &clock).await?;
            let mut change = SubscriptionTransaction::new(change).await?;
            statement.validate(&change.catalog)?;
            let (member, before) = change.enrolled(&subject).await?;
            change.validate_incomparable(&member, &statement).await?;
            change.state(&member, before.as_ref(), statement).await?;
            let shown = shown(&mut change, &subject, member.subject_id).await?;
            change.commit().await?;
            Ok(shown)
        })
        .await
    }

    /// Ends a subscription, now or later. The subject then moves to a fallback plan, or the
    /// subscription is canceled.
    pub async fn end_subscription(
        &self,
        environment: Environment,
        subject: SubjectId,
        end: End,
        fallback_plan: Option<PlanKey>,
    ) -> Result<SubscriptionView, EngineError> {
        let (database, clock) = (self.database().clone(), self.inner.clock.clone());
        detached(async move {
            let change = ChangeTransaction::begin(database.pool(), environment, &clock).await?;
            let mut change = SubscriptionTransaction::new(change).await?;
            if let Some(key) = fallback_plan.as_ref().filter(|key| change.catalog.plan(key).is_none()) {
                let detail = format!("must be the key of a plan in the catalog; got `{key}`");
                return Err(EngineError::invalid(
                    Violation::new("unknown_plan", detail).under("fallback_plan"),
                ));
            }
            // a default plan without a stored row can be ended, too
            let is_root = subscription_and_path(&mut change.scope(), &subject)
                .await?
                .is_none_or(|path| path.members.len() == 1);
            let (member, before) = change.enrolled(&subject).await?;
            let before = match before {
                Some(before) => before,
                None => match change.catalog.default_plan.clone().filter(|_| is_root) {
                    Some(plan) => Subscription::begin(plan, change.now()),
                    None => return Err(not_found(&subject)),
                },
            };
            change.end(&member, &before, end, fallback_plan).await?;
            let shown = shown(&mut change, &subject, member.subject_id).await?;
            change.commit().await?;
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
        let scope = &mut Scope::new(&mut snapshot, environment);
        let now = self.inner.clock.now(environment, store::usage::now(scope.connection).await?);
        let terms = crate::engine::environment_cache::catalog_index(scope).await?;
        let path = subscription_and_path(scope, subject).await?;
        let path = path.unwrap_or_else(|| Path::of_stranger(subject)).settled(now, &terms);
        let own = path.members.first().and_then(|m| Some((m.subject_id, m.subscription.as_ref()?)));
        let Some((subject_id, subscription)) = own else { return Err(not_found(subject)) };
        let row = store::subjects::subscriptions::find(scope.connection, subject_id).await?;
        let times = row.map_or(ChangeTimes { created_at: now, updated_at: now }, |row| ChangeTimes::of(&row));
        let mut shown = view(subject, subscription, times, now);
        if with_history {
            let rows =
                store::subjects::subscriptions::history(scope.connection, subject_id, HISTORY_ROWS_MAX)
                    .await?;
            shown.history = Some(rows);
        }
        snapshot.commit().await?;
        Ok(shown)
    }

    /// Carries out the due ends of subscriptions.
    pub async fn end_due_subscriptions(&self, environment: Environment) -> Result<(), EngineError> {
        let mut connection = self.database().pool().acquire().await?;
        let scope = &mut Scope::new(&mut connection, environment);
        let now = self.inner.clock.now(environment, store::usage::now(scope.connection).await?);
        if store::subjects::subscriptions::due(scope, now, 1).await?.is_empty() {
            return Ok(());
        }
        let clock = self.inner.clock.clone();
        detached(
            async move { Ok(carry_out_ends(&mut Scope::new(&mut connection, environment), &clock).await?) },
        )
        .await
    }
}

async fn shown(
    change: &mut SubscriptionTransaction<'_>,
    subject: &SubjectId,
    subject_id: i64,
) -> Result<SubscriptionView, EngineError> {
    let row = store::subjects::subscriptions::find(change.connection(), subject_id).await?;
    let row = row.ok_or_else(|| {
        EngineError::Internal("a subscription that was just written does not exist".to_owned())
    })?;
    Ok(view(subject, &row.subscription, ChangeTimes::of(&row), change.now()))
}
