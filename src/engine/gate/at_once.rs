//! The short way for most batches: new reservations of known subjects, of which everything fits. What
//! they come to is worked out beforehand, but for what is used and held already and the time; the
//! database adds those under its locks, and does all of it in one message or nothing. Whatever is more
//! than that goes the long way, [`super::batch`], which decides everything.
//!
//! The rules are those of the book, and builds with assertions hold every batch against it.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::PgConnection;
use uuid::Uuid;

use super::batch::note_metrics;
use super::rooms::{Budgets, CapsOnPath, KnownCaps, Seen};
use super::{Call, Holding, Reply};
use crate::domain::gate::book::{Answer, Book, Counter, Line, LineKey, Outcome};
use crate::domain::gate::budget::Budget;
use crate::domain::gate::decision::{Grant, obstacle};
use crate::domain::gate::request::{Ask, Reserve};
use crate::domain::gate::reservation::{Moment, Reservation, Status, holds};
use crate::domain::gate::standing::{CounterKey, Path, Terms};
use crate::domain::quantity::{Quantity, Total};
use crate::domain::timestamp::Timestamp;
use crate::engine::configuration::Configuration;
use crate::engine::writers::Attempt;
use crate::store::StoreError;
use crate::store::at_once::{self, Addition, AtOnce, Done, HeldLine, NewReservation};

/// How many batches go the long way, at most, after one that did not fit.
const DOUBTED_MAX: u32 = 64;

/// What the next batch goes by.
#[derive(Debug, Clone, Copy)]
struct Ahead {
    batch_id: i64,
    /// The time by the server's clock, and when it was read.
    now: Timestamp,
    read_at: Instant,
}

/// What a writer knows of the short way.
#[derive(Debug, Default)]
pub(super) struct Shortcut {
    ahead: Option<Ahead>,
    /// What the counters of caps came to when they were seen last.
    seen: Seen,
    caps: KnownCaps,
    /// How many batches go the long way before it is tried again, and how many did last time.
    doubted: u32,
    doubts: u32,
}

impl Shortcut {
    /// What the long way found of counters of caps.
    pub(super) fn note<'k>(&self, counters: impl Iterator<Item = (&'k CounterKey, &'k Counter)>) {
        for (key, counter) in counters {
            self.seen.note(*key, counter.level, Total::default());
        }
    }

    fn doubt(&mut self) {
        self.doubts = (self.doubts * 2 + 1).min(DOUBTED_MAX);
        self.doubted = self.doubts;
    }
}

/// None where it has to go the long way; then nothing was done.
pub(super) async fn attempt(
    holding: &mut Holding,
    connection: &mut PgConnection,
    work: &[&Call],
) -> Result<Option<Attempt<Reply>>, StoreError> {
    if holding.shortcut.doubted > 0 {
        holding.shortcut.doubted -= 1;
        return Ok(None);
    }
    let (environment, workplace) = (holding.environment, holding.workplace.clone());
    let Some(configuration) = workplace.configurations.known(environment) else { return Ok(None) };
    let ahead = if let Some(ahead) = holding.shortcut.ahead {
        ahead
    } else {
        let (batch_id, now) = at_once::next_batch(connection).await?;
        let now = workplace.clock.now(environment, now);
        *holding.shortcut.ahead.insert(Ahead { batch_id, now, read_at: Instant::now() })
    };
    let clock = workplace.clock.setting(environment);
    let reckoned = clock.fixed.unwrap_or_else(|| ahead.now.saturating_add(ahead.read_at.elapsed()));
    let Shortcut { seen, caps, .. } = &mut holding.shortcut;
    let caps = caps.under(configuration.versions.config);
    let Some(draft) = Draft::of(work, &configuration, (seen, caps), reckoned) else { return Ok(None) };
    let Draft { standings, batch } = draft;

    // a number is good for one batch
    holding.shortcut.ahead = None;
    let versions = configuration.versions;
    let done = match at_once::hold(connection, environment, versions, ahead.batch_id, clock, &batch).await {
        Ok(Some(done)) => done,
        Ok(None) => {
            holding.shortcut.doubt();
            return Ok(None);
        }
        Err(why @ StoreError::Unavailable(_)) => {
            tracing::debug!(%why, "a commit");
            return Ok(Some(Attempt::Unanswered { batch_id: ahead.batch_id }));
        }
        Err(why) => return Err(why),
    };
    let shortcut = &mut holding.shortcut;
    shortcut.ahead = Some(Ahead { batch_id: done.next_batch_id, now: done.at, read_at: Instant::now() });
    (shortcut.doubted, shortcut.doubts) = (0, 0);
    for ((key, addition), level) in batch.counters.iter().zip(&done.levels) {
        if addition.of_price {
            shortcut.seen.note(*key, *level, addition.added);
        }
    }
    holding.kept.clear();

    let taken = BTreeSet::new();
    let moment = Moment { now: done.at, age_max: workplace.age_max, taken: &taken };
    let mut book = Book::open(&configuration.terms, moment);
    for ((key, _), level) in batch.counters.iter().zip(&done.levels) {
        book.counters.insert(*key, Counter { level: *level, ..Counter::default() });
    }
    debug_assert!(agrees(&batch, &done, moment, &configuration.terms, work, &standings));
    let replies = answer(book, batch, &standings);
    note_metrics(&replies);
    Ok(Some(Attempt::Committed(replies)))
}

/// What each is told: as the counters stand after it.
fn answer(mut book: Book<'_>, batch: AtOnce<'_>, standings: &[Arc<Path>]) -> Vec<Reply> {
    let at = book.moment.now;
    let mut lines = batch.lines.into_iter().peekable();
    let answer = |(made, path): (NewReservation<'_>, &Arc<Path>)| {
        while let Some(line) = lines.next_if(|line| line.reservation == made.key) {
            if let Some(counter) = book.counters.get_mut(&line.counter) {
                counter.level.held = counter.level.held + line.quantity.into();
            }
        }
        let limits = book.limits(path, made.holds.iter().map(|hold| (&hold.meter, &hold.properties)));
        let outcome = Outcome::Held { reservation: reservation(made, at), replayed: false };
        Reply::Answer(Box::new(Answer { outcome, limits, at }))
    };
    batch.made.into_iter().zip(standings).map(answer).collect()
}

fn reservation(made: NewReservation<'_>, at: Timestamp) -> Reservation {
    Reservation {
        key: made.key,
        id: made.id.to_owned(),
        path_id: made.path_id,
        content: made.content,
        created_at: at,
        expires_at: at.saturating_add(Duration::from_secs(made.ttl_seconds.unsigned_abs().into())),
        on_expiry: made.on_expiry,
        status: Status::Held,
        holds: made.holds,
        over_hold: false,
        late: false,
        reason: None,
        settled_at: None,
        last_call: None,
    }
}

/// Whether the book comes to what was written and is answered; asked in tests, of every batch.
fn agrees(
    batch: &AtOnce<'_>,
    done: &Done,
    moment: Moment<'_>,
    terms: &Terms,
    work: &[&Call],
    standings: &[Arc<Path>],
) -> bool {
    let levels = || {
        let mut book = Book::open(terms, moment);
        for ((key, _), level) in batch.counters.iter().zip(&done.levels) {
            book.counters.insert(*key, Counter { level: *level, ..Counter::default() });
        }
        book
    };
    let mut book = levels();
    let decided = work.iter().zip(standings).filter_map(|(call, path)| match call {
        Call::Reserve { key, id, request } => Some(book.reserve(*key, id, request, Some(path))),
        _ => None,
    });
    let decided: Vec<Answer> = decided.collect();
    let all_answered = answer(levels(), batch.clone(), standings)
        .iter()
        .map(|reply| match reply {
            Reply::Answer(answer) => Some(&**answer),
            Reply::Swept(_) => None,
        })
        .eq(decided.iter().map(Some));
    let all_held = book.lines.len() == batch.lines.len()
        && batch.lines.iter().all(|line| {
            let ttl = Duration::from_secs(line.ttl_seconds.unsigned_abs().into());
            let expires_at = moment.now.saturating_add(ttl);
            let key = LineKey { counter: line.counter, expires_at, reservation: line.reservation };
            let covered = Total::default();
            let held = Line { quantity: line.quantity, covered, on_expiry: line.on_expiry };
            book.lines.get(&key).and_then(|change| change.line) == Some(held)
        });
    all_answered && all_held && book.changed.len() == batch.made.len()
}

/// A batch, and where those who ask stand, in the order in which they asked.
struct Draft<'w> {
    standings: Vec<Arc<Path>>,
    batch: AtOnce<'w>,
}

impl<'w> Draft<'w> {
    /// None where it has to go the long way.
    fn of(
        work: &[&'w Call],
        configuration: &Configuration,
        (seen, caps): (&Seen, &KnownCaps),
        now: Timestamp,
    ) -> Option<Self> {
        let terms = &configuration.terms;
        let mut requests = Vec::with_capacity(work.len());
        let mut standings = Vec::with_capacity(work.len());
        for call in work {
            let Call::Reserve { key, id, request } = call else { return None };
            standings.push(configuration.standings.get(request.subject.as_str())?);
            requests.push((*key, id, request));
        }
        let mut sum = Sum::default();
        for ((key, id, request), path) in requests.into_iter().zip(&standings) {
            sum.add((key, id), request, path, (terms, caps), now)?;
        }
        let keys: HashSet<Uuid> = sum.made.iter().map(|made| made.key).collect();
        // the same id twice: the second is a replay of the first, or refused
        if keys.len() < sum.made.len() {
            return None;
        }
        let batch = sum.within_budgets(seen, now)?;
        Some(Self { standings, batch })
    }
}

/// What calls come to, one after the other.
#[derive(Default)]
struct Sum<'w, 'p> {
    from: Option<Timestamp>,
    until: Option<Timestamp>,
    counters: BTreeMap<CounterKey, Addition>,
    lines: Vec<HeldLine>,
    made: Vec<NewReservation<'w>>,
    budgets: Budgets<'p>,
}

impl<'w, 'p> Sum<'w, 'p> {
    /// With what the counters of caps may come to.
    fn within_budgets(mut self, seen: &Seen, now: Timestamp) -> Option<AtOnce<'w>> {
        let added =
            |key: &CounterKey| self.counters.get(key).map(|addition| addition.added).unwrap_or_default();
        for (key, room) in self.budgets.rooms(seen, added, now)? {
            if let Some(addition) = self.counters.get_mut(&key) {
                addition.room = Some(addition.room.map_or(room, |known| known.min(room)));
            }
        }
        let Self { from, until, counters, lines, made, .. } = self;
        Some(AtOnce { from, until, counters: counters.into_iter().collect(), lines, made })
    }

    fn add(
        &mut self,
        (key, id): (Uuid, &'w str),
        request: &Reserve,
        path: &'p Path,
        (terms, caps): (&'p Terms, &KnownCaps),
        now: Timestamp,
    ) -> Option<()> {
        let uses = request.asks.iter().map(|ask| (&ask.meter, &ask.properties));
        if request.refuse(terms, true).is_err() || obstacle(terms, path, uses).is_some() {
            return None;
        }
        let ends = path.members.iter().filter_map(|member| member.subscription.as_ref()?.ends_at);
        for end in ends.filter(|end| now < *end) {
            self.lasts_until(end);
        }
        if path.has_due_end(now, terms) {
            return None;
        }
        let ttl_seconds = i32::try_from(request.ttl_seconds).ok()?;
        for ask in &request.asks {
            self.add_ask(key, (request, ttl_seconds), ask, path, terms, now)?;
        }
        if let Some((budgets, known)) = caps.on(path, terms, now) {
            self.from = self.from.max(Some(known.from));
            self.lasts_until(known.until);
            let mut met = BTreeSet::new();
            for (place, budget) in budgets.into_iter().enumerate() {
                self.add_budget(key, (request, ttl_seconds), (budget, &known, place), &mut met, now)?;
            }
        }
        let asked: Vec<Quantity> = request.asks.iter().map(|ask| ask.value.amount()).collect();
        self.made.push(NewReservation {
            key,
            id,
            path_id: path.id,
            content: request.content(),
            ttl_seconds,
            on_expiry: request.on_expiry,
            holds: holds(&request.asks, &asked),
        });
        Some(())
    }

    fn add_ask(
        &mut self,
        reservation: Uuid,
        (request, ttl_seconds): (&Reserve, i32),
        ask: &Ask,
        path: &Path,
        terms: &Terms,
        now: Timestamp,
    ) -> Option<()> {
        if ask.grant != Grant::Exactly {
            return None;
        }
        let quantity = ask.value.amount();
        // limits of one definition, a soft one below a hard one, share a counter
        let mut met: Vec<CounterKey> = Vec::new();
        for found in terms.matching(path, &ask.meter, &ask.properties) {
            let counter = found.counter_at(now)?;
            self.from = self.from.max(Some(counter.period.from.max(counter.since)));
            self.lasts_until(counter.period.to);
            let addition = self.counters.entry(counter.key).or_default();
            if let Some(quota) = found.quota().filter(|_| found.terms.is_hard()) {
                let quota = Total::from(quota);
                addition.room = Some(addition.room.map_or(quota, |room| room.min(quota)));
            }
            if met.contains(&counter.key) {
                continue;
            }
            met.push(counter.key);
            addition.added = addition.added + quantity.into();
            if !quantity.is_zero() {
                addition.ttl_seconds =
                    Some(addition.ttl_seconds.map_or(ttl_seconds, |ttl| ttl.min(ttl_seconds)));
                let (counter, on_expiry) = (counter.key, request.on_expiry);
                self.lines.push(HeldLine { counter, reservation, ttl_seconds, on_expiry, quantity });
            }
        }
        Some(())
    }

    /// What a cap counts of a call; all that it counts is locked. `met`: caps of one period share counters.
    fn add_budget(
        &mut self,
        reservation: Uuid,
        (request, ttl_seconds): (&Reserve, i32),
        (budget, known, place): (Budget<'p>, &Arc<CapsOnPath>, usize),
        met: &mut BTreeSet<CounterKey>,
        now: Timestamp,
    ) -> Option<()> {
        if !request.asks.iter().any(|ask| budget.is_met_by(&ask.meter, &ask.properties, now)) {
            return Some(());
        }
        let cap = known.caps.get(place).filter(|cap| cap.is_counted)?;
        for (portion, counter) in budget.portions().zip(&cap.counters) {
            let counter = *counter;
            let addition = self.counters.entry(counter).or_default();
            addition.of_price = true;
            let slice = portion.slice;
            let rated = |ask: &&Ask| ask.meter == slice.meter && slice.admits(&ask.properties, now);
            let asked = request.asks.iter().find(rated).map(|ask| ask.value.amount());
            let Some(asked) = asked.filter(|asked| !asked.is_zero() && met.insert(counter)) else { continue };
            let quantity = slice.measure_held(portion.measure, asked).quantity()?;
            addition.added = addition.added + quantity.into();
            addition.ttl_seconds = Some(addition.ttl_seconds.map_or(ttl_seconds, |ttl| ttl.min(ttl_seconds)));
            let on_expiry = request.on_expiry;
            self.lines.push(HeldLine { counter, reservation, ttl_seconds, on_expiry, quantity });
        }
        self.budgets.add(budget, known, place);
        Some(())
    }

    fn lasts_until(&mut self, end: Timestamp) {
        self.until = Some(self.until.map_or(end, |until| until.min(end)));
    }
}
