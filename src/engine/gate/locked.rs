//! One attempt to commit a batch of calls under locks, as one transaction.
//!
//! Locks are taken in one order: configuration (shared), reservations, subjects, counters, wallets. Within
//! a group they ascend. The keys of recorded events and the ids of new reservations come last. A
//! transaction that waits for those only waits for a commit.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::PgConnection;
use uuid::Uuid;

use super::calls::{Call, Reply};
use super::context::{BatchContext, CheckedCall, NeededCounters};
use super::counters::{count, make_missing};
use super::credits::{BatchWallets, holders};
use super::processor::GateProcessor;
use crate::engine::credits::wallets::{HolderSubscriptions, WalletLoader};
use crate::engine::environment_cache::CacheUpdates;
use crate::engine::subjects::resolution::SubjectPaths;
use crate::engine::writers::context::WriterContext;
use crate::engine::writers::interrupt::Interrupt;
use crate::engine::writers::prerequisite::{Prerequisite, Recheck};
use crate::engine::writers::processor::Attempt;
use crate::engine::writers::transaction::BatchTransaction;
use crate::store::configuration::begin_recording;
use crate::store::gate::counters::{CounterRow, id_of};
use crate::store::gate::gate_writes::GateWrites;
use crate::store::usage::events::{EventColumns, KeyColumns};
use crate::store::{self, Scope, StoreError};
use metergate_domain::base::{Digest, Timestamp};
use metergate_domain::gate::{
    CallOutcome, Counter, CounterKey, GateState, Moment, OnExpiry, PathRecord, ReservationChange,
};

pub(super) async fn attempt(
    processor: &mut GateProcessor,
    connection: &mut PgConnection,
    work: &[&Call],
) -> Result<Attempt<Reply>, Interrupt> {
    let GateProcessor { environment, writer_context, reader, findings, unconfirmed_replies, fast_path } =
        processor;
    let (environment, writer_context) = (*environment, &*writer_context);
    let mut scope = Scope::new(connection, environment);
    let opening = begin_recording(&mut scope).await?;
    let cache = writer_context.caches.at(&mut scope, opening.versions).await?;
    let terms = &cache.terms;
    let now = writer_context.clock.now(environment, opening.now);
    let mut transaction =
        BatchTransaction { scope, reader, cache: &cache, now, fresh: CacheUpdates::default() };

    let calls: Vec<CheckedCall<'_>> = work.iter().map(|call| CheckedCall::of(call, terms)).collect();
    let mut context = BatchContext::gather(&mut transaction, &calls, findings).await?;
    context.refuse_due_ends(now, terms)?;
    let needed = context.needed(terms, &calls, now);
    let mut locks =
        Locks::take(&mut transaction, writer_context, &needed, holders(terms, &calls, &context)).await?;
    context.refuse_due_ends(locks.now, terms)?;
    let gauges = read_gauges(&mut transaction, &needed, locks.now).await?;
    let of_prices = needed.of_prices();

    let taken = &findings.conflicting_event_ids;
    let moment = Moment { now: locks.now, age_max: writer_context.age_max, taken };
    let mut state = GateState::open(terms, moment);
    state.paths = std::mem::take(&mut context.paths);
    state.reservations = context.locked.drain(..).map(|locked| (locked.key, locked)).collect();
    state.counters.extend(gauges);
    locks.load(&mut transaction, &mut state).await?;

    let replies = apply_all(calls, &mut state, &context.subject_paths);
    let missing = writer_context.months.missing(state.entries.iter().map(|entry| entry.at));
    if !missing.is_empty() {
        return Err(Prerequisite::Partitions(missing).into());
    }
    record_events(&mut transaction, &state, opening.batch_id).await?;
    locks.write(&mut transaction, &mut state).await?;
    refuse_twins(&mut transaction, work, &replies).await?;
    let BatchTransaction { scope, fresh, .. } = transaction;
    if let Err(why) = store::gate::batches::commit(scope.connection, opening.batch_id).await {
        tracing::debug!(%why, "commit");
        unconfirmed_replies.insert(opening.batch_id, replies);
        return Ok(Attempt::Unanswered { batch_id: opening.batch_id });
    }
    writer_context.tails.of(environment).grow(state.entries.len());
    fast_path.note(state.counters.iter().filter(|(key, _)| of_prices.contains(key)));
    // Only committed data may enter the cache.
    fresh.remember(&cache);
    note_metrics(&replies);
    Ok(Attempt::Committed(replies))
}

/// Reads the gauges that caps test.
async fn read_gauges(
    transaction: &mut BatchTransaction<'_>,
    needed: &NeededCounters<'_>,
    now: Timestamp,
) -> Result<Vec<(CounterKey, Counter)>, StoreError> {
    let BatchTransaction { scope, cache, .. } = transaction;
    let mut read = Vec::with_capacity(needed.gauges.len());
    for (key, need) in &needed.gauges {
        let count = count(scope, &cache.terms, need).await?;
        read.push((*key, count.counter(now)));
    }
    Ok(read)
}

/// The locked counters and wallets of a batch.
struct Locks<'a> {
    rows: Vec<CounterRow>,
    batch_wallets: BatchWallets<'a>,
    /// The time after the last lock.
    now: Timestamp,
}

impl<'a> Locks<'a> {
    /// Creates missing counters and locks all counters, then the wallets.
    async fn take(
        transaction: &mut BatchTransaction<'a>,
        writer_context: &'a WriterContext,
        needed: &NeededCounters<'_>,
        holders: HolderSubscriptions,
    ) -> Result<Self, Interrupt> {
        make_missing(transaction, &needed.counters).await?;
        let BatchTransaction { scope, cache, now: began, .. } = transaction;
        let (environment, began) = (scope.environment, *began);
        let (rows, locked_at) =
            store::gate::counters::lock(scope.connection, needed.counters.keys().copied()).await?;
        let wallet_loader =
            WalletLoader { environment, terms: &cache.terms, clock: &writer_context.clock, began };
        let batch_wallets = BatchWallets::open(scope.connection, wallet_loader, holders).await?;
        let now = batch_wallets.not_before(writer_context.clock.now(environment, locked_at).max(began));
        // A period may have ended during the wait for locks.
        if needed.until.is_some_and(|end| end <= now) {
            return Err(Recheck::Time.into());
        }
        Ok(Self { rows, batch_wallets, now })
    }

    /// Loads counters and wallets into the state, and expires the reservations in it. Interrupts the
    /// attempt if expired reservations outside the state must be charged; they have to be locked first.
    async fn load(
        &mut self,
        transaction: &mut BatchTransaction<'_>,
        state: &mut GateState<'_>,
    ) -> Result<(), Interrupt> {
        state.counters.extend(self.rows.iter().map(|row| (row.key, Counter::from(row))));
        let mut charged: Vec<Uuid> = self.give_back_expired(transaction.scope.connection, state).await?;
        charged.extend(self.batch_wallets.lend(state));
        charged.retain(|key| !state.reservations.contains_key(key));
        if !charged.is_empty() {
            return Err(Recheck::Expired(charged).into());
        }
        for key in state.reservations.keys().copied().collect::<Vec<_>>() {
            state.expire(key);
        }
        Ok(())
    }

    /// Releases the expired hold lines of counters. Returns the reservations that must be charged instead.
    async fn give_back_expired(
        &self,
        connection: &mut PgConnection,
        state: &mut GateState<'_>,
    ) -> Result<Vec<Uuid>, StoreError> {
        let rows = || self.rows.iter().filter(|row| Counter::from(*row).may_have_expired(self.now));
        let keys: BTreeMap<i64, CounterKey> = rows().map(|row| (row.id, row.key)).collect();
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let mut charged = BTreeSet::new();
        for (key, line) in store::gate::hold_lines::expired(connection, &self.rows, self.now).await? {
            match line.on_expiry {
                OnExpiry::Release => state.expire_line(key, line),
                OnExpiry::Commit => {
                    charged.insert(key.reservation);
                }
            }
        }
        let ids: Vec<i64> = keys.keys().copied().collect();
        for (id, next) in store::gate::hold_lines::next_expiries(connection, &ids, self.now).await? {
            if let Some(counter) = keys.get(&id).and_then(|key| state.counters.get_mut(key)) {
                counter.next_expiry = next;
            }
        }
        Ok(charged.into_iter().collect())
    }

    /// Writes the changes of the state. Interrupts the attempt if the id of a new reservation was taken
    /// meanwhile.
    async fn write(
        &mut self,
        transaction: &mut BatchTransaction<'_>,
        state: &mut GateState<'_>,
    ) -> Result<(), Interrupt> {
        let scope = &mut transaction.scope;
        let writes = self.writes(state)?;
        if store::gate::gate_writes::write(scope, &writes).await? < writes.made.len() {
            return Err(Recheck::Reservations.into());
        }
        Ok(self.batch_wallets.write(scope.connection, state).await?)
    }

    fn writes<'s>(&self, state: &'s GateState<'_>) -> Result<GateWrites<'s>, StoreError> {
        let ids: BTreeMap<CounterKey, i64> = self.rows.iter().map(|row| (row.key, row.id)).collect();
        let mut writes = GateWrites::default();
        for (key, change) in &state.lines {
            match change.line {
                Some(line) => writes.lines.push(id_of(&ids, &key.counter)?, *key, line),
                None if change.was_there => writes.push_gone(id_of(&ids, &key.counter)?, *key),
                None => {}
            }
        }
        // Gauges have no rows.
        for row in &self.rows {
            let counter = state.counters.get(&row.key).filter(|counter| **counter != Counter::from(row));
            if let Some(counter) = counter {
                writes.counters.push(row.key, counter.level, counter.next_expiry);
            }
        }
        for (key, change) in &state.changed {
            let Some(reservation) = state.reservations.get(key) else { continue };
            match change {
                ReservationChange::Made => writes.made.push(reservation),
                ReservationChange::Altered => writes.altered.push(reservation),
            }
        }
        Ok(writes)
    }
}

/// Applies the calls to the state, one after the other.
fn apply_all(
    calls: Vec<CheckedCall<'_>>,
    state: &mut GateState<'_>,
    subject_paths: &SubjectPaths,
) -> Vec<Reply> {
    let swept = state.changed.len();
    let mut apply = |CheckedCall { call, errors }: CheckedCall<'_>| {
        let answer = match (errors, call) {
            (Some(errors), _) => state.bare(CallOutcome::Invalid(errors)),
            (None, Call::Reserve { key, id, request }) => {
                state.reserve(*key, id, request, subject_paths.get(request.subject.as_str()))
            }
            (None, Call::Commit { key, request }) => state.commit(*key, request),
            (None, Call::Release { key, request }) => state.release(*key, request),
            (None, Call::Extend { key, request }) => state.extend(*key, request),
            (None, Call::Sweep) => return Reply::Swept(swept),
        };
        Reply::Answer(Box::new(answer))
    };
    calls.into_iter().map(&mut apply).collect()
}

/// Interrupts the attempt if a denied reservation has meanwhile been made by another call with the same id.
/// That reservation may be the cause of the denial.
async fn refuse_twins(
    transaction: &mut BatchTransaction<'_>,
    work: &[&Call],
    replies: &[Reply],
) -> Result<(), Interrupt> {
    let denied = |(call, reply): (&&Call, &Reply)| match (call, reply) {
        (Call::Reserve { key, request, .. }, Reply::Answer(answer)) => {
            let is_denied = matches!(answer.outcome, CallOutcome::Denied(_));
            (is_denied && request.id.is_some()).then_some(*key)
        }
        _ => None,
    };
    let denied: Vec<Uuid> = work.iter().zip(replies).filter_map(denied).collect();
    if !denied.is_empty() && store::gate::reservations::exist(&mut transaction.scope, &denied).await? {
        return Err(Recheck::Reservations.into());
    }
    Ok(())
}

/// Records the events of commits, each bound to its meter. Interrupts the attempt if some of their ids are
/// taken.
async fn record_events(
    transaction: &mut BatchTransaction<'_>,
    state: &GateState<'_>,
    batch_id: i64,
) -> Result<(), Interrupt> {
    if state.entries.is_empty() {
        return Ok(());
    }
    let scope = &mut transaction.scope;
    let keys = event_keys(state);
    let inserted = store::usage::events::insert_keys(scope, batch_id, &keys).await?;
    if inserted < keys.keys.len() as u64 {
        let rows = store::usage::events::find_keys(scope, &keys.keys).await?;
        let others = rows.into_iter().filter(|row| row.batch_id != batch_id);
        return Err(Recheck::EventIds(others.map(|row| row.key).collect()).into());
    }
    let columns = event_columns(state)?;
    Ok(store::usage::events::insert_batch(scope, batch_id, &columns).await?)
}

fn event_keys(state: &GateState<'_>) -> KeyColumns {
    let key = |entry: &PathRecord| {
        let mut content = Digest::default();
        content.text(entry.record.meter.as_str()).quantity(entry.record.quantity);
        (entry.record.key, content.map(entry.record.properties.as_map()).finish(), entry.at)
    };
    let mut keys: Vec<(Uuid, Uuid, Timestamp)> = state.entries.iter().map(key).collect();
    keys.sort_unstable_by_key(|(key, _, _)| *key);
    let mut columns = KeyColumns::default();
    for (key, content, at) in keys {
        columns.keys.push(key);
        columns.contents.push(content);
        columns.occurred_at.push(at);
        columns.timestamp_given.push(true);
    }
    columns
}

fn event_columns(state: &GateState<'_>) -> Result<EventColumns, StoreError> {
    let mut columns = EventColumns::default();
    for (ordinal, PathRecord { path, at, record }) in state.entries.iter().enumerate() {
        let stored = state.terms.meter(&record.meter);
        let defect =
            || StoreError::internal(format!("a stored hold names the unknown meter `{}`", record.meter));
        let stored = stored.ok_or_else(defect)?;
        columns.path_ids.push(path.id);
        columns.occurred_at.push(*at);
        columns.customer_ids.push(path.customer_id);
        columns.keys.push(record.key);
        columns.ordinals.push(i32::try_from(ordinal).unwrap_or(i32::MAX));
        columns.event_name_ids.push(stored.event_name_id);
        columns.signs.push(1);
        columns.values.push(record.quantity);
        columns.properties.push(record.properties.to_json());
        columns.ids.push(None);
        columns.sources.push(None);
        columns.meter_ids.push(Some(stored.id));
    }
    Ok(columns)
}

pub(super) fn note_metrics(replies: &[Reply]) {
    let mut counts: BTreeMap<&'static str, u64> = BTreeMap::new();
    for reply in replies {
        let Reply::Answer(answer) = reply else { continue };
        let outcome = match &answer.outcome {
            CallOutcome::Held { .. } | CallOutcome::Allowed { .. } => "held",
            CallOutcome::Denied(_) => "denied",
            CallOutcome::Committed { .. } => "committed",
            CallOutcome::Released { .. } => "released",
            CallOutcome::Extended { .. } => "extended",
            CallOutcome::Refused(_) | CallOutcome::Invalid(_) => "refused",
        };
        *counts.entry(outcome).or_default() += 1;
    }
    for (outcome, count) in counts {
        metrics::counter!("metergate_reservation_calls_total", "outcome" => outcome).increment(count);
    }
    metrics::histogram!("metergate_gate_batch_calls")
        .record(f64::from(u32::try_from(replies.len()).unwrap_or(u32::MAX)));
}
