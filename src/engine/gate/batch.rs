//! One attempt at settling a batch of calls as one transaction. Locks are taken in one order:
//! configuration (shared), reservations, subjects, counters, wallets; each group ascending. Last, when every
//! lock is held, come the keys of recorded events, which nobody else can want, and the ids of new
//! reservations: whoever waits there waits only for a commit.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use sqlx::PgConnection;
use uuid::Uuid;

use super::credits::{Purses, holders};
use super::{Call, Holding, Reply};
use crate::domain::environment::Environment;
use crate::domain::fields::Violation;
use crate::domain::gate::book::{Book, Change, Counter, LineKey, Outcome};
use crate::domain::gate::budget::{Budget, Portion, Tally};
use crate::domain::gate::request::{Ask, OnExpiry, Reserve};
use crate::domain::gate::reservation::{Moment, Reservation};
use crate::domain::gate::standing::{CounterKey, Path, Terms};
use crate::domain::limits::SWEEP_RESERVATIONS_MAX;
use crate::domain::timestamp::Timestamp;
use crate::engine::arrivals::{self, Standings};
use crate::engine::configuration::{Configuration, Fresh};
use crate::engine::counting::{self, Need, Needs, make_missing, need};
use crate::engine::credits::wallets::Cashier;
use crate::engine::subscriptions::carry_out_ends;
use crate::engine::writers::Attempt;
use crate::store::configuration::begin_recording;
use crate::store::counters::CounterRow;
use crate::store::events::{EventColumns, KeyColumns};
use crate::store::settlement::Settlement;
use crate::store::{self, StoreError};

pub(super) async fn attempt(
    holding: &mut Holding,
    connection: &mut PgConnection,
    work: &[&Call],
) -> Result<Attempt<Reply>, StoreError> {
    let (environment, workplace) = (holding.environment, holding.workplace.clone());
    let opening = begin_recording(connection, environment).await?;
    let began = workplace.clock.now(environment, opening.now);
    let configuration = workplace.configurations.at(connection, environment, opening.versions).await?;
    let terms = &configuration.terms;
    let mut fresh = Fresh::default();

    let flawed: Vec<Option<Vec<Violation>>> = work.iter().map(|call| flaws(call, terms)).collect();
    let good = || work.iter().zip(&flawed).filter(|(_, flawed)| flawed.is_none()).map(|(call, _)| *call);
    let mut scene = Scene { due: std::mem::take(&mut holding.due), looks: holding.looks, ..Scene::default() };
    let roots = scene.gather(connection, environment, &configuration, good(), began, &mut fresh).await?;
    if !roots.is_empty() {
        roll_back(connection).await?;
        holding.due = scene.due;
        if !scene.looks {
            // what was made before and is only asked for again must not bring anything about
            holding.looks = true;
            return Ok(Attempt::Again);
        }
        arrivals::subscribe_alone(connection, environment, &roots, &workplace.clock).await?;
        return Ok(Attempt::Again);
    }
    if scene.has_due_end(began, terms) {
        roll_back(connection).await?;
        carry_out_ends(connection, environment, &workplace.clock).await?;
        return Ok(Attempt::Again);
    }

    let (needs, levels, shown_until) = scene.needs(terms, good(), began);
    let of_prices = of_prices(&needs);
    let reader = &mut holding.reader;
    make_missing(connection, reader, environment, &configuration, &needs, began, &mut fresh).await?;
    let (rows, locked_at) = store::counters::lock(connection, needs.keys().copied()).await?;
    let cashier = Cashier { environment, terms, clock: &workplace.clock, began };
    let holders = holders(terms, good(), &scene.standings, (&scene.locked, &scene.paths));
    let mut purses = Purses::open(connection, cashier, holders).await?;
    let now = purses.not_before(workplace.clock.now(environment, locked_at).max(began));
    // a period may have turned over, or a subscription ended, while others held the locks
    if shown_until.is_some_and(|end| end <= now) || scene.has_due_end(now, terms) {
        roll_back(connection).await?;
        return Ok(Attempt::Again);
    }

    let read = read_levels(connection, environment, terms, &levels, now).await?;

    let taken = holding.taken.clone();
    let moment = Moment { now, age_max: workplace.age_max, taken: &taken };
    let mut book = Book::open(terms, moment);
    book.paths = std::mem::take(&mut scene.paths);
    book.reservations = scene.locked.drain(..).map(|reservation| (reservation.key, reservation)).collect();
    let ids: HashMap<CounterKey, i64> = rows.iter().map(|row| (row.key, row.id)).collect();
    book.counters.extend(rows.iter().map(|row| (row.key, counter(row))));
    let before = book.counters.clone();
    book.counters.extend(read);
    let mut charged = settle_lapsed(connection, &mut book, &ids).await?;
    charged.extend(purses.lend(&mut book));
    if !charged.is_empty() {
        // they have to be recorded first, and their rows come before counters in the order of locks
        roll_back(connection).await?;
        holding.due = [scene.due, charged].concat();
        return Ok(Attempt::Again);
    }

    for key in book.reservations.keys().copied().collect::<Vec<_>>() {
        book.lapse(key);
    }
    let swept = book.changed.len();
    let answer = |(call, flawed): (&&Call, Option<Vec<Violation>>)| match flawed {
        Some(flaws) => Reply::Answer(Box::new(book.bare(Outcome::Invalid(flaws)))),
        None => apply(call, &mut book, &scene.standings, swept),
    };
    let replies: Vec<Reply> = work.iter().zip(flawed.clone()).map(answer).collect();

    let missing = workplace.months.missing(book.entries.iter().map(|entry| entry.at));
    let written = if missing.is_empty() {
        write(connection, environment, &book, &before, &ids, opening.batch_id).await?
    } else {
        Written::Not
    };
    if written == Written::Whole {
        purses.write(connection, &mut book).await?;
    }
    if written != Written::Whole || has_twin(connection, environment, work, &replies).await? {
        roll_back(connection).await?;
        workplace.months.make(connection, &missing).await?;
        holding.due = scene.due;
        holding.looks = true;
        if let Written::KeysTaken(keys) = written {
            holding.taken.extend(keys);
        }
        return Ok(Attempt::Again);
    }
    if let Err(why) = store::gate_batches::commit(connection, opening.batch_id).await {
        tracing::debug!(%why, "commit");
        holding.kept.insert(opening.batch_id, replies);
        return Ok(Attempt::Unanswered { batch_id: opening.batch_id });
    }
    workplace.tails.of(environment).grow(book.entries.len());
    holding.shortcut.note(book.counters.iter().filter(|(key, _)| of_prices.contains(key)));
    drop(book);
    holding.taken.clear();
    holding.looks = false;
    holding.kept.clear();
    // only what is committed may be remembered
    fresh.remember(&configuration);
    note_metrics(&replies);
    Ok(Attempt::Committed(replies))
}

/// The counters of what prices rate.
fn of_prices(needs: &Needs<'_>) -> BTreeSet<CounterKey> {
    let is_of_price = |need: &&Need<'_>| matches!(need.tally, Tally::Portion(_));
    needs.values().filter(is_of_price).map(|need| need.counter.key).collect()
}

/// What caps have to look at that has no counter.
async fn read_levels(
    connection: &mut PgConnection,
    environment: Environment,
    terms: &Terms,
    levels: &Needs<'_>,
    now: Timestamp,
) -> Result<Vec<(CounterKey, Counter)>, StoreError> {
    let mut read = Vec::with_capacity(levels.len());
    for (key, level) in levels {
        read.push((*key, counting::count(connection, environment, terms, level).await?.counter(now)));
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
struct Scene {
    standings: Standings,
    /// Reservations whose expiry has to be carried out.
    due: Vec<Uuid>,
    /// Whether what is to be made may be there already.
    looks: bool,
    locked: Vec<Reservation>,
    paths: HashMap<i64, Arc<Path>>,
}

impl Scene {
    /// Locks the reservations that calls are about, and finds those who ask for new ones. The roots
    /// that have to be subscribed first.
    async fn gather<'c>(
        &mut self,
        connection: &mut PgConnection,
        environment: Environment,
        configuration: &Configuration,
        calls: impl Iterator<Item = &'c Call> + Clone,
        now: Timestamp,
        fresh: &mut Fresh,
    ) -> Result<Vec<i64>, StoreError> {
        if calls.clone().any(|call| matches!(call, Call::Sweep)) {
            let limit = SWEEP_RESERVATIONS_MAX;
            self.due.extend(store::reservations::due(connection, environment, now, limit).await?);
        }
        let mut keys = self.due.clone();
        // what is to be made is looked for only where that has failed: most ids are new
        let is_looked_for = |call: &&Call| self.looks || !matches!(call, Call::Reserve { .. });
        keys.extend(calls.clone().filter(is_looked_for).filter_map(Call::key));
        if !keys.is_empty() {
            self.locked = store::reservations::lock(connection, environment, &keys).await?;
        }
        let ids: BTreeSet<i64> = self.locked.iter().map(|reservation| reservation.path_id).collect();
        self.paths = arrivals::find_paths(connection, environment, configuration, &ids, fresh).await?;
        let known = |call: &&Call| self.locked.iter().any(|reservation| call.key() == Some(reservation.key));
        let new: Vec<&Reserve> = requests(calls.filter(|call| !known(call))).collect();
        let (standings, roots) = arrive(connection, environment, configuration, &new, now, fresh).await?;
        self.standings = standings;
        self.paths.extend(self.standings.values().map(|path| (path.id, Arc::clone(path))));
        Ok(roots)
    }

    fn has_due_end(&self, now: Timestamp, terms: &Terms) -> bool {
        self.paths.values().any(|path| path.has_due_end(now, terms))
    }

    /// The counters that calls compare with, change or show; the levels that caps have to look at; and
    /// when the first period of those that are of the present ends, or another price comes into force.
    fn needs<'a, 'c>(
        &'a self,
        terms: &'a Terms,
        calls: impl Iterator<Item = &'c Call>,
        now: Timestamp,
    ) -> (Needs<'a>, Needs<'a>, Option<Timestamp>) {
        let (mut needs, mut levels, mut present) = (Needs::new(), Needs::new(), BTreeSet::new());
        let mut changes = BTreeSet::new();
        for request in requests(calls) {
            let Some(path) = self.standings.get(request.subject.as_str()) else { continue };
            for ask in &request.asks {
                for found in terms.matching(path, &ask.meter, &ask.properties) {
                    present.extend(need(&mut needs, Tally::Limit(found), now));
                }
            }
            for budget in terms.budgets(path, now) {
                changes.extend(budget.next_change(now));
                let meets = |ask: &Ask| budget.is_met_by(&ask.meter, &ask.properties, now);
                if request.asks.iter().any(meets) {
                    for portion in budget.portions() {
                        present.extend(need_portion(&mut needs, &mut levels, portion, now));
                    }
                }
            }
        }
        for reservation in &self.locked {
            let Some(path) = self.paths.get(&reservation.path_id) else { continue };
            for hold in &reservation.holds {
                for found in terms.matching(path, &hold.meter, &hold.properties) {
                    need(&mut needs, Tally::Limit(found), reservation.created_at);
                    present.extend(need(&mut needs, Tally::Limit(found), now));
                }
            }
            // whether holds may grow is a matter of all that caps count
            let made_at = reservation.created_at;
            for portion in terms.budgets(path, made_at).into_iter().flat_map(Budget::portions) {
                need_portion(&mut needs, &mut levels, portion, made_at);
            }
        }
        let ends = present.iter().filter_map(|key| Some(needs.get(key)?.counter.period.to));
        let end = ends.chain(changes).min();
        (needs, levels, end)
    }
}

/// Adds the counter of what a price rates, or the level.
fn need_portion<'a>(
    needs: &mut Needs<'a>,
    levels: &mut Needs<'a>,
    portion: Portion<'a>,
    at: Timestamp,
) -> Option<CounterKey> {
    let tally = Tally::Portion(portion);
    let found = need(needs, tally, at);
    if found.is_none() {
        let counter = portion.counter_at(at);
        levels.entry(counter.key).or_insert(Need { tally, counter });
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
fn flaws(call: &Call, terms: &Terms) -> Option<Vec<Violation>> {
    match call {
        Call::Reserve { request, .. } => request.refuse(terms, true).err(),
        _ => None,
    }
}

/// Where those stand who ask. Whom nobody has met is made, if there is a plan to be on. Also the roots
/// that have to be subscribed first.
async fn arrive(
    connection: &mut PgConnection,
    environment: Environment,
    configuration: &Configuration,
    requests: &[&Reserve],
    now: Timestamp,
    fresh: &mut Fresh,
) -> Result<(Standings, Vec<i64>), StoreError> {
    let names: BTreeSet<&str> = requests.iter().map(|request| request.subject.as_str()).collect();
    let mut found = arrivals::find(connection, environment, configuration, &names, fresh).await?;
    let mut made = HashSet::new();
    if found.len() < names.len() && configuration.terms.catalog.default_plan.is_some() {
        let unknown: Vec<String> =
            names.iter().filter(|name| !found.contains_key(**name)).map(|name| (*name).to_owned()).collect();
        made = arrivals::make(connection, environment, &unknown, &mut found, fresh).await?;
    }
    let roots =
        arrivals::subscribe(connection, environment, configuration, &mut found, &made, now, fresh).await?;
    Ok((found, roots))
}

/// Gives back what has lapsed on the counters of the book. Reservations that are charged at their
/// expiry and are not in the book are named instead.
async fn settle_lapsed(
    connection: &mut PgConnection,
    book: &mut Book<'_>,
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
    for lapsed in store::hold_lines::lapsed(connection, &counter_ids, book.moment.now).await? {
        let Some(counter) = lapsing.get(&lapsed.counter_id).copied() else { continue };
        let key = LineKey { counter, expires_at: lapsed.expires_at, reservation: lapsed.reservation };
        match lapsed.line.on_expiry {
            OnExpiry::Release => book.lapse_line(key, lapsed.line),
            OnExpiry::Commit if book.reservations.contains_key(&lapsed.reservation) => {}
            OnExpiry::Commit => charged.push(lapsed.reservation),
        }
    }
    charged.sort_unstable();
    charged.dedup();
    for (id, next) in store::hold_lines::next_expiries(connection, &counter_ids, book.moment.now).await? {
        if let Some(counter) = lapsing.get(&id).and_then(|key| book.counters.get_mut(key)) {
            counter.next_expiry = next;
        }
    }
    Ok(charged)
}

fn apply(call: &Call, book: &mut Book<'_>, standings: &Standings, swept: usize) -> Reply {
    let answer = match call {
        Call::Reserve { key, id, request } => {
            book.reserve(*key, id, request, standings.get(request.subject.as_str()))
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
                let is_denied = matches!(answer.outcome, Outcome::Denied(_));
                (is_denied && request.id.is_some()).then_some(*key)
            }
            _ => None,
        })
        .collect();
    Ok(!denied.is_empty() && store::reservations::exist(connection, environment, &denied).await?)
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
    book: &Book<'_>,
    before: &BTreeMap<CounterKey, Counter>,
    ids: &HashMap<CounterKey, i64>,
    batch_id: i64,
) -> Result<Written, StoreError> {
    let taken = record(connection, environment, book, batch_id).await?;
    if !taken.is_empty() {
        return Ok(Written::KeysTaken(taken));
    }

    let mut settlement = Settlement::default();
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
            Change::Made => settlement.made.push(reservation),
            Change::Altered => settlement.altered.push(reservation),
        }
    }
    let inserted = store::settlement::write(connection, environment, &settlement).await?;
    Ok(if inserted == settlement.made.len() { Written::Whole } else { Written::Not })
}

/// Records what commits say as events, each bound to its meter; nothing where ids of them were taken
/// by somebody: which ones.
async fn record(
    connection: &mut PgConnection,
    environment: Environment,
    book: &Book<'_>,
    batch_id: i64,
) -> Result<Vec<Uuid>, StoreError> {
    if book.entries.is_empty() {
        return Ok(Vec::new());
    }
    let mut keys: Vec<(Uuid, Uuid, Timestamp)> = book
        .entries
        .iter()
        .map(|entry| {
            let mut content = crate::domain::digest::Digest::default();
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
    let taken = store::events::insert_keys(connection, environment, batch_id, &key_columns).await?;
    if taken < key_columns.keys.len() as u64 {
        let rows = store::events::find_keys(connection, environment, &key_columns.keys).await?;
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
    store::events::insert_batch(connection, environment, batch_id, &columns).await?;
    Ok(Vec::new())
}

pub(super) fn note_metrics(replies: &[Reply]) {
    let mut counts: BTreeMap<&'static str, u64> = BTreeMap::new();
    for reply in replies {
        let Reply::Answer(answer) = reply else { continue };
        let outcome = match &answer.outcome {
            Outcome::Held { .. } | Outcome::Allowed { .. } => "held",
            Outcome::Denied(_) => "denied",
            Outcome::Committed { .. } => "committed",
            Outcome::Released { .. } => "released",
            Outcome::Extended { .. } => "extended",
            Outcome::Refused(_) | Outcome::Invalid(_) => "refused",
        };
        *counts.entry(outcome).or_default() += 1;
    }
    for (outcome, count) in counts {
        metrics::counter!("metergate_reservation_calls_total", "outcome" => outcome).increment(count);
    }
    metrics::histogram!("metergate_gate_batch_calls")
        .record(f64::from(u32::try_from(replies.len()).unwrap_or(u32::MAX)));
}
