//! A book of counters and reservations, as they stand under their locks, to which calls are applied
//! one after the other. What it was opened with and what it comes to is the caller's to read and
//! write; in between, every rule of holding is here.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use super::caps::HoldIncrease;
use super::catalog_index::{ApplicableLimit, CatalogIndex};
use super::counter::CounterKey;
use super::counter::CounterState;
use super::credit_coverage::{CoverageRequest, Credits, denial};
use super::decision::{Denial, Denier, GrantMode, LimitState, Reason, granted, precheck};
use super::path::Path;
use super::request::{Commit, Extend, HoldRequest, OnExpiry, Release, Reserve, order};
use super::reservation::{
    CommitResult, Hold, Moment, Objection, Record, Refusal, Reservation, ReservationStatus, holds,
};
use crate::base::fields::Violations;
use crate::base::names::MeterKey;
use crate::base::quantity::{Quantity, Total};
use crate::base::timestamp::Timestamp;
use crate::catalog::meter::Aggregation;
use crate::credits::coverage::{CreditCoverage, covered};
use crate::credits::wallet::TentativeAmounts;
use crate::usage::event::Properties;

/// A counter under its lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counter {
    pub level: CounterState,
    /// No line lapses before then.
    pub next_expiry: Option<Timestamp>,
    /// For a level that is checked: what it would become.
    pub becomes: Option<Total>,
}

/// Names what one reservation holds on one counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HoldLineKey {
    pub counter: CounterKey,
    pub expires_at: Timestamp,
    pub reservation: Uuid,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HoldLine {
    pub quantity: Quantity,
    /// The part of it that credits bear.
    pub covered: Total,
    pub on_expiry: OnExpiry,
}

/// What becomes of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LineChange {
    pub was_there: bool,
    pub line: Option<HoldLine>,
}

/// What a call comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallOutcome {
    Held {
        reservation: Reservation,
        replayed: bool,
    },
    /// It could be held; nothing is.
    Allowed {
        holds: Vec<Hold>,
    },
    Denied(Denial),
    Committed {
        reservation: Reservation,
        events: Vec<Uuid>,
        replayed: bool,
    },
    Released {
        reservation: Reservation,
        replayed: bool,
    },
    Extended {
        reservation: Reservation,
    },
    Refused(Refusal),
    Invalid(Violations),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GateAnswer {
    pub outcome: CallOutcome,
    /// As they stand after it.
    pub limits: Vec<LimitState>,
    pub at: Timestamp,
}

/// An event that is to be recorded, and where.
#[derive(Debug, Clone)]
pub struct PathRecord {
    pub path: Arc<Path>,
    pub at: Timestamp,
    pub record: Record,
}

#[derive(Debug)]
pub struct GateState<'a> {
    pub terms: &'a CatalogIndex,
    pub moment: Moment<'a>,
    pub paths: HashMap<i64, Arc<Path>>,
    pub counters: BTreeMap<CounterKey, Counter>,
    pub reservations: HashMap<Uuid, Reservation>,
    /// What is to be written, beside the counters.
    pub lines: BTreeMap<HoldLineKey, LineChange>,
    pub changed: BTreeMap<Uuid, ReservationChange>,
    pub entries: Vec<PathRecord>,
    pub credits: Credits,
}

/// What becomes of a reservation's row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReservationChange {
    Made,
    Altered,
}

impl<'a> GateState<'a> {
    pub fn open(terms: &'a CatalogIndex, moment: Moment<'a>) -> Self {
        Self {
            terms,
            moment,
            paths: HashMap::new(),
            counters: BTreeMap::new(),
            reservations: HashMap::new(),
            lines: BTreeMap::new(),
            changed: BTreeMap::new(),
            entries: Vec::new(),
            credits: Credits::default(),
        }
    }

    /// Gives back what a lapsed line held.
    pub fn expire_line(&mut self, key: HoldLineKey, line: HoldLine) {
        if let Some(counter) = self.counters.get_mut(&key.counter) {
            counter.level.held = counter.level.held - line.quantity.into();
            counter.level.covered = counter.level.covered - line.covered;
            self.lines.insert(key, LineChange { was_there: true, line: None });
        }
    }

    /// Whether what is asked for may run, and how much of each: the decision itself.
    pub fn test(&self, asks: &[HoldRequest], path: &Path) -> Result<Vec<Quantity>, Denial> {
        let uses = asks.iter().map(|ask| (&ask.meter, &ask.properties));
        if let Some(denial) = precheck(self.terms, path, uses) {
            return Err(denial);
        }
        let mut grants = vec![None; asks.len()];
        let (mut denied, mut taken) = (vec![Vec::new(); asks.len()], TentativeAmounts::new());
        for place in order(asks) {
            let (ask, denied) = (&asks[place], &mut denied[place]);
            let limits = self.levels(path, &ask.meter, &ask.properties, self.moment.now);
            let grant = match self.terms.meter(&ask.meter) {
                Some(found) if !found.meter.aggregation.is_reservable() => self.test_level(ask, &limits),
                _ => granted(ask.value.amount(), ask.grant, self.is_whole(ask), &limits),
            };
            let covered = self.covered_grant(ask, grant, &limits, &mut taken);
            if grant.is_none() {
                denied.extend(self.deniers(ask, &limits).into_iter().map(|by| (Reason::LimitReached, by)));
            }
            match covered {
                Ok(grant) => grants[place] = grant,
                Err(short) => {
                    let by = self.short_of_credits(ask, &limits, &short, self.least(ask));
                    denied.extend(by.into_iter().map(|by| (Reason::InsufficientCredits, by)));
                }
            }
        }
        let Some(grants) = grants.into_iter().collect::<Option<Vec<Quantity>>>() else {
            let bare = Denial { reason: Reason::LimitReached, denied_by: Vec::new() };
            return Err(denial(denied.concat()).unwrap_or(bare));
        };
        self.within_caps(asks, grants, path)
            .map_err(|denied_by| Denial { reason: Reason::SpendCapReached, denied_by })
    }

    pub(super) fn is_whole(&self, ask: &HoldRequest) -> bool {
        self.terms.meter(&ask.meter).is_some_and(|found| found.meter.aggregation == Aggregation::Count)
    }

    /// A level fits where what it would become does.
    fn test_level(
        &self,
        ask: &HoldRequest,
        limits: &[(ApplicableLimit<'_>, CounterState)],
    ) -> Option<Quantity> {
        let fits = limits.iter().filter(|(found, _)| found.terms.is_hard()).all(|(found, _)| {
            let becomes = self.counter_at(found, self.moment.now).and_then(|(_, counter)| counter.becomes);
            found.quota().is_none_or(|quota| becomes.unwrap_or_default() <= Total::from(quota))
        });
        fits.then(|| ask.value.quantity.unwrap_or(Quantity::ONE))
    }

    /// What a grant must at least leave room for.
    pub(super) fn least(&self, ask: &HoldRequest) -> Quantity {
        match (ask.grant, self.is_whole(ask)) {
            (GrantMode::Exactly, _) => ask.value.amount(),
            (GrantMode::UpTo, true) => ask.value.amount().min(Quantity::ONE),
            (GrantMode::UpTo, false) => ask.value.amount().min(Quantity::SMALLEST),
        }
    }

    fn deniers(&self, ask: &HoldRequest, limits: &[(ApplicableLimit<'_>, CounterState)]) -> Vec<Denier> {
        let least = self.least(ask);
        let denies = |found: &ApplicableLimit<'_>, level: CounterState| {
            let becomes = self.counter_at(found, self.moment.now).and_then(|(_, counter)| counter.becomes);
            let would = becomes.unwrap_or(level.used + level.held + least.into());
            let is_plain = found.terms.is_hard() && !found.terms.is_covered();
            is_plain && found.quota().is_some_and(|quota| would > Total::from(quota))
        };
        let requested = ask.value.quantity.unwrap_or(Quantity::ONE);
        limits
            .iter()
            .filter(|(found, level)| denies(found, *level))
            .map(|(found, level)| Denier::of(found, *level, requested, self.moment.now))
            .collect()
    }

    pub(super) fn counter_at(
        &self,
        found: &ApplicableLimit<'_>,
        at: Timestamp,
    ) -> Option<(CounterKey, &Counter)> {
        let period = found.counter_at(at)?;
        Some((period.key, self.counters.get(&period.key)?))
    }

    /// The limits that meet a use, with what is used and held of them around an instant.
    pub(super) fn levels<'p>(
        &self,
        path: &'p Path,
        meter: &MeterKey,
        properties: &Properties,
        at: Timestamp,
    ) -> Vec<(ApplicableLimit<'p>, CounterState)>
    where
        'a: 'p,
    {
        let terms = self.terms;
        terms
            .matching(path, meter, properties)
            .map(|found| {
                let level = self.counter_at(&found, at).map(|(_, counter)| counter.level);
                (found, level.unwrap_or_default())
            })
            .collect()
    }

    /// The limits that meet some uses, as they stand now.
    pub fn limits<'u>(
        &self,
        path: &Path,
        uses: impl Iterator<Item = (&'u MeterKey, &'u Properties)>,
    ) -> Vec<LimitState> {
        let uses: Vec<_> = uses.collect();
        let meets = |found: &ApplicableLimit<'_>| {
            let limit = &found.terms.limit;
            uses.iter().any(|(meter, properties)| **meter == limit.meter && limit.filter.admits(properties))
        };
        self.terms
            .of_path(path)
            .filter(meets)
            .map(|found| {
                let level = self.counter_at(&found, self.moment.now).map(|(_, counter)| counter.level);
                LimitState::of(&found, level.unwrap_or_default(), self.moment.now)
            })
            .collect()
    }

    /// An outcome that shows no limits.
    pub fn bare(&self, outcome: CallOutcome) -> GateAnswer {
        GateAnswer { outcome, limits: Vec::new(), at: self.moment.now }
    }

    fn refused(&self, refusal: Refusal) -> GateAnswer {
        self.bare(CallOutcome::Refused(refusal))
    }

    fn objected(&self, objection: Objection) -> GateAnswer {
        match objection {
            Objection::Refused(refusal) => self.refused(refusal),
            Objection::Invalid(violations) => self.bare(CallOutcome::Invalid(violations)),
        }
    }

    fn answer(&self, outcome: CallOutcome, reservation: &Reservation) -> GateAnswer {
        let uses = reservation.holds.iter().map(|hold| (&hold.meter, &hold.properties));
        let limits = self.paths.get(&reservation.path_id).map(|path| self.limits(path, uses));
        GateAnswer { outcome, limits: limits.unwrap_or_default(), at: self.moment.now }
    }

    /// Holds what is asked for, or none of it.
    /// `path`: where the subject stands; none for one whom nobody has met and who has no plan to be on.
    pub fn reserve(&mut self, key: Uuid, id: &str, call: &Reserve, path: Option<&Arc<Path>>) -> GateAnswer {
        let content = call.content();
        self.expire(key);
        if let Some(known) = self.reservations.get(&key) {
            if known.content != content {
                return self.refused(Refusal::IdReused);
            }
            return self.answer(CallOutcome::Held { reservation: known.clone(), replayed: true }, known);
        }
        let Some(path) = path else {
            let denial = Denial { reason: Reason::NoSubscription, denied_by: Vec::new() };
            return self.bare(CallOutcome::Denied(denial));
        };
        let grants = match self.test(&call.asks, path) {
            Ok(grants) => grants,
            Err(denial) => {
                let uses = call.asks.iter().map(|ask| (&ask.meter, &ask.properties));
                return GateAnswer {
                    outcome: CallOutcome::Denied(denial),
                    limits: self.limits(path, uses),
                    at: self.moment.now,
                };
            }
        };
        let made = Reservation {
            key,
            id: id.to_owned(),
            path_id: path.id,
            content,
            created_at: self.moment.now,
            expires_at: self.moment.now.saturating_add(Duration::from_secs(call.ttl_seconds.into())),
            on_expiry: call.on_expiry,
            status: ReservationStatus::Held,
            holds: holds(&call.asks, &grants),
            over_hold: false,
            late: false,
            reason: None,
            settled_at: None,
            last_call: None,
        };
        self.paths.entry(path.id).or_insert_with(|| Arc::clone(path));
        let holds = made.holds.iter();
        let uses: Vec<CoverageRequest<'_>> = holds
            .map(|hold| CoverageRequest {
                meter: &hold.meter,
                properties: &hold.properties,
                quantity: hold.value,
            })
            .collect();
        let covers = self.covers_of(path, &uses, &order(&call.asks), self.moment.now);
        self.enter(None, &made, Vec::new(), covers);
        self.answer(CallOutcome::Held { reservation: made.clone(), replayed: false }, &made)
    }

    /// Records what was done.
    pub fn commit(&mut self, key: Uuid, call: &Commit) -> GateAnswer {
        self.expire(key);
        let Some(before) = self.reservations.get(&key).cloned() else {
            return self.refused(Refusal::NotFound);
        };
        match before.commit(call, self.terms, self.moment) {
            Err(objection) => self.objected(objection),
            Ok(CommitResult::Repeated { events }) => {
                let outcome = CallOutcome::Committed { reservation: before.clone(), events, replayed: true };
                self.answer(outcome, &before)
            }
            Ok(CommitResult::New { next, records }) => {
                let events = records.iter().map(|record| record.key).collect();
                self.enter(Some(&before), &next, records, Vec::new());
                let outcome =
                    CallOutcome::Committed { reservation: (*next).clone(), events, replayed: false };
                self.answer(outcome, &next)
            }
        }
    }

    /// Lets go of what is held.
    pub fn release(&mut self, key: Uuid, call: &Release) -> GateAnswer {
        self.expire(key);
        let Some(before) = self.reservations.get(&key).cloned() else {
            return self.refused(Refusal::NotFound);
        };
        match before.release(call, self.moment) {
            Err(refusal) => self.refused(refusal),
            Ok(None) => {
                // of what has expired there was nothing to release before
                let replayed = before.status == ReservationStatus::Released;
                self.answer(CallOutcome::Released { reservation: before.clone(), replayed }, &before)
            }
            Ok(Some(next)) => {
                self.enter(Some(&before), &next, Vec::new(), Vec::new());
                self.answer(CallOutcome::Released { reservation: next.clone(), replayed: false }, &next)
            }
        }
    }

    /// Gives more time, or other totals.
    pub fn extend(&mut self, key: Uuid, call: &Extend) -> GateAnswer {
        self.expire(key);
        let Some(before) = self.reservations.get(&key).cloned() else {
            return self.refused(Refusal::NotFound);
        };
        let next = match before.extend(call, self.terms, self.moment) {
            Ok(next) => next,
            Err(objection) => return self.objected(objection),
        };
        let covers = match self.test_growth(&before, &next) {
            Ok(covers) => covers,
            Err(denial) => return self.answer(CallOutcome::Denied(denial), &before),
        };
        self.enter(Some(&before), &next, Vec::new(), covers);
        self.answer(CallOutcome::Extended { reservation: next.clone() }, &next)
    }

    /// Whether holds that grow still fit, in the periods in which they are held; what credits bear of their
    /// growth, hold by hold.
    fn test_growth<'n>(
        &self,
        before: &Reservation,
        next: &'n Reservation,
    ) -> Result<Vec<Vec<CreditCoverage>>, Denial> {
        let Some(path) = self.paths.get(&next.path_id) else { return Ok(Vec::new()) };
        let (now, at) = (self.moment.now, next.created_at);
        let growth = |(old, new): (&Hold, &'n Hold)| HoldIncrease {
            meter: &new.meter,
            properties: &new.properties,
            from: before.open(old, now),
            to: next.open(new, now),
        };
        let growths: Vec<HoldIncrease<'_>> = before.holds.iter().zip(&next.holds).map(growth).collect();
        let grown = || next.holds.iter().zip(&growths).filter(|(_, growth)| growth.to > growth.from);
        if grown().next().is_none() {
            return Ok(Vec::new());
        }
        let uses = grown().map(|(hold, _)| (&hold.meter, &hold.properties));
        if let Some(denial) = precheck(self.terms, path, uses) {
            return Err(denial);
        }
        let (mut denied, mut taken) = (vec![Vec::new(); growths.len()], TentativeAmounts::new());
        let mut by_meter: Vec<usize> = (0..growths.len()).collect();
        by_meter.sort_by_key(|place| growths[*place].meter);
        for place in by_meter.iter().copied().filter(|place| growths[*place].to > growths[*place].from) {
            let (hold, growth) = (&next.holds[place], &growths[place]);
            let mut limits = self.levels(path, &hold.meter, &hold.properties, at);
            // a period that was over before there was such a limit has no counter, and no quota to pass
            limits.retain(|(found, _)| self.counter_at(found, at).is_some());
            denied[place] = self.growth_denied(&limits, growth.asked(), hold.value, &mut taken, at);
        }
        if let Some(denial) = denial(denied.concat()) {
            return Err(denial);
        }
        let only: Vec<HoldIncrease<'_>> = grown().map(|(_, growth)| *growth).collect();
        let denied_by = self.caps_passed(path, &only, at);
        if !denied_by.is_empty() {
            return Err(Denial { reason: Reason::SpendCapReached, denied_by });
        }
        let asked: Vec<CoverageRequest<'_>> = growths.iter().map(HoldIncrease::asked).collect();
        Ok(self.covers_of(path, &asked, &by_meter, at))
    }

    /// Carries out an expiry that is due.
    pub fn expire(&mut self, key: Uuid) {
        let Some(before) = self.reservations.get(&key) else { return };
        if let Some((next, records)) = before.expired(self.moment) {
            let before = before.clone();
            self.enter(Some(&before), &next, records, Vec::new());
        }
    }

    /// Writes a reservation's change into the book: its holds, its records, itself.
    /// `added`: what credits bear of what it holds anew, hold by hold.
    fn enter(
        &mut self,
        before: Option<&Reservation>,
        after: &Reservation,
        records: Vec<Record>,
        added: Vec<Vec<CreditCoverage>>,
    ) {
        let Some(path) = self.paths.get(&after.path_id).cloned() else { return };
        let (mut entered, mut added) = (after.clone(), added.into_iter());
        for (index, hold) in after.holds.iter().enumerate() {
            let was_open =
                before.map_or(Quantity::default(), |old| old.open(&old.holds[index], self.moment.now));
            let is_open = after.open(hold, self.moment.now);
            let record = records.iter().find(|record| record.meter == hold.meter);
            let held_before = before.filter(|old| old.is_holding(self.moment.now));
            let held_before = held_before.map_or(&[][..], |old| old.holds[index].covers.as_slice());
            let (held, paid) =
                self.carry_covers((before, after), index, record, added.next().unwrap_or_default());
            // limits of one definition, a soft one below a hard one, share a counter
            let mut done = BTreeSet::new();
            for counter_source in
                self.terms.counter_sources(&path, &hold.meter, &hold.properties, after.created_at)
            {
                let Some(key) = counter_source.counter_at(after.created_at).map(|period| period.key) else {
                    continue;
                };
                let Some(counter) = self.counters.get_mut(&key).filter(|_| done.insert(key)) else {
                    continue;
                };
                let used = record.map_or(Total::default(), |record| counter_source.measure(record.quantity));
                counter.level.used = counter.level.used + used;
                let of = |covers: &[CreditCoverage]| covered(covers, key.subject_id, key.definition);
                counter.level.covered = counter.level.covered + of(&held) + of(&paid) - of(held_before);
                let (is_held, was_held) =
                    (counter_source.measure_held(is_open), counter_source.measure_held(was_open));
                counter.level.held = counter.level.held + is_held - was_held;
                let line = |of: &Reservation| HoldLineKey {
                    counter: key,
                    expires_at: of.expires_at,
                    reservation: of.key,
                };
                if let Some(old) = before
                    && !was_open.is_zero()
                {
                    self.lines.entry(line(old)).or_insert(LineChange { was_there: true, line: None }).line =
                        None;
                }
                if !is_open.is_zero() {
                    let next = counter.next_expiry.map_or(after.expires_at, |at| at.min(after.expires_at));
                    counter.next_expiry = Some(next);
                    self.lines
                        .entry(line(after))
                        .or_insert(LineChange { was_there: false, line: None })
                        .line = is_held.quantity().map(|quantity| HoldLine {
                        quantity,
                        covered: of(&held),
                        on_expiry: after.on_expiry,
                    });
                }
            }
            entered.holds[index].covers = held;
            if let Some(record) = record {
                self.note_paid(&paid, after.created_at, record.key);
                let beyond = record.quantity.above(was_open);
                if !beyond.is_zero() && !self.credits.wallets.is_empty() {
                    let (of, by) = ((&hold.meter, &hold.properties), (Some(after.key), record.key));
                    self.cover_recorded(&path, of, beyond, by, after.created_at);
                }
            }
        }
        self.enter_credit_lines(before, &entered);
        let at = after.created_at;
        self.entries.extend(records.into_iter().map(|record| PathRecord {
            path: Arc::clone(&path),
            at,
            record,
        }));
        self.changed.entry(after.key).or_insert(if before.is_some() {
            ReservationChange::Altered
        } else {
            ReservationChange::Made
        });
        self.reservations.insert(after.key, entered);
    }
}
