//! Exports: the conversion of recorded usage into whole units for the biller. Values are never
//! negative, and nothing is lost: remainders and late voids carry over to later exports.

use std::time::Duration;

use serde::Serialize;

use crate::base::period::Cycle;
use crate::base::quantity::{Quantity, Total};
use crate::base::timestamp::{MICROS_PER_HOUR, MICROS_PER_SECOND, Timestamp};
use crate::base::window::Span;

/// The greatest value of one export: 15 digits (<https://docs.stripe.com/changelog/dahlia>).
pub const EXPORT_VALUE_MAX: i64 = 999_999_999_999_999;
/// The most exports of one bucket at once. The rest becomes part of the remainder.
const DRAFTS_MAX: usize = 100;
/// The greatest age of a timestamp that the biller accepts: 35 days, less a day for delays.
pub const EXPORT_AGE_MAX: Duration = Duration::from_hours(34 * 24);

/// The delivery status of an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ExportStatus {
    Pending,
    Delivered,
    Canceled,
    Dead,
}

impl ExportStatus {
    pub const WORDS: [(&'static str, Self); 4] = [
        ("pending", Self::Pending),
        ("delivered", Self::Delivered),
        ("canceled", Self::Canceled),
        ("dead", Self::Dead),
    ];

    pub fn as_str(self) -> &'static str {
        Self::WORDS.iter().find(|(_, status)| *status == self).map_or("", |(word, _)| word)
    }
}

impl TryFrom<String> for ExportStatus {
    type Error = String;

    fn try_from(word: String) -> Result<Self, String> {
        let known = Self::WORDS.iter().find(|(known, _)| *known == word);
        known.map(|(_, status)| *status).ok_or_else(|| format!("`{word}` is not the status of an export"))
    }
}

/// The filter of a list of exports.
#[derive(Debug, Clone, Default)]
pub struct ExportFilter {
    pub status: Option<ExportStatus>,
    pub customer: Option<String>,
    pub meter: Option<String>,
}

/// Units of a biller in steps of 10^-18, because a quantity and a scale have nine fractional digits
/// each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Units(i128);

const ONE: i128 = 1_000_000_000_000_000_000;
const FRACTION_DIGITS: usize = 18;

impl Units {
    /// Parses a decimal. Returns none if it has more than 18 fractional digits.
    pub fn parse(text: &str) -> Option<Self> {
        let (digits, sign) = text.strip_prefix('-').map_or((text, 1), |digits| (digits, -1));
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
        let fraction = fraction.trim_end_matches('0');
        if fraction.len() > FRACTION_DIGITS {
            return None;
        }
        if whole.is_empty() || !whole.bytes().all(|digit| digit.is_ascii_digit()) {
            return None;
        }
        // a value beyond the range saturates, so that it does not block the exports of others
        let whole: i128 = whole.parse().unwrap_or(i128::MAX);
        let fraction: i128 = format!("{fraction:0<FRACTION_DIGITS$}").parse().ok()?;
        Some(Self(whole.saturating_mul(ONE).saturating_add(fraction) * sign))
    }

    /// Multiplies usage by a scale and saturates at the end of the range.
    pub fn of(usage: Total, scale: Quantity) -> Self {
        Self(usage.nanos().saturating_mul(scale.nanos()))
    }

    pub fn whole(units: i64) -> Self {
        Self(i128::from(units) * ONE)
    }

    pub fn is_negative(self) -> bool {
        self.0 < 0
    }

    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    /// Returns the whole units, rounded down, and the remaining fraction.
    fn split(self) -> (i128, Self) {
        (self.0.div_euclid(ONE), Self(self.0.rem_euclid(ONE)))
    }
}

impl std::fmt::Display for Units {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let sign = if self.0 < 0 { "-" } else { "" };
        let (whole, fraction) =
            (self.0.unsigned_abs() / ONE.unsigned_abs(), self.0.unsigned_abs() % ONE.unsigned_abs());
        if fraction == 0 {
            return write!(f, "{sign}{whole}");
        }
        let fraction = format!("{fraction:0>FRACTION_DIGITS$}");
        write!(f, "{sign}{whole}.{}", fraction.trim_end_matches('0'))
    }
}

/// The usage of a customer in one hour, or in the part of an hour within one billing period.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bucket {
    pub span: Span,
    /// The billing period that was known when the usage was recorded.
    pub period: Option<Span>,
}

impl Bucket {
    /// Returns the bucket of an instant.
    pub fn of(at: Timestamp, cycle: Option<&Cycle>) -> Self {
        let from = at.hour_floor();
        let to = Timestamp::from_micros(from.micros() + MICROS_PER_HOUR).unwrap_or(Timestamp::MAX);
        let period = cycle.map(|cycle| cycle.billing_period(at));
        let span = period
            .map_or(Span { from, to }, |period| Span { from: from.max(period.from), to: to.min(period.to) });
        Self { span, period }
    }

    /// Returns whether usage can still go into its own period. Otherwise it goes into the current
    /// period.
    pub fn is_open(&self, now: Timestamp, late_grace: Duration) -> bool {
        let closed = |period: Span| period.to.saturating_add(late_grace) <= now;
        !self.period.is_some_and(closed) && self.span.from.saturating_add(EXPORT_AGE_MAX) > now
    }

    /// Returns the timestamp of the bucket's exports: the latest past second within the bucket.
    fn timestamp(&self, now: Timestamp) -> Timestamp {
        let last = Timestamp::from_micros(self.span.to.micros() - 1).unwrap_or(self.span.to);
        let first = self.span.from.micros();
        let floor = now.min(last).micros().div_euclid(MICROS_PER_SECOND) * MICROS_PER_SECOND;
        let ceil = -((-first).div_euclid(MICROS_PER_SECOND)) * MICROS_PER_SECOND;
        Timestamp::from_micros(floor.max(ceil)).unwrap_or(self.span.from)
    }
}

/// An export that is not stored yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExportDraft {
    pub value: i64,
    pub timestamp: Timestamp,
    /// The time of use, if its own period closed too long ago.
    pub carried_from: Option<Timestamp>,
}

/// The exports of a bucket and its remainder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settled {
    pub drafts: Vec<ExportDraft>,
    pub remainder: Units,
}

/// Usage of a bucket that no export contains yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnexportedUsage {
    pub units: Units,
    /// The latest time of usage in the bucket. Exports use it, so that they lie in the right period
    /// even if a period turned out to end within the bucket.
    pub last_at: Timestamp,
}

/// Converts new usage and the previous remainder into exports. A remainder below one unit stays for
/// later.
pub fn settle(
    bucket: &Bucket,
    new: UnexportedUsage,
    remainder: Units,
    now: Timestamp,
    late_grace: Duration,
) -> Settled {
    let (mut whole, fraction) = remainder.plus(new.units).split();
    if whole <= 0 {
        return Settled { drafts: Vec::new(), remainder: remainder.plus(new.units) };
    }
    let is_open = bucket.is_open(now, late_grace);
    let timestamp = if is_open {
        bucket.timestamp(now.min(new.last_at))
    } else {
        let seconds = now.micros().div_euclid(MICROS_PER_SECOND);
        Timestamp::from_micros(seconds * MICROS_PER_SECOND).unwrap_or(now)
    };
    let carried_from = (!is_open).then_some(bucket.span.from);
    let mut drafts = Vec::new();
    while whole > 0 && drafts.len() < DRAFTS_MAX {
        let value = i64::try_from(whole).unwrap_or(i64::MAX).min(EXPORT_VALUE_MAX);
        drafts.push(ExportDraft { value, timestamp, carried_from });
        whole -= i128::from(value);
    }
    let rest = Units(whole.saturating_mul(ONE));
    Settled { drafts, remainder: fraction.plus(rest) }
}

/// Returns the export of a gauge, which the biller orders by time: later than the last export of the
/// bucket, if the bucket allows that. Returns none if the period closed too long ago, because a gauge
/// cannot be carried.
pub fn level_draft(
    bucket: &Bucket,
    level: Units,
    after: Option<Timestamp>,
    now: Timestamp,
    late_grace: Duration,
) -> Option<ExportDraft> {
    if !bucket.is_open(now, late_grace) {
        return None;
    }
    let value = i64::try_from(level.split().0.max(0)).unwrap_or(i64::MAX).min(EXPORT_VALUE_MAX);
    let mut timestamp = bucket.timestamp(now);
    if let Some(after) = after.filter(|after| *after >= timestamp) {
        let next = after.saturating_add(Duration::from_secs(1));
        if next < bucket.span.to && next <= now {
            timestamp = next;
        }
    }
    Some(ExportDraft { value, timestamp, carried_from: None })
}

/// Returns the pause after a failed attempt: doubled each time, at most 15 minutes. Half of it is
/// random, so that retries do not coincide.
pub fn backoff(attempts: u32, chance: f64) -> Duration {
    const MAX: Duration = Duration::from_mins(15);
    let full = Duration::from_secs(1).saturating_mul(1_u32 << attempts.min(12)).min(MAX);
    full.mul_f64(0.5 + chance.clamp(0.0, 1.0) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        Timestamp::parse(text).unwrap()
    }

    fn units(text: &str) -> Units {
        Units::parse(text).unwrap()
    }

    fn fresh(text: &str, bucket: &Bucket) -> UnexportedUsage {
        UnexportedUsage { units: units(text), last_at: bucket.span.to }
    }

    const GRACE: Duration = Duration::from_hours(1);

    #[test]
    fn units_are_exact() {
        for text in ["0", "1", "-1", "0.5", "-0.000000000000000001", "123456789012345.000000000000000001"] {
            assert_eq!(units(text).to_string(), text);
        }
        assert_eq!(units("1.500").to_string(), "1.5");
        assert!(Units::parse("0.0000000000000000001").is_none());
        assert!(Units::parse("x").is_none());
        assert!(units("1000000000000000000000000") > units("100000000000000000000"));
    }

    #[test]
    fn renewals_split_the_export_bucket_of_their_hour() {
        let cycle = Cycle {
            anchor: at("2026-10-21T10:23:45Z"),
            billing: Some(Span { from: at("2026-10-21T10:23:45Z"), to: at("2026-11-21T10:23:45Z") }),
        };
        let before = Bucket::of(at("2026-11-21T10:23:44Z"), Some(&cycle));
        let after = Bucket::of(at("2026-11-21T10:23:46Z"), Some(&cycle));
        assert_eq!(before.span, Span { from: at("2026-11-21T10:00:00Z"), to: at("2026-11-21T10:23:45Z") });
        assert_eq!(after.span, Span { from: at("2026-11-21T10:23:45Z"), to: at("2026-11-21T11:00:00Z") });
        let now = at("2026-11-21T10:23:47.5Z");
        assert_eq!(before.timestamp(now), at("2026-11-21T10:23:44Z"));
        assert_eq!(after.timestamp(now), at("2026-11-21T10:23:47Z"));
        assert_eq!(after.timestamp(at("2026-11-21T12:00:00Z")), at("2026-11-21T10:59:59Z"));
        assert_eq!(Bucket::of(at("2026-11-21T10:30:00Z"), None).timestamp(now), at("2026-11-21T10:23:47Z"));
    }

    #[test]
    fn unexported_usage_becomes_whole_units_and_a_remainder() {
        let bucket = Bucket::of(at("2026-11-21T10:30:00Z"), None);
        let now = at("2026-11-21T12:00:00Z");
        let cases = [
            ("5", "0", vec![5], "0"),
            ("0.4", "0.5", vec![], "0.9"),
            ("0.4", "0.7", vec![1], "0.1"),
            ("-3", "0", vec![], "-3"),
            ("10", "-3.5", vec![6], "0.5"),
            ("2", "-3", vec![], "-1"),
            ("1000000000000001", "0", vec![EXPORT_VALUE_MAX, 2], "0"),
        ];
        for (new, remainder, values, left) in cases {
            let settled = settle(&bucket, fresh(new, &bucket), units(remainder), now, GRACE);
            assert_eq!(settled.drafts.iter().map(|draft| draft.value).collect::<Vec<_>>(), values, "{new}");
            assert_eq!(settled.remainder.to_string(), left, "{new} {remainder}");
        }
    }

    #[test]
    fn late_usage_is_exported_in_the_current_period() {
        let cycle = Cycle {
            anchor: at("2026-10-21T10:00:00Z"),
            billing: Some(Span { from: at("2026-10-21T10:00:00Z"), to: at("2026-11-21T10:00:00Z") }),
        };
        let bucket = Bucket::of(at("2026-11-21T09:30:00Z"), Some(&cycle));
        let draft =
            |now: &str| settle(&bucket, fresh("1", &bucket), Units::default(), at(now), GRACE).drafts[0];
        let in_time = draft("2026-11-21T10:59:59Z");
        assert_eq!((in_time.timestamp, in_time.carried_from), (at("2026-11-21T09:59:59Z"), None));
        let late = draft("2026-11-21T11:00:00Z");
        assert_eq!(late.timestamp, at("2026-11-21T11:00:00Z"));
        assert_eq!(late.carried_from, Some(at("2026-11-21T09:00:00Z")));
        // without a period: after the greatest age that the biller accepts
        let first = Bucket::of(at("2026-10-01T00:00:00Z"), None);
        let now = at("2026-11-21T11:00:00Z");
        let old = settle(&first, fresh("1", &first), Units::default(), now, GRACE);
        assert!(old.drafts[0].carried_from.is_some());
    }

    #[test]
    fn export_timestamp_is_that_of_its_latest_usage() {
        let bucket = Bucket::of(at("2026-11-21T10:30:00Z"), None);
        let new = UnexportedUsage { units: units("1"), last_at: at("2026-11-21T10:20:30.9Z") };
        let timestamp =
            |now: &str| settle(&bucket, new, Units::default(), at(now), GRACE).drafts[0].timestamp;
        assert_eq!(timestamp("2026-11-21T12:00:00Z"), at("2026-11-21T10:20:30Z"));
        assert_eq!(timestamp("2026-11-21T10:20:00Z"), at("2026-11-21T10:20:00Z"));
    }

    #[test]
    fn backoff_doubles_up_to_fifteen_minutes() {
        assert_eq!(backoff(0, 1.0), Duration::from_secs(1));
        assert_eq!(backoff(3, 0.0), Duration::from_secs(4));
        assert_eq!(backoff(60, 1.0), Duration::from_mins(15));
    }
}
