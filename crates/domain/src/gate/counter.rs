//! Counters: names, periods and counter states.

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
    /// The part of `used` and `held` that credits cover.
    pub covered: Total,
}

/// The name of a counter. Counters are locked in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CounterKey {
    pub subject_id: i64,
    pub definition: Uuid,
    pub period_start: Timestamp,
}

/// A counter and its period.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CounterPeriod {
    pub key: CounterKey,
    /// The period. Usage before `since` is not counted.
    pub period: Span,
    pub since: Timestamp,
    /// True if a missing counter is zero during its period.
    pub starts_at_zero: bool,
}

impl CounterPeriod {
    /// Returns the span of time that the counter counts.
    pub fn counted_span(&self) -> Span {
        Span { from: self.since, to: self.period.to }
    }

    /// Returns whether the period is closed. Then only a counter that exists still counts.
    pub fn is_closed(&self, now: Timestamp) -> bool {
        self.period.to.saturating_add(CLOSING) <= now
    }

    /// Returns whether the period has been closed so long that no transaction can still create the counter.
    pub fn is_forgotten(&self, now: Timestamp) -> bool {
        self.period.to.saturating_add(CLOSING * 2) <= now
    }
}

/// The instant from which a limit, a price or a cap is in effect, with the version of the catalog.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EffectiveFrom {
    pub at: Timestamp,
    pub version: i64,
}

impl EffectiveFrom {
    /// A value later than every other.
    pub const UNKNOWN: Self = Self { at: Timestamp::MAX, version: i64::MAX };
    /// A value earlier than every other.
    pub const ALWAYS: Self = Self { at: Timestamp::MIN, version: i64::MIN };

    /// Returns the later of two starts: both are then in effect.
    #[must_use]
    pub fn later(self, other: Self) -> Self {
        Self { at: self.at.max(other.at), version: self.version.max(other.version) }
    }
}
