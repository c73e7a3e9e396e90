//! Windows of time: the natural minutes, hours, days, weeks and months of a time zone, across its
//! clock changes.

use std::fmt;

use jiff::civil::{Date, Weekday};
use jiff::tz::TimeZone;
use jiff::{ToSpan, Zoned};
use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};

use super::fields::{Parsed, Violation, received};
use super::timestamp::{MICROS_PER_SECOND, Timestamp};

/// A half-open range of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Span {
    pub from: Timestamp,
    pub to: Timestamp,
}

/// Serializes as a period: `{"start", "end"}`.
impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut period = serializer.serialize_struct("Period", 2)?;
        period.serialize_field("start", &self.from)?;
        period.serialize_field("end", &self.to)?;
        period.end()
    }
}

impl Span {
    pub fn is_empty(self) -> bool {
        self.from >= self.to
    }

    pub fn contains(self, at: Timestamp) -> bool {
        self.from <= at && at < self.to
    }

    #[must_use]
    pub fn intersect(self, other: Self) -> Self {
        Self { from: self.from.max(other.from), to: self.to.min(other.to) }
    }
}

/// A time zone by its IANA name; the default is UTC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Zone(TimeZone);

impl Default for Zone {
    fn default() -> Self {
        Self(TimeZone::UTC)
    }
}

impl Zone {
    /// Parses an IANA time zone name.
    pub fn parse(name: &str) -> Parsed<Self> {
        match TimeZone::get(name) {
            Ok(zone) if zone.iana_name().is_some() => Ok(Self(zone)),
            _ => Violation::only(
                "unknown_timezone",
                format!("must be an IANA time zone, such as Europe/Berlin; got {}", received(name)),
            ),
        }
    }

    pub fn name(&self) -> &str {
        self.0.iana_name().unwrap_or("UTC")
    }
}

impl fmt::Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Serialize for Zone {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// The length of the windows of a usage query.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Window {
    Minute,
    Hour,
    Day,
    /// Starts on Monday.
    Week,
    Month,
}

impl Window {
    pub const WORDS: [(&'static str, Self); 5] = [
        ("minute", Self::Minute),
        ("hour", Self::Hour),
        ("day", Self::Day),
        ("week", Self::Week),
        ("month", Self::Month),
    ];

    /// Returns the natural bounds of the windows that touch the span, from the first start to the
    /// last end. Refuses more than `max` windows.
    pub fn bounds(self, span: Span, zone: &Zone, max: usize) -> Parsed<Vec<Timestamp>> {
        let mut bound = self.start(span.from, &zone.0);
        let mut bounds = vec![bound];
        while bound < span.to {
            if bounds.len() > max {
                let detail = format!(
                    "the range must have at most {max} windows; use a shorter range or a longer window"
                );
                return Err(Violation::new("too_many_windows", detail).under("window").into());
            }
            bound = self.next(bound, &zone.0);
            bounds.push(bound);
        }
        Ok(bounds)
    }

    /// Returns the window around an instant.
    pub fn around(self, at: Timestamp, zone: &Zone) -> Span {
        let from = self.start(at, &zone.0);
        Span { from, to: self.next(from, &zone.0) }
    }

    /// Returns the latest bound that is not after `at`.
    fn start(self, at: Timestamp, zone: &TimeZone) -> Timestamp {
        let local = at.to_jiff().to_zoned(zone.clone());
        match self {
            Self::Minute | Self::Hour => {
                // the local clock runs evenly since the last change of offset
                let start =
                    Timestamp::from_micros(at.micros() - self.micros_into(&local)).unwrap_or(Timestamp::MIN);
                // one nanosecond later, because `preceding` excludes a change at this very instant
                let after = at.to_jiff().checked_add(1.nanosecond()).unwrap_or(at.to_jiff());
                let last_change =
                    zone.preceding(after).next().map(|change| Timestamp::from_jiff(change.timestamp()));
                last_change.map_or(start, |change| if change <= at { start.max(change) } else { start })
            }
            Self::Day | Self::Week | Self::Month => {
                let start = first_instant(self.first_day(local.date()), zone);
                // a skipped day has the same first instant as the next day
                if start > at { at } else { start }
            }
        }
    }

    /// Returns the first bound after the bound `start`.
    fn next(self, start: Timestamp, zone: &TimeZone) -> Timestamp {
        let local = start.to_jiff().to_zoned(zone.clone());
        match self {
            Self::Minute | Self::Hour => {
                let length = self.clock_micros();
                let even = Timestamp::from_micros(start.micros() + length - self.micros_into(&local));
                let even = even.unwrap_or(Timestamp::MAX);
                let change = zone
                    .following(start.to_jiff())
                    .next()
                    .map(|change| Timestamp::from_jiff(change.timestamp()));
                change.map_or(even, |change| even.min(change))
            }
            Self::Day | Self::Week | Self::Month => {
                let mut day = self.first_day(local.date());
                loop {
                    let Some(following) = self.following_day(day) else { return Timestamp::MAX };
                    let bound = first_instant(following, zone);
                    if bound > start {
                        return bound;
                    }
                    day = following;
                }
            }
        }
    }

    fn clock_micros(self) -> i64 {
        if self == Self::Minute { 60 * MICROS_PER_SECOND } else { 3_600 * MICROS_PER_SECOND }
    }

    /// Returns the time since the start of the local minute or hour, in microseconds.
    fn micros_into(self, local: &Zoned) -> i64 {
        let time = local.time();
        let minutes = if self == Self::Minute { 0 } else { i64::from(time.minute()) };
        (minutes * 60 + i64::from(time.second())) * MICROS_PER_SECOND
            + i64::from(time.subsec_nanosecond()) / 1_000
    }

    fn first_day(self, date: Date) -> Date {
        match self {
            Self::Week => {
                let back = i64::from(date.weekday().since(Weekday::Monday));
                date.checked_sub(back.days()).unwrap_or(Date::MIN)
            }
            Self::Month => date.first_of_month(),
            Self::Minute | Self::Hour | Self::Day => date,
        }
    }

    fn following_day(self, first: Date) -> Option<Date> {
        match self {
            Self::Week => first.checked_add(7.days()).ok(),
            Self::Month => first.checked_add(1.month()).ok(),
            Self::Minute | Self::Hour | Self::Day => first.checked_add(1.day()).ok(),
        }
    }
}

/// Returns the first instant of a day: midnight, or the next instant if the clocks skip midnight.
fn first_instant(date: Date, zone: &TimeZone) -> Timestamp {
    let instant = date.to_zoned(zone.clone()).map(|midnight| Timestamp::from_jiff(midnight.timestamp()));
    instant.unwrap_or(Timestamp::MAX)
}

/// Returns the UTC calendar month around an instant.
pub fn utc_month(at: Timestamp) -> Span {
    Window::Month.around(at, &Zone::default())
}

/// Returns the calendar year around an instant.
pub fn calendar_year(at: Timestamp, zone: &Zone) -> Span {
    let year = at.to_jiff().to_zoned(zone.0.clone()).year();
    let start = |year: i16| Date::new(year, 1, 1).map_or(Timestamp::MAX, |day| first_instant(day, &zone.0));
    Span { from: start(year), to: start(year.saturating_add(1)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(text: &str) -> Timestamp {
        Timestamp::parse(text).unwrap()
    }

    fn bounds(window: Window, zone: &str, from: &str, to: &str) -> Vec<String> {
        let span = Span { from: at(from), to: at(to) };
        let bounds = window.bounds(span, &Zone::parse(zone).unwrap(), 10_000).unwrap();
        bounds.into_iter().map(|b| b.to_string()).collect()
    }

    #[test]
    fn days_have_23_or_25_hours_at_clock_changes() {
        assert_eq!(
            bounds(Window::Day, "Europe/Berlin", "2026-03-28T12:00:00Z", "2026-03-30T12:00:00Z"),
            ["2026-03-27T23:00:00Z", "2026-03-28T23:00:00Z", "2026-03-29T22:00:00Z", "2026-03-30T22:00:00Z"]
        );
        assert_eq!(
            bounds(Window::Day, "America/New_York", "2026-11-01T04:00:00Z", "2026-11-02T05:00:00Z"),
            ["2026-11-01T04:00:00Z", "2026-11-02T05:00:00Z"]
        );
        assert_eq!(
            bounds(Window::Day, "Asia/Kolkata", "2026-01-01T00:00:00Z", "2026-01-01T18:30:00Z"),
            ["2025-12-31T18:30:00Z", "2026-01-01T18:30:00Z"]
        );
    }

    #[test]
    fn a_skipped_day_has_no_window_and_the_months_around_it_do() {
        // Samoa skipped 30 December 2011
        assert_eq!(
            bounds(Window::Day, "Pacific/Apia", "2011-12-29T12:00:00Z", "2011-12-31T12:00:00Z"),
            ["2011-12-29T10:00:00Z", "2011-12-30T10:00:00Z", "2011-12-31T10:00:00Z", "2012-01-01T10:00:00Z"]
        );
        assert_eq!(
            bounds(Window::Month, "Pacific/Apia", "2011-12-15T00:00:00Z", "2012-01-15T00:00:00Z"),
            ["2011-12-01T10:00:00Z", "2011-12-31T10:00:00Z", "2012-01-31T10:00:00Z"]
        );
        assert_eq!(
            bounds(Window::Month, "Pacific/Apia", "2026-01-31T10:59:00Z", "2026-01-31T11:01:00Z"),
            ["2025-12-31T11:00:00Z", "2026-01-31T11:00:00Z", "2026-02-28T11:00:00Z"]
        );
    }

    #[test]
    fn hours_follow_the_local_clock() {
        assert_eq!(
            bounds(Window::Hour, "Asia/Kolkata", "2026-01-01T00:00:00Z", "2026-01-01T00:31:00Z"),
            ["2025-12-31T23:30:00Z", "2026-01-01T00:30:00Z", "2026-01-01T01:30:00Z"]
        );
        // Lord Howe changes its clocks by half an hour
        assert_eq!(
            bounds(Window::Hour, "Australia/Lord_Howe", "2026-04-04T14:00:00Z", "2026-04-04T16:00:00Z"),
            ["2026-04-04T14:00:00Z", "2026-04-04T15:00:00Z", "2026-04-04T15:30:00Z", "2026-04-04T16:30:00Z"]
        );
        let berlin = bounds(Window::Hour, "Europe/Berlin", "2026-10-25T00:00:00Z", "2026-10-25T02:00:00Z");
        assert_eq!(berlin, ["2026-10-25T00:00:00Z", "2026-10-25T01:00:00Z", "2026-10-25T02:00:00Z"]);
    }

    #[test]
    fn hours_restart_at_clock_changes() {
        // Newfoundland changed its clocks at one minute past midnight
        let hours = bounds(Window::Hour, "America/St_Johns", "1992-04-05T03:31:00Z", "1992-04-05T04:31:00Z");
        assert_eq!(hours, ["1992-04-05T03:31:00Z", "1992-04-05T04:30:00Z", "1992-04-05T05:30:00Z"]);
    }

    #[test]
    fn weeks_start_on_monday_and_counts_are_bounded() {
        assert_eq!(
            bounds(Window::Week, "UTC", "2026-11-20T00:00:00Z", "2026-11-23T00:00:01Z"),
            ["2026-11-16T00:00:00Z", "2026-11-23T00:00:00Z", "2026-11-30T00:00:00Z"]
        );
        let span = Span { from: at("2000-01-01T00:00:00Z"), to: at("2026-01-01T00:00:00Z") };
        let violations = Window::Minute.bounds(span, &Zone::default(), 50_000).unwrap_err();
        assert_eq!(violations[0].code, "too_many_windows");
    }

    proptest! {
        /// Checks that bounds ascend, cover the span, and agree with the bounds of every later
        /// sub-span.
        #[test]
        fn consecutive_windows_meet_without_gap_or_overlap(
            start in 0_i64..2_000_000_000,
            hours in 1_i64..200,
            zone in prop::sample::select(vec!["UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata",
                "Pacific/Apia", "Australia/Lord_Howe", "America/St_Johns", "Asia/Kathmandu", "Africa/Casablanca"]),
            window in prop::sample::select(vec![Window::Hour, Window::Day, Window::Week, Window::Month]),
        ) {
            let zone = Zone::parse(zone).unwrap();
            let from = Timestamp::from_micros(start * MICROS_PER_SECOND).unwrap();
            let to = Timestamp::from_micros((start + hours * 3_600) * MICROS_PER_SECOND).unwrap();
            let grid = window.bounds(Span { from, to }, &zone, 10_000).unwrap();
            prop_assert!(grid.windows(2).all(|pair| pair[0] < pair[1]));
            prop_assert!(grid[0] <= from && *grid.last().unwrap() >= to);
            let middle = Timestamp::from_micros(i64::midpoint(from.micros(), to.micros())).unwrap();
            let rest = window.bounds(Span { from: middle, to }, &zone, 10_000).unwrap();
            prop_assert!(grid.ends_with(&rest), "{grid:?} {rest:?}");
        }
    }
}
