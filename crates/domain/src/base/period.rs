//! Periods of limits. Calendar periods are those of a time zone. Subscription periods follow the
//! anchor in UTC, as Stripe's billing periods do. Months are counted from the anchor itself and
//! clamped to the month's end, so they never drift
//! (<https://docs.stripe.com/billing/subscriptions/billing-cycle>).

use jiff::ToSpan;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use serde::Serialize;

use super::timestamp::{MICROS_PER_SECOND, Timestamp};
use super::window::{Span, Window, Zone, calendar_year};

/// The length of a limit's period.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Period {
    Minute,
    Hour,
    Day,
    Week,
    Month,
    Year,
    Lifetime,
    /// The current period of the subscription as the biller set it.
    Billing,
}

impl Period {
    pub(crate) const WORDS: [(&'static str, Self); 8] = [
        ("minute", Self::Minute),
        ("hour", Self::Hour),
        ("day", Self::Day),
        ("week", Self::Week),
        ("month", Self::Month),
        ("year", Self::Year),
        ("lifetime", Self::Lifetime),
        ("billing", Self::Billing),
    ];
}

/// The start of periods: the calendar of a time zone, or the anchor of the subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Anchor {
    Calendar,
    Subscription,
}

impl Anchor {
    pub(crate) const WORDS: [(&'static str, Self); 2] =
        [("calendar", Self::Calendar), ("subscription", Self::Subscription)];
}

/// All time.
pub const ALWAYS: Span = Span { from: Timestamp::MIN, to: Timestamp::MAX };

const SECONDS_PER_DAY: i64 = 86_400;

impl Period {
    /// Returns the period around an instant.
    pub fn around(self, at: Timestamp, anchor: Anchor, zone: &Zone, cycle: &Cycle) -> Span {
        match (self, anchor) {
            (Self::Lifetime, _) => ALWAYS,
            (Self::Billing, _) => cycle.billing_period(at),
            (Self::Minute, Anchor::Calendar) => Window::Minute.around(at, zone),
            (Self::Hour, Anchor::Calendar) => Window::Hour.around(at, zone),
            (Self::Day, Anchor::Calendar) => Window::Day.around(at, zone),
            (Self::Week, Anchor::Calendar) => Window::Week.around(at, zone),
            (Self::Month, Anchor::Calendar) => Window::Month.around(at, zone),
            (Self::Year, Anchor::Calendar) => calendar_year(at, zone),
            (Self::Minute, Anchor::Subscription) => seconds_around(at, cycle.anchor, 60),
            (Self::Hour, Anchor::Subscription) => seconds_around(at, cycle.anchor, 3_600),
            (Self::Day, Anchor::Subscription) => seconds_around(at, cycle.anchor, SECONDS_PER_DAY),
            (Self::Week, Anchor::Subscription) => seconds_around(at, cycle.anchor, 7 * SECONDS_PER_DAY),
            (Self::Month, Anchor::Subscription) => months_around(at, cycle.anchor, 0, 1),
            (Self::Year, Anchor::Subscription) => months_around(at, cycle.anchor, 0, 12),
        }
    }
}

/// The anchor and the current period of a subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cycle {
    pub anchor: Timestamp,
    /// The current period as the biller set it. Without one, periods are monthly from the anchor.
    pub billing: Option<Span>,
}

impl Cycle {
    /// Returns whether a period of the anchor starts at an instant.
    pub fn is_boundary(&self, at: Timestamp) -> bool {
        months_around(at, self.anchor, 0, 1).from == at
    }

    /// Returns the billing period around an instant. Outside of the period that the biller set,
    /// periods of the same length continue. A delayed renewal therefore never delays a quota.
    pub fn billing_period(&self, at: Timestamp) -> Span {
        let Some(given) = self.billing else { return months_around(at, self.anchor, 0, 1) };
        if given.contains(at) {
            return given;
        }
        if let Some((first, months)) = self.whole_months(given) {
            return months_around(at, self.anchor, first, months);
        }
        let length = given.to.micros() - given.from.micros();
        for seconds in [SECONDS_PER_DAY, 7 * SECONDS_PER_DAY] {
            if length == seconds * MICROS_PER_SECOND {
                return seconds_around(at, given.from, seconds);
            }
        }
        // whole weeks, if the time since the anchor is a multiple of the length; a trial never meets
        // this
        let behind = given.from.micros() - self.anchor.micros();
        let week = 7 * SECONDS_PER_DAY * MICROS_PER_SECOND;
        if length % week == 0 && behind > 0 && behind % length == 0 {
            return seconds_around(at, given.from, length / MICROS_PER_SECOND);
        }
        // a period of irregular length, such as a trial: monthly periods precede and follow it
        if at < given.from { months_around(at, given.from, 0, 1) } else { months_around(at, given.to, 0, 1) }
    }

    /// Returns the start month of a span, counted from the anchor, and its length in months.
    fn whole_months(&self, span: Span) -> Option<(i64, i64)> {
        let first = months_between(self.anchor, span.from);
        let first = (first - 1..=first + 1).find(|n| months_after(self.anchor, *n) == span.from)?;
        let length = months_between(span.from, span.to);
        let length =
            (length - 1..=length + 1).find(|n| *n > 0 && months_after(self.anchor, first + n) == span.to)?;
        Some((first, length))
    }
}

/// Returns the period of a number of seconds around an instant, counted from an anchor.
fn seconds_around(at: Timestamp, anchor: Timestamp, seconds: i64) -> Span {
    let length = seconds * MICROS_PER_SECOND;
    let from = at.micros() - (at.micros() - anchor.micros()).rem_euclid(length);
    Span {
        from: Timestamp::from_micros(from).unwrap_or(Timestamp::MIN),
        to: Timestamp::from_micros(from + length).unwrap_or(Timestamp::MAX),
    }
}

/// Returns the period of `length` months around an instant. One such period begins `first` months
/// after the anchor.
fn months_around(at: Timestamp, anchor: Timestamp, first: i64, length: i64) -> Span {
    let near = (months_between(anchor, at) - first).div_euclid(length);
    let start = |n: i64| months_after(anchor, first + n * length);
    // clamped days move the bound by at most one period
    let n = if start(near) > at {
        near - 1
    } else if start(near + 1) <= at {
        near + 1
    } else {
        near
    };
    Span { from: start(n), to: start(n + 1) }
}

/// Returns the number of calendar months between the months of two instants, in UTC.
fn months_between(from: Timestamp, to: Timestamp) -> i64 {
    let (from, to) = (civil(from), civil(to));
    i64::from(to.year() - from.year()) * 12 + i64::from(to.month() - from.month())
}

/// Returns the instant a number of months after the anchor. A missing day becomes the last day of the
/// month.
fn months_after(anchor: Timestamp, months: i64) -> Timestamp {
    let far = if months < 0 { Timestamp::MIN } else { Timestamp::MAX };
    let Some(span) = (-200_000..=200_000).contains(&months).then(|| months.months()) else { return far };
    let shifted = civil(anchor).checked_add(span).and_then(|local| local.to_zoned(TimeZone::UTC));
    shifted.map_or(far, |shifted| Timestamp::from_jiff(shifted.timestamp()))
}

fn civil(at: Timestamp) -> DateTime {
    at.to_jiff().to_zoned(TimeZone::UTC).datetime()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(text: &str) -> Timestamp {
        let full = if text.len() == 10 { format!("{text}T00:00:00Z") } else { text.to_owned() };
        Timestamp::parse(&full).unwrap()
    }

    fn day(at: Timestamp) -> String {
        at.to_string().trim_end_matches("T00:00:00Z").to_owned()
    }

    fn shown(span: Span) -> String {
        format!("{}..{}", day(span.from), day(span.to))
    }

    #[test]
    fn monthly_periods_count_from_the_anchor_and_clamp_to_month_ends() {
        let cases = [
            ("2026-01-31", "2026-02-27", "2026-01-31..2026-02-28"),
            ("2026-01-31", "2026-02-28", "2026-02-28..2026-03-31"),
            ("2026-01-31", "2026-03-30", "2026-02-28..2026-03-31"),
            ("2026-01-31", "2026-03-31", "2026-03-31..2026-04-30"),
            ("2026-01-31", "2025-12-31", "2025-12-31..2026-01-31"),
            ("2026-01-31", "2025-12-30", "2025-11-30..2025-12-31"),
            ("2023-12-31", "2024-02-29", "2024-02-29..2024-03-31"),
            ("2023-12-30", "2024-02-29", "2024-02-29..2024-03-30"),
            ("2026-08-15T10:30:00Z", "2026-09-15T10:29:59Z", "2026-08-15T10:30:00Z..2026-09-15T10:30:00Z"),
        ];
        for (anchor, when, expected) in cases {
            let cycle = Cycle { anchor: at(anchor), billing: None };
            let span = Period::Month.around(at(when), Anchor::Subscription, &Zone::default(), &cycle);
            assert_eq!(shown(span), expected, "{anchor} {when}");
            assert!(cycle.is_boundary(span.from) && cycle.is_boundary(span.to));
        }
        let leap = Cycle { anchor: at("2024-02-29"), billing: None };
        let year = |when| shown(Period::Year.around(at(when), Anchor::Subscription, &Zone::default(), &leap));
        assert_eq!(year("2025-02-27"), "2024-02-29..2025-02-28");
        assert_eq!(year("2025-02-28"), "2025-02-28..2026-02-28");
        assert_eq!(year("2028-02-28"), "2027-02-28..2028-02-29");
        assert!(!leap.is_boundary(at("2025-03-01")));
    }

    #[test]
    fn calendar_periods_follow_the_time_zone() {
        let cycle = Cycle { anchor: at("2026-01-31"), billing: None };
        let berlin = Zone::parse("Europe/Berlin").unwrap();
        let around = |period: Period, when| shown(period.around(at(when), Anchor::Calendar, &berlin, &cycle));
        assert_eq!(around(Period::Year, "2026-06-01"), "2025-12-31T23:00:00Z..2026-12-31T23:00:00Z");
        assert_eq!(
            around(Period::Month, "2026-06-30T21:59:59Z"),
            "2026-05-31T22:00:00Z..2026-06-30T22:00:00Z"
        );
        assert_eq!(around(Period::Lifetime, "2026-06-01"), shown(ALWAYS));
        let day = Period::Day.around(at("2026-06-01T07:00:00Z"), Anchor::Subscription, &berlin, &cycle);
        assert_eq!(shown(day), "2026-06-01..2026-06-02");
    }

    #[test]
    fn billing_periods_continue_the_providers_first_period() {
        let cases = [
            // inside the period that the biller set
            ("2026-01-31", "2026-01-31..2026-02-28", "2026-02-01", "2026-01-31..2026-02-28"),
            // the next period is not known yet: monthly, quarterly and yearly periods continue
            ("2026-01-31", "2026-01-31..2026-02-28", "2026-03-01", "2026-02-28..2026-03-31"),
            ("2025-11-30", "2026-02-28..2026-05-30", "2026-06-01", "2026-05-30..2026-08-30"),
            ("2024-02-29", "2025-02-28..2026-02-28", "2028-03-01", "2028-02-29..2029-02-28"),
            ("2026-01-31", "2026-01-31..2026-02-28", "2026-01-30", "2025-12-31..2026-01-31"),
            // weekly periods
            ("2026-01-05", "2026-01-05..2026-01-12", "2026-01-20", "2026-01-19..2026-01-26"),
            ("2026-01-05", "2026-01-05..2026-01-12", "2026-01-04", "2025-12-29..2026-01-05"),
            // periods of two weeks, from the second period on
            ("2026-01-05", "2026-01-19..2026-02-02", "2026-02-17", "2026-02-16..2026-03-02"),
            ("2026-01-05", "2026-01-19..2026-02-02", "2026-01-18", "2026-01-05..2026-01-19"),
            ("2026-01-19", "2026-01-05..2026-01-19", "2026-01-20", "2026-01-19..2026-02-19"),
            // a trial of 14 days, and the periods before and after it
            ("2026-01-05", "2026-01-05..2026-01-19", "2026-01-19", "2026-01-19..2026-02-19"),
            ("2026-01-05", "2026-01-05..2026-01-19", "2026-01-04", "2025-12-05..2026-01-05"),
        ];
        for (anchor, billing, when, expected) in cases {
            let (from, to) = billing.split_once("..").unwrap();
            let cycle = Cycle { anchor: at(anchor), billing: Some(Span { from: at(from), to: at(to) }) };
            let span = Period::Billing.around(at(when), Anchor::Calendar, &Zone::default(), &cycle);
            assert_eq!(shown(span), expected, "{anchor} {billing} {when}");
        }
    }

    /// Zones with clock changes at unusual times, by unusual amounts, or over a whole day.
    const ZONES: [&str; 12] = [
        "UTC",
        "Europe/Berlin",
        "Africa/Cairo",
        "Africa/Monrovia",
        "America/Asuncion",
        "America/Havana",
        "America/St_Johns",
        "Antarctica/Troll",
        "Asia/Beirut",
        "Australia/Lord_Howe",
        "Pacific/Apia",
        "Pacific/Kwajalein",
    ];

    const MICROS_PER_DAY: i64 = SECONDS_PER_DAY * MICROS_PER_SECOND;

    /// Generates instants on whole seconds and between them.
    fn instants() -> impl Strategy<Value = i64> {
        let seconds = 0_i64..4_000_000_000;
        prop_oneof![
            seconds.clone().prop_map(|seconds| seconds * MICROS_PER_SECOND),
            (seconds, 0..MICROS_PER_SECOND)
                .prop_map(|(seconds, micros)| seconds * MICROS_PER_SECOND + micros),
        ]
    }

    /// Generates lengths of billing periods: regular ones, any number of days, and fractions of a
    /// second more.
    fn lengths() -> impl Strategy<Value = i64> {
        let days = prop_oneof![Just(1_i64), Just(7), Just(30), 1_i64..400];
        let more = prop_oneof![Just(0), 1..MICROS_PER_SECOND];
        (days, more).prop_map(|(days, more)| days * MICROS_PER_DAY + more)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        /// Checks that every instant lies in its own period and that the next period begins at its
        /// end.
        #[test]
        fn consecutive_periods_meet_without_gap_or_overlap(
            (anchor, start, length) in (instants(), instants(), lengths()),
            is_anchored in any::<bool>(),
            // any instant, or one near the end of the period that the biller set
            when in prop_oneof![instants().prop_map(Ok), (-1_500_000_i64..1_500_000).prop_map(Err)],
            period in prop::sample::select(Period::WORDS.to_vec()),
            by in prop::sample::select(Anchor::WORDS.to_vec()),
            zone in prop::sample::select(ZONES.to_vec()),
        ) {
            let time = |micros: i64| Timestamp::from_micros(micros).unwrap();
            let zone = Zone::parse(zone).unwrap();
            let anchor = time(if is_anchored { start } else { anchor });
            let when = time(when.unwrap_or_else(|from_end| start + length + from_end));
            for billing in [None, Some(Span { from: time(start), to: time(start + length) })] {
                let cycle = Cycle { anchor, billing };
                let span = period.1.around(when, by.1, &zone, &cycle);
                prop_assert!(span.contains(when), "{span:?}");
                if period.1 != Period::Lifetime {
                    prop_assert_eq!(period.1.around(span.to, by.1, &zone, &cycle).from, span.to);
                    prop_assert_eq!(period.1.around(time(span.to.micros() - 1), by.1, &zone, &cycle), span);
                    prop_assert_eq!(period.1.around(time(span.from.micros() - 1), by.1, &zone, &cycle).to, span.from);
                    prop_assert_eq!(period.1.around(span.from, by.1, &zone, &cycle), span);
                }
            }
        }
    }
}
