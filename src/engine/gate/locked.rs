//! One attempt at settling a batch of calls as one transaction. Locks are taken in one order:
//! configuration (shared), reservations, subjects, counters, wallets; each group ascending. Last, when every
//! lock is held, come the keys of recorded events, which nobody else can want, and the ids of new
//! reservations: whoever waits there waits only for a commit.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use sqlx::PgConnection;
use uuid::Uuid;

use super::counters;
use super::counters::{CounterRequest, CounterRequests, make_missing, request_counter};
use super::credits::{BatchWallets, holders};
use super::{Call, GateProcessor, Reply};
use crate::engine::credits::wallets::WalletLoader;
use crate::engine::environment_cache::{CacheUpdates, EnvironmentCache};
use crate::engine::subjects::resolution::{self, SubjectPaths};
use crate::engine::subjects::subscriptions::carry_out_ends;
use crate::engine::writers::Attempt;
use crate::store::configuration::begin_recording;
use crate::store::gate::counters::CounterRow;
use crate::store::gate::settlement::GateWrites;
use crate::store::usage::events::{EventColumns, KeyColumns};
use crate::store::{self, StoreError};
use metergate_domain::base::environment::Environment;
use metergate_domain::base::fields::Violations;
use metergate_domain::base::limits::SWEEP_RESERVATIONS_MAX;
use metergate_domain::base::timestamp::Timestamp;
use metergate_domain::gate::applicable_cap::{ApplicableCap, CounterSource, PricedUsage};
use metergate_domain::gate::catalog_index::CatalogIndex;
use metergate_domain::gate::counter::CounterKey;
use metergate_domain::gate::path::Path;
use metergate_domain::gate::request::{HoldRequest, OnExpiry, Reserve};
use metergate_domain::gate::reservation::{Moment, Reservation};
use metergate_domain::gate::state::{CallOutcome, Counter, GateState, HoldLineKey, ReservationChange};

pub(super) async fn attempt(
    processor: &mut GateProcessor,
    connection: &mut PgConnection,
    work: &[&Call],
) -> Result<Attempt<Reply>, StoreError> {
    let (environment, writer_context) = (processor.environment, processor.writer_context.clone());
    let opening = begin_recording(connection, environment).await?;
    let began = writer_context.clock.now(environment, opening.now);
    let cache = writer_context.caches.at(connection, environment, opening.versions).await?;
    let terms = &cache.terms;
    let mut fresh = CacheUpdates::default();

    let invalid: Vec<Option<Violations>> = work.iter().map(|call| violations(call, terms)).collect();
    let good = || work.iter().zip(&invalid).filter(|(_, invalid)| invalid.is_none()).map(|(call, _)| *call);
    let mut scene = BatchContext {
        expired_to_commit: std::mem::take(&mut processor.expired_to_commit),
        check_existing: processor.check_existing,
        ..BatchContext::default()
    };
    let roots = scene.gather(connection, environment, &cache, good(), began, &mut fresh).await?;
    if !roots.is_empty() {
        roll_back(connection).await?;
        processor.expired_to_commit = scene.expired_to_commit;
        if !scene.check_existing {
            // what was made before and is only asked for again must not bring anything about
            processor.check_existing = true;
            return Ok(Attempt::Again);
        }
        resolution::subscribe_alone(connection, environment, &roots, &writer_context.clock).await?;
        return Ok(Attempt::Again);
    }
    if scene.has_due_end(began, terms) {
        roll_back(connection).await?;
        carry_out_ends(connection, environment, &writer_context.clock).await?;
        return Ok(Attempt::Again);
    }

    let (counter_requests, levels, shown_until) = scene.counter_requests(terms, good(), began);
    let of_prices = of_prices(&counter_requests);
    let reader = &mut processor.reader;
    make_missing(connection, reader, environment, &cache, &counter_requests, began, &mut fresh).await?;
    let (rows, locked_at) = store::gate::counters::lock(connection, counter_requests.keys().copied()).await?;
    let wallet_loader = WalletLoader { environment, terms, clock: &writer_context.clock, began };
    let holders = holders(terms, good(), &scene.subject_paths, (&scene.locked, &scene.paths));
    let mut batch_wallets = BatchWallets::open(connection, wallet_loader, holders).await?;
    let now = batch_wallets.not_before(writer_context.clock.now(environment, locked_at).max(began));
    // a period may have turned over, or a subscription ended, while others held the locks
    if shown_until.is_some_and(|end| end <= now) || scene.has_due_end(now, terms) {
        roll_back(connection).await?;
        return Ok(Attempt::Again);
    }

    let read = read_levels(connection, environment, terms, &levels, now).await?;

    let taken = processor.conflicting_event_ids.clone();
    let moment = Moment { now, age_max: writer_context.age_max, taken: &taken };
    let mut book = GateState::open(terms, moment);
    book.paths = std::mem::take(&mut scene.paths);
    book.reservations = scene.locked.drain(..).map(|reservation| (reservation.key, reservation)).collect();
    let ids: HashMap<CounterKey, i64> = rows.iter().map(|row| (row.key, row.id)).collect();
    book.counters.extend(rows.iter().map(|row| (row.key, counter(row))));
    let before = book.counters.clone();
    book.counters.extend(read);
    let mut charged = settle_expired(connection, &mut book, &ids).await?;
    charged.extend(batch_wallets.lend(&mut book));
    if !charged.is_empty() {
        // they have to be recorded first, and their rows come before counters in the order of locks
        roll_back(connection).await?;
        processor.expired_to_commit = [scene.expired_to_commit, charged].concat();
        return Ok(Attempt::Again);
    }

    for key in book.reservations.keys().copied().collect::<Vec<_>>() {
        book.expire(key);
    }
    let swept = book.changed.len();
    let answer = |(call, invalid): (&&Call, Option<Violations>)| match invalid {
        Some(violations) => Reply::Answer(Box::new(book.bare(CallOutcome::Invalid(violations)))),
        None => apply(call, &mut book, &scene.subject_paths, swept),
    };
    let replies: Vec<Reply> = work.iter().zip(invalid.clone()).map(answer).collect();

    let missing = writer_context.months.missing(book.entries.iter().map(|entry| entry.at));
    let written = if missing.is_empty() {
        write(connection, environment, &book, &before, &ids, opening.batch_id).await?
    } else {
        Written::Not
    };
    if written == Written::Whole {
        batch_wallets.write(connection, &mut book).await?;
    }
    if written != Written::Whole || has_twin(connection, environment, work, &replies).await? {
        roll_back(connection).await?;
        writer_context.months.make(connection, &missing).await?;
        processor.expired_to_commit = scene.expired_to_commit;
        processor.check_existing = true;
        if let Written::KeysTaken(keys) = written {
            processor.conflicting_event_ids.extend(keys);
        }
        return Ok(Attempt::Again);
    }
    if let Err(why) = store::gate::batches::commit(connection, opening.batch_id).await {
        tracing::debug!(%why, "commit");
        processor.unconfirmed_replies.insert(opening.batch_id, replies);
        return Ok(Attempt::Unanswered { batch_id: opening.batch_id });
    }
    writer_context.tails.of(environment).grow(book.entries.len());
    processor.fast_path.note(book.counters.iter().filter(|(key, _)| of_prices.contains(key)));
    drop(book);
    processor.conflicting_event_ids.clear();
    processor.check_existing = false;
    processor.unconfirmed_replies.clear();
    // only what is committed may be remembered
    fresh.remember(&cache);
    note_metrics(&replies);
    Ok(Attempt::Committed(replies))
}

/// The counters of what prices rate.
fn of_prices(counter_requests: &CounterRequests<'_>) -> BTreeSet<CounterKey> {
    let is_of_price =
        |need: &&CounterRequest<'_>| matches!(need.counter_source, CounterSource::PricedUsage(_));
    counter_requests.values().filter(is_of_price).map(|need| need.counter.key).collect()
}

/// What caps have to look at that has no counter.
async fn read_levels(
    connection: &mut PgConnection,
    environment: Environment,
    terms: &CatalogIndex,
    levels: &CounterRequests<'_>,
    now: Timestamp,
) -> Result<Vec<(CounterKey, Counter)>, StoreError> {
    let mut read = Vec::with_capacity(levels.len());
    for (key, level) in levels {
        read.push((*key, counters::count(connection, environment, terms, level).await?.counter(now)));
    }
    Ok(read)
}

fn counter(row: &CounterRow) -> Counter {
    Counter { level: row.level, next_expiry: row.next_expiry, becomes: None }
}

async fn roll_back(connection: &mut PgConnection) -> Result<(), StoreError> {
    sqlx::raw_sql("rollback").execute(connection).await?;
    Ok(())
}

/// Who and what a batch is about.
#[derive(Default)]
struct BatchContext {
    subject_paths: SubjectPaths,
    /// Reservations whose expiry has to be carried out.
    expired_to_commit: Vec<Uuid>,
    /// Whether what is to be made may be there already.
    check_existing: bool,
    locked: Vec<Reservation>,
    paths: HashMap<i64, Arc<Path>>,
}

impl BatchContext {
    /// Locks the reservations that calls are about, and finds those who ask for new ones. The roots
    /// that have to be subscribed first.
    async fn gather<'c>(
        &mut self,
        connection: &mut PgConnection,
        environment: Environment,
        cache: &EnvironmentCache,
        calls: impl Iterator<Item = &'c Call> + Clone,
        now: Timestamp,
        fresh: &mut CacheUpdates,
    ) -> Result<Vec<i64>, StoreError> {
        if calls.clone().any(|call| matches!(call, Call::Sweep)) {
            let limit = SWEEP_RESERVATIONS_MAX;
            self.expired_to_commit
                .extend(store::gate::reservations::due(connection, environment, now, limit).await?);
        }
        let mut keys = self.expired_to_commit.clone();
        // what is to be made is looked for only where that has failed: most ids are new
        let is_looked_for = |call: &&Call| self.check_existing || !matches!(call, Call::Reserve { .. });
        keys.extend(calls.clone().filter(is_looked_for).filter_map(Call::key));
        if !keys.is_empty() {
            self.locked = store::gate::reservations::lock(connection, environment, &keys).await?;
        }
        let ids: BTreeSet<i64> = self.locked.iter().map(|reservation| reservation.path_id).collect();
        self.paths = resolution::find_paths(connection, environment, cache, &ids, fresh).await?;
        let known = |call: &&Call| self.locked.iter().any(|reservation| call.key() == Some(reservation.key));
        let new: Vec<&Reserve> = requests(calls.filter(|call| !known(call))).collect();
        let (subject_paths, roots) = arrive(connection, environment, cache, &new, now, fresh).await?;
        self.subject_paths = subject_paths;
        self.paths.extend(self.subject_paths.values().map(|path| (path.id, Arc::clone(path))));
        Ok(roots)
    }

    fn has_due_end(&self, now: Timestamp, terms: &CatalogIndex) -> bool {
        self.paths.values().any(|path| path.has_due_end(now, terms))
    }

    /// The counters that calls compare with, change or show; the levels that caps have to look at; and
    /// when the first period of those that are of the present ends, or another price comes into force.
    fn counter_requests<'a, 'c>(
        &'a self,
        terms: &'a CatalogIndex,
        calls: impl Iterator<Item = &'c Call>,
        now: Timestamp,
    ) -> (CounterRequests<'a>, CounterRequests<'a>, Option<Timestamp>) {
        let (mut counter_requests, mut levels, mut present) =
            (CounterRequests::new(), CounterRequests::new(), BTreeSet::new());
        let mut changes = BTreeSet::new();
        for request in requests(calls) {
            let Some(path) = self.subject_paths.get(request.subject.as_str()) else { continue };
            for ask in &request.asks {
                for found in terms.matching(path, &ask.meter, &ask.properties) {
                    present.extend(request_counter(&mut counter_requests, CounterSource::Limit(found), now));
                }
            }
            for applicable_cap in terms.applicable_caps(path, now) {
                changes.extend(applicable_cap.next_change(now));
                let meets = |ask: &HoldRequest| applicable_cap.is_met_by(&ask.meter, &ask.properties, now);
                if request.asks.iter().any(meets) {
                    for priced_usage in applicable_cap.priced_usages() {
                        present.extend(request_priced_usage(
                            &mut counter_requests,
                            &mut levels,
                            priced_usage,
                            now,
                        ));
                    }
                }
            }
        }
        for reservation in &self.locked {
            let Some(path) = self.paths.get(&reservation.path_id) else { continue };
            for hold in &reservation.holds {
                for found in terms.matching(path, &hold.meter, &hold.properties) {
                    request_counter(
                        &mut counter_requests,
                        CounterSource::Limit(found),
                        reservation.created_at,
                    );
                    present.extend(request_counter(&mut counter_requests, CounterSource::Limit(found), now));
                }
            }
            // whether holds may grow is a matter of all that caps count
            let made_at = reservation.created_at;
            for priced_usage in
                terms.applicable_caps(path, made_at).into_iter().flat_map(ApplicableCap::priced_usages)
            {
                request_priced_usage(&mut counter_requests, &mut levels, priced_usage, made_at);
            }
        }
        let ends = present.iter().filter_map(|key| Some(counter_requests.get(key)?.counter.period.to));
        let end = ends.chain(changes).min();
        (counter_requests, levels, end)
    }
}

/// Adds the counter of what a price rates, or the level.
fn request_priced_usage<'a>(
    counter_requests: &mut CounterRequests<'a>,
    levels: &mut CounterRequests<'a>,
    priced_usage: PricedUsage<'a>,
    at: Timestamp,
) -> Option<CounterKey> {
    let counter_source = CounterSource::PricedUsage(priced_usage);
    let found = request_counter(counter_requests, counter_source, at);
    if found.is_none() {
        let counter = priced_usage.counter_at(at);
        levels.entry(counter.key).or_insert(CounterRequest { counter_source, counter });
    }
    found
}

pub(super) fn requests<'c>(calls: impl Iterator<Item = &'c Call>) -> impl Iterator<Item = &'c Reserve> {
    calls.filter_map(|call| match call {
        Call::Reserve { request, .. } => Some(request),
        _ => None,
    })
}

/// What the catalog says against a call.
fn violations(call: &Call, terms: &CatalogIndex) -> Option<Violations> {
    match call {
        Call::Reserve { request, .. } => request.validate(terms, true).err(),
        _ => None,
    }
}

/// Where those stand who ask. Whom nobody has met is made, if there is a plan to be on. Also the roots
/// that have to be subscribed first.
async fn arrive(
    connection: &mut PgConnection,
    environment: Environment,
    cache: &EnvironmentCache,
    requests: &[&Reserve],
    now: Timestamp,
    fresh: &mut CacheUpdates,
) -> Result<(SubjectPaths, Vec<i64>), StoreError> {
    let names: BTreeSet<&str> = requests.iter().map(|request| request.subject.as_str()).collect();
    let mut found = resolution::find(connection, environment, cache, &names, fresh).await?;
    let mut made = HashSet::new();
    if found.len() < names.len() && cache.terms.catalog.default_plan.is_some() {
        let unknown: Vec<String> =
            names.iter().filter(|name| !found.contains_key(**name)).map(|name| (*name).to_owned()).collect();
        made = resolution::make(connection, environment, &unknown, &mut found, fresh).await?;
    }
    let roots = resolution::subscribe(connection, environment, cache, &mut found, &made, now, fresh).await?;
    Ok((found, roots))
}

/// Gives back what has lapsed on the counters of the book. Reservations that are charged at their
/// expiry and are not in the book are named instead.
async fn settle_expired(
    connection: &mut PgConnection,
    book: &mut GateState<'_>,
    ids: &HashMap<CounterKey, i64>,
) -> Result<Vec<Uuid>, StoreError> {
    let lapsing: BTreeMap<i64, CounterKey> = book
        .counters
        .iter()
        .filter(|(_, counter)| counter.next_expiry.is_some_and(|at| at <= book.moment.now))
        .filter_map(|(key, _)| Some((*ids.get(key)?, *key)))
        .collect();
    if lapsing.is_empty() {
        return Ok(Vec::new());
    }
    let counter_ids: Vec<i64> = lapsing.keys().copied().collect();
    let mut charged = Vec::new();
    for expired in store::gate::hold_lines::expired(connection, &counter_ids, book.moment.now).await? {
        let Some(counter) = lapsing.get(&expired.counter_id).copied() else { continue };
        let key = HoldLineKey { counter, expires_at: expired.expires_at, reservation: expired.reservation };
        match expired.line.on_expiry {
            OnExpiry::Release => book.expire_line(key, expired.line),
            OnExpiry::Commit if book.reservations.contains_key(&expired.reservation) => {}
            OnExpiry::Commit => charged.push(expired.reservation),
        }
    }
    charged.sort_unstable();
    charged.dedup();
    for (id, next) in
        store::gate::hold_lines::next_expiries(connection, &counter_ids, book.moment.now).await?
    {
        if let Some(counter) = lapsing.get(&id).and_then(|key| book.counters.get_mut(key)) {
            counter.next_expiry = next;
        }
    }
    Ok(charged)
}

fn apply(call: &Call, book: &mut GateState<'_>, subject_paths: &SubjectPaths, swept: usize) -> Reply {
    let answer = match call {
        Call::Reserve { key, id, request } => {
            book.reserve(*key, id, request, subject_paths.get(request.subject.as_str()))
        }
        Call::Commit { key, request } => book.commit(*key, request),
        Call::Release { key, request } => book.release(*key, request),
        Call::Extend { key, request } => book.extend(*key, request),
        Call::Sweep => return Reply::Swept(swept),
    };
    Reply::Answer(Box::new(answer))
}

/// Whether a reservation that was denied has been made meanwhile, by another call with the same id: it
/// may be what denied this one.
async fn has_twin(
    connection: &mut PgConnection,
    environment: Environment,
    work: &[&Call],
    replies: &[Reply],
) -> Result<bool, StoreError> {
    let denied: Vec<Uuid> = work
        .iter()
        .zip(replies)
        .filter_map(|(call, reply)| match (call, reply) {
            (Call::Reserve { key, request, .. }, Reply::Answer(answer)) => {
                let is_denied = matches!(answer.outcome, CallOutcome::Denied(_));
                (is_denied && request.id.is_some()).then_some(*key)
            }
            _ => None,
        })
        .collect();
    Ok(!denied.is_empty() && store::gate::reservations::exist(connection, environment, &denied).await?)
}

/// Whether what a book has come to could be written.
#[derive(Debug, PartialEq, Eq)]
enum Written {
    Whole,
    Not,
    /// These ids of events were recorded by somebody else.
    KeysTaken(Vec<Uuid>),
}

/// Writes what the book has come to, unless the id of a new reservation was taken meanwhile.
async fn write(
    connection: &mut PgConnection,
    environment: Environment,
    book: &GateState<'_>,
    before: &BTreeMap<CounterKey, Counter>,
    ids: &HashMap<CounterKey, i64>,
    batch_id: i64,
) -> Result<Written, StoreError> {
    let taken = record(connection, environment, book, batch_id).await?;
    if !taken.is_empty() {
        return Ok(Written::KeysTaken(taken));
    }

    let mut settlement = GateWrites::default();
    for (key, change) in &book.lines {
        let Some(id) = ids.get(&key.counter) else { continue };
        match change.line {
            Some(line) => settlement.lines.push(*id, *key, line),
            None if change.was_there => settlement.gone.push((*id, key.expires_at, key.reservation)),
            None => {}
        }
    }
    for (key, counter) in &book.counters {
        // a level is read, and has no row
        if before.get(key).is_some_and(|before| before != counter) {
            let level = counter.level;
            settlement.counters.push(*key, level, counter.next_expiry);
        }
    }
    for (key, change) in &book.changed {
        let Some(reservation) = book.reservations.get(key) else { continue };
        match change {
            ReservationChange::Made => settlement.made.push(reservation),
            ReservationChange::Altered => settlement.altered.push(reservation),
        }
    }
    let inserted = store::gate::settlement::write(connection, environment, &settlement).await?;
    Ok(if inserted == settlement.made.len() { Written::Whole } else { Written::Not })
}

/// Records what commits say as events, each bound to its meter; nothing where ids of them were taken
/// by somebody: which ones.
async fn record(
    connection: &mut PgConnection,
    environment: Environment,
    book: &GateState<'_>,
    batch_id: i64,
) -> Result<Vec<Uuid>, StoreError> {
    if book.entries.is_empty() {
        return Ok(Vec::new());
    }
    let mut keys: Vec<(Uuid, Uuid, Timestamp)> = book
        .entries
        .iter()
        .map(|entry| {
            let mut content = metergate_domain::base::digest::Digest::default();
            content.text(entry.record.meter.as_str()).quantity(entry.record.quantity);
            (entry.record.key, content.map(entry.record.properties.as_map()).finish(), entry.at)
        })
        .collect();
    keys.sort_unstable_by_key(|(key, _, _)| *key);
    let mut key_columns = KeyColumns::default();
    for (key, content, at) in keys {
        key_columns.keys.push(key);
        key_columns.contents.push(content);
        key_columns.occurred_at.push(at);
        key_columns.timestamp_given.push(true);
    }
    let taken = store::usage::events::insert_keys(connection, environment, batch_id, &key_columns).await?;
    if taken < key_columns.keys.len() as u64 {
        let rows = store::usage::events::find_keys(connection, environment, &key_columns.keys).await?;
        let others = rows.into_iter().filter(|row| row.batch_id != batch_id);
        return Ok(others.map(|row| row.key).collect());
    }
    let mut columns = EventColumns::default();
    for (ordinal, entry) in book.entries.iter().enumerate() {
        let Some(stored) = book.terms.meter(&entry.record.meter) else {
            let why = format!("something is held on `{}`, which is no meter", entry.record.meter);
            return Err(StoreError::Refused(sqlx::Error::Decode(why.into())));
        };
        let path: &Path = &entry.path;
        columns.path_ids.push(path.id);
        columns.occurred_at.push(entry.at);
        columns.customer_ids.push(path.customer_id);
        columns.keys.push(entry.record.key);
        columns.ordinals.push(i32::try_from(ordinal).unwrap_or(i32::MAX));
        columns.event_name_ids.push(stored.event_name_id);
        columns.signs.push(1);
        columns.values.push(entry.record.quantity);
        columns.properties.push(entry.record.properties.to_json());
        columns.ids.push(None);
        columns.sources.push(None);
        columns.meter_ids.push(Some(stored.id));
    }
    store::usage::events::insert_batch(connection, environment, batch_id, &columns).await?;
    Ok(Vec::new())
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
