//! The calls on reservations. Each call is decided on the present state and changes it.

use std::sync::Arc;

use uuid::Uuid;

use super::caps::HoldIncrease;
use super::changes::Transition;
use super::credit_coverage::{RequestedUse, denial};
use super::decision::{Denial, Denier, LimitState, Reason, precheck};
use super::request::{Commit, Extend, HoldRequest, Release, Reserve, order};
use super::reservation::{
    CommitResult, Hold, NewReservation, Objection, Refusal, Reservation, ReservationStatus, holds,
};
use super::state::{GateState, HoldLine, HoldLineKey, LineChange};
use crate::base::fields::Violations;
use crate::base::quantity::Quantity;
use crate::base::timestamp::Timestamp;
use crate::credits::coverage::CreditCoverage;
use crate::credits::wallet::TentativeAmounts;
use crate::gate::path::Path;

/// The outcome of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallOutcome {
    Held {
        reservation: Reservation,
        replayed: bool,
    },
    /// The use fits; nothing is held.
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
    /// The limit states after the call.
    pub limits: Vec<LimitState>,
    pub at: Timestamp,
}

impl GateState<'_> {
    /// Releases the quantity of an expired hold line.
    pub fn expire_line(&mut self, key: HoldLineKey, line: HoldLine) {
        if let Some(counter) = self.counters.get_mut(&key.counter) {
            counter.level = counter.level.without_expired(&line);
            self.lines.insert(key, LineChange { was_there: true, line: None });
        }
    }

    /// Decides whether the requests may run together. Returns the granted quantity of each request.
    pub fn test(&self, asks: &[HoldRequest], path: &Path) -> Result<Vec<Quantity>, Denial> {
        let uses = asks.iter().map(|ask| (&ask.meter, &ask.properties));
        if let Some(denial) = precheck(self.terms, path, uses) {
            return Err(denial);
        }
        let (mut grants, mut denied) = (vec![None; asks.len()], vec![Vec::new(); asks.len()]);
        let mut taken = TentativeAmounts::new();
        for place in order(asks) {
            match self.test_limits(&asks[place], path, &mut taken) {
                Ok(grant) => grants[place] = Some(grant),
                Err(deniers) => denied[place] = deniers,
            }
        }
        let Some(grants) = grants.into_iter().collect::<Option<Vec<Quantity>>>() else {
            let bare = Denial { reason: Reason::LimitReached, denied_by: Vec::new() };
            return Err(denial(denied.concat()).unwrap_or(bare));
        };
        self.within_caps(asks, grants, path)
            .map_err(|denied_by| Denial { reason: Reason::SpendCapReached, denied_by })
    }

    /// Decides one request by its limits and credits. `taken` has the credits of the requests decided
    /// before.
    fn test_limits(
        &self,
        ask: &HoldRequest,
        path: &Path,
        taken: &mut TentativeAmounts,
    ) -> Result<Quantity, Vec<(Reason, Denier)>> {
        let limits = self.levels(path, &ask.meter, &ask.properties, self.moment.now);
        let fitting = self.fit_limits(ask, &limits);
        let covered = self.covered_grant(ask, fitting, &limits, taken);
        let mut denied = Vec::new();
        if fitting.is_none() {
            denied.extend(self.deniers(ask, &limits).into_iter().map(|by| (Reason::LimitReached, by)));
        }
        if let Err(short) = &covered {
            let by = self.short_of_credits(ask, &limits, short);
            denied.extend(by.into_iter().map(|by| (Reason::InsufficientCredits, by)));
        }
        covered.ok().flatten().ok_or(denied)
    }

    /// Returns an answer without limit states.
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

    /// Holds all requested quantities, or nothing. An unknown subject without a default plan has no `path`.
    pub fn reserve(&mut self, key: Uuid, id: &str, call: &Reserve, path: Option<&Arc<Path>>) -> GateAnswer {
        self.expire(key);
        if let Some(known) = self.reservations.get(&key) {
            if known.content != call.content() {
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
                let limits = self.limits(path, uses);
                return GateAnswer { limits, ..self.bare(CallOutcome::Denied(denial)) };
            }
        };
        let made = NewReservation::of(key, id, path.id, call, holds(&call.asks, &grants));
        let made = made.at(self.moment.now);
        self.paths.entry(path.id).or_insert_with(|| Arc::clone(path));
        let uses = made.holds.iter().map(|hold| RequestedUse {
            meter: &hold.meter,
            properties: &hold.properties,
            quantity: hold.value,
        });
        let uses: Vec<RequestedUse<'_>> = uses.collect();
        let covers = self.covers_of(path, &uses, &order(&call.asks), self.moment.now);
        self.apply(Transition { before: None, after: &made, records: Vec::new() }, covers);
        self.answer(CallOutcome::Held { reservation: made.clone(), replayed: false }, &made)
    }

    /// Records the used quantities.
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
                self.apply(Transition { before: Some(&before), after: &next, records }, Vec::new());
                let outcome =
                    CallOutcome::Committed { reservation: (*next).clone(), events, replayed: false };
                self.answer(outcome, &next)
            }
        }
    }

    /// Releases the held quantities.
    pub fn release(&mut self, key: Uuid, call: &Release) -> GateAnswer {
        self.expire(key);
        let Some(before) = self.reservations.get(&key).cloned() else {
            return self.refused(Refusal::NotFound);
        };
        match before.release(call, self.moment) {
            Err(refusal) => self.refused(refusal),
            Ok(None) => {
                // An expired reservation has nothing to release, so its first release does not count as a
                // replay.
                let replayed = before.status == ReservationStatus::Released;
                self.answer(CallOutcome::Released { reservation: before.clone(), replayed }, &before)
            }
            Ok(Some(next)) => {
                self.apply(
                    Transition { before: Some(&before), after: &next, records: Vec::new() },
                    Vec::new(),
                );
                self.answer(CallOutcome::Released { reservation: next.clone(), replayed: false }, &next)
            }
        }
    }

    /// Extends the expiry of a reservation, or sets new totals for its holds.
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
        self.apply(Transition { before: Some(&before), after: &next, records: Vec::new() }, covers);
        self.answer(CallOutcome::Extended { reservation: next.clone() }, &next)
    }

    /// Decides whether growing holds still fit in the periods that they are held in. Returns the credits
    /// for the growth of each hold.
    fn test_growth(
        &self,
        before: &Reservation,
        next: &Reservation,
    ) -> Result<Vec<Vec<CreditCoverage>>, Denial> {
        let Some(path) = self.paths.get(&next.path_id) else { return Ok(Vec::new()) };
        let (now, at) = (self.moment.now, next.created_at);
        let holds = before.holds.iter().zip(&next.holds);
        let increases: Vec<HoldIncrease<'_>> = holds
            .map(|(old, new)| HoldIncrease {
                meter: &new.meter,
                properties: &new.properties,
                from: before.open(old, now),
                to: next.open(new, now),
            })
            .collect();
        let grown: Vec<HoldIncrease<'_>> =
            increases.iter().copied().filter(HoldIncrease::is_growth).collect();
        if grown.is_empty() {
            return Ok(Vec::new());
        }
        let uses = grown.iter().map(|grown| (grown.meter, grown.properties));
        if let Some(denial) = precheck(self.terms, path, uses) {
            return Err(denial);
        }
        let mut by_meter: Vec<usize> = (0..increases.len()).collect();
        by_meter.sort_by_key(|place| increases[*place].meter);
        if let Some(denial) = denial(self.growth_deniers(path, next, &increases, &by_meter)) {
            return Err(denial);
        }
        let denied_by = self.caps_passed(path, &grown, at);
        if !denied_by.is_empty() {
            return Err(Denial { reason: Reason::SpendCapReached, denied_by });
        }
        let asked: Vec<RequestedUse<'_>> = increases.iter().map(HoldIncrease::asked).collect();
        Ok(self.covers_of(path, &asked, &by_meter, at))
    }

    /// Returns the limits that deny each growing hold. `order` is the order in which the holds are decided.
    fn growth_deniers(
        &self,
        path: &Path,
        next: &Reservation,
        increases: &[HoldIncrease<'_>],
        order: &[usize],
    ) -> Vec<(Reason, Denier)> {
        let (at, mut taken) = (next.created_at, TentativeAmounts::new());
        let mut denied = vec![Vec::new(); increases.len()];
        for place in order.iter().copied().filter(|place| increases[*place].is_growth()) {
            let (hold, asked): (&Hold, _) = (&next.holds[place], increases[place].asked());
            let mut limits = self.levels(path, &hold.meter, &hold.properties, at);
            // A limit that was added after the period's end has no counter, so its quota does not apply.
            limits.retain(|(found, _)| self.counter_at(found, at).is_some());
            let full = self.growth_denied(&limits, asked, &mut taken).into_iter();
            let by = full.map(|(reason, found, level)| (reason, Denier::of(&found, level, hold.value, at)));
            denied[place] = by.collect();
        }
        denied.concat()
    }

    /// Expires a reservation if its expiry is due.
    pub fn expire(&mut self, key: Uuid) {
        let Some(before) = self.reservations.get(&key) else { return };
        if let Some((next, records)) = before.expired(self.moment) {
            let before = before.clone();
            self.apply(Transition { before: Some(&before), after: &next, records }, Vec::new());
        }
    }
}
