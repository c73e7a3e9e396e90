//! Counters: names, periods and levels.

use uuid::Uuid;

use crate::base::limits::CLOSING;
use crate::base::quantity::Total;
use crate::base::timestamp::Timestamp;
use crate::base::window::Span;

/// The amounts of a counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CounterState {
    pub used: Total,
    pub held: Total,
    /// The part of both that credits bear.
    pub covered: Total,
}

/// The name of a counter. Counters are locked in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CounterKey {
    pub subject_id: i64,
    pub definition: Uuid,
    pub period_start: Timestamp,
}

/// A counter and the time that it counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CounterPeriod {
    pub key: CounterKey,
    /// The period; usage before `since` is not counted.
    pub period: Span,
    pub since: Timestamp,
    /// Whether a counter that is missing during its period counts nothing.
    pub starts_at_zero: bool,
}

impl CounterPeriod {
    /// Returns the time that it counts.
    pub fn counted_span(&self) -> Span {
        Span { from: self.since, to: self.period.to }
    }

    /// Returns whether the period is over for good; then only an existing counter still counts.
    pub fn is_closed(&self, now: Timestamp) -> bool {
        self.period.to.saturating_add(CLOSING) <= now
    }

    /// Returns whether it has been closed for so long that no transaction can still create it.
    pub fn is_forgotten(&self, now: Timestamp) -> bool {
        self.period.to.saturating_add(CLOSING * 2) <= now
    }
}

/// The time from which a limit, a price or a cap is in effect: by the clock, and by the version of the
/// configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EffectiveFrom {
    pub at: Timestamp,
    pub version: i64,
}

impl EffectiveFrom {
    /// Later than anything.
    pub const UNKNOWN: Self = Self { at: Timestamp::MAX, version: i64::MAX };
    /// Earlier than anything.
    pub const ALWAYS: Self = Self { at: Timestamp::MIN, version: i64::MIN };

    /// Returns when both were in effect.
    #[must_use]
    pub fn later(self, other: Self) -> Self {
        Self { at: self.at.max(other.at), version: self.version.max(other.version) }
    }
}
