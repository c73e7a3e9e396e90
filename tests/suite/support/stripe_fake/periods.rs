//! Billing periods, always counted from the anchor, so that the 31st returns after February.

use jiff::Span;
use jiff::tz::TimeZone;

use super::clock::DAY;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    Day,
    Week,
    Month,
    Year,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Interval {
    pub(super) unit: Unit,
    pub(super) count: i64,
}

impl Interval {
    fn span(self, number: i64) -> Result<Span, jiff::Error> {
        let count = self.count.saturating_mul(number);
        let span = Span::new();
        match self.unit {
            Unit::Day => span.try_days(count),
            Unit::Week => span.try_weeks(count),
            Unit::Month => span.try_months(count),
            Unit::Year => span.try_years(count),
        }
    }

    /// Returns an upper bound of the length, in seconds.
    fn longest(self) -> i64 {
        let days = match self.unit {
            Unit::Day => 1,
            Unit::Week => 7,
            Unit::Month => 31,
            Unit::Year => 366,
        };
        days * DAY * self.count
    }
}

/// Returns the start of the period of this number, or the anchor if the start is beyond the calendar.
fn boundary(anchor: i64, interval: Interval, number: i64) -> i64 {
    let at = || -> Result<i64, jiff::Error> {
        let anchor = jiff::Timestamp::from_second(anchor)?.to_zoned(TimeZone::UTC);
        Ok(anchor.checked_add(interval.span(number)?)?.timestamp().as_second())
    };
    at().unwrap_or(anchor)
}

/// Returns the period that contains an instant.
pub(super) fn around(anchor: i64, interval: Interval, at: i64) -> (i64, i64) {
    let mut number = (at - anchor).div_euclid(interval.longest());
    while boundary(anchor, interval, number + 1) <= at {
        number += 1;
    }
    while boundary(anchor, interval, number) > at {
        number -= 1;
    }
    (boundary(anchor, interval, number), boundary(anchor, interval, number + 1))
}
