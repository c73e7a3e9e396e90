//! Changes of the state by a reservation: counters and hold lines, held credits, and events to record.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::credit_coverage::{Recorder, RequestedUse};
use super::reservation::{Hold, Record, Reservation};
use super::state::{
    CreditLine, CreditLineKey, GateState, HoldLine, HoldLineKey, LineChange, PathRecord, ReservationChange,
};
use crate::base::quantity::{Quantity, Total};
use crate::base::timestamp::Timestamp;
use crate::credits::coverage::{CreditCoverage, covered};
use crate::gate::counter::CounterKey;
use crate::gate::path::Path;

/// A change of a reservation. A new reservation has no state before it.
pub(super) struct Transition<'r> {
    pub(super) before: Option<&'r Reservation>,
    pub(super) after: &'r Reservation,
    pub(super) records: Vec<Record>,
}

/// The change of one hold of a reservation.
struct HoldChange<'r> {
    before: Option<&'r Reservation>,
    after: &'r Reservation,
    hold: &'r Hold,
    /// The quantity that the hold keeps before and after the change.
    was_open: Quantity,
    is_open: Quantity,
    /// The credits that the hold keeps before the change.
    covers: &'r [CreditCoverage],
    record: Option<&'r Record>,
}

/// The credits of a hold after its change.
struct CarriedCovers {
    held: Vec<CreditCoverage>,
    /// Credits that the change spends.
    paid: Vec<CreditCoverage>,
}

impl Transition<'_> {
    fn hold(&self, index: usize, now: Timestamp) -> HoldChange<'_> {
        let Self { before, after, records } = self;
        let hold = &after.holds[index];
        let holding = before.filter(|old| old.is_holding(now));
        HoldChange {
            before: *before,
            after,
            hold,
            was_open: before.map_or(Quantity::default(), |old| old.open(&old.holds[index], now)),
            is_open: after.open(hold, now),
            covers: holding.map_or(&[], |old| &old.holds[index].covers),
            record: records.iter().find(|record| record.meter == hold.meter),
        }
    }
}

impl GateState<'_> {
    /// Applies a change. `added` has the credits for the additional quantity of each hold.
    pub(super) fn apply(&mut self, transition: Transition<'_>, added: Vec<Vec<CreditCoverage>>) {
        let Some(path) = self.paths.get(&transition.after.path_id).cloned() else { return };
        let (mut next, mut added) = (transition.after.clone(), added.into_iter());
        for (index, hold) in next.holds.iter_mut().enumerate() {
            let change = transition.hold(index, self.moment.now);
            let covers = self.carry_covers(&change, added.next().unwrap_or_default());
            self.change_counters(&path, &change, &covers);
            self.pay(&path, &change, &covers.paid);
            hold.covers = covers.held;
        }
        let Transition { before, after, records } = transition;
        self.change_credit_lines(before, &next);
        let at = after.created_at;
        self.entries.extend(records.into_iter().map(|record| PathRecord {
            path: Arc::clone(&path),
            at,
            record,
        }));
        let change = if before.is_some() { ReservationChange::Altered } else { ReservationChange::Made };
        self.changed.entry(after.key).or_insert(change);
        self.reservations.insert(after.key, next);
    }

    /// Changes the counters of a hold and its hold lines on them.
    fn change_counters(&mut self, path: &Path, change: &HoldChange<'_>, covers: &CarriedCovers) {
        let (hold, after) = (change.hold, change.after);
        // A soft and a hard limit of one definition share a counter, which is changed once.
        let mut done = BTreeSet::new();
        for counter_source in
            self.terms.counter_sources(path, &hold.meter, &hold.properties, after.created_at)
        {
            let Some(key) = counter_source.counter_at(after.created_at).map(|period| period.key) else {
                continue;
            };
            let Some(counter) = self.counters.get_mut(&key).filter(|_| done.insert(key)) else { continue };
            let used =
                change.record.map_or(Total::default(), |record| counter_source.measure(record.quantity));
            let amount = counter_source.measure_held(change.is_open);
            let of = |covers: &[CreditCoverage]| covered(covers, key.subject_id, key.definition);
            let level = &mut counter.level;
            level.used = level.used + used;
            level.held = level.held + amount - counter_source.measure_held(change.was_open);
            level.covered = level.covered + of(&covers.held) + of(&covers.paid) - of(change.covers);
            if !change.is_open.is_zero() {
                let next = counter.next_expiry.map_or(after.expires_at, |at| at.min(after.expires_at));
                counter.next_expiry = Some(next);
            }
            let (covered, on_expiry) = (of(&covers.held), after.on_expiry);
            let line = amount.quantity().map(|quantity| HoldLine { quantity, covered, on_expiry });
            self.change_lines(key, change, line);
        }
    }

    fn change_lines(&mut self, counter: CounterKey, change: &HoldChange<'_>, line: Option<HoldLine>) {
        let key = |of: &Reservation| HoldLineKey { counter, expires_at: of.expires_at, reservation: of.key };
        let mut set = |key: HoldLineKey, was_there: bool, line: Option<HoldLine>| {
            self.lines.entry(key).or_insert(LineChange { was_there, line: None }).line = line;
        };
        if let Some(before) = change.before.filter(|_| !change.was_open.is_zero()) {
            set(key(before), true, None);
        }
        if !change.is_open.is_zero() {
            set(key(change.after), false, line);
        }
    }

    /// Pays for the recorded quantity: first with held credits, then with what the grants have left.
    fn pay(&mut self, path: &Path, change: &HoldChange<'_>, paid: &[CreditCoverage]) {
        let Some(record) = change.record else { return };
        let at = change.after.created_at;
        self.note_paid(paid, at, record.key);
        let beyond = record.quantity.above(change.was_open);
        if !beyond.is_zero() && !self.credits.wallets.is_empty() {
            let by = Recorder { reservation: Some(change.after.key), event: record.key };
            let asked = RequestedUse {
                meter: &change.hold.meter,
                properties: &change.hold.properties,
                quantity: beyond,
            };
            self.cover_recorded(path, asked, by, at);
        }
    }

    /// Spends, releases and adds held credits as the hold changes.
    fn carry_covers(&mut self, change: &HoldChange<'_>, added: Vec<CreditCoverage>) -> CarriedCovers {
        let (paid, mut held) = self.spend_covers(change);
        let recorded = change.record.map_or(Quantity::default(), |record| record.quantity);
        let left = change.was_open.above(recorded);
        // A hold without an open quantity holds no credits.
        let back = if change.is_open.is_zero() { Quantity::MAX } else { left.above(change.is_open) };
        if !back.is_zero() {
            held = self.release_covers(change, &held, back);
        }
        self.hold_covers(change, &mut held, added);
        held.retain(|cover| !cover.is_empty());
        CarriedCovers { held, paid }
    }

    /// Spends the credits held for the recorded quantity. Returns the spent and the still held credits.
    fn spend_covers(&mut self, change: &HoldChange<'_>) -> (Vec<CreditCoverage>, Vec<CreditCoverage>) {
        let Some(record) = change.record else { return (Vec::new(), change.covers.to_vec()) };
        let within = record.quantity.min(change.was_open);
        let cut = change.covers.iter().map(|cover| cover.split(within, change.was_open));
        let (mut spent, kept): (Vec<CreditCoverage>, Vec<CreditCoverage>) = cut.unzip();
        for cover in &spent {
            if let Some(wallet) = self.credits.wallets.get_mut(&cover.subject_id) {
                let by = (change.after.key, record.key);
                wallet.settle(&cover.parts, &change.hold.meter, by, self.moment.now);
            }
        }
        spent.retain(|cover| !cover.is_empty());
        (spent, kept)
    }

    /// Releases the credits held for the last units of a hold. Returns the credits that stay held.
    fn release_covers(
        &mut self,
        change: &HoldChange<'_>,
        held: &[CreditCoverage],
        back: Quantity,
    ) -> Vec<CreditCoverage> {
        let (kept, given): (Vec<CreditCoverage>, Vec<CreditCoverage>) =
            held.iter().map(|cover| cover.less(back)).unzip();
        for cover in given {
            if let Some(wallet) = self.credits.wallets.get_mut(&cover.subject_id) {
                wallet.release(&cover.parts, &change.hold.meter, change.after.key, self.moment.now);
            }
        }
        kept
    }

    /// Holds more credits for a hold.
    fn hold_covers(
        &mut self,
        change: &HoldChange<'_>,
        held: &mut Vec<CreditCoverage>,
        added: Vec<CreditCoverage>,
    ) {
        for more in added {
            if let Some(wallet) = self.credits.wallets.get_mut(&more.subject_id) {
                wallet.hold(&more.parts, &change.hold.meter, change.after.key, self.moment.now);
            }
            match held.iter_mut().find(|cover| cover.subject_id == more.subject_id) {
                Some(cover) => cover.add(more),
                None => held.push(more),
            }
        }
    }

    /// Changes the credit lines of a reservation.
    fn change_credit_lines(&mut self, before: Option<&Reservation>, after: &Reservation) {
        let now = self.moment.now;
        if let Some(old) = before.filter(|old| old.is_holding(now)) {
            for part in old.holds.iter().flat_map(|hold| &hold.covers).flat_map(|cover| &cover.parts) {
                let key =
                    CreditLineKey { grant: part.grant, expires_at: old.expires_at, reservation: old.key };
                self.credits.lines.insert(key, None);
            }
        }
        let (expires_at, on_expiry) = (after.expires_at, after.on_expiry);
        for cover in after.holds.iter().flat_map(|hold| &hold.covers) {
            let subject_id = cover.subject_id;
            // A tiny cost can be charged completely with the units spent before; then no amount is left to
            // hold.
            for part in cover.parts.iter().filter(|part| part.amount > Total::default()) {
                let key = CreditLineKey { grant: part.grant, expires_at, reservation: after.key };
                let line = CreditLine { subject_id, on_expiry, amount: Total::default() };
                let line = self.credits.lines.entry(key).or_insert(None).get_or_insert(line);
                line.amount = line.amount + part.amount;
            }
            if let Some(wallet) = self.credits.wallets.get_mut(&subject_id) {
                wallet.next_line = wallet.next_line.map(|at| at.min(expires_at)).or(Some(expires_at));
            }
        }
    }
}
