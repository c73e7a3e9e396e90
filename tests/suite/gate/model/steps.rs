//! The random steps of the model.

use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::credits::{Given, Recurring, UNITS};
use super::plans::{CALLS, TOKENS};

#[derive(Debug, Clone)]
pub(super) enum Step {
    Track {
        who: usize,
        value: i64,
        model: usize,
        seconds_ago: i64,
    },
    TrackAgain {
        which: Index,
        changed: bool,
    },
    Void(Index),
    Ask {
        who: usize,
        asks: Vec<Ask>,
        model: usize,
        how: How,
        ttl: i64,
        commits: bool,
    },
    AskAgain {
        which: Index,
        changed: bool,
    },
    Commit {
        which: Index,
        values: Vec<(usize, i64)>,
        is_final: bool,
    },
    CommitAgain(Index),
    Release(Index),
    Extend {
        which: Index,
        ttl: Option<i64>,
        values: Vec<(usize, i64)>,
    },
    Subscribe(usize, Statement),
    Renew(usize),
    Unsubscribe {
        who: usize,
        at: &'static str,
        fallback: Option<usize>,
    },
    Apply(usize),
    /// Sets or removes a subject's own cap.
    Cap {
        who: usize,
        amount: Option<i64>,
    },
    Move {
        who: usize,
        parent: Option<usize>,
    },
    Give(Given),
    VoidGrant(Index),
    Pass(Time),
    /// A background job; no answer may depend on it.
    Job(Job),
}

#[derive(Debug, Clone)]
pub(super) struct Statement {
    pub(super) plan: usize,
    pub(super) status: &'static str,
    /// The override of the quota of `tokens`.
    pub(super) tokens: Option<i64>,
    /// The start, in seconds before now.
    pub(super) start: Option<i64>,
    /// The end, in seconds from now.
    pub(super) ends: Option<i64>,
}

#[derive(Debug, Clone)]
pub(super) struct Ask {
    pub(super) meter: usize,
    pub(super) value: i64,
    pub(super) up_to: bool,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum How {
    Hold,
    DryRun,
    Check,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Job {
    Sweep,
    /// Applies due ends of subscriptions.
    End,
    /// Drops old counters.
    Drop,
    Fold,
    Build,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Time {
    Seconds(i64),
    /// The expiry of the next hold, or one second before.
    Expiry {
        before: bool,
    },
    /// Two minutes before midnight; event times may lie on either side of it.
    Midnight,
    /// The instant at which the next grant takes effect or ends, or one second before.
    Turn {
        before: bool,
    },
}

fn given() -> impl Strategy<Value = Given> {
    const DAY: i64 = 86_400;
    // Twenty days before the first step is the last day of a month.
    let from =
        prop::option::weighted(0.4, select(vec![0, 3_600, 2 * DAY, -DAY, -20 * DAY, -20 * DAY, -50 * DAY]));
    let life = prop::option::weighted(0.4, select(vec![1, 60, 3_600, DAY, 9 * DAY, 40 * DAY]));
    let recurring = (any::<bool>(), prop::bool::weighted(0.7), 0..4_i64, 0..20_i64)
        .prop_map(|(is_monthly, renews, min, more)| Recurring { is_monthly, renews, min, max: min + more });
    (
        0..5_usize,
        select(UNITS.to_vec()),
        1..40_i64,
        0..3_i64,
        from,
        life,
        prop::option::weighted(0.3, recurring),
    )
        .prop_map(|(who, unit, amount, priority, from, life, recurring)| Given {
            who,
            unit,
            amount,
            priority,
            from,
            life,
            recurring,
        })
}

/// Values for one meter or both, in either order.
fn values(
    tokens: std::ops::Range<i64>,
    calls: std::ops::Range<i64>,
) -> impl Strategy<Value = Vec<(usize, i64)>> {
    (tokens, calls, 0..5_usize).prop_map(|(tokens, calls, kind)| match kind {
        0 => vec![(CALLS, calls)],
        1 | 2 => vec![(TOKENS, tokens)],
        3 => vec![(TOKENS, tokens), (CALLS, calls)],
        _ => vec![(CALLS, calls), (TOKENS, tokens)],
    })
}

fn asks() -> impl Strategy<Value = Vec<Ask>> {
    (values(0..16, 0..4), prop::collection::vec(prop::bool::weighted(0.3), 2)).prop_map(|(values, up_to)| {
        values.into_iter().zip(up_to).map(|((meter, value), up_to)| Ask { meter, value, up_to }).collect()
    })
}

pub(super) fn step() -> impl Strategy<Value = Step> {
    let who = || 0..5_usize;
    let index = any::<Index>;
    let ago = || select(vec![0, 0, 0, 0, -240, 600, 7_200, 86_400, 3 * 86_400]);
    let ttl = || select(vec![1, 60, 60, 3_600, 86_400]);
    let how = select(vec![How::Hold, How::Hold, How::Hold, How::Hold, How::DryRun, How::Check]);
    let status =
        select(vec!["active", "active", "active", "active", "active", "past_due", "trialing", "paused"]);
    let start = prop::option::weighted(0.3, select(vec![-60, 0, 5_000, 90_000, 20 * 86_400]));
    let ends = prop::option::weighted(0.15, select(vec![100, 50_000]));
    let seconds = select(vec![1, 1, 1, 20, 20, 60, 600, 3_600, 30_000, 86_400, 5 * 86_400]);
    let time = prop_oneof![
        3 => seconds.prop_map(Time::Seconds),
        3 => any::<bool>().prop_map(|before| Time::Expiry { before }),
        1 => Just(Time::Midnight),
        2 => any::<bool>().prop_map(|before| Time::Turn { before }),
    ];
    prop_oneof![
        8 => (who(), -4..12_i64, 0..3_usize, ago())
            .prop_map(|(who, value, model, seconds_ago)| Step::Track { who, value, model, seconds_ago }),
        1 => (index(), prop::bool::weighted(0.3)).prop_map(|(which, changed)| Step::TrackAgain { which, changed }),
        3 => index().prop_map(Step::Void),
        20 => (who(), asks(), 0..3_usize, how, ttl(), prop::bool::weighted(0.4))
            .prop_map(|(who, asks, model, how, ttl, commits)| Step::Ask { who, asks, model, how, ttl, commits }),
        2 => (index(), prop::bool::weighted(0.3)).prop_map(|(which, changed)| Step::AskAgain { which, changed }),
        12 => (index(), prop::option::weighted(0.8, values(0..20, 0..5)), any::<bool>()).prop_map(
            |(which, values, is_final)| Step::Commit { which, values: values.unwrap_or_default(), is_final }
        ),
        2 => index().prop_map(Step::CommitAgain),
        5 => index().prop_map(Step::Release),
        7 => (index(), prop::option::of(ttl()), prop::option::of(values(0..50, 0..9))).prop_map(
            |(which, ttl, values)| Step::Extend { which, ttl, values: values.unwrap_or_default() }
        ),
        5 => (who(), 0..4_usize, status, prop::option::weighted(0.2, 0..80_i64), start, ends).prop_map(
            |(who, plan, status, tokens, start, ends)| Step::Subscribe(who, Statement { plan, status, tokens, start, ends })
        ),
        1 => who().prop_map(Step::Renew),
        1 => (who(), select(vec!["now", "period_end"]), prop::option::of(0..4_usize))
            .prop_map(|(who, at, fallback)| Step::Unsubscribe { who, at, fallback }),
        2 => (0..3_usize).prop_map(Step::Apply),
        3 => (who(), prop::option::weighted(0.7, 5..60_i64)).prop_map(|(who, amount)| Step::Cap { who, amount }),
        // A parent always has a smaller index, so there are no cycles.
        2 => (1..4_usize, prop::option::weighted(0.7, 0..2_usize))
            .prop_map(|(who, parent)| Step::Move { who, parent: parent.filter(|parent| *parent < who) }),
        8 => given().prop_map(Step::Give),
        1 => index().prop_map(Step::VoidGrant),
        8 => time.prop_map(Step::Pass),
        5 => select(vec![Job::Sweep, Job::Sweep, Job::End, Job::Drop, Job::Fold, Job::Build]).prop_map(Step::Job),
    ]
}
