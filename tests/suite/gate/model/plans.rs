//! The plans of the model, and the periods of their limits.

use jiff::{SignedDuration, Timestamp, ToSpan, tz::TimeZone};
use serde_json::{Value, json};

use super::caps::{Cap, FREE, ORG, Prices};
use super::credits::{Tally, credit_unit};

pub(super) const SUBJECTS: [&str; 5] = ["org", "team", "ann", "bob", "lone"];
/// The initial parents of the subjects, by index.
pub(super) const PARENTS: [Option<usize>; 5] = [None, Some(0), Some(1), Some(1), None];
/// A sum meter and a count meter over the same events.
pub(super) const METERS: [&str; 2] = ["tokens", "calls"];
pub(super) const TOKENS: usize = 0;
pub(super) const CALLS: usize = 1;
pub(super) const MODELS: [Option<&str>; 3] = [None, Some("a"), Some("b")];

pub(super) struct Plan {
    pub(super) key: &'static str,
    pub(super) allows_unmatched: bool,
    pub(super) fallback: Option<usize>,
    /// Whether a change to the plan drops earlier usage.
    pub(super) resets: bool,
    pub(super) limits: &'static [Limit],
    pub(super) prices: Option<Prices>,
    pub(super) cap: Option<Cap>,
}

pub(super) struct Limit {
    pub(super) key: &'static str,
    pub(super) meter: usize,
    pub(super) model: Option<&'static str>,
    pub(super) period: Period,
    pub(super) is_soft: bool,
    /// The quotas by edition of the catalog.
    pub(super) quotas: [Quota; 3],
    /// Whether credits extend the limit, by edition.
    pub(super) credits: [bool; 3],
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Period {
    Hour,
    /// A calendar period in a time zone.
    Day(&'static str),
    Month(&'static str),
    /// A period from the subscription's anchor.
    AnchoredDay,
    Billing,
    Lifetime,
}

#[derive(Clone, Copy)]
pub(super) enum Quota {
    Absent,
    Unlimited,
    Of(i64),
}

use Quota::{Absent, Of, Unlimited};

const fn limit(key: &'static str, meter: usize, period: Period, quotas: [Quota; 3]) -> Limit {
    Limit { key, meter, model: None, period, is_soft: false, quotas, credits: [false; 3] }
}

const fn extended(limit: Limit, credits: [bool; 3]) -> Limit {
    Limit { credits, ..limit }
}

/// The plans. The first is the default; all but the last have a limit `tokens`.
pub(super) const PLANS: [Plan; 4] = [
    Plan {
        key: "free",
        allows_unmatched: false,
        fallback: None,
        resets: false,
        limits: &[
            extended(
                limit("tokens", TOKENS, Period::Month("UTC"), [Of(30), Of(15), Of(60)]),
                [true, true, true],
            ),
            extended(
                limit("calls", CALLS, Period::Day("America/New_York"), [Of(7), Of(4), Absent]),
                [false, true, false],
            ),
        ],
        prices: Some(FREE),
        cap: Some(Cap { period: Period::Day("UTC"), amounts: [Some(40), None, Some(55)] }),
    },
    Plan {
        key: "seat",
        allows_unmatched: false,
        fallback: Some(0),
        resets: true,
        limits: &[
            extended(
                limit("tokens", TOKENS, Period::AnchoredDay, [Of(20), Of(8), Of(30)]),
                [true, false, true],
            ),
            Limit {
                model: Some("a"),
                credits: [true, true, true],
                ..limit("model_a", TOKENS, Period::Day("UTC"), [Of(9), Of(4), Of(15)])
            },
            // A soft limit and a hard limit share one counter.
            Limit { is_soft: true, ..limit("calls", CALLS, Period::AnchoredDay, [Of(3), Of(1), Unlimited]) },
            extended(
                limit("calls_max", CALLS, Period::AnchoredDay, [Of(6), Of(3), Of(9)]),
                [false, true, true],
            ),
        ],
        prices: None,
        // This cap counts the cost of the prices above.
        cap: Some(Cap { period: Period::AnchoredDay, amounts: [None, Some(12), Some(30)] }),
    },
    Plan {
        key: "org",
        allows_unmatched: true,
        fallback: None,
        resets: false,
        limits: &[
            extended(
                limit("tokens", TOKENS, Period::Billing, [Of(60), Of(30), Unlimited]),
                [true, true, true],
            ),
            extended(limit("calls", CALLS, Period::Lifetime, [Of(20), Of(10), Of(30)]), [false, true, true]),
        ],
        prices: Some(ORG),
        cap: Some(Cap { period: Period::Billing, amounts: [Some(70), Some(45), None] }),
    },
    Plan {
        key: "open",
        allows_unmatched: true,
        fallback: Some(1),
        resets: false,
        limits: &[Limit {
            model: Some("b"),
            credits: [true, true, false],
            ..limit("model_b", TOKENS, Period::Hour, [Of(10), Of(4), Of(20)])
        }],
        prices: None,
        cap: None,
    },
];

impl Period {
    /// Returns the period around an instant for a subscription with this anchor.
    pub(super) fn around(self, at: Timestamp, anchor: Timestamp) -> (Timestamp, Timestamp) {
        let (start, length) = match self {
            Self::Lifetime => return (Timestamp::MIN, Timestamp::MAX),
            Self::Hour => return grid(at, Timestamp::UNIX_EPOCH, 3_600),
            Self::AnchoredDay => return grid(at, anchor, 86_400),
            Self::Billing => return month_of(at, anchor),
            Self::Day(zone) => (at.in_tz(zone).unwrap().start_of_day().unwrap(), 1.day()),
            Self::Month(zone) => {
                let day = at.in_tz(zone).unwrap().first_of_month().unwrap();
                (day.start_of_day().unwrap(), 1.month())
            }
        };
        (start.timestamp(), start.checked_add(length).unwrap().timestamp())
    }

    pub(super) fn to_json(self) -> Value {
        match self {
            Self::Hour => json!({"period": "hour"}),
            Self::Day(zone) => json!({"period": "day", "timezone": zone}),
            Self::Month(zone) => json!({"period": "month", "timezone": zone}),
            Self::AnchoredDay => json!({"period": "day", "anchor": "subscription"}),
            Self::Billing => json!({"period": "billing"}),
            Self::Lifetime => json!({"period": "lifetime"}),
        }
    }
}

pub(super) fn grid(at: Timestamp, anchor: Timestamp, seconds: i64) -> (Timestamp, Timestamp) {
    let passed = at.as_millisecond() - anchor.as_millisecond();
    let start = at - SignedDuration::from_millis(passed.rem_euclid(seconds * 1_000));
    (start, start + SignedDuration::from_secs(seconds))
}

/// Returns the month around an instant, counted from an anchor.
pub(super) fn month_of(at: Timestamp, anchor: Timestamp) -> (Timestamp, Timestamp) {
    let start =
        |months: i64| anchor.to_zoned(TimeZone::UTC).checked_add(months.months()).unwrap().timestamp();
    let n = (-24..240).find(|n| start(n + 1) > at).unwrap();
    (start(n), start(n + 1))
}

impl Limit {
    pub(super) fn takes(&self, meter: usize, model: Option<&str>) -> bool {
        self.meter == meter && (self.model.is_none() || self.model == model)
    }

    pub(super) fn counter_source(&self) -> Tally {
        (self.meter, self.model, self.period)
    }
}

impl Plan {
    /// Returns whether credits extend a limit of the plan with a price that depends on earlier usage.
    pub(super) fn has_uncoverable_price(&self, edition: usize) -> bool {
        let is_there = |limit: &&Limit| limit.credits[edition] && !matches!(limit.quotas[edition], Absent);
        let mut extended = self.limits.iter().filter(is_there);
        let prices = self.prices.as_ref();
        extended.any(|limit| prices.is_some_and(|prices| !prices.is_plain(limit.meter, edition)))
    }
}

pub(super) fn catalog(edition: usize, has_default: bool) -> Value {
    let meters = [("tokens", "sum"), ("calls", "count")].map(|(key, aggregation)| {
        json!({"key": key, "event_name": "call", "aggregation": aggregation, "dimensions": ["model"]})
    });
    let limits = |plan: &Plan| -> Vec<Value> {
        plan.limits
            .iter()
            .filter_map(|limit| {
                let mut value = limit.period.to_json();
                value["key"] = json!(limit.key);
                value["meter"] = json!(METERS[limit.meter]);
                value["quota"] = match limit.quotas[edition] {
                    Absent => return None,
                    Unlimited => Value::Null,
                    Of(quota) => json!(quota),
                };
                if limit.credits[edition] {
                    value["overage"] = json!("credits");
                }
                value["enforcement"] = json!(if limit.is_soft { "soft" } else { "hard" });
                if let Some(model) = limit.model {
                    value["filter"] = json!({"model": [model]});
                }
                Some(value)
            })
            .collect()
    };
    let plans: Vec<Value> = PLANS
        .iter()
        .map(|plan| {
            let prices = plan.prices.as_ref().map(|prices| prices.to_json(edition)).unwrap_or_default();
            let caps: Vec<Value> = plan.cap.iter().filter_map(|cap| cap.to_json(edition)).collect();
            json!({"key": plan.key, "limits": limits(plan), "prices": prices, "spend_caps": caps, "fallback_plan": plan.fallback.map(|n| PLANS[n].key),
                "on_plan_change": if plan.resets { "reset" } else { "keep" },
                "unmatched": if plan.allows_unmatched { "allow" } else { "deny" }})
        })
        .collect();
    json!({"default_plan": has_default.then_some(PLANS[0].key), "meters": meters, "plans": plans,
        "credit_units": [credit_unit()]})
}
