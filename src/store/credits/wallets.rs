//! Rows of wallets: the lock on a subject's credits, and all writes under it. Wallets are locked in ascending
//! order of subject, after counters.

use std::collections::BTreeMap;

use sqlx::{PgConnection, Row};
use uuid::Uuid;

use super::grants;
use super::grants::state_code;
use crate::store::StoreError;
use crate::store::gate::hold_lines::on_expiry_code;
use crate::store::scope::Scope;
use metergate_domain::base::{Quantity, Timestamp, Total};
use metergate_domain::credits::wallet::{ExpiredCreditLine, Wallet};
use metergate_domain::gate::{CreditLine, CreditLineKey, OnExpiry, PaidShare};

/// Inserts missing wallets. `subject_ids` must ascend, so that concurrent inserts cannot deadlock.
pub async fn insert_missing(scope: &mut Scope<'_>, subject_ids: &[i64]) -> Result<(), StoreError> {
    sqlx::query(
        "insert into credit_wallets (subject_id, environment) select id, $1 from unnest($2::bigint[]) id
         on conflict on constraint credit_wallets_pk do nothing",
    )
    .bind(scope.environment.code())
    .bind(subject_ids)
    .execute(&mut *scope.connection)
    .await?;
    Ok(())
}

/// Locks the existing wallets in order. Returns the earliest possible expiry of a hold line of each, and the
/// time after the last lock.
pub async fn lock(
    connection: &mut PgConnection,
    subject_ids: &[i64],
) -> Result<(BTreeMap<i64, Option<Timestamp>>, Option<Timestamp>), StoreError> {
    let rows = sqlx::query(
        "with locked as materialized (
             select subject_id, next_line from credit_wallets where subject_id = any($1)
             order by subject_id for no key update)
         select subject_id, next_line, clock_timestamp() as now from locked",
    )
    .bind(subject_ids)
    .fetch_all(connection)
    .await?;
    let now = rows.last().map(|row| row.try_get("now")).transpose()?;
    let found = rows.iter().map(|row| Ok((row.try_get("subject_id")?, row.try_get("next_line")?)));
    Ok((found.collect::<Result<_, StoreError>>()?, now))
}

/// Finds wallets without locking them.
pub async fn find(
    connection: &mut PgConnection,
    subject_ids: &[i64],
) -> Result<BTreeMap<i64, Option<Timestamp>>, StoreError> {
    let rows = sqlx::query("select subject_id, next_line from credit_wallets where subject_id = any($1)")
        .bind(subject_ids)
        .fetch_all(connection)
        .await?;
    rows.iter().map(|row| Ok((row.try_get("subject_id")?, row.try_get("next_line")?))).collect()
}

/// Returns wallets with the grants that may still change and those that are named.
pub async fn open(
    connection: &mut PgConnection,
    found: &BTreeMap<i64, Option<Timestamp>>,
    named: &[Uuid],
) -> Result<BTreeMap<i64, Wallet>, StoreError> {
    let mut grant_balances = BTreeMap::new();
    if !found.is_empty() {
        let subject_ids: Vec<i64> = found.keys().copied().collect();
        for (subject_id, grant_balance) in grants::live(connection, &subject_ids, named).await? {
            grant_balances.entry(subject_id).or_insert_with(Vec::new).push(grant_balance);
        }
    }
    let wallet = |(subject_id, next_line): (&i64, &Option<Timestamp>)| {
        (
            *subject_id,
            Wallet::new(*subject_id, *next_line, grant_balances.remove(subject_id).unwrap_or_default()),
        )
    };
    Ok(found.iter().map(wallet).collect())
}

/// An expired hold line.
#[derive(Debug, Clone, Copy)]
pub struct ExpiredCreditLineRow {
    pub subject_id: i64,
    pub on_expiry: OnExpiry,
    pub expired: ExpiredCreditLine,
}

/// Returns the expired hold lines of some wallets.
pub async fn expired(
    connection: &mut PgConnection,
    subject_ids: &[i64],
    now: Timestamp,
) -> Result<Vec<ExpiredCreditLineRow>, StoreError> {
    let rows = sqlx::query(
        "select subject_id, grant_id, expires_at, reservation, on_expiry, amount from credit_lines
         where subject_id = any($1) and expires_at <= $2",
    )
    .bind(subject_ids)
    .bind(now)
    .fetch_all(connection)
    .await?;
    let read = |row: &sqlx::postgres::PgRow| {
        let on_expiry: i16 = row.try_get("on_expiry")?;
        Ok(ExpiredCreditLineRow {
            subject_id: row.try_get("subject_id")?,
            on_expiry: if on_expiry == 1 { OnExpiry::Commit } else { OnExpiry::Release },
            expired: ExpiredCreditLine {
                grant: row.try_get("grant_id")?,
                reservation: row.try_get("reservation")?,
                expires_at: row.try_get("expires_at")?,
                amount: row.try_get("amount")?,
            },
        })
    };
    rows.iter().map(read).collect()
}

/// Returns the expiry of the first hold line after `now`, by wallet.
pub async fn next_lines(
    connection: &mut PgConnection,
    subject_ids: &[i64],
    now: Timestamp,
) -> Result<Vec<(i64, Option<Timestamp>)>, StoreError> {
    let rows = sqlx::query(
        "select id, (select min(expires_at) from credit_lines where subject_id = id and expires_at > $2) as next
         from unnest($1::bigint[]) id",
    )
    .bind(subject_ids)
    .bind(now)
    .fetch_all(connection)
    .await?;
    rows.iter().map(|row| Ok((row.try_get("id")?, row.try_get("next")?))).collect()
}

/// Returns the subjects with due changes in their wallets.
pub async fn due(scope: &mut Scope<'_>, now: Timestamp, limit: i64) -> Result<Vec<i64>, StoreError> {
    let found = sqlx::query_scalar(
        "select subject_id from credit_wallets where environment = $1 and next_due <= $2 order by next_due limit $3",
    )
    .bind(scope.environment.code())
    .bind(now)
    .bind(limit)
    .fetch_all(&mut *scope.connection)
    .await?;
    Ok(found)
}

/// The changes of locked wallets.
#[derive(Debug, Default)]
pub struct Changes<'a> {
    pub wallets: Vec<&'a Wallet>,
    pub lines: Vec<(CreditLineKey, CreditLine)>,
    pub gone: Vec<CreditLineKey>,
    pub paid: Vec<PaidShare>,
}

/// Writes the changes. The rows of the ledger keep their order, wallet by wallet.
pub async fn write(scope: &mut Scope<'_>, changes: &Changes<'_>) -> Result<(), StoreError> {
    for wallet in &changes.wallets {
        for grant_balance in wallet.made() {
            grants::insert(scope, wallet.subject_id, &grant_balance.grant, None).await?;
        }
    }
    write_balances(scope, &changes.wallets).await?;
    if !changes.lines.is_empty() || !changes.gone.is_empty() {
        write_lines(scope, changes).await?;
    }
    if !changes.paid.is_empty() {
        write_covers(scope, &changes.paid).await?;
    }
    Ok(())
}

async fn write_balances(scope: &mut Scope<'_>, wallets: &[&Wallet]) -> Result<(), StoreError> {
    let grant_balances: Vec<_> = wallets
        .iter()
        .flat_map(|w| w.changed().map(move |grant_balance| (w.subject_id, grant_balance)))
        .collect();
    let moved: Vec<_> =
        wallets.iter().flat_map(|w| w.movements().iter().map(move |moved| (w.subject_id, moved))).collect();
    let units: Vec<(&str, String)> = moved.iter().map(|(_, moved)| moved.unit.kept()).collect();
    let accounts: Vec<_> = moved.iter().map(|(_, moved)| moved.kind.accounts()).collect();
    let used: Vec<_> = moved.iter().map(|(_, moved)| moved.cause.used.as_ref()).collect();
    sqlx::query(
        "with balanced as (
             insert into credit_balances (environment, subject_id, grant_id, available, held, state, head)
             select $1, * from unnest($2::bigint[], $3::uuid[], $4::numeric[], $5::numeric[], $6::smallint[], $7::boolean[])
             on conflict on constraint credit_balances_pk do update
             set available = excluded.available, held = excluded.held, state = excluded.state, head = excluded.head),
         timed as (
             update credit_wallets w set next_line = given.next_line, next_due = given.next_due
             from unnest($8::bigint[], $9::timestamptz[], $10::timestamptz[]) as given (subject_id, next_line, next_due)
             where w.subject_id = given.subject_id)
         insert into credit_ledger (environment, subject_id, grant_id, kind, debit, credit, unit, unit_key, amount, at,
                                    balance, event_key, reservation, meter, quantity, refunds, reason)
         select $1, subject_id, grant_id, kind, debit, credit, unit, unit_key, amount, at, balance, event_key,
                reservation, meter, quantity, refunds, reason
         from unnest($11::bigint[], $12::uuid[], $13::text[], $14::text[], $15::text[], $16::text[], $17::text[],
                     $18::numeric[], $19::timestamptz[], $20::numeric[], $21::uuid[], $22::uuid[], $23::text[],
                     $24::numeric[], $25::bigint[], $26::text[])
             with ordinality
             as given (subject_id, grant_id, kind, debit, credit, unit, unit_key, amount, at, balance, event_key,
                       reservation, meter, quantity, refunds, reason, n)
         order by n",
    )
    .bind(scope.environment.code())
    .bind(grant_balances.iter().map(|(id, _)| *id).collect::<Vec<i64>>())
    .bind(grant_balances.iter().map(|(_, grant_balance)| grant_balance.grant.id).collect::<Vec<Uuid>>())
    .bind(grant_balances.iter().map(|(_, grant_balance)| grant_balance.available).collect::<Vec<Total>>())
    .bind(grant_balances.iter().map(|(_, grant_balance)| grant_balance.held).collect::<Vec<Total>>())
    .bind(grant_balances.iter().map(|(_, grant_balance)| state_code(grant_balance.state)).collect::<Vec<i16>>())
    .bind(grant_balances.iter().map(|(_, grant_balance)| grant_balance.is_head).collect::<Vec<bool>>())
    .bind(wallets.iter().map(|wallet| wallet.subject_id).collect::<Vec<i64>>())
    .bind(wallets.iter().map(|wallet| wallet.next_line).collect::<Vec<Option<Timestamp>>>())
    .bind(wallets.iter().map(|wallet| wallet.next_due()).collect::<Vec<Option<Timestamp>>>())
    .bind(moved.iter().map(|(id, _)| *id).collect::<Vec<i64>>())
    .bind(moved.iter().map(|(_, moved)| moved.grant).collect::<Vec<Option<Uuid>>>())
    .bind(moved.iter().map(|(_, moved)| moved.kind.as_str()).collect::<Vec<&str>>())
    .bind(accounts.iter().map(|(debit, _)| debit.as_str()).collect::<Vec<&str>>())
    .bind(accounts.iter().map(|(_, credit)| credit.as_str()).collect::<Vec<&str>>())
    .bind(units.iter().map(|(kind, _)| *kind).collect::<Vec<&str>>())
    .bind(units.iter().map(|(_, key)| key.as_str()).collect::<Vec<&str>>())
    .bind(moved.iter().map(|(_, moved)| moved.amount).collect::<Vec<Total>>())
    .bind(moved.iter().map(|(_, moved)| moved.at).collect::<Vec<Timestamp>>())
    .bind(moved.iter().map(|(_, moved)| moved.balance).collect::<Vec<Total>>())
    .bind(moved.iter().map(|(_, moved)| moved.cause.event).collect::<Vec<Option<Uuid>>>())
    .bind(moved.iter().map(|(_, moved)| moved.cause.reservation).collect::<Vec<Option<Uuid>>>())
    .bind(used.iter().map(|used| used.map(|(meter, _)| meter.as_str())).collect::<Vec<Option<&str>>>())
    .bind(used.iter().map(|used| used.map(|(_, quantity)| *quantity)).collect::<Vec<Option<Quantity>>>())
    .bind(moved.iter().map(|(_, moved)| moved.cause.refunds).collect::<Vec<Option<i64>>>())
    .bind(moved.iter().map(|(_, moved)| moved.cause.reason.as_deref()).collect::<Vec<Option<&str>>>())
    .execute(&mut *scope.connection)
    .await?;
    Ok(())
}

async fn write_lines(scope: &mut Scope<'_>, changes: &Changes<'_>) -> Result<(), StoreError> {
    let Changes { lines, gone, .. } = changes;
    sqlx::query(
        "with ended as (
             delete from credit_lines l
             using unnest($2::uuid[], $3::timestamptz[], $4::uuid[]) as given (grant_id, expires_at, reservation)
             where l.grant_id = given.grant_id and l.expires_at = given.expires_at
               and l.reservation = given.reservation)
         insert into credit_lines (environment, subject_id, grant_id, expires_at, reservation, on_expiry, amount)
         select $1, * from unnest($5::bigint[], $6::uuid[], $7::timestamptz[], $8::uuid[], $9::smallint[], $10::numeric[])
         on conflict on constraint credit_lines_pk do update set amount = excluded.amount",
    )
    .bind(scope.environment.code())
    .bind(gone.iter().map(|key| key.grant).collect::<Vec<Uuid>>())
    .bind(gone.iter().map(|key| key.expires_at).collect::<Vec<Timestamp>>())
    .bind(gone.iter().map(|key| key.reservation).collect::<Vec<Uuid>>())
    .bind(lines.iter().map(|(_, line)| line.subject_id).collect::<Vec<i64>>())
    .bind(lines.iter().map(|(key, _)| key.grant).collect::<Vec<Uuid>>())
    .bind(lines.iter().map(|(key, _)| key.expires_at).collect::<Vec<Timestamp>>())
    .bind(lines.iter().map(|(key, _)| key.reservation).collect::<Vec<Uuid>>())
    .bind(lines.iter().map(|(_, line)| on_expiry_code(line.on_expiry)).collect::<Vec<i16>>())
    .bind(lines.iter().map(|(_, line)| line.amount).collect::<Vec<Total>>())
    .execute(&mut *scope.connection)
    .await?;
    Ok(())
}

async fn write_covers(scope: &mut Scope<'_>, paid: &[PaidShare]) -> Result<(), StoreError> {
    sqlx::query(
        "insert into credit_covers (environment, subject_id, definition, at, event_key, quantity)
         select $1, * from unnest($2::bigint[], $3::uuid[], $4::timestamptz[], $5::uuid[], $6::numeric[])",
    )
    .bind(scope.environment.code())
    .bind(paid.iter().map(|paid| paid.subject_id).collect::<Vec<i64>>())
    .bind(paid.iter().map(|paid| paid.definition).collect::<Vec<Uuid>>())
    .bind(paid.iter().map(|paid| paid.at).collect::<Vec<Timestamp>>())
    .bind(paid.iter().map(|paid| paid.event).collect::<Vec<Uuid>>())
    .bind(paid.iter().map(|paid| paid.quantity).collect::<Vec<Total>>())
    .execute(&mut *scope.connection)
    .await?;
    Ok(())
}
