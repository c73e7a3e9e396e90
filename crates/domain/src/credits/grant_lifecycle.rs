//! The lifecycle of grants: reservations expire; grants take effect, expire and continue in the next period.
//! Every reader of a wallet applies the due changes with their due times.

use super::accounts::{Cause, MovementKind};
use super::grant::{Grant, GrantSource, plan_series, series_id};
use super::offers::PlanCredits;
use super::wallet::{ExpiredCreditLine, GrantBalance, GrantState, Transfer, Wallet};
use crate::base::limits::CREDIT_TURNS_MAX;
use crate::base::quantity::{Quantity, Total};
use crate::base::timestamp::Timestamp;
use crate::base::window::Span;
use crate::subjects::subscription::Subscription;

/// The credits that a subscription grants in each period.
#[derive(Debug, Clone, Copy)]
pub struct GrantSchedule<'a> {
    pub credits: &'a PlanCredits,
    pub subscription: &'a Subscription,
}

/// The next grant of a series.
struct Successor {
    period: Span,
    /// The amount that is newly granted.
    fresh: Quantity,
    priority: i32,
}

impl Wallet {
    /// Applies all changes that are due by now, in order of time. `schedules` are the grants of the plan, if
    /// the subscription is usable.
    pub fn advance(
        &mut self,
        expired: Vec<ExpiredCreditLine>,
        schedules: &[GrantSchedule<'_>],
        now: Timestamp,
    ) {
        let mut expired = expired;
        expired.sort_by_key(|line| (line.expires_at, line.reservation, line.grant));
        let mut turns = 0;
        for line in expired {
            self.advance_to(line.expires_at.min(now), schedules, &mut turns);
            self.expire(line);
        }
        self.advance_to(now, schedules, &mut turns);
        for schedule in schedules {
            self.issue_due_grants(*schedule, now);
        }
    }

    fn advance_to(&mut self, to: Timestamp, schedules: &[GrantSchedule<'_>], turns: &mut usize) {
        while let Some((due, index)) = self.first_due(to) {
            // after very many periods without a reader, skip the remaining ones
            let at = if *turns > CREDIT_TURNS_MAX { to } else { due };
            match self.grant_balances[index].state {
                GrantState::Upcoming => self.take_effect(index, at),
                GrantState::Open | GrantState::Ended => {
                    *turns += 1;
                    let successor = self.successor(index, schedules, at);
                    self.end(index, successor, at);
                }
            }
        }
    }

    fn first_due(&self, to: Timestamp) -> Option<(Timestamp, usize)> {
        let due = |(index, grant_balance): (usize, &GrantBalance)| {
            let at = match grant_balance.state {
                GrantState::Upcoming => Some(grant_balance.grant.effective_at),
                GrantState::Open => grant_balance.grant.expires_at,
                GrantState::Ended => None,
            };
            at.filter(|at| *at <= to).map(|at| (at, index))
        };
        self.grant_balances.iter().enumerate().filter_map(due).min()
    }

    /// Returns the successor of a grant at the end of its period: the grant of the period around the later of
    /// its expiry and `at`.
    fn successor(&self, index: usize, schedules: &[GrantSchedule<'_>], at: Timestamp) -> Option<Successor> {
        let GrantBalance { grant, is_head, .. } = &self.grant_balances[index];
        let (series, end) = (grant.series.as_ref().filter(|_| *is_head)?, grant.expires_at?.max(at));
        if let Some(recurrence) = &grant.recurrence {
            if recurrence.until.is_some_and(|until| until <= end) {
                return None;
            }
            let mut period = recurrence.period_around(end, None);
            period.to = recurrence.until.map_or(period.to, |until| until.min(period.to));
            let fresh = if recurrence.renews { grant.amount } else { Quantity::default() };
            return Some(Successor { period, fresh, priority: grant.priority });
        }
        let schedule = schedules.iter().find(|schedule| plan_series(&schedule.credits.key) == *series)?;
        // an older plan is unknown, so the present one applies only if it was in force at the end of the
        // period
        if schedule.subscription.terms_since > end || schedule.credits.unit != grant.unit {
            return None;
        }
        Some(schedule.successor(end))
    }

    /// Ends a grant, and moves the balance that rolls over into its successor.
    fn end(&mut self, index: usize, successor: Option<Successor>, at: Timestamp) {
        let unused = self.grant_balances[index].available;
        let grant = self.grant_balances[index].grant.clone();
        let id = grant.id;
        let carried = successor.as_ref().map(|_| grant.rollover.carried(unused)).unwrap_or_default();
        let out = carried.min(unused);
        self.shift(
            index,
            Transfer { kind: MovementKind::CarryOut, amount: out, at, cause: Cause::default() },
        );
        self.grant_balances[index].state = GrantState::Ended;
        self.changed.insert(id);
        self.close(index, at);
        let fresh = successor.as_ref().map(|next| Total::from(next.fresh) + (carried - out));
        let goes_on = fresh.is_some_and(|fresh| fresh + out > Total::default());
        let (Some(next), Some(fresh), true) = (successor, fresh, goes_on) else {
            // a plan may continue its series later; the series of a caller's grant is over
            self.grant_balances[index].is_head &= grant.recurrence.is_none();
            return;
        };
        if let Some(made) = self.make_successor(&grant, &next, at) {
            self.shift(
                made,
                Transfer { kind: MovementKind::Grant, amount: fresh, at, cause: Cause::default() },
            );
            self.shift(
                made,
                Transfer { kind: MovementKind::CarryIn, amount: out, at, cause: Cause::default() },
            );
        }
    }

    /// Adds the next grant of a series with a balance of zero.
    fn make_successor(&mut self, before: &Grant, next: &Successor, at: Timestamp) -> Option<usize> {
        let series = before.series.as_ref()?;
        let id = series_id(self.subject_id, series, next.period.from);
        if let Some(old) = self.index(before.id) {
            self.grant_balances[old].is_head = false;
        }
        let grant = Grant {
            id,
            amount: next.fresh,
            priority: next.priority,
            effective_at: next.period.from,
            expires_at: (next.period.to < Timestamp::MAX).then_some(next.period.to),
            external_ref: None,
            refund_of: None,
            reason: None,
            created_at: at,
            voided_at: None,
            ..before.clone()
        };
        self.made.insert(id);
        self.changed.insert(id);
        self.grant_balances.push(GrantBalance { state: GrantState::Open, ..GrantBalance::new(grant) });
        self.sort();
        self.index(id)
    }

    /// Issues the grant of a plan for the present period, once.
    fn issue_due_grants(&mut self, schedule: GrantSchedule<'_>, now: Timestamp) {
        let series = plan_series(&schedule.credits.key);
        let next = schedule.successor(now);
        let is_head = |grant_balance: &GrantBalance| {
            grant_balance.is_head && grant_balance.grant.series.as_deref() == Some(series.as_str())
        };
        match self.grant_balances.iter().position(is_head) {
            None => {
                let grant = schedule.first(self.subject_id, &series, &next, now);
                self.made.insert(grant.id);
                self.changed.insert(grant.id);
                self.grant_balances.push(GrantBalance::new(grant));
                self.sort();
                if let Some(index) = self.grant_balances.iter().position(is_head) {
                    self.take_effect(index, now);
                }
            }
            Some(head) => {
                let (began, is_open) = {
                    let grant_balance = &self.grant_balances[head];
                    (grant_balance.grant.effective_at, grant_balance.state == GrantState::Open)
                };
                // the periods have moved, or the subscription paused for some time
                if began < next.period.from && is_open {
                    self.end(head, Some(next), now);
                } else if began < next.period.from {
                    let before = schedule.first(self.subject_id, &series, &next, now);
                    let old = self.grant_balances[head].grant.id;
                    let before = Grant { id: old, ..before };
                    let fresh = next.fresh.into();
                    if let Some(made) = self.make_successor(&before, &next, now) {
                        self.shift(
                            made,
                            Transfer {
                                kind: MovementKind::Grant,
                                amount: fresh,
                                at: now,
                                cause: Cause::default(),
                            },
                        );
                    }
                }
            }
        }
    }
}

impl GrantSchedule<'_> {
    fn successor(&self, at: Timestamp) -> Successor {
        let Self { credits, subscription } = self;
        let period = credits.period_around(at, &subscription.cycle);
        Successor { period, fresh: credits.amount, priority: credits.priority }
    }

    fn first(&self, subject_id: i64, series: &str, next: &Successor, now: Timestamp) -> Grant {
        let credits = self.credits;
        Grant {
            id: series_id(subject_id, series, next.period.from),
            unit: credits.unit.clone(),
            amount: credits.amount,
            priority: credits.priority,
            effective_at: next.period.from,
            expires_at: (next.period.to < Timestamp::MAX).then_some(next.period.to),
            source: GrantSource::Plan,
            external_ref: None,
            series: Some(series.to_owned()),
            recurrence: None,
            rollover: credits.rollover,
            refund_of: None,
            reason: None,
            created_at: now,
            voided_at: None,
        }
    }
}
