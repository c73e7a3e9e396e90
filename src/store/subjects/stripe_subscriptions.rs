//! The provider's subscriptions in their latest known state, their owners, and the parameters last
//! applied to subjects.

use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};
use uuid::Uuid;

use crate::store::StoreError;
use crate::store::scope::Scope;
use metergate_domain::base::names::{PlanKey, SubjectId};
use metergate_domain::base::{Span, Timestamp, fields};
use metergate_domain::subjects::ProviderSubscription;
use metergate_domain::subjects::subscription::SubscriptionStatus;

/// A stored subscription of the provider. `settled` means that it needs no further look; `governs`
/// means that its subject follows it.
#[derive(Debug, Clone)]
pub struct ProviderSubscriptionRow {
    pub billed: ProviderSubscription,
    pub event_created: Timestamp,
    pub fetched_at: Option<Timestamp>,
    pub owner: SubscriptionOwner,
    pub settled: bool,
    pub governs: bool,
    pub stated: Option<Uuid>,
    pub stated_plan: Option<PlanKey>,
}

/// The subject and the plan of a subscription, as far as known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SubscriptionOwner {
    pub subject_id: Option<i64>,
    pub plan: Option<PlanKey>,
    pub unmapped: Option<Unmapped>,
}

/// The missing part of a mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unmapped {
    NoSubject,
    NoPlan,
}

impl Unmapped {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoSubject => "no_subject",
            Self::NoPlan => "no_plan",
        }
    }
}

const COLUMNS: &str =
    "id, customer, subject, status, price_ids, anchor, period_start, period_end, ends_at, ended_at, created_at,
     event_created, fetched_at, subject_id, plan, unmapped, settled, governs, stated, stated_plan";

fn unreadable(what: impl std::fmt::Debug) -> StoreError {
    StoreError::Refused(sqlx::Error::Decode(
        format!("a stored subscription of the provider is not readable: {what:?}").into(),
    ))
}

fn read(row: &PgRow) -> Result<ProviderSubscriptionRow, StoreError> {
    let status: String = row.try_get("status")?;
    let (start, end): (Option<Timestamp>, Option<Timestamp>) =
        (row.try_get("period_start")?, row.try_get("period_end")?);
    let subject: Option<String> = row.try_get("subject")?;
    let plan = |column: &str| {
        let key: Option<String> = row.try_get(column)?;
        key.map(PlanKey::parse).transpose().map_err(unreadable)
    };
    let unmapped: Option<String> = row.try_get("unmapped")?;
    Ok(ProviderSubscriptionRow {
        billed: ProviderSubscription {
            id: row.try_get("id")?,
            customer: row.try_get("customer")?,
            subject: subject.map(SubjectId::parse).transpose().map_err(unreadable)?,
            status: fields::one_of(status.into(), SubscriptionStatus::WORDS).map_err(unreadable)?,
            prices: row.try_get("price_ids")?,
            anchor: row.try_get("anchor")?,
            period: start.zip(end).map(|(from, to)| Span { from, to }),
            ends_at: row.try_get("ends_at")?,
            ended_at: row.try_get("ended_at")?,
            created_at: row.try_get("created_at")?,
        },
        event_created: row.try_get("event_created")?,
        fetched_at: row.try_get("fetched_at")?,
        owner: SubscriptionOwner {
            subject_id: row.try_get("subject_id")?,
            plan: plan("plan")?,
            unmapped: match unmapped.as_deref() {
                None => None,
                Some("no_subject") => Some(Unmapped::NoSubject),
                Some(_) => Some(Unmapped::NoPlan),
            },
        },
        settled: row.try_get("settled")?,
        governs: row.try_get("governs")?,
        stated: row.try_get("stated")?,
        stated_plan: plan("stated_plan")?,
    })
}

pub async fn find(scope: &mut Scope<'_>, id: &str) -> Result<Option<ProviderSubscriptionRow>, StoreError> {
    let sql = format!("select {COLUMNS} from stripe_subscriptions where environment = $1 and id = $2");
    let row = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(scope.environment.code()).bind(id);
    row.fetch_optional(&mut *scope.connection).await?.as_ref().map(read).transpose()
}

/// Reads the subscriptions of a subject that have a known plan.
pub async fn of_subject(
    connection: &mut PgConnection,
    subject_id: i64,
) -> Result<Vec<ProviderSubscriptionRow>, StoreError> {
    let sql = format!(
        "select {COLUMNS} from stripe_subscriptions where subject_id = $1 and plan is not null order by id"
    );
    let rows = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(subject_id).fetch_all(connection).await?;
    rows.iter().map(read).collect()
}

/// Writes the provider's present state. The caller holds the configuration lock.
pub async fn write(
    scope: &mut Scope<'_>,
    billed: &ProviderSubscription,
    event_created: Timestamp,
    fetched_at: Option<Timestamp>,
) -> Result<(), StoreError> {
    sqlx::query(
        "insert into stripe_subscriptions as s (environment, id, customer, subject, status, price_ids, anchor, period_start,
                                                period_end, ends_at, ended_at, created_at, says, event_created, fetched_at,
                                                settled)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, false)
         on conflict on constraint stripe_subscriptions_pk do update set
             customer = excluded.customer, subject = excluded.subject, status = excluded.status,
             price_ids = excluded.price_ids, anchor = excluded.anchor, period_start = excluded.period_start,
             period_end = excluded.period_end, ends_at = excluded.ends_at, ended_at = excluded.ended_at,
             created_at = excluded.created_at, says = excluded.says,
             event_created = greatest(s.event_created, excluded.event_created),
             fetched_at = greatest(s.fetched_at, excluded.fetched_at)",
    )
    .bind(scope.environment.code())
    .bind(&billed.id)
    .bind(&billed.customer)
    .bind(billed.subject.as_ref().map(SubjectId::as_str))
    .bind(billed.status.as_str())
    .bind(&billed.prices)
    .bind(billed.anchor)
    .bind(billed.period.map(|period| period.from))
    .bind(billed.period.map(|period| period.to))
    .bind(billed.ends_at)
    .bind(billed.ended_at)
    .bind(billed.created_at)
    .bind(billed.says())
    .bind(event_created)
    .bind(fetched_at)
    .execute(&mut *scope.connection)
    .await?;
    Ok(())
}

/// Updates the times of an unchanged subscription. Returns false if its state changed, or if it must be
/// applied again.
pub async fn confirm(
    scope: &mut Scope<'_>,
    billed: &ProviderSubscription,
    event_created: Timestamp,
    fetched_at: Option<Timestamp>,
) -> Result<bool, StoreError> {
    let done = sqlx::query(
        "update stripe_subscriptions set event_created = greatest(event_created, $4),
                                         fetched_at = greatest(fetched_at, $5)
         where environment = $1 and id = $2 and says = $3 and settled and unmapped is null",
    )
    .bind(scope.environment.code())
    .bind(&billed.id)
    .bind(billed.says())
    .bind(event_created)
    .bind(fetched_at)
    .execute(&mut *scope.connection)
    .await?;
    Ok(done.rows_affected() > 0)
}

/// Writes the owner of a subscription, and marks it as applied.
pub async fn settle(scope: &mut Scope<'_>, id: &str, owner: &SubscriptionOwner) -> Result<(), StoreError> {
    sqlx::query(
        "update stripe_subscriptions set subject_id = $3, plan = $4, unmapped = $5, settled = true
         where environment = $1 and id = $2",
    )
    .bind(scope.environment.code())
    .bind(id)
    .bind(owner.subject_id)
    .bind(owner.plan.as_ref().map(PlanKey::as_str))
    .bind(owner.unmapped.map(Unmapped::as_str))
    .execute(&mut *scope.connection)
    .await?;
    Ok(())
}

/// Marks the subscription that a subject follows, with the fingerprint and the plan that were applied.
pub async fn set_governing(
    connection: &mut PgConnection,
    subject_id: i64,
    id: &str,
    stated: Uuid,
    plan: &PlanKey,
) -> Result<(), StoreError> {
    release(connection, subject_id).await?;
    sqlx::query(
        "update stripe_subscriptions set governs = true, stated = $3, stated_plan = $4
         where subject_id = $1 and id = $2",
    )
    .bind(subject_id)
    .bind(id)
    .bind(stated)
    .bind(plan.as_str())
    .execute(connection)
    .await?;
    Ok(())
}

/// Clears the subscription that a subject follows.
pub async fn release(connection: &mut PgConnection, subject_id: i64) -> Result<(), StoreError> {
    sqlx::query(
        "update stripe_subscriptions set governs = false, stated = null, stated_plan = null
         where subject_id = $1 and governs",
    )
    .bind(subject_id)
    .execute(connection)
    .await?;
    Ok(())
}

/// Marks the subscriptions of a customer to be applied again, because their owner may have changed.
pub async fn unsettle_customer(scope: &mut Scope<'_>, customer: &str) -> Result<u64, StoreError> {
    let done = sqlx::query(
        "update stripe_subscriptions set settled = false where environment = $1 and customer = $2 and settled",
    )
    .bind(scope.environment.code())
    .bind(customer)
    .execute(&mut *scope.connection)
    .await?;
    Ok(done.rows_affected())
}

/// Marks subscriptions without a plan to be applied again.
pub async fn unsettle_without_plan(scope: &mut Scope<'_>) -> Result<u64, StoreError> {
    let done = sqlx::query(
        "update stripe_subscriptions set settled = false
         where environment = $1 and unmapped = 'no_plan' and settled",
    )
    .bind(scope.environment.code())
    .execute(&mut *scope.connection)
    .await?;
    Ok(done.rows_affected())
}

/// Returns some subscriptions that must be applied again.
pub async fn unsettled(scope: &mut Scope<'_>, limit: i64) -> Result<Vec<String>, StoreError> {
    let found = sqlx::query_scalar(
        "select id from stripe_subscriptions where environment = $1 and not settled order by id limit $2",
    )
    .bind(scope.environment.code())
    .bind(limit)
    .fetch_all(&mut *scope.connection)
    .await?;
    Ok(found)
}

/// Returns whether a customer had subscriptions, and all have ended.
pub async fn is_spent(scope: &mut Scope<'_>, customer: &str) -> Result<bool, StoreError> {
    let spent: Option<bool> = sqlx::query_scalar(
        "select bool_and(status in ('canceled', 'incomplete_expired')) from stripe_subscriptions
         where environment = $1 and customer = $2",
    )
    .bind(scope.environment.code())
    .bind(customer)
    .fetch_one(&mut *scope.connection)
    .await?;
    Ok(spent == Some(true))
}
