//! The fast path for most batches: new reservations of known subjects that fit completely.
//!
//! The changes are planned beforehand, without the present counter states and the time. The database adds
//! both under its locks. One message commits all changes or none. Every other batch takes the path of
//! [`super::locked`], which decides everything.
//!
//! The rules are those of the gate's state. Builds with assertions compare every batch with it.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use sqlx::PgConnection;
use uuid::Uuid;

use super::calls::{Call, Reply};
use super::cap_headroom::{KnownCaps, LastSeenCounters, MetCap};
use super::locked::note_metrics;
use super::processor::GateProcessor;
use crate::engine::environment_cache::EnvironmentCache;
use crate::engine::writers::processor::Attempt;
use crate::store::gate::fast_path::{self, CounterIncrease, Done, FastBatch, HeldLine, HoldConditions};
use crate::store::{Scope, StoreError};
use metergate_domain::base::{Quantity, Timestamp, Total};
use metergate_domain::gate::decision::precheck;
use metergate_domain::gate::reservation::holds;
use metergate_domain::gate::{
    CallOutcome, CatalogIndex, Counter, CounterKey, GateAnswer, GateState, GrantMode, HoldLine, HoldLineKey,
    HoldRequest, Moment, NewReservation, Path, Reserve,
};

/// Attempts a batch. Returns none, without any effect, if the batch has to take the locked path.
pub(super) async fn attempt(
    processor: &mut GateProcessor,
    connection: &mut PgConnection,
    work: &[&Call],
) -> Result<Option<Attempt<Reply>>, StoreError> {
    let GateProcessor { environment, writer_context, fast_path, .. } = processor;
    let environment = *environment;
    if fast_path.is_doubted() {
        return Ok(None);
    }
    let Some(cache) = writer_context.caches.known(environment) else { return Ok(None) };
    let scope = &mut Scope::new(connection, environment);
    let next = fast_path.next(scope, writer_context).await?;
    let clock = writer_context.clock.setting(environment);
    let caps = fast_path.caps.under(cache.versions.config);
    let plan = GatePlan::new(&cache.terms, caps, next.reckoned(clock));
    let Some(paths) = paths(work, &cache) else { return Ok(None) };
    let Some(batch) = plan.batch(work, &paths, &fast_path.seen) else { return Ok(None) };

    // Each id serves one batch only.
    fast_path.next = None;
    let batch_id = next.batch_id;
    let conditions = HoldConditions { batch_id, versions: cache.versions, clock };
    let done = match fast_path::hold(scope, conditions, &batch).await {
        Ok(Some(done)) => done,
        Ok(None) => {
            fast_path.doubt();
            return Ok(None);
        }
        Err(why @ StoreError::Unavailable(_)) => {
            tracing::debug!(%why, "the commit of a gate batch was not answered");
            return Ok(Some(Attempt::Unanswered { batch_id }));
        }
        Err(why) => return Err(why),
    };
    fast_path.succeed(&batch, &done);
    let taken = BTreeSet::new();
    let moment = Moment { now: done.at, age_max: writer_context.age_max, taken: &taken };
    let state = || state(&cache.terms, moment, &batch, &done);
    debug_assert!(agrees(&batch, state, work, &paths));
    let replies = answer(state(), batch, &paths);
    note_metrics(&replies);
    Ok(Some(Attempt::Committed(replies)))
}

/// Returns the paths of the requesting subjects, in the order of the calls. Returns none for an unknown
/// subject or any other kind of call.
fn paths(work: &[&Call], cache: &EnvironmentCache) -> Option<Vec<Arc<Path>>> {
    work.iter().map(|call| cache.subject_paths.get(call.reserve()?.subject.as_str())).collect()
}

/// Returns a state with the counters as the batch found them.
fn state<'a>(
    terms: &'a CatalogIndex,
    moment: Moment<'a>,
    batch: &FastBatch<'_>,
    done: &Done,
) -> GateState<'a> {
    let mut state = GateState::open(terms, moment);
    for ((key, _), level) in batch.counters.iter().zip(&done.levels) {
        state.counters.insert(*key, Counter { level: *level, ..Counter::default() });
    }
    state
}

/// Returns the answers, each with the limit states after its call.
fn answer(mut state: GateState<'_>, batch: FastBatch<'_>, paths: &[Arc<Path>]) -> Vec<Reply> {
    let at = state.moment.now;
    let mut lines = batch.lines.into_iter().peekable();
    let answer = |(made, path): (NewReservation<'_>, &Arc<Path>)| {
        while let Some(line) = lines.next_if(|line| line.reservation == made.key) {
            if let Some(counter) = state.counters.get_mut(&line.counter) {
                counter.level.held = counter.level.held + line.quantity.into();
            }
        }
        let limits = state.limits(path, made.holds.iter().map(|hold| (&hold.meter, &hold.properties)));
        let outcome = CallOutcome::Held { reservation: made.at(at), replayed: false };
        Reply::Answer(Box::new(GateAnswer { outcome, limits, at }))
    };
    batch.made.into_iter().zip(paths).map(answer).collect()
}

/// Returns whether the gate's state agrees with the written changes and the answers.
fn agrees<'a>(
    batch: &FastBatch<'_>,
    state: impl Fn() -> GateState<'a>,
    work: &[&Call],
    paths: &[Arc<Path>],
) -> bool {
    let mut decided = state();
    let at = decided.moment.now;
    let decide = |(call, path): (&&Call, &Arc<Path>)| match call {
        Call::Reserve { key, id, request } => Some(decided.reserve(*key, id, request, Some(path))),
        _ => None,
    };
    let answers: Vec<Option<GateAnswer>> = work.iter().zip(paths).map(decide).collect();
    let answered = answer(state(), batch.clone(), paths).into_iter().map(|reply| match reply {
        Reply::Answer(answer) => Some(*answer),
        Reply::Swept(_) => None,
    });
    let is_held = |line: &HeldLine| {
        let expires_at = at.saturating_add(Duration::from_secs(line.ttl_seconds.into()));
        let key = HoldLineKey { counter: line.counter, expires_at, reservation: line.reservation };
        let covered = Total::default();
        let held = HoldLine { quantity: line.quantity, covered, on_expiry: line.on_expiry };
        decided.lines.get(&key).and_then(|change| change.line) == Some(held)
    };
    answered.eq(answers)
        && decided.lines.len() == batch.lines.len()
        && batch.lines.iter().all(is_held)
        && decided.changed.len() == batch.made.len()
}

/// The planned changes of calls, one after the other.
struct GatePlan<'w, 'p> {
    terms: &'p CatalogIndex,
    known_caps: &'p KnownCaps,
    now: Timestamp,
    /// The span of time in which the plan is valid.
    from: Option<Timestamp>,
    until: Option<Timestamp>,
    counters: BTreeMap<CounterKey, CounterIncrease>,
    lines: Vec<HeldLine>,
    made: Vec<NewReservation<'w>>,
    /// The caps that count a use of the calls, each once.
    caps: Vec<MetCap<'p>>,
}

impl<'w, 'p> GatePlan<'w, 'p> {
    fn new(terms: &'p CatalogIndex, known_caps: &'p KnownCaps, now: Timestamp) -> Self {
        Self {
            terms,
            known_caps,
            now,
            from: None,
            until: None,
            counters: BTreeMap::new(),
            lines: Vec::new(),
            made: Vec::new(),
            caps: Vec::new(),
        }
    }

    /// Builds the batch of some calls. Returns none if the calls must be decided under locks.
    fn batch(
        mut self,
        work: &[&'w Call],
        paths: &'p [Arc<Path>],
        seen: &LastSeenCounters,
    ) -> Option<FastBatch<'w>> {
        for (call, path) in work.iter().zip(paths) {
            let Call::Reserve { key, id, request } = call else { return None };
            self.add(*key, request, path)?;
            let asked: Vec<Quantity> = request.asks.iter().map(|ask| ask.value.amount()).collect();
            let holds = holds(&request.asks, &asked);
            self.made.push(NewReservation::of(*key, id, path.id, request, holds));
        }
        let keys: HashSet<Uuid> = self.made.iter().map(|made| made.key).collect();
        // The second call with an id is a replay or refused.
        if keys.len() < self.made.len() {
            return None;
        }
        self.bound_by_caps(seen)?;
        let Self { from, until, counters, lines, made, .. } = self;
        Some(FastBatch { from, until, counters: counters.into_iter().collect(), lines, made })
    }

    fn add(&mut self, key: Uuid, request: &Reserve, path: &'p Path) -> Option<()> {
        let uses = request.asks.iter().map(|ask| (&ask.meter, &ask.properties));
        if request.validate(self.terms, true).is_err() || precheck(self.terms, path, uses).is_some() {
            return None;
        }
        let ends = path.members.iter().filter_map(|member| member.subscription.as_ref()?.ends_at);
        let now = self.now;
        for end in ends.filter(|end| now < *end) {
            self.lasts_until(end);
        }
        if path.has_due_end(self.now, self.terms) {
            return None;
        }
        for ask in &request.asks {
            self.add_ask(key, request, ask, path)?;
        }
        // Caps of one period share counters.
        let mut met = BTreeSet::new();
        for cap in self.known_caps.on(path, self.terms, self.now) {
            self.lasts_from(cap.on_path.from);
            self.lasts_until(cap.on_path.until);
            self.add_cap(key, request, cap, &mut met)?;
        }
        Some(())
    }

    fn add_ask(&mut self, key: Uuid, request: &Reserve, ask: &HoldRequest, path: &Path) -> Option<()> {
        if ask.grant != GrantMode::Exactly {
            return None;
        }
        // A soft and a hard limit of one definition share a counter, which a hold counts once.
        let mut met: Vec<CounterKey> = Vec::new();
        for found in self.terms.matching(path, &ask.meter, &ask.properties) {
            let counter = found.counter_at(self.now)?;
            self.lasts_from(counter.period.from.max(counter.since));
            self.lasts_until(counter.period.to);
            let addition = self.counters.entry(counter.key).or_default();
            if let Some(quota) = found.quota().filter(|_| found.terms.is_hard()) {
                addition.bound(quota.into());
            }
            if met.contains(&counter.key) {
                continue;
            }
            met.push(counter.key);
            let quantity = ask.value.amount();
            if !quantity.is_zero() {
                self.add_line(counter.key, key, request, quantity);
            }
        }
        Some(())
    }

    /// Adds all counters of a cap, since its cost needs them all locked. `met` has the counters of the
    /// caps added so far.
    fn add_cap(
        &mut self,
        key: Uuid,
        request: &Reserve,
        cap: MetCap<'p>,
        met: &mut BTreeSet<CounterKey>,
    ) -> Option<()> {
        let now = self.now;
        if !request.asks.iter().any(|ask| cap.applicable_cap.is_met_by(&ask.meter, &ask.properties, now)) {
            return Some(());
        }
        for (priced_usage, counter) in cap.applicable_cap.priced_usages().zip(cap.counters()?) {
            self.counters.entry(*counter).or_default().of_price = true;
            let slice = priced_usage.slice;
            let rated = |ask: &&HoldRequest| ask.meter == *slice.meter && slice.admits(&ask.properties, now);
            let asked = request.asks.iter().find(rated).map(|ask| ask.value.amount());
            let Some(asked) = asked.filter(|asked| !asked.is_zero() && met.insert(*counter)) else {
                continue;
            };
            let quantity = slice.measure_held(priced_usage.measure, asked).quantity()?;
            self.add_line(*counter, key, request, quantity);
        }
        if !self.caps.iter().any(|other| other.is(&cap)) {
            self.caps.push(cap);
        }
        Some(())
    }

    fn add_line(&mut self, counter: CounterKey, reservation: Uuid, request: &Reserve, quantity: Quantity) {
        let (ttl_seconds, on_expiry) = (request.ttl_seconds, request.on_expiry);
        let line = HeldLine { counter, reservation, ttl_seconds, on_expiry, quantity };
        self.counters.entry(counter).or_default().add(&line);
        self.lines.push(line);
    }

    /// Sets the headroom of the caps as the upper bounds of their counters.
    fn bound_by_caps(&mut self, seen: &LastSeenCounters) -> Option<()> {
        for cap in &self.caps {
            let added =
                |key: &CounterKey| self.counters.get(key).map(|known| known.added).unwrap_or_default();
            let rooms = cap.headroom(seen, added, self.now)?;
            for (counter, room) in cap.counters()?.iter().zip(rooms) {
                if let Some(addition) = self.counters.get_mut(counter) {
                    addition.bound(room);
                }
            }
        }
        Some(())
    }

    fn lasts_from(&mut self, start: Timestamp) {
        self.from = self.from.max(Some(start));
    }

    fn lasts_until(&mut self, end: Timestamp) {
        self.until = Some(self.until.map_or(end, |until| until.min(end)));
    }
}
