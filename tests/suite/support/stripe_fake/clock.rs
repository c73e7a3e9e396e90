//! The fake's clock: fixed until a test sets it, or running at an offset from the system's clock.

use std::time::{Duration, UNIX_EPOCH};

pub(crate) const HOUR: i64 = 3_600;
pub(crate) const DAY: i64 = 24 * HOUR;

#[derive(Debug, Clone, Copy)]
pub(crate) enum Clock {
    Fixed(i64),
    /// Seconds ahead of the system's clock.
    Running(i64),
}

/// Parses an RFC 3339 time to Unix seconds.
pub(crate) fn unix(text: &str) -> i64 {
    text.parse::<jiff::Timestamp>().expect("the time must be in RFC 3339 format").as_second()
}

/// Formats Unix seconds as RFC 3339.
pub(super) fn rfc3339(at: i64) -> String {
    jiff::Timestamp::from_second(at).map_or_else(|_| String::new(), |at| at.to_string())
}

pub(super) fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}

fn system() -> i64 {
    UNIX_EPOCH.elapsed().map_or(0, seconds)
}

impl Clock {
    pub(crate) fn fixed(text: &str) -> Self {
        Self::Fixed(unix(text))
    }

    pub(super) fn now(self) -> i64 {
        match self {
            Self::Fixed(at) => at,
            Self::Running(ahead) => system().saturating_add(ahead),
        }
    }

    /// Returns the time for webhook signatures. A running clock gives the system's time, as Stripe's test
    /// clocks do.
    pub(super) fn signing(self) -> i64 {
        match self {
            Self::Fixed(at) => at,
            Self::Running(_) => system(),
        }
    }

    pub(super) fn advance(&mut self, by: Duration) {
        let (Self::Fixed(at) | Self::Running(at)) = self;
        *at = at.saturating_add(seconds(by));
    }

    pub(super) fn set(&mut self, to: i64) {
        match self {
            Self::Fixed(at) => *at = to,
            Self::Running(ahead) => *ahead = to.saturating_sub(system()),
        }
    }
}
