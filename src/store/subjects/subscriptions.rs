//! Subscriptions, with the history of their changes.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value};
use sqlx::postgres::PgRow;
use sqlx::types::Json;
use sqlx::{FromRow, PgConnection, Row};
use uuid::Uuid;

use crate::store::StoreError;
use crate::store::scope::Scope;
use metergate_domain::base::names::PlanKey;
use metergate_domain::base::{Cycle, Span, Timestamp, fields};
use metergate_domain::subjects::Subscription;
use metergate_domain::subjects::subscription::{
    SubscriptionChangeKind, SubscriptionStatus, read_commitments, read_overrides, read_prices,
};

/// The columns of a subscription, under the alias `sub`.
pub(crate) const COLUMNS: &str =
    "sub.plan, sub.status, sub.cycle_anchor, sub.period_start, sub.period_end, sub.ends_at,
     sub.fallback_plan, sub.overrides, sub.prices, sub.commitments, sub.terms_since, sub.pristine_version, sub.resets";

#[derive(Debug, Clone)]
pub struct SubscriptionRow {
    pub subscription: Subscription,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

/// A change of a subscription, with the state after it.
#[derive(Debug, Clone, Serialize, FromRow)]
pub struct HistoryRow {
    pub at: Timestamp,
    #[sqlx(try_from = "String")]
    pub change: SubscriptionChangeKind,
    pub plan: String,
    #[sqlx(try_from = "String")]
    pub status: SubscriptionStatus,
    pub cycle_anchor: Timestamp,
    pub period_start: Option<Timestamp>,
    pub period_end: Option<Timestamp>,
    pub ends_at: Option<Timestamp>,
    pub fallback_plan: Option<String>,
    #[sqlx(json)]
    pub overrides: Value,
    #[sqlx(json)]
    pub prices: Value,
    #[sqlx(json)]
    pub commitments: Value,
}

/// A change to be written.
#[derive(Debug, Clone, Copy)]
pub struct NewChange<'a> {
    pub subject_id: i64,
    pub kind: SubscriptionChangeKind,
    /// The subscription after the change.
    pub subscription: &'a Subscription,
    pub at: Timestamp,
}

/// A subject without a subscription.
#[derive(Debug, Clone, Copy)]
pub struct Newcomer {
    pub subject_id: i64,
    /// The version of the configuration, if nothing was recorded for the subject before.
    pub pristine_version: Option<i64>,
}

fn unreadable(what: impl std::fmt::Debug) -> StoreError {
    StoreError::Refused(sqlx::Error::Decode(
        format!("a stored subscription is not readable: {what:?}").into(),
    ))
}

/// Reads the columns. Returns none if a left join found no subscription.
pub(crate) fn read(row: &PgRow) -> Result<Option<Subscription>, StoreError> {
    let Some(plan): Option<String> = row.try_get("plan")? else { return Ok(None) };
    let key = |plan: String| PlanKey::parse(plan).map_err(unreadable);
    let (start, end): (Option<Timestamp>, Option<Timestamp>) =
        (row.try_get("period_start")?, row.try_get("period_end")?);
    let fallback: Option<String> = row.try_get("fallback_plan")?;
    let (Json(overrides), Json(prices)): (Json<Value>, Json<Value>) =
        (row.try_get("overrides")?, row.try_get("prices")?);
    let Json(commitments): Json<Value> = row.try_get("commitments")?;
    let Json(resets): Json<Map<String, Value>> = row.try_get("resets")?;
    let reset = |(definition, at): (String, Value)| {
        let definition = Uuid::try_parse(&definition).map_err(unreadable)?;
        Ok((definition, fields::timestamp(at).map_err(unreadable)?))
    };
    Ok(Some(Subscription {
        plan: key(plan)?,
        status: SubscriptionStatus::try_from(row.try_get::<String, _>("status")?).map_err(unreadable)?,
        cycle: Cycle {
            anchor: row.try_get("cycle_anchor")?,
            billing: start.zip(end).map(|(from, to)| Span { from, to }),
        },
        ends_at: row.try_get("ends_at")?,
        fallback_plan: fallback.map(key).transpose()?,
        overrides: read_overrides(overrides).map_err(unreadable)?,
        prices: read_prices(prices).map_err(unreadable)?,
        commitments: read_commitments(commitments).map_err(unreadable)?,
        terms_since: row.try_get("terms_since")?,
        pristine_version: row.try_get("pristine_version")?,
        resets: resets.into_iter().map(reset).collect::<Result<BTreeMap<_, _>, StoreError>>()?,
    }))
}

pub async fn find(
    connection: &mut PgConnection,
    subject_id: i64,
) -> Result<Option<SubscriptionRow>, StoreError> {
    let sql = format!(
        "select {COLUMNS}, sub.created_at, sub.updated_at from subscriptions sub where sub.subject_id = $1"
    );
    let row = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(subject_id).fetch_optional(connection).await?;
    let Some(row) = row else { return Ok(None) };
    let Some(subscription) = read(&row)? else { return Ok(None) };
    Ok(Some(SubscriptionRow {
        subscription,
        created_at: row.try_get("created_at")?,
        updated_at: row.try_get("updated_at")?,
    }))
}

/// Writes a subscription, and adds the change to its history. The caller holds the configuration lock.
pub async fn write(scope: &mut Scope<'_>, change: NewChange<'_>) -> Result<(), StoreError> {
    let NewChange { subject_id, kind, subscription, at } = change;
    let resets: BTreeMap<String, Timestamp> =
        subscription.resets.iter().map(|(definition, at)| (definition.to_string(), *at)).collect();
    let billing = subscription.cycle.billing;
    sqlx::query(
        "with written as (
             insert into subscriptions (subject_id, environment, plan, status, cycle_anchor, period_start, period_end,
                                        ends_at, fallback_plan, overrides, terms_since, pristine_version, resets, created_at,
                                        updated_at, prices, commitments)
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $15, $15, $16, $17)
             on conflict on constraint subscriptions_pk do update set
                 plan = excluded.plan, status = excluded.status, cycle_anchor = excluded.cycle_anchor,
                 period_start = excluded.period_start, period_end = excluded.period_end, ends_at = excluded.ends_at,
                 fallback_plan = excluded.fallback_plan, overrides = excluded.overrides,
                 prices = excluded.prices, commitments = excluded.commitments, terms_since = excluded.terms_since, pristine_version = excluded.pristine_version, resets = excluded.resets,
                 updated_at = excluded.updated_at)
         insert into subscription_history (subject_id, change, plan, status, cycle_anchor, period_start, period_end,
                                           ends_at, fallback_plan, overrides, at, prices, commitments)
         values ($1, $14, $3, $4, $5, $6, $7, $8, $9, $10, $15, $16, $17)",
    )
    .bind(subject_id)
    .bind(scope.environment.code())
    .bind(subscription.plan.as_str())
    .bind(subscription.status.as_str())
    .bind(subscription.cycle.anchor)
    .bind(billing.map(|span| span.from))
    .bind(billing.map(|span| span.to))
    .bind(subscription.ends_at)
    .bind(subscription.fallback_plan.as_ref().map(PlanKey::as_str))
    .bind(Json(&subscription.overrides))
    .bind(subscription.terms_since)
    .bind(subscription.pristine_version)
    .bind(Json(resets))
    .bind(kind.as_str())
    .bind(at)
    .bind(Json(&subscription.prices))
    .bind(Json(&subscription.commitments))
    .execute(&mut *scope.connection)
    .await?;
    Ok(())
}

/// Puts subjects on the default plan, unless they have a subscription already. Their ids must ascend,
/// so that concurrent transactions wait for each other in one order.
pub async fn insert_default(
    scope: &mut Scope<'_>,
    newcomers: &[Newcomer],
    plan: &PlanKey,
    now: Timestamp,
) -> Result<(), StoreError> {
    let (subject_ids, pristine_versions): (Vec<i64>, Vec<Option<i64>>) =
        newcomers.iter().map(|new| (new.subject_id, new.pristine_version)).unzip();
    sqlx::query(
        "with made as (
             insert into subscriptions (subject_id, environment, plan, status, cycle_anchor, terms_since, pristine_version,
                                        created_at, updated_at)
             select id, $1, $4, 'active', $5, $5, pristine_version, $5, $5
             from unnest($2::bigint[], $3::bigint[]) as given (id, pristine_version)
             on conflict on constraint subscriptions_pk do nothing
             returning subject_id)
         insert into subscription_history (subject_id, at, change, plan, status, cycle_anchor, overrides)
         select subject_id, $5, 'created', $4, 'active', $5, '{}' from made",
    )
    .bind(scope.environment.code())
    .bind(subject_ids)
    .bind(pristine_versions)
    .bind(plan.as_str())
    .bind(now)
    .execute(&mut *scope.connection)
    .await?;
    Ok(())
}

/// Returns the subjects that have, or ever had, descendants.
pub async fn with_descendants(
    connection: &mut PgConnection,
    subject_ids: &[i64],
) -> Result<Vec<i64>, StoreError> {
    let found = sqlx::query_scalar(
        "select given.subject_id from unnest($1::bigint[]) as given (subject_id)
         where exists (select from paths p where p.ancestors && array[given.subject_id]
                                             and p.ancestors <> array[given.subject_id])",
    )
    .bind(subject_ids)
    .fetch_all(connection)
    .await?;
    Ok(found)
}

/// Returns the subjects with due ends, each with its present subscription.
pub async fn due(scope: &mut Scope<'_>, now: Timestamp, limit: i64) -> Result<Vec<Holder>, StoreError> {
    let sql = format!(
        "select s.id as subject_id, s.subject, {COLUMNS}
         from subscriptions sub join subjects s on s.id = sub.subject_id
         where sub.environment = $1 and sub.ends_at <= $2 and sub.status <> 'canceled'
         order by sub.ends_at limit $3"
    );
    let rows = sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(scope.environment.code())
        .bind(now)
        .bind(limit)
        .fetch_all(&mut *scope.connection)
        .await?;
    rows.iter().map(holder).collect()
}

fn holder(row: &PgRow) -> Result<Holder, StoreError> {
    let subscription = read(row)?.ok_or_else(|| unreadable("without a plan"))?;
    Ok(Holder { subject_id: row.try_get("subject_id")?, subject: row.try_get("subject")?, subscription })
}

/// Returns the changes of a subscription, the oldest first. If there are too many, only the latest.
pub async fn history(
    connection: &mut PgConnection,
    subject_id: i64,
    limit: i64,
) -> Result<Vec<HistoryRow>, StoreError> {
    let mut rows: Vec<HistoryRow> = sqlx::query_as(
        "select at, change, plan, status, cycle_anchor, period_start, period_end, ends_at, fallback_plan, overrides,
                prices, commitments
         from subscription_history where subject_id = $1 order by id desc limit $2",
    )
    .bind(subject_id)
    .bind(limit)
    .fetch_all(connection)
    .await?;
    rows.reverse();
    Ok(rows)
}

/// Returns the plans with subscribers, or to which subscribers fall back.
pub async fn plans_in_use(scope: &mut Scope<'_>, plans: &[String]) -> Result<Vec<String>, StoreError> {
    let found = sqlx::query_scalar(
        "select plan from unnest($2::text[]) plan
         where exists (select from subscriptions s where s.environment = $1 and s.plan = plan.plan)
            or exists (select from subscriptions s where s.environment = $1 and s.fallback_plan = plan.plan)",
    )
    .bind(scope.environment.code())
    .bind(plans)
    .fetch_all(&mut *scope.connection)
    .await?;
    Ok(found)
}

/// A subject with a subscription of its own.
#[derive(Debug, Clone)]
pub struct Holder {
    pub subject_id: i64,
    pub subject: String,
    pub subscription: Subscription,
}

/// Returns the subjects that are on some plans, or have prices of their own.
pub async fn holders(
    scope: &mut Scope<'_>,
    plans: &[String],
    rows_max: usize,
) -> Result<Vec<Holder>, StoreError> {
    let sql = format!(
        "select s.id as subject_id, s.subject, {COLUMNS} from subscriptions sub join subjects s on s.id = sub.subject_id
         where sub.environment = $1 and (sub.plan = any($2) or sub.prices <> '[]') limit $3"
    );
    let rows = sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(scope.environment.code())
        .bind(plans)
        .bind(i64::try_from(rows_max).unwrap_or(i64::MAX))
        .fetch_all(&mut *scope.connection)
        .await?;
    rows.iter().map(holder).collect()
}
