//! The changes of a batch of the gate, written in one statement. A further message would cost as much as
//! several reservations.

use uuid::Uuid;

use super::counters::{CounterColumns, Keys};
use super::hold_lines::{LineColumns, on_expiry_code};
use super::reservations::{EncodedReservation, StateColumns, id_beside_key};
use crate::store::StoreError;
use crate::store::scope::Scope;
use metergate_domain::base::Timestamp;
use metergate_domain::gate::{HoldLineKey, Reservation};

/// The changes of a batch of the gate.
#[derive(Debug, Default)]
pub struct GateWrites<'a> {
    /// New reservations, in ascending order of keys. The insert waits for transactions that insert the same
    /// keys.
    pub made: Vec<&'a Reservation>,
    /// Changed reservations; they must be locked.
    pub altered: Vec<&'a Reservation>,
    /// Changed counters; they must be locked.
    pub counters: CounterColumns,
    pub lines: LineColumns,
    gone: GoneColumns,
}

/// The hold lines to delete, as columns.
#[derive(Debug, Default)]
struct GoneColumns {
    counter_ids: Vec<i64>,
    expires_at: Vec<Timestamp>,
    reservations: Vec<Uuid>,
}

impl GateWrites<'_> {
    /// Adds a hold line to delete.
    pub fn push_gone(&mut self, counter_id: i64, key: HoldLineKey) {
        self.gone.counter_ids.push(counter_id);
        self.gone.expires_at.push(key.expires_at);
        self.gone.reservations.push(key.reservation);
    }
}

/// Writes a batch. Returns the number of new reservations with free keys. If any key was taken, the caller
/// must roll back the transaction.
pub async fn write(scope: &mut Scope<'_>, writes: &GateWrites<'_>) -> Result<usize, StoreError> {
    let GateWrites { made, altered, counters, lines, gone } = writes;
    let keys: Keys = counters.keys.iter().copied().collect();
    let altered_states: Vec<EncodedReservation<'_>> =
        altered.iter().map(|r| EncodedReservation::of(r)).collect();
    let next = StateColumns::of(&altered_states);
    let made_states: Vec<EncodedReservation<'_>> = made.iter().map(|r| EncodedReservation::of(r)).collect();
    let new = StateColumns::of(&made_states);
    let inserted: i64 = sqlx::query_scalar(WRITE)
        .bind(scope.environment.code())
        // Parameters of `counted`.
        .bind(&keys.subject_ids)
        .bind(&keys.definitions)
        .bind(&keys.period_starts)
        .bind(&counters.used)
        .bind(&counters.held)
        .bind(&counters.covered)
        .bind(&counters.next_expiry)
        // Parameters of `ended`.
        .bind(&gone.counter_ids)
        .bind(&gone.expires_at)
        .bind(&gone.reservations)
        // Parameters of `lined`.
        .bind(&lines.counter_ids)
        .bind(&lines.expires_at)
        .bind(&lines.reservations)
        .bind(&lines.on_expiry)
        .bind(&lines.quantities)
        .bind(&lines.covered)
        // Parameters of `altered`.
        .bind(altered.iter().map(|r| r.key).collect::<Vec<Uuid>>())
        .bind(&next.expires_at)
        .bind(&next.status)
        .bind(&next.holds)
        .bind(&next.over_hold)
        .bind(&next.late)
        .bind(&next.reason)
        .bind(&next.settled_at)
        .bind(&next.call_content)
        .bind(&next.call_events)
        // Parameters of `made`.
        .bind(made.iter().map(|r| r.key).collect::<Vec<Uuid>>())
        .bind(made.iter().map(|r| id_beside_key(&r.id, r.key)).collect::<Vec<Option<&str>>>())
        .bind(made.iter().map(|r| r.path_id).collect::<Vec<i64>>())
        .bind(made.iter().map(|r| r.content).collect::<Vec<Uuid>>())
        .bind(made.iter().map(|r| r.created_at).collect::<Vec<Timestamp>>())
        .bind(made.iter().map(|r| on_expiry_code(r.on_expiry)).collect::<Vec<i16>>())
        .bind(&new.expires_at)
        .bind(&new.status)
        .bind(&new.holds)
        .bind(&new.over_hold)
        .bind(&new.late)
        .bind(&new.reason)
        .bind(&new.settled_at)
        .bind(&new.call_content)
        .bind(&new.call_events)
        .fetch_one(&mut *scope.connection)
        .await?;
    Ok(usize::try_from(inserted).unwrap_or(usize::MAX))
}

/// The statement that writes a batch. $1 is the environment. The parameters of each part follow in the
/// order of its columns.
const WRITE: &str = "
    with counted as (
        update counters c
        set used = given.used, held = given.held, covered = given.covered, next_expiry = given.next_expiry
        from unnest($2::bigint[], $3::uuid[], $4::timestamptz[], $5::numeric[], $6::numeric[], $7::numeric[],
                    $8::timestamptz[])
            as given (subject_id, definition, period_start, used, held, covered, next_expiry)
        where c.subject_id = given.subject_id and c.definition = given.definition
          and c.period_start = given.period_start),
    ended as (
        delete from hold_lines l
        using unnest($9::bigint[], $10::timestamptz[], $11::uuid[]) as given (counter_id, expires_at, reservation)
        where l.counter_id = given.counter_id and l.expires_at = given.expires_at
          and l.reservation = given.reservation),
    lined as (
        insert into hold_lines (environment, counter_id, expires_at, reservation, on_expiry, quantity, covered)
        select $1, * from unnest($12::bigint[], $13::timestamptz[], $14::uuid[], $15::smallint[], $16::numeric[],
                                 $17::numeric[])
        on conflict on constraint hold_lines_pk
        do update set quantity = excluded.quantity, covered = excluded.covered),
    altered as (
        update reservations r
        set expires_at = given.expires_at, status = given.status, holds = given.holds::jsonb,
            over_hold = given.over_hold, late = given.late, reason = given.reason,
            settled_at = given.settled_at, call_content = given.call_content,
            call_events = string_to_array(given.call_events, ' ')::uuid[]
        from unnest($18::uuid[], $19::timestamptz[], $20::smallint[], $21::text[], $22::boolean[],
                    $23::boolean[], $24::text[], $25::timestamptz[], $26::uuid[], $27::text[])
            as given (key, expires_at, status, holds, over_hold, late, reason, settled_at, call_content,
                      call_events)
        where r.environment = $1 and r.key = given.key),
    made as (
        insert into reservations (environment, key, id, path_id, content, created_at, on_expiry, expires_at,
                                  status, holds, over_hold, late, reason, settled_at, call_content, call_events)
        select $1, key, id, path_id, content, created_at, on_expiry, expires_at, status, holds::jsonb,
               over_hold, late, reason, settled_at, call_content, string_to_array(call_events, ' ')::uuid[]
        from unnest($28::uuid[], $29::text[], $30::bigint[], $31::uuid[], $32::timestamptz[], $33::smallint[],
                    $34::timestamptz[], $35::smallint[], $36::text[], $37::boolean[], $38::boolean[],
                    $39::text[], $40::timestamptz[], $41::uuid[], $42::text[])
            as given (key, id, path_id, content, created_at, on_expiry, expires_at, status, holds, over_hold,
                      late, reason, settled_at, call_content, call_events)
        on conflict on constraint reservations_pk do nothing
        returning 1)
    select count(*) from made";
