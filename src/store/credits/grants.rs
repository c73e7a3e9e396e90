//! Rows of credit grants: immutable, and unique by external reference.

use std::collections::HashMap;

use serde_json::Value;
use sqlx::postgres::PgRow;
use sqlx::types::Json;
use sqlx::{FromRow, PgConnection, Row};
use uuid::Uuid;

use crate::store::StoreError;
use crate::store::scope::Scope;
use metergate_domain::base::{Timestamp, Total};
use metergate_domain::credits::wallet::{GrantBalance, GrantState};
use metergate_domain::credits::{Grant, GrantSource, Recurrence, Rollover, Unit};

fn unreadable(what: impl std::fmt::Debug) -> StoreError {
    StoreError::Refused(sqlx::Error::Decode(format!("a stored grant cannot be read: {what:?}").into()))
}

pub(crate) fn state_code(state: GrantState) -> i16 {
    match state {
        GrantState::Upcoming => 0,
        GrantState::Open => 1,
        GrantState::Ended => 2,
    }
}

fn state_of(code: i16) -> GrantState {
    match code {
        0 => GrantState::Upcoming,
        1 => GrantState::Open,
        _ => GrantState::Ended,
    }
}

const COLUMNS: &str = "g.id, g.unit, g.unit_key, g.amount, g.priority, g.effective_at, g.expires_at, g.source,
    g.external_ref, g.series, g.recurrence, g.rollover_min, g.rollover_max, g.refund_of, g.reason, g.created_at,
    g.voided_at, b.available, b.held, b.state, b.head";

fn read(row: &PgRow) -> Result<GrantBalance, StoreError> {
    let source: String = row.try_get("source")?;
    let (_, source) =
        GrantSource::WORDS.iter().find(|(word, _)| *word == source).ok_or_else(|| unreadable(&source))?;
    let recurrence: Option<Json<Value>> = row.try_get("recurrence")?;
    let recurrence =
        recurrence.map(|Json(kept)| Recurrence::read_kept(kept)).transpose().map_err(unreadable)?;
    let grant = Grant {
        id: row.try_get("id")?,
        unit: Unit::from_row(row)?,
        amount: row.try_get("amount")?,
        priority: row.try_get("priority")?,
        effective_at: row.try_get("effective_at")?,
        expires_at: row.try_get("expires_at")?,
        source: *source,
        external_ref: row.try_get("external_ref")?,
        series: row.try_get("series")?,
        recurrence,
        rollover: Rollover { min: row.try_get("rollover_min")?, max: row.try_get("rollover_max")? },
        refund_of: row.try_get("refund_of")?,
        reason: row.try_get("reason")?,
        created_at: row.try_get("created_at")?,
        voided_at: row.try_get("voided_at")?,
    };
    Ok(GrantBalance {
        grant,
        available: row.try_get("available")?,
        held: row.try_get("held")?,
        state: state_of(row.try_get("state")?),
        is_head: row.try_get("head")?,
    })
}

/// Inserts a grant with its external reference; returns false if the reference is taken. Waits for a
/// transaction that is inserting the same reference.
pub async fn insert(
    scope: &mut Scope<'_>,
    subject_id: i64,
    grant: &Grant,
    content: Option<Uuid>,
) -> Result<bool, StoreError> {
    let (unit, unit_key) = grant.unit.kept();
    let done = sqlx::query(
        "insert into credit_grants (id, environment, subject_id, unit, unit_key, amount, priority, effective_at,
                                    expires_at, source, external_ref, content, series, recurrence, rollover_min,
                                    rollover_max, refund_of, reason, created_at)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19)
         on conflict on constraint credit_grants_external_ref do nothing",
    )
    .bind(grant.id)
    .bind(scope.environment.code())
    .bind(subject_id)
    .bind(unit)
    .bind(unit_key)
    .bind(grant.amount)
    .bind(grant.priority)
    .bind(grant.effective_at)
    .bind(grant.expires_at)
    .bind(grant.source.as_str())
    .bind(&grant.external_ref)
    .bind(content)
    .bind(&grant.series)
    .bind(grant.recurrence.as_ref().map(Json))
    .bind(grant.rollover.min)
    .bind(grant.rollover.max)
    .bind(grant.refund_of)
    .bind(&grant.reason)
    .bind(grant.created_at)
    .execute(&mut *scope.connection)
    .await?;
    Ok(done.rows_affected() == 1)
}

pub async fn set_voided(
    connection: &mut PgConnection,
    grants: &[(Uuid, Timestamp)],
) -> Result<(), StoreError> {
    let (ids, times): (Vec<Uuid>, Vec<Timestamp>) = grants.iter().copied().unzip();
    sqlx::query(
        "update credit_grants g set voided_at = given.at from unnest($1::uuid[], $2::timestamptz[]) as given (id, at)
         where g.id = given.id and g.voided_at is null",
    )
    .bind(ids)
    .bind(times)
    .execute(connection)
    .await?;
    Ok(())
}

/// Finds the subject, the id and the request digest of the grant with an external reference.
pub async fn of_reference(
    scope: &mut Scope<'_>,
    external_ref: &str,
) -> Result<Option<(i64, Uuid, Option<Uuid>)>, StoreError> {
    let row = sqlx::query(
        "select subject_id, id, content from credit_grants where environment = $1 and external_ref = $2",
    )
    .bind(scope.environment.code())
    .bind(external_ref)
    .fetch_optional(&mut *scope.connection)
    .await?;
    row.map(|row| Ok((row.try_get("subject_id")?, row.try_get("id")?, row.try_get("content")?))).transpose()
}

/// Returns the grants of some subjects that may still change, and the named ones.
pub async fn live(
    connection: &mut PgConnection,
    subject_ids: &[i64],
    named: &[Uuid],
) -> Result<Vec<(i64, GrantBalance)>, StoreError> {
    let sql = format!(
        "select g.subject_id, {COLUMNS} from credit_balances b join credit_grants g on g.id = b.grant_id
         where b.subject_id = any($1) and (b.state < 2 or b.held > 0 or b.head)
         union all
         select g.subject_id, {COLUMNS} from credit_balances b join credit_grants g on g.id = b.grant_id
         where b.subject_id = any($1) and b.grant_id = any($2) and not (b.state < 2 or b.held > 0 or b.head)"
    );
    let rows =
        sqlx::query(sqlx::AssertSqlSafe(sql)).bind(subject_ids).bind(named).fetch_all(connection).await?;
    rows.iter().map(|row| Ok((row.try_get("subject_id")?, read(row)?))).collect()
}

/// Returns the refunded amount by spend; the voided part of a refund does not count.
pub async fn refunded(
    connection: &mut PgConnection,
    subject_ids: &[i64],
    spends: &[i64],
) -> Result<HashMap<i64, Total>, StoreError> {
    let rows = sqlx::query(
        "select g.refund_of, sum(case when g.voided_at is null then g.amount else coalesce((
                    select sum(case l.kind when 'grant' then l.amount else -l.amount end) from credit_ledger l
                    where l.grant_id = g.id and l.kind in ('grant', 'void')), 0) end) as amount
         from credit_grants g where g.subject_id = any($1) and g.refund_of = any($2) group by g.refund_of",
    )
    .bind(subject_ids)
    .bind(spends)
    .fetch_all(connection)
    .await?;
    rows.iter().map(|row| Ok((row.try_get("refund_of")?, row.try_get("amount")?))).collect()
}

/// Returns a page of a subject's grants, the latest first.
pub async fn list(
    connection: &mut PgConnection,
    subject_id: i64,
    before: Option<(Timestamp, Uuid)>,
    limit: u32,
) -> Result<Vec<GrantBalance>, StoreError> {
    let sql = format!(
        "select {COLUMNS} from credit_grants g join credit_balances b on b.subject_id = g.subject_id and b.grant_id = g.id
         where g.subject_id = $1 and ($2::timestamptz is null or (g.created_at, g.id) < ($2, $3))
         order by g.created_at desc, g.id desc limit $4"
    );
    let rows = sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(subject_id)
        .bind(before.map(|(at, _)| at))
        .bind(before.map(|(_, id)| id))
        .bind(i64::from(limit))
        .fetch_all(connection)
        .await?;
    rows.iter().map(read).collect()
}

/// Returns whether grants in a unit may still be spent or renewed.
pub async fn are_live(scope: &mut Scope<'_>, unit: &Unit) -> Result<bool, StoreError> {
    let (kind, key) = unit.kept();
    let found = sqlx::query_scalar(
        "select exists (select from credit_grants g join credit_balances b on b.grant_id = g.id and b.subject_id = g.subject_id
                        where g.environment = $1 and g.unit = $2 and g.unit_key = $3 and (b.state < 2 or b.held > 0))",
    )
    .bind(scope.environment.code())
    .bind(kind)
    .bind(key)
    .fetch_one(&mut *scope.connection)
    .await?;
    Ok(found)
}
