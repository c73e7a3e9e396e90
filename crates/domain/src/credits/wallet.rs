//! The grants of one subject under their lock, and all changes to them. Due changes are applied first, in
//! order of time. Every change is a movement, and no balance falls below zero.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use super::accounts::{Cause, LedgerAccount, Movement, MovementKind};
use super::cost::{CostedUse, RateStep, share};
use super::grant::Grant;
use super::unit::Unit;
use crate::base::names::MeterKey;
use crate::base::quantity::{Quantity, Total};
use crate::base::timestamp::Timestamp;
use crate::pricing::amount::Amount;

/// The state of a grant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum GrantState {
    /// Not yet in effect.
    Upcoming,
    Open,
    /// Expired or voided. Nothing more can be taken from it, but existing holds stay.
    Ended,
}

/// A grant with its remaining balance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GrantBalance {
    pub grant: Grant,
    pub available: Total,
    pub held: Total,
    pub state: GrantState,
    /// True for the latest grant of its series.
    pub is_head: bool,
}

impl GrantBalance {
    pub fn new(grant: Grant) -> Self {
        let is_head = grant.series.is_some();
        Self {
            grant,
            available: Total::default(),
            held: Total::default(),
            state: GrantState::Upcoming,
            is_head,
        }
    }
}

/// The share of a use that one grant pays for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GrantShare {
    pub grant: Uuid,
    /// The exact quantity in units of the meter; a grant may pay for a fraction of a unit.
    pub quantity: Amount,
    /// The amount in the unit of the grant.
    pub amount: Total,
}

/// The shares of a use, in the order in which grants are spent.
pub type GrantShares = Vec<GrantShare>;

/// Returns the quantity of all shares, rounded down once.
pub fn quantity_of(parts: &[GrantShare]) -> Quantity {
    let sum: Amount = parts.iter().map(|part| part.quantity.clone()).sum();
    sum.quantity_below().quantity().unwrap_or(Quantity::MAX)
}

/// Splits shares at a quantity into the first shares and the rest.
pub fn split(parts: &[GrantShare], at: Quantity) -> (GrantShares, GrantShares) {
    let (mut first, mut rest, mut left) = (GrantShares::new(), GrantShares::new(), Amount::from(at));
    for part in parts {
        if left.is_zero() {
            rest.push(part.clone());
        } else if part.quantity <= left {
            left = left - part.quantity.clone();
            first.push(part.clone());
        } else {
            let taken = std::mem::take(&mut left);
            let amount = share(part.amount, &taken, &part.quantity);
            let quantity = part.quantity.clone() - taken.clone();
            rest.push(GrantShare { quantity, amount: part.amount - amount, ..*part });
            first.push(GrantShare { quantity: taken, amount, ..*part });
        }
    }
    (first, rest)
}

/// Amounts taken tentatively, by grant.
pub type TentativeAmounts = BTreeMap<Uuid, Total>;

/// The hold of an expired reservation on a grant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpiredCreditLine {
    pub grant: Uuid,
    pub reservation: Uuid,
    pub expires_at: Timestamp,
    pub amount: Total,
}

/// A transfer into a grant or out of it.
pub(super) struct Transfer {
    pub(super) kind: MovementKind,
    pub(super) amount: Total,
    pub(super) at: Timestamp,
    pub(super) cause: Cause,
}

/// The meter of a use, with its reservation and event.
#[derive(Debug, Clone, Copy)]
struct UsedFor<'a> {
    reservation: Option<Uuid>,
    event: Option<Uuid>,
    meter: &'a MeterKey,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wallet {
    pub subject_id: i64,
    /// A lower bound of the expiry of the first hold line.
    pub next_line: Option<Timestamp>,
    pub(super) grant_balances: Vec<GrantBalance>,
    /// The available balance by unit.
    balances: BTreeMap<Unit, Total>,
    movements: Vec<Movement>,
    /// Grants that due changes created in this wallet and that are not stored yet.
    pub(super) made: BTreeSet<Uuid>,
    pub(super) changed: BTreeSet<Uuid>,
}

impl Wallet {
    pub fn new(subject_id: i64, next_line: Option<Timestamp>, grant_balances: Vec<GrantBalance>) -> Self {
        let mut balances: BTreeMap<Unit, Total> = BTreeMap::new();
        for grant_balance in &grant_balances {
            let sum = balances.entry(grant_balance.grant.unit.clone()).or_default();
            *sum = *sum + grant_balance.available;
        }
        let mut wallet = Self {
            subject_id,
            next_line,
            grant_balances,
            balances,
            movements: Vec::new(),
            made: BTreeSet::new(),
            changed: BTreeSet::new(),
        };
        wallet.sort();
        wallet
    }

    pub(super) fn sort(&mut self) {
        self.grant_balances.sort_by_key(|grant_balance| grant_balance.grant.rank());
    }

    /// Returns the grant balances in the order in which they are spent.
    pub fn grant_balances(&self) -> &[GrantBalance] {
        &self.grant_balances
    }

    pub fn grant_balance(&self, grant: Uuid) -> Option<&GrantBalance> {
        self.grant_balances.iter().find(|grant_balance| grant_balance.grant.id == grant)
    }

    /// Returns the movements since the wallet was opened, in order.
    pub fn movements(&self) -> &[Movement] {
        &self.movements
    }

    pub fn made(&self) -> impl Iterator<Item = &GrantBalance> {
        self.grant_balances.iter().filter(|grant_balance| self.made.contains(&grant_balance.grant.id))
    }

    pub fn changed(&self) -> impl Iterator<Item = &GrantBalance> {
        self.grant_balances.iter().filter(|grant_balance| self.changed.contains(&grant_balance.grant.id))
    }

    pub fn is_changed(&self) -> bool {
        !self.changed.is_empty() || !self.movements.is_empty()
    }

    pub fn balance(&self, unit: &Unit) -> Total {
        self.balances.get(unit).copied().unwrap_or_default()
    }

    pub fn balances(&self) -> &BTreeMap<Unit, Total> {
        &self.balances
    }

    /// Returns the time of the next due change.
    pub fn next_due(&self) -> Option<Timestamp> {
        let turns = self.grant_balances.iter().filter_map(|grant_balance| match grant_balance.state {
            GrantState::Upcoming => Some(grant_balance.grant.effective_at),
            GrantState::Open => grant_balance.grant.expires_at,
            GrantState::Ended => None,
        });
        turns.chain(self.next_line).min()
    }

    pub(super) fn index(&self, grant: Uuid) -> Option<usize> {
        self.grant_balances.iter().position(|grant_balance| grant_balance.grant.id == grant)
    }

    pub(super) fn shift(&mut self, index: usize, transfer: Transfer) {
        let Transfer { kind, amount, at, cause } = transfer;
        if amount == Total::default() {
            return;
        }
        let grant_balance = &mut self.grant_balances[index];
        grant_balance.available = grant_balance.available + kind.effect_on(LedgerAccount::Available, amount);
        grant_balance.held = grant_balance.held + kind.effect_on(LedgerAccount::Held, amount);
        debug_assert!(
            grant_balance.available >= Total::default() && grant_balance.held >= Total::default(),
            "{grant_balance:?}"
        );
        let balance = self.balances.entry(grant_balance.grant.unit.clone()).or_default();
        *balance = *balance + kind.effect_on(LedgerAccount::Available, amount);
        self.changed.insert(grant_balance.grant.id);
        self.movements.push(Movement {
            kind,
            grant: Some(grant_balance.grant.id),
            unit: grant_balance.grant.unit.clone(),
            amount,
            at,
            balance: *balance,
            cause,
        });
    }

    /// Expires or voids an amount that returns to an ended grant.
    pub(super) fn close(&mut self, index: usize, at: Timestamp) {
        let grant_balance = &self.grant_balances[index];
        if grant_balance.state != GrantState::Ended {
            return;
        }
        let kind =
            if grant_balance.grant.voided_at.is_some() { MovementKind::Void } else { MovementKind::Expire };
        self.shift(index, Transfer { kind, amount: grant_balance.available, at, cause: Cause::default() });
    }

    /// Adds a stored grant, and issues its amount if it takes effect by now.
    pub fn give(&mut self, grant: Grant, now: Timestamp) {
        self.changed.insert(grant.id);
        let (id, takes_effect) = (grant.id, grant.effective_at <= now);
        self.grant_balances.push(GrantBalance::new(grant));
        self.sort();
        if let Some(index) = self.index(id).filter(|_| takes_effect) {
            self.take_effect(index, now);
        }
    }

    pub(super) fn take_effect(&mut self, index: usize, at: Timestamp) {
        self.grant_balances[index].state = GrantState::Open;
        self.changed.insert(self.grant_balances[index].grant.id);
        let amount = self.grant_balances[index].grant.amount.into();
        self.shift(index, Transfer { kind: MovementKind::Grant, amount, at, cause: Cause::default() });
    }

    /// Voids the available amount of a grant. Held credits stay held, and are voided when they return.
    /// Returns false if the grant was voided before.
    pub fn void(&mut self, grant: Uuid, reason: Option<String>, now: Timestamp) -> bool {
        let Some(index) = self.index(grant) else { return false };
        let grant_balance = &mut self.grant_balances[index];
        if grant_balance.grant.voided_at.is_some() {
            return false;
        }
        grant_balance.grant.voided_at = Some(now);
        grant_balance.state = GrantState::Ended;
        let available = grant_balance.available;
        self.changed.insert(grant);
        self.shift(
            index,
            Transfer {
                kind: MovementKind::Void,
                amount: available,
                at: now,
                cause: Cause { reason, ..Cause::default() },
            },
        );
        true
    }

    /// Returns the shares in which grants pay for a quantity, or for less if the balances do not suffice.
    /// Each grant but the last gives its whole balance, even for a fraction of a unit. So a use costs the
    /// same over one grant and over several.
    pub fn parts(
        &self,
        quantity: Quantity,
        of: &CostedUse<'_>,
        taken: &TentativeAmounts,
        now: Timestamp,
    ) -> GrantShares {
        let (mut parts, mut left) = (GrantShares::new(), Amount::from(quantity));
        for grant_balance in self.grant_balances.iter().filter(|grant_balance| {
            grant_balance.state == GrantState::Open && grant_balance.grant.is_good(now)
        }) {
            if left.is_zero() {
                break;
            }
            let mut available =
                grant_balance.available - taken.get(&grant_balance.grant.id).copied().unwrap_or_default();
            // one share per price, so that a later split keeps the price of each unit
            while !left.is_zero() && available > Total::default() {
                let further = Amount::from(quantity) - left.clone();
                let Some(RateStep { rate, units }) = of.step(&grant_balance.grant.unit, &further) else {
                    break;
                };
                let wanted = units.map_or_else(|| left.clone(), |units| units.min(left.clone()));
                let amount = rate.amount_of(&wanted);
                let (quantity, amount) = if amount <= available {
                    (wanted, amount)
                } else {
                    (rate.quantity_for(available), available)
                };
                (left, available) = (left - quantity.clone(), available - amount);
                parts.push(GrantShare { grant: grant_balance.grant.id, quantity, amount });
            }
        }
        // an amount too small for one nano-unit pays for nothing and stays available
        if quantity_of(&parts).is_zero() { GrantShares::new() } else { parts }
    }

    /// Returns the amount of a unit, including holds and grants that have not taken effect.
    pub fn all_of(&self, unit: &Unit) -> Total {
        let of = |grant_balance: &GrantBalance| match grant_balance.state {
            GrantState::Upcoming => grant_balance.grant.amount.into(),
            GrantState::Open | GrantState::Ended => grant_balance.available + grant_balance.held,
        };
        let grant_balances =
            self.grant_balances.iter().filter(|grant_balance| grant_balance.grant.unit == *unit);
        grant_balances.fold(Total::default(), |sum, grant_balance| sum + of(grant_balance))
    }

    /// Holds shares for a reservation.
    pub fn hold(&mut self, parts: &[GrantShare], meter: &MeterKey, reservation: Uuid, now: Timestamp) {
        self.shift_parts(
            parts,
            MovementKind::Hold,
            UsedFor { reservation: Some(reservation), event: None, meter },
            now,
        );
    }

    /// Returns held shares to their grants.
    pub fn release(&mut self, parts: &[GrantShare], meter: &MeterKey, reservation: Uuid, now: Timestamp) {
        self.shift_parts(
            parts,
            MovementKind::Release,
            UsedFor { reservation: Some(reservation), event: None, meter },
            now,
        );
    }

    /// Spends the held shares of a reservation for an event.
    pub fn settle(&mut self, parts: &[GrantShare], meter: &MeterKey, of: (Uuid, Uuid), now: Timestamp) {
        let (reservation, event) = of;
        let used_for = UsedFor { reservation: Some(reservation), event: Some(event), meter };
        self.shift_parts(parts, MovementKind::Settle, used_for, now);
    }

    /// Spends available shares for an event without a hold.
    pub fn spend(
        &mut self,
        parts: &[GrantShare],
        meter: &MeterKey,
        of: (Option<Uuid>, Uuid),
        now: Timestamp,
    ) {
        let used_for = UsedFor { reservation: of.0, event: Some(of.1), meter };
        self.shift_parts(parts, MovementKind::Spend, used_for, now);
    }

    fn shift_parts(
        &mut self,
        parts: &[GrantShare],
        kind: MovementKind,
        used_for: UsedFor<'_>,
        now: Timestamp,
    ) {
        let UsedFor { reservation, event, meter } = used_for;
        let (mut exact, mut told) = (Amount::default(), Total::default());
        for part in parts {
            // the quantities of the movements sum to the quantity of the use
            exact = exact + part.quantity.clone();
            let reached = exact.quantity_below();
            let quantity = (reached - told).quantity().unwrap_or(Quantity::MAX);
            told = reached;
            let Some(index) = self.index(part.grant) else { continue };
            let used = Some((meter.clone(), quantity));
            self.shift(
                index,
                Transfer {
                    kind,
                    amount: part.amount,
                    at: now,
                    cause: Cause { event, reservation, used, ..Cause::default() },
                },
            );
            if kind == MovementKind::Release {
                self.close(index, now);
            }
        }
    }

    /// Returns credits that were spent for an event. `cause` names the movement that spent them.
    pub fn refund(&mut self, grant: Uuid, amount: Total, cause: Cause, now: Timestamp) {
        let Some(index) = self.index(grant) else { return };
        self.shift(index, Transfer { kind: MovementKind::Refund, amount, at: now, cause });
        self.close(index, now);
    }

    /// Records usage above a quota that no grant covered.
    pub fn note_uncovered(&mut self, meter: &MeterKey, quantity: Quantity, cause: Cause, now: Timestamp) {
        let unit = Unit::Meter(meter.clone());
        self.movements.push(Movement {
            kind: MovementKind::Uncovered,
            grant: None,
            balance: self.balance(&unit),
            unit,
            amount: quantity.into(),
            at: now,
            cause: Cause { used: Some((meter.clone(), quantity)), ..cause },
        });
    }

    /// Returns the credits that an expired reservation held.
    pub(super) fn expire(&mut self, expired: ExpiredCreditLine) {
        let Some(index) = self.index(expired.grant) else { return };
        let cause = Cause { reservation: Some(expired.reservation), ..Cause::default() };
        self.shift(
            index,
            Transfer { kind: MovementKind::Release, amount: expired.amount, at: expired.expires_at, cause },
        );
        self.close(index, expired.expires_at);
    }
}
