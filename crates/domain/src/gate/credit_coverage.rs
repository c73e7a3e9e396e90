//! Credits in the book: what is above the quota of a limit that says so is covered by grants of its subject,
//! the largest shortfall of that subject's limits, once. Held credits follow their reservation; what is
//! recorded beyond what was held is covered as far as grants go, and noted where they do not.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use super::catalog_index::ApplicableLimit;
use super::counter::CounterState;
use super::decision::{Denial, Denier, GrantMode, Reason, fits};
use super::path::Path;
use super::request::{HoldRequest, OnExpiry};
use super::reservation::{Record, Reservation};
use super::state::GateState;
use crate::base::names::MeterKey;
use crate::base::quantity::{Quantity, Total};
use crate::base::timestamp::Timestamp;
use crate::credits::accounts::Cause;
use crate::credits::cost::CostedUse;
use crate::credits::cost::CountedLimit;
use crate::credits::coverage::{CoverageShare, CreditCoverage};
use crate::credits::wallet::{GrantShares, TentativeAmounts, Wallet, quantity_of};
use crate::usage::event::Properties;

/// The credits of those in a book.
#[derive(Debug, Default)]
pub struct Credits {
    pub wallets: BTreeMap<i64, Wallet>,
    /// What reservations hold of grants; none: no more.
    pub lines: BTreeMap<CreditLineKey, Option<CreditLine>>,
    pub paid: Vec<PaidShare>,
}

/// Names what a reservation holds of a grant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct CreditLineKey {
    pub grant: Uuid,
    pub expires_at: Timestamp,
    pub reservation: Uuid,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CreditLine {
    pub subject_id: i64,
    pub on_expiry: OnExpiry,
    pub amount: Total,
}

/// What credits have paid for, for good, of what a counter counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PaidShare {
    pub subject_id: i64,
    pub definition: Uuid,
    pub at: Timestamp,
    pub event: Uuid,
    pub quantity: Total,
}

/// A use that is to be covered.
#[derive(Debug, Clone, Copy)]
pub(super) struct CoverageRequest<'a> {
    pub(super) meter: &'a MeterKey,
    pub(super) properties: &'a Properties,
    pub(super) quantity: Quantity,
}

/// The limits of one subject that credits extend, with their levels.
type LimitsByCreditUnit<'p> = BTreeMap<i64, Vec<(ApplicableLimit<'p>, CounterState)>>;

fn limits_with_credit_overage<'p>(limits: &[(ApplicableLimit<'p>, CounterState)]) -> LimitsByCreditUnit<'p> {
    let mut found = LimitsByCreditUnit::new();
    for (limit, level) in limits.iter().filter(|(limit, _)| limit.terms.is_covered()) {
        found.entry(limit.member.subject_id).or_default().push((*limit, *level));
    }
    found
}

/// What of a use the quota does not bear: never more than the use. What was recorded beyond the quota before
/// takes it up, and is nobody's to pay for. Of a use of nothing it is the least there is where the quota is
/// passed already: then it may run where any use may.
pub(super) fn shortfall(found: &ApplicableLimit<'_>, level: CounterState, more: Quantity) -> Quantity {
    let Some(quota) = found.quota() else { return Quantity::default() };
    let above = level.used + level.held - level.covered - quota.into();
    if above > Total::default() {
        return more.max(Quantity::SMALLEST);
    }
    (above + more.into()).or_zero().quantity().unwrap_or(Quantity::MAX)
}

fn largest_shortfall(limits: &[(ApplicableLimit<'_>, CounterState)], more: Quantity) -> Quantity {
    limits.iter().map(|(found, level)| shortfall(found, *level, more)).max().unwrap_or_default()
}

impl GateState<'_> {
    /// What the grants of a subject bear of a quantity that its limits fall short of where `more` is used.
    fn parts<'p>(
        &self,
        limits: &[(ApplicableLimit<'p>, CounterState)],
        (meter, properties): (&MeterKey, &Properties),
        more: Quantity,
        quantity: Quantity,
        taken: &TentativeAmounts,
    ) -> GrantShares {
        let Some((first, _)) = limits.first() else { return GrantShares::new() };
        let Some(wallet) = self.credits.wallets.get(&first.member.subject_id) else {
            return GrantShares::new();
        };
        let need = largest_shortfall(limits, more);
        let counted = |(found, level): &(ApplicableLimit<'p>, CounterState)| CountedLimit {
            limit: &found.terms.limit,
            before: level.used + level.held + more.into() - need.into(),
        };
        let counted: Vec<CountedLimit<'_>> = limits.iter().map(counted).collect();
        let of = CostedUse {
            credit_units: &self.terms.catalog.credit_units,
            books: &self.terms.books_of(first.subscription),
            meter,
            properties,
            counted: &counted,
            at: self.moment.now,
        };
        wallet.parts(quantity, &of, taken, self.moment.now)
    }

    /// How much of a use credits let pass, where every other limit would; and the subjects whose credits do
    /// not reach for any of it. What it takes of grants is noted, for what is asked for beside it.
    pub(super) fn covered_grant(
        &self,
        ask: &HoldRequest,
        granted: Option<Quantity>,
        limits: &[(ApplicableLimit<'_>, CounterState)],
        taken: &mut TentativeAmounts,
    ) -> Result<Option<Quantity>, BTreeSet<i64>> {
        let extended = limits_with_credit_overage(limits);
        if extended.is_empty() {
            return Ok(granted);
        }
        let of = (&ask.meter, &ask.properties);
        let asked = granted.unwrap_or_else(|| ask.value.amount());
        let (mut left, mut short) = (Total::from(asked), BTreeSet::new());
        for (subject_id, limits) in &extended {
            let need = largest_shortfall(limits, asked);
            let covers = |quantity| quantity_of(&self.parts(limits, of, asked, quantity, taken));
            if need.is_zero() || covers(need) >= need {
                continue;
            }
            let room = |(found, level): &(ApplicableLimit<'_>, CounterState)| {
                Some((Total::from(found.quota()?) - level.used - level.held + level.covered).or_zero())
            };
            let reach = limits.iter().filter_map(room).min().unwrap_or(left) + covers(Quantity::MAX).into();
            left = left.min(reach);
            // of nothing, too, something must be left
            if ask.grant == GrantMode::Exactly || reach < self.least(ask).max(Quantity::SMALLEST).into() {
                short.insert(*subject_id);
            }
        }
        if !short.is_empty() {
            return Err(short);
        }
        let Some(_) = granted else { return Ok(None) };
        let left = left.or_zero().quantity().unwrap_or(asked);
        let left = if self.is_whole(ask) { left.whole() } else { left };
        let asked = CoverageRequest { meter: &ask.meter, properties: &ask.properties, quantity: left };
        self.covers(asked, limits, taken);
        Ok(Some(left))
    }

    /// What credits bear of a use that was granted; it is noted as taken.
    fn covers(
        &self,
        asked: CoverageRequest<'_>,
        limits: &[(ApplicableLimit<'_>, CounterState)],
        taken: &mut TentativeAmounts,
    ) -> Vec<CreditCoverage> {
        let mut covers = Vec::new();
        if asked.quantity.is_zero() {
            return covers;
        }
        for (subject_id, limits) in limits_with_credit_overage(limits) {
            let need = largest_shortfall(&limits, asked.quantity);
            let of = (asked.meter, asked.properties);
            let parts = self.parts(&limits, of, asked.quantity, need, taken);
            for part in &parts {
                let sum = taken.entry(part.grant).or_default();
                *sum = *sum + part.amount;
            }
            let borne = quantity_of(&parts);
            let shares = shares(&limits, asked.quantity, borne);
            if !parts.is_empty() {
                covers.push(CreditCoverage { subject_id, parts, shares });
            }
        }
        covers
    }

    /// What credits bear of uses that were granted, by their places; one after the other in the order in
    /// which they were decided.
    pub(super) fn covers_of(
        &self,
        path: &Path,
        uses: &[CoverageRequest<'_>],
        order: &[usize],
        at: Timestamp,
    ) -> Vec<Vec<CreditCoverage>> {
        let (mut covers, mut taken) = (vec![Vec::new(); uses.len()], TentativeAmounts::new());
        for place in order.iter().copied().filter(|_| !self.credits.wallets.is_empty()) {
            let asked = uses[place];
            let limits = self.levels(path, asked.meter, asked.properties, at);
            covers[place] = self.covers(asked, &limits, &mut taken);
        }
        covers
    }

    /// What stands in the way of holds that grow.
    pub(super) fn growth_denied(
        &self,
        limits: &[(ApplicableLimit<'_>, CounterState)],
        asked: CoverageRequest<'_>,
        value: Quantity,
        taken: &mut TentativeAmounts,
        at: Timestamp,
    ) -> Vec<(Reason, Denier)> {
        let more = asked.quantity;
        let mut denied: Vec<(Reason, Denier)> = limits
            .iter()
            .filter(|(found, level)| {
                found.terms.is_hard()
                    && !found.terms.is_covered()
                    && !fits(found.quota(), *level, more.into())
            })
            .map(|(found, level)| (Reason::LimitReached, Denier::of(found, *level, value, at)))
            .collect();
        for limits in limits_with_credit_overage(limits).into_values() {
            let need = largest_shortfall(&limits, more);
            let of = (asked.meter, asked.properties);
            if need.is_zero() || quantity_of(&self.parts(&limits, of, more, need, taken)) >= need {
                continue;
            }
            let short = limits.iter().filter(|(found, level)| !shortfall(found, *level, more).is_zero());
            denied.extend(
                short.map(|(found, level)| {
                    (Reason::InsufficientCredits, Denier::of(found, *level, value, at))
                }),
            );
        }
        if denied.is_empty() {
            self.covers(asked, limits, taken);
        }
        denied
    }

    /// Moves held credits as a hold of a reservation goes from one state to the next: what was recorded is
    /// spent, what is held no more given back, what is held anew held. What is held then, and what was paid
    /// for good.
    pub(super) fn carry_covers(
        &mut self,
        (before, after): (Option<&Reservation>, &Reservation),
        index: usize,
        record: Option<&Record>,
        added: Vec<CreditCoverage>,
    ) -> (Vec<CreditCoverage>, Vec<CreditCoverage>) {
        let now = self.moment.now;
        let hold = &after.holds[index];
        let old = before.filter(|old| old.is_holding(now)).map(|old| (&old.holds[index], old));
        let mut kept = old.map(|(hold, _)| hold.covers.clone()).unwrap_or_default();
        let mut spent = Vec::new();
        let mut left = old.map(|(hold, old)| old.open(hold, now)).unwrap_or_default();
        if let Some(record) = record {
            let within = record.quantity.min(left);
            let cut: Vec<(CreditCoverage, CreditCoverage)> =
                kept.iter().map(|cover| cover.split(within, left)).collect();
            (spent, kept) = cut.into_iter().unzip();
            left = left.above(within);
            for cover in &spent {
                if let Some(wallet) = self.credits.wallets.get_mut(&cover.subject_id) {
                    wallet.settle(&cover.parts, &hold.meter, (after.key, record.key), now);
                }
            }
        }
        // where nothing is left open, nothing is held for it either
        let open = after.open(hold, now);
        let back = if open.is_zero() { Quantity::MAX } else { left.above(open) };
        if !back.is_zero() {
            let cut: Vec<(CreditCoverage, CreditCoverage)> =
                kept.iter().map(|cover| cover.less(back)).collect();
            let given: Vec<CreditCoverage>;
            (kept, given) = cut.into_iter().unzip();
            for cover in given {
                if let Some(wallet) = self.credits.wallets.get_mut(&cover.subject_id) {
                    wallet.release(&cover.parts, &hold.meter, after.key, now);
                }
            }
        }
        for cover in &added {
            if let Some(wallet) = self.credits.wallets.get_mut(&cover.subject_id) {
                wallet.hold(&cover.parts, &hold.meter, after.key, now);
            }
        }
        for more in added {
            match kept.iter_mut().find(|cover| cover.subject_id == more.subject_id) {
                Some(cover) => cover.add(more),
                None => kept.push(more),
            }
        }
        kept.retain(|cover| !cover.is_empty());
        spent.retain(|cover| !cover.is_empty());
        (kept, spent)
    }

    /// Notes what was paid for good.
    pub(super) fn note_paid(&mut self, covers: &[CreditCoverage], at: Timestamp, event: Uuid) {
        for cover in covers {
            for share in &cover.shares {
                self.credits.paid.push(PaidShare {
                    subject_id: cover.subject_id,
                    definition: share.definition,
                    at,
                    event,
                    quantity: share.covered.into(),
                });
            }
        }
    }

    /// The lines of what a reservation holds of grants, as it goes from one state to the next.
    pub(super) fn enter_credit_lines(&mut self, before: Option<&Reservation>, after: &Reservation) {
        let now = self.moment.now;
        if let Some(old) = before.filter(|old| old.is_holding(now)) {
            for part in old.holds.iter().flat_map(|hold| &hold.covers).flat_map(|cover| &cover.parts) {
                let key =
                    CreditLineKey { grant: part.grant, expires_at: old.expires_at, reservation: old.key };
                self.credits.lines.insert(key, None);
            }
        }
        for cover in after.holds.iter().flat_map(|hold| &hold.covers) {
            // a cost so small that its last digit was charged with what is spent of it already holds nothing
            for part in cover.parts.iter().filter(|part| part.amount > Total::default()) {
                let (grant, expires_at) = (part.grant, after.expires_at);
                let key = CreditLineKey { grant, expires_at, reservation: after.key };
                let line = CreditLine {
                    subject_id: cover.subject_id,
                    on_expiry: after.on_expiry,
                    amount: Total::default(),
                };
                let line = self.credits.lines.entry(key).or_insert(None).get_or_insert(line);
                line.amount = line.amount + part.amount;
            }
            if let Some(wallet) = self.credits.wallets.get_mut(&cover.subject_id) {
                wallet.next_line =
                    wallet.next_line.map(|at| at.min(after.expires_at)).or(Some(after.expires_at));
            }
        }
    }

    /// Covers what was recorded without being held, as far as grants go; the rest is noted, and stays
    /// uncovered. The counters have it already.
    pub fn cover_recorded(
        &mut self,
        path: &Path,
        (meter, properties): (&MeterKey, &Properties),
        quantity: Quantity,
        (reservation, event): (Option<Uuid>, Uuid),
        at: Timestamp,
    ) {
        let now = self.moment.now;
        let mut limits = self.levels(path, meter, properties, at);
        // of a period that is over for good there may be no counter
        limits.retain(|(found, _)| found.terms.is_covered() && self.counter_at(found, at).is_some());
        for (_, level) in &mut limits {
            level.used = level.used - quantity.into();
        }
        let mut done = Vec::new();
        for (subject_id, limits) in limits_with_credit_overage(&limits) {
            let need = largest_shortfall(&limits, quantity);
            if need.is_zero() {
                continue;
            }
            let parts = self.parts(&limits, (meter, properties), quantity, need, &TentativeAmounts::new());
            let borne = quantity_of(&parts);
            let shares = shares(&limits, quantity, borne);
            let counter_of = |share: &CoverageShare| {
                let found = limits.iter().find(|(found, _)| found.terms.definition == share.definition);
                Some((found?.0.counter_at(at)?.key, share.covered))
            };
            let spared: Vec<_> = shares.iter().filter_map(counter_of).collect();
            done.push((CreditCoverage { subject_id, parts, shares }, spared, need.above(borne)));
        }
        for (cover, spared, uncovered) in done {
            for (key, covered) in spared {
                if let Some(counter) = self.counters.get_mut(&key) {
                    counter.level.covered = counter.level.covered + covered.into();
                }
            }
            if let Some(wallet) = self.credits.wallets.get_mut(&cover.subject_id) {
                wallet.spend(&cover.parts, meter, (reservation, event), now);
                if !uncovered.is_zero() {
                    let cause = Cause { event: Some(event), reservation, ..Cause::default() };
                    wallet.note_uncovered(meter, uncovered, cause, now);
                }
            }
            self.note_paid(&[cover], at, event);
        }
    }

    /// What denies where credits do not reach.
    pub(super) fn short_of_credits(
        &self,
        ask: &HoldRequest,
        limits: &[(ApplicableLimit<'_>, CounterState)],
        short: &BTreeSet<i64>,
        least: Quantity,
    ) -> Vec<Denier> {
        let requested = ask.value.quantity.unwrap_or(Quantity::ONE);
        limits
            .iter()
            .filter(|(found, _)| found.terms.is_covered() && short.contains(&found.member.subject_id))
            .filter(|(found, level)| !shortfall(found, *level, least).is_zero())
            .map(|(found, level)| Denier::of(found, *level, requested, self.moment.now))
            .collect()
    }
}

fn shares(
    limits: &[(ApplicableLimit<'_>, CounterState)],
    more: Quantity,
    borne: Quantity,
) -> Vec<CoverageShare> {
    let mut shares: Vec<CoverageShare> = Vec::new();
    for (found, level) in limits {
        let covered = shortfall(found, *level, more).min(borne);
        let definition = found.terms.definition;
        // limits of one definition share a counter: the larger share is that of the counter
        match shares.iter_mut().find(|share| share.definition == definition) {
            Some(share) => share.covered = share.covered.max(covered),
            None if !covered.is_zero() => shares.push(CoverageShare { definition, covered }),
            None => {}
        }
    }
    shares
}

/// The denial by several: credits are no help against a limit that has none.
pub(super) fn denial(denied: Vec<(Reason, Denier)>) -> Option<Denial> {
    let (reasons, denied_by): (Vec<Reason>, Vec<Denier>) = denied.into_iter().unzip();
    let is_limit = reasons.contains(&Reason::LimitReached);
    let reason = if is_limit { Reason::LimitReached } else { Reason::InsufficientCredits };
    (!denied_by.is_empty()).then_some(Denial { reason, denied_by })
}
