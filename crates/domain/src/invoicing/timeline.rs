//! The billing periods of a subscription, computed from its history. Periods are half-open, and each begins
//! at the end of the previous one, across changes of plan, anchor and biller periods.

use crate::base::names::PlanKey;
use crate::base::period::Cycle;
use crate::base::timestamp::Timestamp;
use crate::base::window::Span;
use crate::pricing::commitment::Commitment;
use crate::pricing::price::Price;
use crate::subjects::subscription::SubscriptionStatus;

/// The most periods that are computed: daily periods of more than 50 years.
const PERIODS_MAX: usize = 20_000;

/// The prices and commitments of a subscription that override or extend its plan's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OwnPricing {
    pub prices: Vec<Price>,
    pub commitments: Vec<Commitment>,
}

/// A change of a subscription, with its time.
#[derive(Debug, Clone)]
pub struct PlanChange {
    pub at: Timestamp,
    pub plan: PlanKey,
    pub own: OwnPricing,
    pub status: SubscriptionStatus,
    pub cycle: Cycle,
    /// True if the previous plan ended with this change and is billed up to it.
    pub closes: bool,
}

impl PlanChange {
    /// Returns whether usage is billed. Trials are free; overdue subscriptions are billed.
    pub fn is_billed(&self) -> bool {
        matches!(
            self.status,
            SubscriptionStatus::Active | SubscriptionStatus::PastDue | SubscriptionStatus::Unpaid
        )
    }

    /// Returns the start of the first period of a subscription. If the biller announced a period that was
    /// already over, that period is the first.
    pub fn first_begins(&self) -> Timestamp {
        match self.cycle.billing.filter(|announced| announced.to <= self.at) {
            Some(over) => over.from,
            None => self.cycle.billing_period(self.at).from,
        }
    }
}

/// A span within a billing period with one plan and the same prices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanInterval {
    pub plan: PlanKey,
    /// The own prices and commitments at the end of the span.
    pub own: OwnPricing,
    pub span: Span,
    /// False if usage in this span is free, as in a trial.
    pub is_billed: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BillingPeriod {
    pub span: Span,
    pub intervals: Vec<PlanInterval>,
}

/// The history of a subscription, with the effective time of each change.
#[derive(Debug, Clone, Default)]
pub struct Timeline(Vec<PlanChange>);

impl Timeline {
    /// Builds the timeline from changes in ascending order of time.
    pub fn of(changes: Vec<PlanChange>) -> Self {
        let mut plan_changes: Vec<PlanChange> = Vec::new();
        for (index, change) in changes.iter().enumerate() {
            let mut plan_change = change.clone();
            // a late first payment pays for the whole incomplete time
            let next =
                changes.get(index + 1).filter(|next| next.plan == plan_change.plan && next.is_billed());
            if let Some(next) = next.filter(|_| plan_change.status == SubscriptionStatus::Incomplete) {
                plan_change.status = next.status;
            }
            plan_change.at = match index
                .checked_sub(1)
                .and_then(|before| Some((changes.get(before)?, plan_changes.last()?)))
            {
                None => plan_change.first_begins(),
                Some((before, last)) => begins(before, &plan_change).max(last.at),
            };
            // the last of several changes at one instant wins, but a closed plan stays closed
            while let Some(same) = plan_changes.pop_if(|last| last.at == plan_change.at) {
                plan_change.closes |= same.closes;
            }
            plan_changes.push(plan_change);
        }
        Self(plan_changes)
    }

    /// Returns the periods that begin by now, from the end of the last billed one.
    pub fn periods(&self, billed_until: Option<Timestamp>, now: Timestamp) -> Vec<BillingPeriod> {
        let mut periods = Vec::new();
        let Some(first) = self.0.first() else { return periods };
        let mut start = billed_until.map_or(first.at, |until| until.max(first.at));
        while start <= now && periods.len() < PERIODS_MAX {
            let end = self.end_of(start);
            if end <= start {
                break;
            }
            let span = Span { from: start, to: end };
            periods.push(self.within(span));
            start = end;
        }
        periods
    }

    /// Returns the change in force at an instant.
    pub fn at(&self, now: Timestamp) -> Option<&PlanChange> {
        self.0[..self.0.partition_point(|plan_change| plan_change.at <= now)].last()
    }

    /// Returns the billing period of a known span.
    pub fn within(&self, span: Span) -> BillingPeriod {
        BillingPeriod { span, intervals: self.intervals(span) }
    }

    /// Returns the end of the period that begins at an instant.
    fn end_of(&self, start: Timestamp) -> Timestamp {
        let begun = self.0.partition_point(|plan_change| plan_change.at <= start);
        let Some(plan_change) = self.0.get(begun.saturating_sub(1)) else { return start };
        let mut end = plan_change.cycle.billing_period(start).to;
        for later in &self.0[begun..] {
            if later.at >= end {
                break;
            }
            if later.closes {
                return later.at;
            }
            let period = later.cycle.billing_period(later.at);
            if period.from > start {
                // another cycle begins here
                return period.from.min(end);
            }
            end = period.to;
        }
        end
    }

    fn intervals(&self, span: Span) -> Vec<PlanInterval> {
        let mut intervals: Vec<PlanInterval> = Vec::new();
        for (index, plan_change) in self.0.iter().enumerate() {
            let until = self.0.get(index + 1).map_or(Timestamp::MAX, |next| next.at);
            let part = Span { from: plan_change.at, to: until }.intersect(span);
            if part.is_empty() {
                continue;
            }
            match intervals.last_mut() {
                Some(last)
                    if last.plan == plan_change.plan
                        && last.own.prices == plan_change.own.prices
                        && last.is_billed == plan_change.is_billed() =>
                {
                    last.span.to = part.to;
                    last.own.commitments.clone_from(&plan_change.own.commitments);
                }
                _ => intervals.push(PlanInterval {
                    plan: plan_change.plan.clone(),
                    own: plan_change.own.clone(),
                    span: part,
                    is_billed: plan_change.is_billed(),
                }),
            }
        }
        intervals
    }
}

/// Returns the effective time of a change. An announced period takes effect from its start, even if the
/// announcement arrives late.
fn begins(before: &PlanChange, plan_change: &PlanChange) -> Timestamp {
    let announced = plan_change.cycle.billing.filter(|billing| before.cycle.billing != Some(*billing));
    if let Some(period) = announced.filter(|period| period.contains(plan_change.at)) {
        return period.from;
    }
    let period = plan_change.cycle.billing_period(plan_change.at);
    if period.from == before.cycle.billing_period(plan_change.at).from { plan_change.at } else { period.from }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn at(text: &str) -> Timestamp {
        let full = if text.len() == 10 { format!("{text}T00:00:00Z") } else { text.to_owned() };
        Timestamp::parse(&full).unwrap()
    }

    /// Parses `at plan status anchor [start..end]`. A `!` after the status closes the previous plan. A plan
    /// may have its own fee and minimum: `plan:fee:minimum`.
    fn plan_change(text: &str) -> PlanChange {
        let words: Vec<&str> = text.split(' ').collect();
        let status = words[2].trim_end_matches('!');
        let (_, status) = SubscriptionStatus::WORDS.iter().find(|(word, _)| *word == status).unwrap();
        let billing = words.get(4).map(|period| {
            let (from, to) = period.split_once("..").unwrap();
            Span { from: at(from), to: at(to) }
        });
        let mut plan = words[1].split(':');
        let key = PlanKey::parse(plan.next().unwrap()).unwrap();
        let fee = |amount| json!({"key": "fee", "model": "flat", "currency": "usd", "amount": amount});
        let minimum = |amount| json!({"currency": "usd", "minimum_amount": amount});
        let own = OwnPricing {
            prices: plan.next().map(|amount| Price::read(fee(amount)).unwrap()).into_iter().collect(),
            commitments: plan.next().map(|it| Commitment::read(minimum(it)).unwrap()).into_iter().collect(),
        };
        PlanChange {
            at: at(words[0]),
            plan: key,
            own,
            status: *status,
            cycle: Cycle { anchor: at(words[3]), billing },
            closes: words[2].ends_with('!'),
        }
    }

    fn day(at: Timestamp) -> String {
        at.to_string().trim_end_matches("T00:00:00Z").replacen("2026-", "", 1)
    }

    fn told(plan_changes: &[&str], until: Option<&str>, now: &str) -> Vec<String> {
        let timeline = Timeline::of(plan_changes.iter().map(|text| plan_change(text)).collect());
        let show = |period: BillingPeriod| {
            let interval = |it: &PlanInterval| {
                let minimum = it.own.commitments.iter().filter_map(|own| own.minimum_amount.as_ref());
                let own: Vec<String> = minimum.map(|minimum| format!(":{minimum}")).collect();
                let free = if it.is_billed { "" } else { "-" };
                format!("{}{}{free}@{}", it.plan, own.concat(), day(it.span.from))
            };
            let intervals: Vec<String> = period.intervals.iter().map(interval).collect();
            format!("{}..{} {}", day(period.span.from), day(period.span.to), intervals.join(" "))
        };
        timeline.periods(until.map(at), at(now)).into_iter().map(show).collect()
    }

    /// The changes, the end of the last billed period, the present time, and the expected periods.
    type Case<'a> = (&'a [&'a str], Option<&'a str>, &'a str, &'a [&'a str]);

    #[test]
    fn first_periods_that_ended_before_they_were_announced_are_billed() {
        let plan_changes = ["2026-03-10 pro active 2026-01-05 2026-01-05..2026-02-05"];
        let expected = ["01-05..02-05 pro@01-05", "02-05..03-05 pro@02-05", "03-05..04-05 pro@03-05"];
        assert_eq!(told(&plan_changes, None, "2026-03-10"), expected);
    }

    #[test]
    fn billing_periods_are_contiguous_across_changes() {
        let cases: &[Case<'_>] = &[
            // months end on their last day without drifting
            (
                &["2026-01-31 pro active 2026-01-31"],
                None,
                "2026-03-31",
                &["01-31..02-28 pro@01-31", "02-28..03-31 pro@02-28", "03-31..04-30 pro@03-31"],
            ),
            (
                &["2026-01-31 pro active 2026-01-31"],
                Some("2026-02-28"),
                "2026-03-01",
                &["02-28..03-31 pro@02-28"],
            ),
            // the biller's renewals arrive late, one of them with a change of plan
            (
                &[
                    "2026-01-05T00:00:02Z pro active 2026-01-05 2026-01-05..2026-02-05",
                    "2026-02-05T00:00:09Z team active 2026-01-05 2026-02-05..2026-03-05",
                ],
                None,
                "2026-02-06",
                &["01-05..02-05 pro@01-05", "02-05..03-05 team@02-05"],
            ),
            // a plan that changes within a period is rated separately
            (
                &["2026-01-05 pro active 2026-01-05", "2026-01-20 team active 2026-01-05"],
                None,
                "2026-01-21",
                &["01-05..02-05 pro@01-05 team@01-20"],
            ),
            // a new anchor ends the period
            (
                &[
                    "2026-01-01 free active 2026-01-01",
                    "2026-01-10T00:00:03Z pro active 2026-01-10 2026-01-10..2026-02-10",
                ],
                None,
                "2026-01-11",
                &["01-01..01-10 free@01-01", "01-10..02-10 pro@01-10"],
            ),
            // a trial is free and has its own length
            (
                &[
                    "2026-01-05 pro trialing 2026-01-05 2026-01-05..2026-01-19",
                    "2026-01-19T00:00:01Z pro active 2026-01-19 2026-01-19..2026-02-19",
                ],
                None,
                "2026-01-20",
                &["01-05..01-19 pro-@01-05", "01-19..02-19 pro@01-19"],
            ),
            // a first payment that takes some hours
            (
                &[
                    "2026-01-05T00:00:01Z pro incomplete 2026-01-05 2026-01-05..2026-02-05",
                    "2026-01-05T09:00:00Z pro active 2026-01-05 2026-01-05..2026-02-05",
                ],
                None,
                "2026-01-06",
                &["01-05..02-05 pro@01-05"],
            ),
            (
                &["2026-01-05 pro incomplete 2026-01-05", "2026-01-06 pro incomplete_expired 2026-01-05"],
                None,
                "2026-01-07",
                &["01-05..02-05 pro-@01-05"],
            ),
            // the end of a subscription is billed at once
            (
                &["2026-01-05 pro active 2026-01-05", "2026-01-20 pro canceled! 2026-01-05"],
                None,
                "2026-01-21",
                &["01-05..01-20 pro@01-05", "01-20..02-05 pro-@01-20"],
            ),
            (
                &["2026-01-05 pro active 2026-01-05", "2026-01-20 free active! 2026-01-05"],
                None,
                "2026-01-20",
                &["01-05..01-20 pro@01-05", "01-20..02-05 free@01-20"],
            ),
            // late payment and a pause
            (
                &[
                    "2026-01-05 pro active 2026-01-05",
                    "2026-01-10 pro past_due 2026-01-05",
                    "2026-01-20 pro paused 2026-01-05",
                ],
                None,
                "2026-01-21",
                &["01-05..02-05 pro@01-05 pro-@01-20"],
            ),
            // the last of several changes at one instant wins
            (
                &[
                    "2026-01-05 free active 2026-01-05",
                    "2026-01-05 pro active 2026-01-05",
                    "2026-01-05 team active 2026-01-05",
                ],
                None,
                "2026-01-05",
                &["01-05..02-05 team@01-05"],
            ),
            (&[], None, "2026-01-05", &[]),
            (&["2026-01-05 pro active 2026-01-05"], None, "2026-01-04", &[]),
        ];
        for (plan_changes, until, now, expected) in cases {
            assert_eq!(told(plan_changes, *until, now), *expected, "{plan_changes:?}");
        }
    }

    #[test]
    fn own_prices_split_a_period_and_the_last_commitment_applies() {
        let plan_changes = [
            "2026-01-05 pro:1:10 active 2026-01-05",
            "2026-01-10 pro:1:20 active 2026-01-05",
            "2026-01-20 pro:2:30 active 2026-01-05",
        ];
        assert_eq!(told(&plan_changes, None, "2026-01-21"), ["01-05..02-05 pro:20@01-05 pro:30@01-20"]);
    }
}
