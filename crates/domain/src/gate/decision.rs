//! The results of a decision: a use must fit every applicable limit and cap of its path.

use serde::Serialize;

use super::catalog_index::{ApplicableLimit, CatalogIndex};
use super::counter::CounterState;
use super::path::Path;
use crate::base::names::{ItemKey, MeterKey, SubjectId};
use crate::base::quantity::{Quantity, Total};
use crate::base::timestamp::Timestamp;
use crate::base::window::Span;
use crate::catalog::plan::Unmatched;
use crate::pricing::amount::Amount;
use crate::pricing::currency::Currency;
use crate::usage::event::Properties;

/// The reason for a denial.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    NoSubscription,
    SubscriptionInactive,
    Unmatched,
    LimitReached,
    SpendCapReached,
    InsufficientCredits,
}

impl Reason {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoSubscription => "no_subscription",
            Self::SubscriptionInactive => "subscription_inactive",
            Self::Unmatched => "unmatched",
            Self::LimitReached => "limit_reached",
            Self::SpendCapReached => "spend_cap_reached",
            Self::InsufficientCredits => "insufficient_credits",
        }
    }
}

/// The state of a limit: its quota, and its counter state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LimitState {
    pub subject: SubjectId,
    pub key: ItemKey,
    pub meter: MeterKey,
    /// The quota, or none for an unlimited limit.
    pub quota: Option<Quantity>,
    pub used: Total,
    pub held: Total,
    /// The part of `used` and `held` that credits cover, if credits extend the limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub covered: Option<Total>,
    pub remaining: Option<Total>,
    /// The end of the period, or none for a period without an end.
    pub resets_at: Option<Timestamp>,
    #[serde(skip)]
    pub period: Span,
}

impl LimitState {
    pub fn of(found: &ApplicableLimit<'_>, level: CounterState, now: Timestamp) -> Self {
        let (quota, period) = (found.quota(), found.period_at(now));
        let covered = found.terms.is_covered().then_some(level.covered);
        let borne = level.used + level.held - covered.unwrap_or_default();
        Self {
            subject: found.member.subject.clone(),
            key: found.key().clone(),
            meter: found.terms.limit.meter.clone(),
            quota,
            used: level.used,
            held: level.held,
            covered,
            remaining: quota.map(|quota| (Total::from(quota) - borne).or_zero()),
            resets_at: resets_at(period),
            period,
        }
    }
}

/// Returns the instant at which a period's quota renews, or none for a period without an end.
pub fn resets_at(period: Span) -> Option<Timestamp> {
    (period.to < Timestamp::MAX).then_some(period.to)
}

/// A limit or a cap that denies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Denier {
    Limit(LimitDenier),
    Cap(CapDenier),
}

/// A limit that denies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LimitDenier {
    pub subject: SubjectId,
    pub key: ItemKey,
    pub meter: MeterKey,
    pub quota: Option<Quantity>,
    pub used: Total,
    pub held: Total,
    /// The part of `used` and `held` that credits cover, if credits extend the limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub covered: Option<Total>,
    pub requested: Quantity,
    pub resets_at: Option<Timestamp>,
}

/// A spend cap that denies. Amounts are exact, in minor units of its currency. They are none if an exchange
/// rate is missing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CapDenier {
    pub subject: SubjectId,
    pub key: ItemKey,
    pub cap: Amount,
    pub currency: Currency,
    pub spent: Option<Amount>,
    /// The cost that held usage may add.
    pub held: Option<Amount>,
    pub requested: Option<Amount>,
    pub resets_at: Option<Timestamp>,
}

impl Denier {
    pub fn of(found: &ApplicableLimit<'_>, level: CounterState, requested: Quantity, now: Timestamp) -> Self {
        let LimitState { subject, key, meter, quota, used, held, covered, resets_at, .. } =
            LimitState::of(found, level, now);
        Self::Limit(LimitDenier { subject, key, meter, quota, used, held, covered, requested, resets_at })
    }

    /// Returns the instant at which the limit or cap renews, or none for a period without an end.
    pub fn resets_at(&self) -> Option<Timestamp> {
        match self {
            Self::Limit(limit) => limit.resets_at,
            Self::Cap(cap) => cap.resets_at,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denial {
    pub reason: Reason,
    /// The limits or caps that deny; empty for other reasons.
    pub denied_by: Vec<Denier>,
}

impl Denial {
    fn bare(reason: Reason) -> Self {
        Self { reason, denied_by: Vec::new() }
    }
}

/// Returns the denial that applies before any quota is checked, if there is one.
pub fn precheck<'a>(
    terms: &CatalogIndex,
    path: &Path,
    uses: impl Iterator<Item = (&'a MeterKey, &'a Properties)>,
) -> Option<Denial> {
    let Some((_, nearest)) = path.nearest() else { return Some(Denial::bare(Reason::NoSubscription)) };
    let mut subscriptions = path.members.iter().filter_map(|member| member.subscription.as_ref());
    if subscriptions.any(|subscription| !subscription.status.may_use()) {
        return Some(Denial::bare(Reason::SubscriptionInactive));
    }
    let unmatched = terms.catalog.plan(&nearest.plan).map_or(Unmatched::Deny, |plan| plan.unmatched);
    let mut uses = uses;
    let unmatched_use =
        uses.any(|(meter, properties)| terms.matching(path, meter, properties).next().is_none());
    (unmatched_use && unmatched == Unmatched::Deny).then(|| Denial::bare(Reason::Unmatched))
}

/// The quantity that a request accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GrantMode {
    /// The whole quantity or nothing.
    Exactly,
    /// The available part of the quantity.
    UpTo,
}

/// Returns whether `used + held + more` stays within a quota. A value of zero takes the same test.
pub fn fits(quota: Option<Quantity>, level: CounterState, more: Total) -> bool {
    quota.is_none_or(|quota| level.used + level.held + more <= Total::from(quota))
}

/// Returns the part of `asked` that fits every hard limit not extended by credits, or none for a denial.
/// `whole` rounds down to whole units.
pub fn granted(
    asked: Quantity,
    grant: GrantMode,
    whole: bool,
    limits: &[(ApplicableLimit<'_>, CounterState)],
) -> Option<Quantity> {
    let hard = || limits.iter().filter(|(found, _)| found.terms.is_hard() && !found.terms.is_covered());
    let fits_all = |more: Quantity| hard().all(|(found, level)| fits(found.quota(), *level, more.into()));
    if fits_all(asked) {
        return Some(asked);
    }
    if grant == GrantMode::Exactly {
        return None;
    }
    let left = hard()
        .filter_map(|(found, level)| Some(Total::from(found.quota()?) - level.used - level.held))
        .min()?
        .quantity()?;
    let left = if whole { left.whole() } else { left };
    (left > Quantity::default()).then_some(left)
}
