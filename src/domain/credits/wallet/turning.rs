//! What time does to a wallet: reservations lapse, grants take effect, expire, and go on from period to
//! period. It is carried out by whoever looks, as if it had been done at its time.

use super::{Lapsed, Purse, State, Wallet};
use crate::domain::credits::accounts::{Cause, Kind};
use crate::domain::credits::grant::{Grant, Source, plan_series, series_id};
use crate::domain::credits::offers::PlanCredits;
use crate::domain::limits::CREDIT_TURNS_MAX;
use crate::domain::quantity::{Quantity, Total};
use crate::domain::subscription::Subscription;
use crate::domain::timestamp::Timestamp;
use crate::domain::window::Span;

/// Credits that a subscription gives each period.
#[derive(Debug, Clone, Copy)]
pub struct Schedule<'a> {
    pub credits: &'a PlanCredits,
    pub subscription: &'a Subscription,
}

/// The next grant of a series.
struct Successor {
    period: Span,
    /// What is given anew.
    fresh: Quantity,
    priority: i32,
}

impl Wallet {
    /// Carries out what is due by now, in the order of time. `schedules`: what the plan gives, where the
    /// subscription may use it.
    pub fn advance(&mut self, lapsed: Vec<Lapsed>, schedules: &[Schedule<'_>], now: Timestamp) {
        let mut lapsed = lapsed;
        lapsed.sort_by_key(|line| (line.expires_at, line.reservation, line.grant));
        let mut turns = 0;
        for line in lapsed {
            self.advance_to(line.expires_at.min(now), schedules, &mut turns);
            self.lapse(line);
        }
        self.advance_to(now, schedules, &mut turns);
        for schedule in schedules {
            self.keep_up(*schedule, now);
        }
    }

    fn advance_to(&mut self, to: Timestamp, schedules: &[Schedule<'_>], turns: &mut usize) {
        while let Some((due, index)) = self.first_due(to) {
            // of what nobody looked at for very many periods, not each is carried through
            let at = if *turns > CREDIT_TURNS_MAX { to } else { due };
            match self.purses[index].state {
                State::Upcoming => self.take_effect(index, at),
                State::Open | State::Ended => {
                    *turns += 1;
                    let successor = self.successor(index, schedules, at);
                    self.end(index, successor, at);
                }
            }
        }
    }

    fn first_due(&self, to: Timestamp) -> Option<(Timestamp, usize)> {
        let due = |(index, purse): (usize, &Purse)| {
            let at = match purse.state {
                State::Upcoming => Some(purse.grant.effective_at),
                State::Open => purse.grant.expires_at,
                State::Ended => None,
            };
            at.filter(|at| *at <= to).map(|at| (at, index))
        };
        self.purses.iter().enumerate().filter_map(due).min()
    }

    /// What follows a grant whose period ends: that of the period around an instant, its end or a later one.
    fn successor(&self, index: usize, schedules: &[Schedule<'_>], at: Timestamp) -> Option<Successor> {
        let Purse { grant, is_head, .. } = &self.purses[index];
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
        // what it was on when the period ended is only known if it has been on it since
        if schedule.subscription.terms_since > end || schedule.credits.unit != grant.unit {
            return None;
        }
        Some(schedule.successor(end))
    }

    /// Ends a grant; what follows it takes over what is carried.
    fn end(&mut self, index: usize, successor: Option<Successor>, at: Timestamp) {
        let unused = self.purses[index].available;
        let grant = self.purses[index].grant.clone();
        let id = grant.id;
        let carried = successor.as_ref().map(|_| grant.rollover.carried(unused)).unwrap_or_default();
        let out = carried.min(unused);
        self.shift(index, Kind::CarryOut, out, at, Cause::default());
        self.purses[index].state = State::Ended;
        self.changed.insert(id);
        self.close(index, at);
        let fresh = successor.as_ref().map(|next| Total::from(next.fresh) + (carried - out));
        let goes_on = fresh.is_some_and(|fresh| fresh + out > Total::default());
        let (Some(next), Some(fresh), true) = (successor, fresh, goes_on) else {
            // what a plan gives may go on later; what a caller gave is over
            self.purses[index].is_head &= grant.recurrence.is_none();
            return;
        };
        if let Some(made) = self.make_successor(&grant, &next, at) {
            self.shift(made, Kind::Grant, fresh, at, Cause::default());
            self.shift(made, Kind::CarryIn, out, at, Cause::default());
        }
    }

    /// The next of a series, with nothing in it yet.
    fn make_successor(&mut self, before: &Grant, next: &Successor, at: Timestamp) -> Option<usize> {
        let series = before.series.as_ref()?;
        let id = series_id(self.subject_id, series, next.period.from);
        if let Some(old) = self.index(before.id) {
            self.purses[old].is_head = false;
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
        self.purses.push(Purse { state: State::Open, ..Purse::new(grant) });
        self.sort();
        self.index(id)
    }

    /// Gives what the plan gives in this period, once.
    fn keep_up(&mut self, schedule: Schedule<'_>, now: Timestamp) {
        let series = plan_series(&schedule.credits.key);
        let next = schedule.successor(now);
        let is_head = |purse: &Purse| purse.is_head && purse.grant.series.as_deref() == Some(series.as_str());
        match self.purses.iter().position(is_head) {
            None => {
                let grant = schedule.first(self.subject_id, &series, &next, now);
                self.made.insert(grant.id);
                self.changed.insert(grant.id);
                self.purses.push(Purse::new(grant));
                self.sort();
                if let Some(index) = self.purses.iter().position(is_head) {
                    self.take_effect(index, now);
                }
            }
            Some(head) => {
                let (began, is_open) = {
                    let purse = &self.purses[head];
                    (purse.grant.effective_at, purse.state == State::Open)
                };
                // its periods have moved, or it was not there for a while
                if began < next.period.from && is_open {
                    self.end(head, Some(next), now);
                } else if began < next.period.from {
                    let before = schedule.first(self.subject_id, &series, &next, now);
                    let old = self.purses[head].grant.id;
                    let before = Grant { id: old, ..before };
                    let fresh = next.fresh.into();
                    if let Some(made) = self.make_successor(&before, &next, now) {
                        self.shift(made, Kind::Grant, fresh, now, Cause::default());
                    }
                }
            }
        }
    }
}

impl Schedule<'_> {
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
            source: Source::Plan,
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
