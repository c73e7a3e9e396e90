//! Credit coverage: grants of a subject pay for use above the quota of a limit that allows it.
//!
//! A use takes credits once for the largest shortfall among the limits of a subject. Held credits follow
//! their reservation. Recorded use beyond a hold is covered as far as the grants reach; the rest is noted.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use super::catalog_index::ApplicableLimit;
use super::counter::CounterState;
use super::decision::{Denial, Denier, GrantMode, Reason, fits};
use super::path::Path;
use super::request::HoldRequest;
use super::state::{GateState, PaidShare};
use crate::base::names::MeterKey;
use crate::base::quantity::{Quantity, Total};
use crate::base::timestamp::Timestamp;
use crate::credits::accounts::Cause;
use crate::credits::cost::{CostedUse, CountedLimit};
use crate::credits::coverage::{CoverageShare, CreditCoverage};
use crate::credits::wallet::{GrantShares, TentativeAmounts, quantity_of};
use crate::usage::event::Properties;

/// A use that credits may cover.
#[derive(Debug, Clone, Copy)]
pub struct RequestedUse<'a> {
    pub meter: &'a MeterKey,
    pub properties: &'a Properties,
    pub quantity: Quantity,
}

/// The event that records a use, and its reservation.
#[derive(Debug, Clone, Copy)]
pub struct Recorder {
    pub reservation: Option<Uuid>,
    pub event: Uuid,
}

/// The limits of one subject that credits extend, with their counter states.
type LimitsByCreditUnit<'p> = BTreeMap<i64, Vec<(ApplicableLimit<'p>, CounterState)>>;

fn limits_with_credit_overage<'p>(limits: &[(ApplicableLimit<'p>, CounterState)]) -> LimitsByCreditUnit<'p> {
    let mut found = LimitsByCreditUnit::new();
    for (limit, level) in limits.iter().filter(|(limit, _)| limit.terms.is_covered()) {
        found.entry(limit.member.subject_id).or_default().push((*limit, *level));
    }
    found
}

/// Returns the part of a use above the quota, at most the whole use. Earlier use above the quota has
/// consumed the quota and needs no credits. For a zero-value use, returns the smallest unit once the quota
/// is exceeded.
pub fn shortfall(found: &ApplicableLimit<'_>, level: CounterState, more: Quantity) -> Quantity {
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
    /// Returns the grant shares that pay for `quantity` when a use exceeds the limits of a subject.
    fn parts<'p>(
        &self,
        limits: &[(ApplicableLimit<'p>, CounterState)],
        asked: RequestedUse<'_>,
        quantity: Quantity,
        taken: &TentativeAmounts,
    ) -> GrantShares {
        let Some((first, _)) = limits.first() else { return GrantShares::new() };
        let Some(wallet) = self.credits.wallets.get(&first.member.subject_id) else {
            return GrantShares::new();
        };
        let need = largest_shortfall(limits, asked.quantity);
        let counted = |(found, level): &(ApplicableLimit<'p>, CounterState)| CountedLimit {
            limit: &found.terms.limit,
            before: level.used + level.held + asked.quantity.into() - need.into(),
        };
        let counted: Vec<CountedLimit<'_>> = limits.iter().map(counted).collect();
        let of = CostedUse {
            credit_units: &self.terms.catalog.credit_units,
            books: &self.terms.books_of(first.subscription),
            meter: asked.meter,
            properties: asked.properties,
            counted: &counted,
            at: self.moment.now,
        };
        wallet.parts(quantity, &of, taken, self.moment.now)
    }

    /// Returns the quantity that credits allow if all other limits do. Otherwise returns the subjects
    /// without enough credits. Adds the used credits to `taken`, for the later requests of the call.
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
        let quantity = granted.unwrap_or_else(|| ask.value.amount());
        let asked = RequestedUse { meter: &ask.meter, properties: &ask.properties, quantity };
        let (mut left, mut short) = (Total::from(quantity), BTreeSet::new());
        for (subject_id, limits) in &extended {
            let need = largest_shortfall(limits, quantity);
            let covers = |quantity| quantity_of(&self.parts(limits, asked, quantity, taken));
            if need.is_zero() || covers(need) >= need {
                continue;
            }
            let room = |(found, level): &(ApplicableLimit<'_>, CounterState)| {
                Some((Total::from(found.quota()?) - level.used - level.held + level.covered).or_zero())
            };
            let reach = limits.iter().filter_map(room).min().unwrap_or(left) + covers(Quantity::MAX).into();
            left = left.min(reach);
            // A zero-value use, too, needs some credits left.
            if ask.grant == GrantMode::Exactly || reach < self.least(ask).max(Quantity::SMALLEST).into() {
                short.insert(*subject_id);
            }
        }
        if !short.is_empty() {
            return Err(short);
        }
        let Some(_) = granted else { return Ok(None) };
        let left = left.or_zero().quantity().unwrap_or(quantity);
        let left = if self.is_whole(ask) { left.whole() } else { left };
        self.covers(RequestedUse { quantity: left, ..asked }, limits, taken);
        Ok(Some(left))
    }

    /// Returns the credits for a granted use and adds them to `taken`.
    fn covers(
        &self,
        asked: RequestedUse<'_>,
        limits: &[(ApplicableLimit<'_>, CounterState)],
        taken: &mut TentativeAmounts,
    ) -> Vec<CreditCoverage> {
        let mut covers = Vec::new();
        if asked.quantity.is_zero() {
            return covers;
        }
        for (subject_id, limits) in limits_with_credit_overage(limits) {
            let need = largest_shortfall(&limits, asked.quantity);
            let parts = self.parts(&limits, asked, need, taken);
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

    /// Returns the credits of granted uses, by position. `order` is the order in which the uses were
    /// decided.
    pub(super) fn covers_of(
        &self,
        path: &Path,
        uses: &[RequestedUse<'_>],
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

    /// Returns the limits that deny the growth of a hold, with the reasons. If none does, adds the credits
    /// for the growth to `taken`.
    pub(super) fn growth_denied<'p>(
        &self,
        limits: &[(ApplicableLimit<'p>, CounterState)],
        asked: RequestedUse<'_>,
        taken: &mut TentativeAmounts,
    ) -> Vec<(Reason, ApplicableLimit<'p>, CounterState)> {
        let more = asked.quantity;
        let is_full = |found: &ApplicableLimit<'_>, level: CounterState| {
            let is_plain = found.terms.is_hard() && !found.terms.is_covered();
            is_plain && !fits(found.quota(), level, more.into())
        };
        let full = limits.iter().filter(|(found, level)| is_full(found, *level));
        let mut denied: Vec<_> = full.map(|(found, level)| (Reason::LimitReached, *found, *level)).collect();
        for limits in limits_with_credit_overage(limits).into_values() {
            let need = largest_shortfall(&limits, more);
            if need.is_zero() || quantity_of(&self.parts(&limits, asked, need, taken)) >= need {
                continue;
            }
            let short = limits.into_iter().filter(|(found, level)| !shortfall(found, *level, more).is_zero());
            denied.extend(short.map(|(found, level)| (Reason::InsufficientCredits, found, level)));
        }
        if denied.is_empty() {
            self.covers(asked, limits, taken);
        }
        denied
    }

    /// Notes the quantities that were paid for.
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

    /// Covers recorded use that was not held, as far as the grants reach. The rest is noted and stays
    /// uncovered. The counters already include the use.
    pub fn cover_recorded(&mut self, path: &Path, asked: RequestedUse<'_>, by: Recorder, at: Timestamp) {
        let RequestedUse { meter, properties, quantity } = asked;
        let Recorder { reservation, event } = by;
        let now = self.moment.now;
        let mut limits = self.levels(path, meter, properties, at);
        // A period that is closed may have no counter.
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
            let parts = self.parts(&limits, asked, need, &TentativeAmounts::new());
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

    /// Returns the limits that deny for lack of credits.
    pub(super) fn short_of_credits(
        &self,
        ask: &HoldRequest,
        limits: &[(ApplicableLimit<'_>, CounterState)],
        short: &BTreeSet<i64>,
    ) -> Vec<Denier> {
        let least = self.least(ask);
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
        // Limits of one definition share a counter, which takes the larger share.
        match shares.iter_mut().find(|share| share.definition == definition) {
            Some(share) => share.covered = share.covered.max(covered),
            None if !covered.is_zero() => shares.push(CoverageShare { definition, covered }),
            None => {}
        }
    }
    shares
}

/// Returns the denial by several limits. Its reason is `LimitReached` if a limit without credits is among
/// them, since credits would not help there.
pub(super) fn denial(denied: Vec<(Reason, Denier)>) -> Option<Denial> {
    let (reasons, denied_by): (Vec<Reason>, Vec<Denier>) = denied.into_iter().unzip();
    let is_limit = reasons.contains(&Reason::LimitReached);
    let reason = if is_limit { Reason::LimitReached } else { Reason::InsufficientCredits };
    (!denied_by.is_empty()).then_some(Denial { reason, denied_by })
}
