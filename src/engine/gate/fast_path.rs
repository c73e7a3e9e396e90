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

use super::cap_headroom::{ApplicableCaps, CapsOnPath, KnownCaps, LastSeenCounters};
use super::locked::note_metrics;
use super::{Call, GateProcessor, Reply};
use crate::engine::environment_cache::EnvironmentCache;
use crate::engine::writers::Attempt;
use crate::store::StoreError;
use crate::store::gate::fast_path::{self, CounterAddition, Done, FastBatch, HeldLine, NewReservation};
use metergate_domain::base::quantity::{Quantity, Total};
use metergate_domain::base::timestamp::Timestamp;
use metergate_domain::gate::applicable_cap::ApplicableCap;
use metergate_domain::gate::catalog_index::CatalogIndex;
use metergate_domain::gate::counter::CounterKey;
use metergate_domain::gate::decision::{GrantMode, precheck};
use metergate_domain::gate::path::Path;
use metergate_domain::gate::request::{HoldRequest, Reserve};
use metergate_domain::gate::reservation::{Moment, Reservation, ReservationStatus, holds};
use metergate_domain::gate::state::{CallOutcome, Counter, GateAnswer, GateState, HoldLine, HoldLineKey};

/// How many batches go the long way, at most, after one that did not fit.
const DOUBTED_MAX: u32 = 64;

/// What the next batch goes by.
#[derive(Debug, Clone, Copy)]
struct NextBatch {
    batch_id: i64,
    /// The time by the server's clock, and when it was read.
    now: Timestamp,
    read_at: Instant,
}

/// What a writer knows of the short way.
#[derive(Debug, Default)]
pub(super) struct FastPath {
    ahead: Option<NextBatch>,
    /// What the counters of caps came to when they were seen last.
    seen: LastSeenCounters,
    caps: KnownCaps,
    /// How many batches go the long way before it is tried again, and how many did last time.
    doubted: u32,
    doubts: u32,
}

impl FastPath {
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
    processor: &mut GateProcessor,
    connection: &mut PgConnection,
    work: &[&Call],
) -> Result<Option<Attempt<Reply>>, StoreError> {
    if processor.fast_path.doubted > 0 {
        processor.fast_path.doubted -= 1;
        return Ok(None);
    }
    let (environment, writer_context) = (processor.environment, processor.writer_context.clone());
    let Some(cache) = writer_context.caches.known(environment) else { return Ok(None) };
    let ahead = if let Some(ahead) = processor.fast_path.ahead {
        ahead
    } else {
        let (batch_id, now) = fast_path::next_batch(connection).await?;
        let now = writer_context.clock.now(environment, now);
        *processor.fast_path.ahead.insert(NextBatch { batch_id, now, read_at: Instant::now() })
    };
    let clock = writer_context.clock.setting(environment);
    let reckoned = clock.fixed.unwrap_or_else(|| ahead.now.saturating_add(ahead.read_at.elapsed()));
    let FastPath { seen, caps, .. } = &mut processor.fast_path;
    let caps = caps.under(cache.versions.config);
    let Some(draft) = FastBatchBuilder::of(work, &cache, (seen, caps), reckoned) else { return Ok(None) };
    let FastBatchBuilder { subject_paths, batch } = draft;

    // a number is good for one batch
    processor.fast_path.ahead = None;
    let versions = cache.versions;
    let done = match fast_path::hold(connection, environment, versions, ahead.batch_id, clock, &batch).await {
        Ok(Some(done)) => done,
        Ok(None) => {
            processor.fast_path.doubt();
            return Ok(None);
        }
        Err(why @ StoreError::Unavailable(_)) => {
            tracing::debug!(%why, "a commit");
            return Ok(Some(Attempt::Unanswered { batch_id: ahead.batch_id }));
        }
        Err(why) => return Err(why),
    };
    let fast_path = &mut processor.fast_path;
    fast_path.ahead = Some(NextBatch { batch_id: done.next_batch_id, now: done.at, read_at: Instant::now() });
    (fast_path.doubted, fast_path.doubts) = (0, 0);
    for ((key, addition), level) in batch.counters.iter().zip(&done.levels) {
        if addition.of_price {
            fast_path.seen.note(*key, *level, addition.added);
        }
    }
    processor.unconfirmed_replies.clear();

    let taken = BTreeSet::new();
    let moment = Moment { now: done.at, age_max: writer_context.age_max, taken: &taken };
    let mut book = GateState::open(&cache.terms, moment);
    for ((key, _), level) in batch.counters.iter().zip(&done.levels) {
        book.counters.insert(*key, Counter { level: *level, ..Counter::default() });
    }
    debug_assert!(agrees(&batch, &done, moment, &cache.terms, work, &subject_paths));
    let replies = answer(book, batch, &subject_paths);
    note_metrics(&replies);
    Ok(Some(Attempt::Committed(replies)))
}

/// What each is told: as the counters stand after it.
fn answer(mut book: GateState<'_>, batch: FastBatch<'_>, subject_paths: &[Arc<Path>]) -> Vec<Reply> {
    let at = book.moment.now;
    let mut lines = batch.lines.into_iter().peekable();
    let answer = |(made, path): (NewReservation<'_>, &Arc<Path>)| {
        while let Some(line) = lines.next_if(|line| line.reservation == made.key) {
            if let Some(counter) = book.counters.get_mut(&line.counter) {
                counter.level.held = counter.level.held + line.quantity.into();
            }
        }
        let limits = book.limits(path, made.holds.iter().map(|hold| (&hold.meter, &hold.properties)));
        let outcome = CallOutcome::Held { reservation: reservation(made, at), replayed: false };
        Reply::Answer(Box::new(GateAnswer { outcome, limits, at }))
    };
    batch.made.into_iter().zip(subject_paths).map(answer).collect()
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
        status: ReservationStatus::Held,
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
    batch: &FastBatch<'_>,
    done: &Done,
    moment: Moment<'_>,
    terms: &CatalogIndex,
    work: &[&Call],
    subject_paths: &[Arc<Path>],
) -> bool {
    let levels = || {
        let mut book = GateState::open(terms, moment);
        for ((key, _), level) in batch.counters.iter().zip(&done.levels) {
            book.counters.insert(*key, Counter { level: *level, ..Counter::default() });
        }
        book
    };
    let mut book = levels();
    let decided = work.iter().zip(subject_paths).filter_map(|(call, path)| match call {
        Call::Reserve { key, id, request } => Some(book.reserve(*key, id, request, Some(path))),
        _ => None,
    });
    let decided: Vec<GateAnswer> = decided.collect();
    let all_answered = answer(levels(), batch.clone(), subject_paths)
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
            let key = HoldLineKey { counter: line.counter, expires_at, reservation: line.reservation };
            let covered = Total::default();
            let held = HoldLine { quantity: line.quantity, covered, on_expiry: line.on_expiry };
            book.lines.get(&key).and_then(|change| change.line) == Some(held)
        });
    all_answered && all_held && book.changed.len() == batch.made.len()
}

/// A batch, and where those who ask stand, in the order in which they asked.
struct FastBatchBuilder<'w> {
    subject_paths: Vec<Arc<Path>>,
    batch: FastBatch<'w>,
}

impl<'w> FastBatchBuilder<'w> {
    /// None where it has to go the long way.
    fn of(
        work: &[&'w Call],
        cache: &EnvironmentCache,
        (seen, caps): (&LastSeenCounters, &KnownCaps),
        now: Timestamp,
    ) -> Option<Self> {
        let terms = &cache.terms;
        let mut requests = Vec::with_capacity(work.len());
        let mut subject_paths = Vec::with_capacity(work.len());
        for call in work {
            let Call::Reserve { key, id, request } = call else { return None };
            subject_paths.push(cache.subject_paths.get(request.subject.as_str())?);
            requests.push((*key, id, request));
        }
        let mut sum = Sum::default();
        for ((key, id, request), path) in requests.into_iter().zip(&subject_paths) {
            sum.add((key, id), request, path, (terms, caps), now)?;
        }
        let keys: HashSet<Uuid> = sum.made.iter().map(|made| made.key).collect();
        // the same id twice: the second is a replay of the first, or refused
        if keys.len() < sum.made.len() {
            return None;
        }
        let batch = sum.within_applicable_caps(seen, now)?;
        Some(Self { subject_paths, batch })
    }
}

/// What calls come to, one after the other.
#[derive(Default)]
struct Sum<'w, 'p> {
    from: Option<Timestamp>,
    until: Option<Timestamp>,
    counters: BTreeMap<CounterKey, CounterAddition>,
    lines: Vec<HeldLine>,
    made: Vec<NewReservation<'w>>,
    applicable_caps: ApplicableCaps<'p>,
}

impl<'w, 'p> Sum<'w, 'p> {
    /// With what the counters of caps may come to.
    fn within_applicable_caps(mut self, seen: &LastSeenCounters, now: Timestamp) -> Option<FastBatch<'w>> {
        let added =
            |key: &CounterKey| self.counters.get(key).map(|addition| addition.added).unwrap_or_default();
        for (key, room) in self.applicable_caps.cap_headrooms(seen, added, now)? {
            if let Some(addition) = self.counters.get_mut(&key) {
                addition.room = Some(addition.room.map_or(room, |known| known.min(room)));
            }
        }
        let Self { from, until, counters, lines, made, .. } = self;
        Some(FastBatch { from, until, counters: counters.into_iter().collect(), lines, made })
    }

    fn add(
        &mut self,
        (key, id): (Uuid, &'w str),
        request: &Reserve,
        path: &'p Path,
        (terms, caps): (&'p CatalogIndex, &KnownCaps),
        now: Timestamp,
    ) -> Option<()> {
        let uses = request.asks.iter().map(|ask| (&ask.meter, &ask.properties));
        if request.validate(terms, true).is_err() || precheck(terms, path, uses).is_some() {
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
        if let Some((applicable_caps, known)) = caps.on(path, terms, now) {
            self.from = self.from.max(Some(known.from));
            self.lasts_until(known.until);
            let mut met = BTreeSet::new();
            for (place, applicable_cap) in applicable_caps.into_iter().enumerate() {
                self.add_applicable_cap(
                    key,
                    (request, ttl_seconds),
                    (applicable_cap, &known, place),
                    &mut met,
                    now,
                )?;
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
        ask: &HoldRequest,
        path: &Path,
        terms: &CatalogIndex,
        now: Timestamp,
    ) -> Option<()> {
        if ask.grant != GrantMode::Exactly {
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
    fn add_applicable_cap(
        &mut self,
        reservation: Uuid,
        (request, ttl_seconds): (&Reserve, i32),
        (applicable_cap, known, place): (ApplicableCap<'p>, &Arc<CapsOnPath>, usize),
        met: &mut BTreeSet<CounterKey>,
        now: Timestamp,
    ) -> Option<()> {
        if !request.asks.iter().any(|ask| applicable_cap.is_met_by(&ask.meter, &ask.properties, now)) {
            return Some(());
        }
        let cap = known.caps.get(place).filter(|cap| cap.uses_counter)?;
        for (priced_usage, counter) in applicable_cap.priced_usages().zip(&cap.counters) {
            let counter = *counter;
            let addition = self.counters.entry(counter).or_default();
            addition.of_price = true;
            let slice = priced_usage.slice;
            let rated = |ask: &&HoldRequest| ask.meter == *slice.meter && slice.admits(&ask.properties, now);
            let asked = request.asks.iter().find(rated).map(|ask| ask.value.amount());
            let Some(asked) = asked.filter(|asked| !asked.is_zero() && met.insert(counter)) else { continue };
            let quantity = slice.measure_held(priced_usage.measure, asked).quantity()?;
            addition.added = addition.added + quantity.into();
            addition.ttl_seconds = Some(addition.ttl_seconds.map_or(ttl_seconds, |ttl| ttl.min(ttl_seconds)));
            let on_expiry = request.on_expiry;
            self.lines.push(HeldLine { counter, reservation, ttl_seconds, on_expiry, quantity });
        }
        self.applicable_caps.add(applicable_cap, known, place);
        Some(())
    }

    fn lasts_until(&mut self, end: Timestamp) {
        self.until = Some(self.until.map_or(end, |until| until.min(end)));
    }
}
