//! Instants in microseconds, with parsing and formatting as RFC 3339.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub const MICROS_PER_SECOND: i64 = 1_000_000;
pub const MICROS_PER_HOUR: i64 = 3_600 * MICROS_PER_SECOND;
pub const MICROS_PER_DAY: i64 = 24 * MICROS_PER_HOUR;

/// An instant: microseconds since 1970-01-01T00:00:00Z.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Timestamp(i64);

/// The error for a text that is not an RFC 3339 instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be an RFC 3339 time with an offset, such as 2026-11-20T10:00:00Z, up to 9999-12-30T00:00:00Z")]
pub struct NotATimestamp;

impl Timestamp {
    /// 0001-01-01T00:00:00Z, before anything that can be recorded.
    pub const MIN: Self = Self(-62_135_596_800 * MICROS_PER_SECOND);
    /// 9999-12-30T00:00:00Z, after anything that can be recorded.
    pub const MAX: Self = Self(253_402_128_000 * MICROS_PER_SECOND);

    /// Parses RFC 3339 with an offset. Digits below a microsecond are truncated.
    pub fn parse(text: &str) -> Result<Self, NotATimestamp> {
        let bytes = text.as_bytes();
        let shaped = bytes.len() >= 20
            && bytes.len() <= 64
            && matches!(bytes[10], b'T' | b't' | b' ')
            && bytes[4] == b'-'
            && bytes[7] == b'-'
            && bytes[13] == b':'
            && bytes[16] == b':'
            && bytes.iter().all(|b| b.is_ascii_digit() || b"Tt zZ:.+-".contains(b))
            && (matches!(bytes[bytes.len() - 1], b'Z' | b'z')
                || matches!(bytes[bytes.len() - 6], b'+' | b'-'));
        if !shaped {
            return Err(NotATimestamp);
        }
        let instant: jiff::Timestamp = cut_to_nanoseconds(text).parse().map_err(|_| NotATimestamp)?;
        let nanos = instant.as_nanosecond();
        let micros = i64::try_from(nanos.div_euclid(1_000)).map_err(|_| NotATimestamp)?;
        let read = Self(micros);
        if (Self::MIN..=Self::MAX).contains(&read) { Ok(read) } else { Err(NotATimestamp) }
    }

    /// Returns none outside of [`Self::MIN`] to [`Self::MAX`].
    pub fn from_micros(micros: i64) -> Option<Self> {
        (Self::MIN.0..=Self::MAX.0).contains(&micros).then_some(Self(micros))
    }

    pub fn micros(self) -> i64 {
        self.0
    }

    /// Returns the whole seconds since 1970, rounded down.
    pub fn unix_seconds(self) -> i64 {
        self.0.div_euclid(MICROS_PER_SECOND)
    }

    #[must_use]
    pub fn saturating_add(self, duration: Duration) -> Self {
        let micros = i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
        Self(self.0.saturating_add(micros).min(Self::MAX.0))
    }

    #[must_use]
    pub fn saturating_sub(self, duration: Duration) -> Self {
        let micros = i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
        Self(self.0.saturating_sub(micros).max(Self::MIN.0))
    }

    /// Returns the start of the UTC hour.
    #[must_use]
    pub fn hour_floor(self) -> Self {
        Self(self.0.div_euclid(MICROS_PER_HOUR) * MICROS_PER_HOUR)
    }

    /// Returns the start of the first UTC hour that does not start earlier.
    #[must_use]
    pub fn hour_ceil(self) -> Self {
        let floor = self.hour_floor();
        if floor == self { self } else { Self(floor.0 + MICROS_PER_HOUR) }
    }

    /// Returns the start of the UTC day.
    #[must_use]
    pub fn day_floor(self) -> Self {
        Self(self.0.div_euclid(MICROS_PER_DAY) * MICROS_PER_DAY)
    }

    /// Returns the start of the first UTC day that does not start earlier.
    #[must_use]
    pub fn day_ceil(self) -> Self {
        if self.day_floor() == self { self } else { self.day_after() }
    }

    /// Returns the start of the following UTC day.
    #[must_use]
    pub fn day_after(self) -> Self {
        Self((self.day_floor().0 + MICROS_PER_DAY).min(Self::MAX.0))
    }

    /// Returns the instant a number of days earlier.
    #[must_use]
    pub fn days_before(self, days: usize) -> Self {
        let micros = i64::try_from(days).unwrap_or(i64::MAX).saturating_mul(MICROS_PER_DAY);
        Self(self.0.saturating_sub(micros).max(Self::MIN.0))
    }

    pub(crate) fn to_jiff(self) -> jiff::Timestamp {
        // jiff supports all of MIN to MAX
        jiff::Timestamp::from_microsecond(self.0).unwrap_or(jiff::Timestamp::MAX)
    }

    pub(crate) fn from_jiff(instant: jiff::Timestamp) -> Self {
        Self(instant.as_microsecond().clamp(Self::MIN.0, Self::MAX.0))
    }
}

/// Truncates to nine fractional digits: RFC 3339 allows any number, but jiff parses nine.
fn cut_to_nanoseconds(text: &str) -> Cow<'_, str> {
    let Some((whole, rest)) = text.split_once('.') else { return Cow::Borrowed(text) };
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    if digits <= 9 {
        return Cow::Borrowed(text);
    }
    Cow::Owned(format!("{whole}.{}{}", &rest[..9], &rest[digits..]))
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_jiff().fmt(f)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        Self::parse(&text).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_rfc_3339_and_writes_utc() {
        let cases = [
            ("2026-11-20T10:00:00Z", Some("2026-11-20T10:00:00Z")),
            ("2026-11-20t10:00:00z", Some("2026-11-20T10:00:00Z")),
            ("2026-11-20T11:00:00+01:00", Some("2026-11-20T10:00:00Z")),
            ("2023-11-16T18:17:03.9799600Z", Some("2023-11-16T18:17:03.97996Z")),
            ("2023-11-16T18:17:03.1234567899Z", Some("2023-11-16T18:17:03.123456Z")),
            ("2023-11-16T18:17:03.123456789Z", Some("2023-11-16T18:17:03.123456Z")),
            ("1969-12-31T23:59:59.9999999Z", Some("1969-12-31T23:59:59.999999Z")),
            ("2026-11-20T10:00:00", None),
            ("2026-11-20", None),
            ("2026-13-20T10:00:00Z", None),
            ("2026-02-30T10:00:00Z", None),
            ("2026-11-20T10:00:00Z[UTC]", None),
            ("1700000000", None),
            ("", None),
        ];
        for (text, expected) in cases {
            let read = Timestamp::parse(text).ok().map(|t| t.to_string());
            assert_eq!(read.as_deref(), expected, "{text}");
        }
    }
}
