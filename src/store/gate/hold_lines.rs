//! Hold lines: the quantities that open reservations hold on counters. A line is written under the lock of
//! its counter.

use std::collections::HashMap;

use sqlx::PgConnection;
use uuid::Uuid;

use super::counters::CounterRow;
use crate::store::StoreError;
use crate::store::scope::Scope;
use metergate_domain::base::{Quantity, Timestamp, Total};
use metergate_domain::gate::{Counter, CounterKey, HoldLine, HoldLineKey, OnExpiry};

pub(crate) fn on_expiry_of(code: i16) -> OnExpiry {
    if code == 1 { OnExpiry::Commit } else { OnExpiry::Release }
}

pub(crate) fn on_expiry_code(on_expiry: OnExpiry) -> i16 {
    match on_expiry {
        OnExpiry::Release => 0,
        OnExpiry::Commit => 1,
    }
}

#[derive(sqlx::FromRow)]
struct LineRow {
    counter_id: i64,
    expires_at: Timestamp,
    reservation: Uuid,
    on_expiry: i16,
    quantity: Quantity,
    covered: Total,
}

/// Returns the expired hold lines that counter states still include.
pub async fn expired(
    connection: &mut PgConnection,
    counters: &[CounterRow],
    now: Timestamp,
) -> Result<Vec<(HoldLineKey, HoldLine)>, StoreError> {
    let counters = counters.iter().filter(|row| Counter::from(*row).may_have_expired(now));
    let keys: HashMap<i64, CounterKey> = counters.map(|row| (row.id, row.key)).collect();
    if keys.is_empty() {
        return Ok(Vec::new());
    }
    let rows: Vec<LineRow> = sqlx::query_as(
        "select counter_id, expires_at, reservation, on_expiry, quantity, covered from hold_lines
         where counter_id = any($1) and expires_at <= $2",
    )
    .bind(keys.keys().copied().collect::<Vec<i64>>())
    .bind(now)
    .fetch_all(connection)
    .await?;
    let line = |row: LineRow| {
        let LineRow { expires_at, reservation, quantity, covered, .. } = row;
        let counter = keys.get(&row.counter_id).copied();
        let counter = counter.ok_or_else(|| StoreError::internal("hold line without counter".to_owned()))?;
        let on_expiry = on_expiry_of(row.on_expiry);
        Ok((HoldLineKey { counter, expires_at, reservation }, HoldLine { quantity, covered, on_expiry }))
    };
    rows.into_iter().map(line).collect()
}

/// Returns the next expiry of a hold line after `now`, by counter.
pub async fn next_expiries(
    connection: &mut PgConnection,
    counter_ids: &[i64],
    now: Timestamp,
) -> Result<Vec<(i64, Option<Timestamp>)>, StoreError> {
    let rows = sqlx::query_as(
        "select id, (select min(expires_at) from hold_lines where counter_id = id and expires_at > $2) as next
         from unnest($1::bigint[]) id",
    )
    .bind(counter_ids)
    .bind(now)
    .fetch_all(connection)
    .await?;
    Ok(rows)
}

/// The hold lines to write, as columns.
#[derive(Debug, Default)]
pub struct LineColumns {
    pub(crate) counter_ids: Vec<i64>,
    pub(crate) expires_at: Vec<Timestamp>,
    pub(crate) reservations: Vec<Uuid>,
    pub(crate) on_expiry: Vec<i16>,
    pub(crate) quantities: Vec<Quantity>,
    pub(crate) covered: Vec<Total>,
}

impl LineColumns {
    pub fn push(&mut self, counter_id: i64, key: HoldLineKey, line: HoldLine) {
        self.counter_ids.push(counter_id);
        self.expires_at.push(key.expires_at);
        self.reservations.push(key.reservation);
        self.on_expiry.push(on_expiry_code(line.on_expiry));
        self.quantities.push(line.quantity);
        self.covered.push(line.covered);
    }

    pub fn is_empty(&self) -> bool {
        self.counter_ids.is_empty()
    }
}

/// Writes hold lines. A line replaces the earlier line of the same reservation and counter.
pub async fn write(scope: &mut Scope<'_>, lines: &LineColumns) -> Result<(), StoreError> {
    sqlx::query(
        "insert into hold_lines (environment, counter_id, expires_at, reservation, on_expiry, quantity, covered)
         select $1, * from unnest($2::bigint[], $3::timestamptz[], $4::uuid[], $5::smallint[], $6::numeric[],
                                  $7::numeric[])
         on conflict on constraint hold_lines_pk
         do update set quantity = excluded.quantity, covered = excluded.covered",
    )
    .bind(scope.environment.code())
    .bind(&lines.counter_ids)
    .bind(&lines.expires_at)
    .bind(&lines.reservations)
    .bind(&lines.on_expiry)
    .bind(&lines.quantities)
    .bind(&lines.covered)
    .execute(&mut *scope.connection)
    .await?;
    Ok(())
}
