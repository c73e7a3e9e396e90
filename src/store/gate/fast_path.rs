//! The fast path: one message holds a whole batch that fits, in its own transaction. See `hold_what_fits`
//! in `migrations/0001_schema.sql`.

use sqlx::postgres::types::PgInterval;
use sqlx::{PgConnection, Row};
use uuid::Uuid;

use super::counters::Keys;
use super::hold_lines::on_expiry_code;
use super::reservations::{id_beside_key, kept};
use crate::store::StoreError;
use crate::store::configuration::{LOCK, Versions};
use crate::store::scope::Scope;
use metergate_domain::base::{Quantity, Timestamp, Total};
use metergate_domain::gate::{CounterKey, CounterState, NewReservation, OnExpiry};

/// The constraints that a taken id violates. The violation rolls back the whole batch.
const TAKEN: [&str; 2] = ["reservations_pk", "hold_lines_pk"];

/// The time relative to the server's clock.
#[derive(Debug, Clone, Copy)]
pub struct StatementClock {
    /// The time of a frozen clock.
    pub fixed: Option<Timestamp>,
    /// The offset to the server's clock in microseconds, positive if the time is ahead.
    pub shift_micros: i64,
}

/// The id of a batch, and the versions and the clock that it assumes.
#[derive(Debug, Clone, Copy)]
pub struct HoldConditions {
    pub batch_id: i64,
    pub versions: Versions,
    pub clock: StatementClock,
}

/// The increase of a counter.
#[derive(Debug, Clone, Copy, Default)]
pub struct CounterIncrease {
    pub added: Total,
    /// The upper bound of `used + held`, or none without a bound.
    pub room: Option<Total>,
    /// The shortest time to live of its hold lines, or none without lines.
    pub ttl_seconds: Option<u32>,
    /// True for a counter of priced usage, false for a counter of a limit.
    pub of_price: bool,
}

impl CounterIncrease {
    /// Lowers the upper bound to `room`, unless the bound is already lower.
    pub fn bound(&mut self, room: Total) {
        self.room = Some(self.room.map_or(room, |known| known.min(room)));
    }

    /// Adds a hold line.
    pub fn add(&mut self, line: &HeldLine) {
        self.added = self.added + line.quantity.into();
        let ttl = self.ttl_seconds.map_or(line.ttl_seconds, |ttl| ttl.min(line.ttl_seconds));
        self.ttl_seconds = Some(ttl);
    }
}

/// Returns a time to live as the database's type. The API limits it far below `i32::MAX`.
fn seconds(ttl: u32) -> i32 {
    i32::try_from(ttl).unwrap_or(i32::MAX)
}

/// The quantity that a new reservation holds on a counter.
#[derive(Debug, Clone, Copy)]
pub struct HeldLine {
    pub counter: CounterKey,
    pub reservation: Uuid,
    pub ttl_seconds: u32,
    pub on_expiry: OnExpiry,
    pub quantity: Quantity,
}

/// A batch that should fit.
#[derive(Debug, Clone)]
pub struct FastBatch<'a> {
    /// The span of time in which the plan of the batch is valid.
    pub from: Option<Timestamp>,
    pub until: Option<Timestamp>,
    /// The counters in the order of their keys.
    pub counters: Vec<(CounterKey, CounterIncrease)>,
    pub lines: Vec<HeldLine>,
    pub made: Vec<NewReservation<'a>>,
}

/// The time and the counter states of a committed batch, with the id of the next batch.
#[derive(Debug)]
pub struct Done {
    pub at: Timestamp,
    pub next_batch_id: i64,
    /// The state of each counter before the batch.
    pub levels: Vec<CounterState>,
}

/// Returns an id for the next batch, and the server's time.
pub async fn next_batch(connection: &mut PgConnection) -> Result<(i64, Timestamp), StoreError> {
    let row = sqlx::query("select nextval('batch_ids') as batch_id, clock_timestamp() as now")
        .fetch_one(connection)
        .await?;
    Ok((row.try_get("batch_id")?, row.try_get("now")?))
}

/// Holds and commits the whole batch. Returns none, without any effect, if an assumption of the batch is
/// wrong.
pub async fn hold(
    scope: &mut Scope<'_>,
    conditions: HoldConditions,
    batch: &FastBatch<'_>,
) -> Result<Option<Done>, StoreError> {
    let HoldConditions { batch_id, versions, clock } = conditions;
    let FastBatch { counters, lines, made, .. } = batch;
    let mut made: Vec<&NewReservation<'_>> = made.iter().collect();
    made.sort_unstable_by_key(|reservation| reservation.key);
    let keys: Keys = counters.iter().map(|(key, _)| *key).collect();
    let place = |line: &HeldLine| {
        let found = counters.binary_search_by_key(&line.counter, |(key, _)| *key);
        // PostgreSQL arrays begin at 1.
        found.ok().and_then(|index| i32::try_from(index + 1).ok())
    };
    let rows = sqlx::query(
        "select done_at, next_batch, levels_used, levels_held
         from hold_what_fits($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20,
                           $21, $22, $23, $24, $25, $26)",
    )
    .bind(scope.environment.code())
    .bind(LOCK)
    .bind(versions.config)
    .bind(batch_id)
    .bind(clock.fixed)
    .bind(PgInterval { months: 0, days: 0, microseconds: clock.shift_micros })
    .bind(batch.from)
    .bind(batch.until)
    .bind(&keys.subject_ids)
    .bind(&keys.definitions)
    .bind(&keys.period_starts)
    .bind(counters.iter().map(|(_, addition)| addition.added).collect::<Vec<_>>())
    .bind(counters.iter().map(|(_, addition)| addition.room).collect::<Vec<_>>())
    .bind(counters.iter().map(|(_, addition)| addition.ttl_seconds.map(seconds)).collect::<Vec<_>>())
    .bind(lines.iter().map(place).collect::<Vec<_>>())
    .bind(lines.iter().map(|line| line.reservation).collect::<Vec<_>>())
    .bind(lines.iter().map(|line| seconds(line.ttl_seconds)).collect::<Vec<_>>())
    .bind(lines.iter().map(|line| on_expiry_code(line.on_expiry)).collect::<Vec<_>>())
    .bind(lines.iter().map(|line| line.quantity).collect::<Vec<_>>())
    .bind(made.iter().map(|r| r.key).collect::<Vec<_>>())
    .bind(made.iter().map(|r| id_beside_key(r.id, r.key)).collect::<Vec<_>>())
    .bind(made.iter().map(|r| r.path_id).collect::<Vec<_>>())
    .bind(made.iter().map(|r| r.content).collect::<Vec<_>>())
    .bind(made.iter().map(|r| seconds(r.ttl_seconds)).collect::<Vec<_>>())
    .bind(made.iter().map(|r| on_expiry_code(r.on_expiry)).collect::<Vec<_>>())
    .bind(made.iter().map(|r| kept(&r.holds)).collect::<Vec<_>>())
    // Reads to the end, since the answer of the commit follows the row.
    .fetch_all(&mut *scope.connection)
    .await;
    let rows = match rows {
        Err(sqlx::Error::Database(refused)) if refused.constraint().is_some_and(|c| TAKEN.contains(&c)) => {
            return Ok(None);
        }
        rows => rows?,
    };
    let row = rows.first().ok_or(sqlx::Error::RowNotFound)?;
    let Some(at) = row.try_get("done_at")? else { return Ok(None) };
    let used: Option<Vec<Total>> = row.try_get("levels_used")?;
    let held: Option<Vec<Total>> = row.try_get("levels_held")?;
    let pairs = used.unwrap_or_default().into_iter().zip(held.unwrap_or_default());
    let levels = pairs.map(|(used, held)| CounterState { used, held, ..CounterState::default() }).collect();
    Ok(Some(Done { at, next_batch_id: row.try_get("next_batch")?, levels }))
}
