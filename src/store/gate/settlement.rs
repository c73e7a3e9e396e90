//! What a batch of the gate comes to, written in one statement: every message costs as much as some
//! reservations.

use sqlx::PgConnection;
use uuid::Uuid;

use super::counters::{CounterColumns, Keys};
use super::hold_lines::{LineColumns, on_expiry_code};
use super::reservations::{EncodedReservation, StateColumns};
use crate::store::StoreError;
use metergate_domain::base::environment::Environment;
use metergate_domain::base::timestamp::Timestamp;
use metergate_domain::gate::reservation::Reservation;

#[derive(Debug, Default)]
pub struct GateWrites<'a> {
    /// Claim their keys; they ascend. Whoever is about to make the same is waited for.
    pub made: Vec<&'a Reservation>,
    /// Are locked.
    pub altered: Vec<&'a Reservation>,
    /// Are locked.
    pub counters: CounterColumns,
    /// What is held no more: counter, expiry, reservation.
    pub gone: Vec<(i64, Timestamp, Uuid)>,
    pub lines: LineColumns,
}

/// The id, where the key is another.
fn id_beside_key(made: &Reservation) -> Option<&str> {
    Some(made.id.as_str()).filter(|id| Uuid::try_parse(id).ok() != Some(made.key))
}

/// Writes it; how many of the new reservations found their keys free. Where that is not all, nothing
/// of it may be committed.
pub async fn write(
    connection: &mut PgConnection,
    environment: Environment,
    settlement: &GateWrites<'_>,
) -> Result<usize, StoreError> {
    let GateWrites { made, altered, counters, gone, lines } = settlement;
    let states: Vec<EncodedReservation<'_>> = made.iter().map(|r| EncodedReservation::of(r)).collect();
    let new = StateColumns::of(&states);
    let states: Vec<EncodedReservation<'_>> = altered.iter().map(|r| EncodedReservation::of(r)).collect();
    let next = StateColumns::of(&states);
    let keys: Keys = counters.keys.iter().copied().collect();
    let ids: Vec<Option<&str>> = made.iter().map(|made| id_beside_key(made)).collect();
    let inserted: i64 = sqlx::query_scalar(
        "with counted as (
             update counters c set used = given.used, held = given.held, covered = given.covered,
                                   next_expiry = given.next_expiry
             from unnest($2::bigint[], $3::uuid[], $4::timestamptz[], $5::numeric[], $6::numeric[], $7::timestamptz[],
                         $41::numeric[])
                 as given (subject_id, definition, period_start, used, held, next_expiry, covered)
             where c.subject_id = given.subject_id and c.definition = given.definition
               and c.period_start = given.period_start),
         ended as (
             delete from hold_lines l
             using unnest($8::bigint[], $9::timestamptz[], $10::uuid[]) as given (counter_id, expires_at, reservation)
             where l.counter_id = given.counter_id and l.expires_at = given.expires_at
               and l.reservation = given.reservation),
         lined as (
             insert into hold_lines (environment, counter_id, expires_at, reservation, on_expiry, quantity, covered)
             select $1, * from unnest($11::bigint[], $12::timestamptz[], $13::uuid[], $14::smallint[], $15::numeric[],
                                      $42::numeric[])
             on conflict on constraint hold_lines_pk
             do update set quantity = excluded.quantity, covered = excluded.covered),
         altered as (
             update reservations r
             set expires_at = given.expires_at, status = given.status, holds = given.holds::jsonb,
                 over_hold = given.over_hold, late = given.late, reason = given.reason,
                 settled_at = given.settled_at, call_content = given.call_content,
                 call_events = string_to_array(given.call_events, ' ')::uuid[]
             from unnest($16::uuid[], $17::timestamptz[], $18::smallint[], $19::text[], $20::boolean[],
                         $21::boolean[], $22::text[], $23::timestamptz[], $24::uuid[], $25::text[])
                 as given (key, expires_at, status, holds, over_hold, late, reason, settled_at, call_content,
                           call_events)
             where r.environment = $1 and r.key = given.key),
         made as (
             insert into reservations (environment, key, id, path_id, content, created_at, on_expiry, expires_at,
                                       status, holds, over_hold, late, reason, settled_at, call_content, call_events)
             select $1, key, id, path_id, content, created_at, on_expiry, expires_at, status, holds::jsonb,
                    over_hold, late, reason, settled_at, call_content, string_to_array(call_events, ' ')::uuid[]
             from unnest($26::uuid[], $27::text[], $28::bigint[], $29::uuid[], $30::timestamptz[], $31::smallint[],
                         $32::timestamptz[], $33::smallint[], $34::text[], $35::boolean[], $36::boolean[],
                         $37::text[], $38::timestamptz[], $39::uuid[], $40::text[])
                 as given (key, id, path_id, content, created_at, on_expiry, expires_at, status, holds, over_hold,
                           late, reason, settled_at, call_content, call_events)
             on conflict on constraint reservations_pk do nothing
             returning 1)
         select count(*) from made",
    )
    .bind(environment.code())
    .bind(&keys.subject_ids)
    .bind(&keys.definitions)
    .bind(&keys.period_starts)
    .bind(&counters.used)
    .bind(&counters.held)
    .bind(&counters.next_expiry)
    .bind(gone.iter().map(|(id, _, _)| *id).collect::<Vec<i64>>())
    .bind(gone.iter().map(|(_, at, _)| *at).collect::<Vec<Timestamp>>())
    .bind(gone.iter().map(|(_, _, reservation)| *reservation).collect::<Vec<Uuid>>())
    .bind(&lines.counter_ids)
    .bind(&lines.expires_at)
    .bind(&lines.reservations)
    .bind(&lines.on_expiry)
    .bind(&lines.quantities)
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
    .bind(made.iter().map(|r| r.key).collect::<Vec<Uuid>>())
    .bind(&ids)
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
    .bind(&counters.covered)
    .bind(&lines.covered)
    .fetch_one(connection)
    .await?;
    Ok(usize::try_from(inserted).unwrap_or(usize::MAX))
}
