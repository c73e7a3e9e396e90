//! Exact quantities: decimals with at most 19 integer and 9 fractional digits, stored as whole
//! nano-units in 128 bits. Only [`Total::average_of`] rounds.

use std::fmt;
use std::ops::{Add, Sub};
use std::str::FromStr;

use serde::{Serialize, Serializer};

/// The nano-units of one unit.
const NANOS: i128 = 1_000_000_000;
/// [`NANOS`] for arithmetic in 64 bits.
const SMALL_NANOS: i64 = 1_000_000_000;
const FRACTION_DIGITS: i32 = 9;
const INTEGER_DIGITS: i32 = 19;
/// 10^19 units, in nano-units.
const LIMIT: i128 = 10_i128.pow(28);

/// A recorded or requested quantity within the accepted digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Quantity(i128);

/// A sum of quantities in the same unit, without the limit on digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Total(i128);

/// The reason why a text is not a quantity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotAQuantity {
    #[error("must be a decimal number")]
    NotDecimal,
    #[error("must have at most {INTEGER_DIGITS} integer and {FRACTION_DIGITS} fractional digits")]
    TooManyDigits,
}

impl Quantity {
    /// One unit.
    pub const ONE: Self = Self(NANOS);
    /// The smallest quantity above zero.
    pub const SMALLEST: Self = Self(1);
    /// The greatest quantity: 19 integer and 9 fractional digits, all of them 9.
    pub const MAX: Self = Self(LIMIT - 1);

    /// Parses a decimal string: an optional minus, digits, optionally a point and digits.
    pub fn from_decimal(text: &str) -> Result<Self, NotAQuantity> {
        if text.bytes().any(|b| !matches!(b, b'0'..=b'9' | b'.' | b'-')) {
            return Err(NotAQuantity::NotDecimal);
        }
        Self::from_json_number(text)
    }

    /// Parses the text of a JSON number, which may have an exponent.
    pub fn from_json_number(text: &str) -> Result<Self, NotAQuantity> {
        let nanos = parse_nanos(text)?;
        if nanos.abs() >= LIMIT { Err(NotAQuantity::TooManyDigits) } else { Ok(Self(nanos)) }
    }

    /// Parses a JSON value: a number or a decimal string.
    pub fn from_json(value: &serde_json::Value) -> Result<Self, NotAQuantity> {
        match value {
            serde_json::Value::Number(number) => Self::from_json_number(number.as_str()),
            serde_json::Value::String(text) => Self::from_decimal(text),
            _ => Err(NotAQuantity::NotDecimal),
        }
    }

    pub fn is_negative(self) -> bool {
        self.0 < 0
    }

    pub fn is_zero(self) -> bool {
        self.0 == 0
    }

    pub fn is_whole(self) -> bool {
        self.0 % NANOS == 0
    }

    /// Returns the quantity, truncated to whole units.
    #[must_use]
    pub fn whole(self) -> Self {
        Self(self.0 - self.0 % NANOS)
    }

    /// Returns the part of the quantity above another one, or zero.
    #[must_use]
    pub fn above(self, other: Self) -> Self {
        Self((self.0 - other.0).max(0))
    }

    pub fn nanos(self) -> i128 {
        self.0
    }

    /// Divides exactly. Returns none if the result does not fit the digits of a quantity.
    pub fn divided_exactly(self, by: Self) -> Option<Self> {
        // 10^28 nano-units times 10^9 fit in 128 bits
        let nanos = self.0.checked_mul(NANOS)?;
        (nanos.checked_rem(by.0)? == 0).then(|| nanos / by.0).filter(|q| q.abs() < LIMIT).map(Self)
    }
}

impl Total {
    pub fn from_nanos(nanos: i128) -> Self {
        Self(nanos)
    }

    pub fn nanos(self) -> i128 {
        self.0
    }

    /// Returns the sum, or zero if it is negative.
    #[must_use]
    pub fn or_zero(self) -> Self {
        Self(self.0.max(0))
    }

    /// Converts to a quantity. Returns none if the sum has too many digits.
    pub fn quantity(self) -> Option<Quantity> {
        (self.0.abs() < LIMIT).then_some(Quantity(self.0))
    }

    /// Returns the whole units, truncated and saturated to 64 bits.
    pub fn units(self) -> i64 {
        i64::try_from(self.0 / NANOS).unwrap_or(if self.0 < 0 { i64::MIN } else { i64::MAX })
    }

    /// Parses a decimal string of any length that fits 128 bits of nano-units.
    pub fn from_decimal(text: &str) -> Result<Self, NotAQuantity> {
        parse_nanos(text).map(Self)
    }

    /// Returns the average of `count` quantities with this sum, rounded to 9 fractional digits, half
    /// away from zero. Returns none if `count` is not positive.
    pub fn average_of(self, count: i64) -> Option<Self> {
        let count = i128::from(count);
        if count <= 0 {
            return None;
        }
        let (whole, rest) = (self.0 / count, self.0 % count);
        let away = if rest.abs() * 2 >= count { self.0.signum() } else { 0 };
        Some(Self(whole + away))
    }
}

// a quantity has 94 bits, so sums of 10^10 of the largest quantities fit; larger sums
// saturate instead of overflowing
impl Add for Total {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl Sub for Total {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

impl From<Quantity> for Total {
    fn from(quantity: Quantity) -> Self {
        Self(quantity.0)
    }
}

impl From<i64> for Total {
    fn from(units: i64) -> Self {
        Self(i128::from(units) * NANOS)
    }
}

impl FromStr for Quantity {
    type Err = NotAQuantity;

    fn from_str(text: &str) -> Result<Self, NotAQuantity> {
        Self::from_decimal(text)
    }
}

/// Parses the text of any JSON number into nano-units, exactly.
fn parse_nanos(text: &str) -> Result<i128, NotAQuantity> {
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        None => (text, 0),
        Some((mantissa, exponent)) => {
            let digits = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
            if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
                return Err(NotAQuantity::NotDecimal);
            }
            (mantissa, exponent.parse::<i32>().map_err(|_| NotAQuantity::TooManyDigits)?)
        }
    };
    let (negative, digits) = match mantissa.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, mantissa),
    };
    let (integer, fraction) = match digits.split_once('.') {
        Some((integer, fraction)) if !fraction.is_empty() => (integer, fraction),
        Some(_) => return Err(NotAQuantity::NotDecimal),
        None => (digits, ""),
    };
    let all_digits = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
    if integer.is_empty() || !all_digits(integer) || !all_digits(fraction) {
        return Err(NotAQuantity::NotDecimal);
    }
    let fraction_digits = i32::try_from(fraction.len()).map_err(|_| NotAQuantity::TooManyDigits)?;
    // the number is `coefficient` × 10^`scale` nano-units
    let mut scale = FRACTION_DIGITS.saturating_sub(fraction_digits).saturating_add(exponent);
    let mut coefficient: i128 = 0;
    let mut pending_zeros: u32 = 0;
    for digit in integer.bytes().chain(fraction.bytes()) {
        if digit == b'0' {
            pending_zeros += 1;
            continue;
        }
        coefficient = 10_i128
            .checked_pow(pending_zeros + 1)
            .and_then(|shift| coefficient.checked_mul(shift))
            .and_then(|shifted| shifted.checked_add(i128::from(digit - b'0')))
            .ok_or(NotAQuantity::TooManyDigits)?;
        pending_zeros = 0;
    }
    if coefficient == 0 {
        return Ok(0);
    }
    scale = scale.saturating_add(i32::try_from(pending_zeros).map_err(|_| NotAQuantity::TooManyDigits)?);
    let nanos = u32::try_from(scale)
        .ok()
        .and_then(|scale| 10_i128.checked_pow(scale))
        .and_then(|shift| coefficient.checked_mul(shift))
        .ok_or(NotAQuantity::TooManyDigits)?;
    Ok(if negative { -nanos } else { nanos })
}

fn write_nanos(nanos: i128, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let (units, fraction) =
        (nanos.unsigned_abs() / NANOS.unsigned_abs(), nanos.unsigned_abs() % NANOS.unsigned_abs());
    if nanos < 0 {
        f.write_str("-")?;
    }
    if fraction == 0 {
        return write!(f, "{units}");
    }
    let digits = format!("{fraction:09}");
    write!(f, "{units}.{}", digits.trim_end_matches('0'))
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_nanos(self.0, f)
    }
}

impl fmt::Display for Total {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_nanos(self.0, f)
    }
}

/// Serializes as a JSON number without an exponent.
fn json_number<S: Serializer>(nanos: i128, serializer: S) -> Result<S::Ok, S::Error> {
    // most values are whole and small, and need no text in between
    if let Ok(small) = i64::try_from(nanos)
        && small % SMALL_NANOS == 0
    {
        return serializer.serialize_i64(small / SMALL_NANOS);
    }
    let number: serde_json::Number = Total(nanos).to_string().parse().map_err(serde::ser::Error::custom)?;
    number.serialize(serializer)
}

impl Serialize for Quantity {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        json_number(self.0, serializer)
    }
}

impl Serialize for Total {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        json_number(self.0, serializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn division_is_exact_or_none() {
        let quotient = |a: &str, b: &str| {
            let (a, b) = (Quantity::from_decimal(a).unwrap(), Quantity::from_decimal(b).unwrap());
            a.divided_exactly(b).map(|q| q.to_string())
        };
        let cases = [
            ("1500", "1000", Some("1.5")),
            ("-3", "0.5", Some("-6")),
            ("0", "7", Some("0")),
            ("1", "3", None),
            ("0.000000001", "10", None),
            ("9999999999999999999.999999999", "1", Some("9999999999999999999.999999999")),
            ("9999999999999999999", "0.1", None),
            ("1", "0", None),
        ];
        for (a, b, expected) in cases {
            assert_eq!(quotient(a, b).as_deref(), expected, "{a} / {b}");
        }
    }

    #[test]
    fn parses_accepted_spellings_and_rejects_others() {
        use NotAQuantity::{NotDecimal, TooManyDigits};
        let cases: &[(&str, Result<&str, NotAQuantity>)] = &[
            ("0", Ok("0")),
            ("-0", Ok("0")),
            ("-0.0", Ok("0")),
            ("1500", Ok("1500")),
            ("1500.00", Ok("1500")),
            ("0.456789012", Ok("0.456789012")),
            ("-0.5", Ok("-0.5")),
            ("1e3", Ok("1000")),
            ("1.5E+3", Ok("1500")),
            ("25e-1", Ok("2.5")),
            ("1e-9", Ok("0.000000001")),
            ("10e-10", Ok("0.000000001")),
            ("9999999999999999999.999999999", Ok("9999999999999999999.999999999")),
            ("1.0000000000", Ok("1")),
            ("0.1234567891", Err(TooManyDigits)),
            ("1e-10", Err(TooManyDigits)),
            ("10000000000000000000", Err(TooManyDigits)),
            ("1e19", Err(TooManyDigits)),
            ("1e400000000000", Err(TooManyDigits)),
            ("1234567890123456789012345678901234567890", Err(TooManyDigits)),
            ("", Err(NotDecimal)),
            ("-", Err(NotDecimal)),
            (".5", Err(NotDecimal)),
            ("5.", Err(NotDecimal)),
            ("+5", Err(NotDecimal)),
            ("NaN", Err(NotDecimal)),
            ("1e", Err(NotDecimal)),
            ("0x10", Err(NotDecimal)),
            (" 1", Err(NotDecimal)),
        ];
        for (text, expected) in cases {
            let read = Quantity::from_json_number(text).map(|q| q.to_string());
            assert_eq!(read.as_deref().map_err(|e| *e), *expected, "{text}");
        }
        assert_eq!(Quantity::from_decimal("1e3"), Err(NotDecimal), "strings take no exponent");
    }

    #[test]
    fn averages_round_half_away_from_zero() {
        let average =
            |sum: &str, count| Total::from_decimal(sum).unwrap().average_of(count).map(|t| t.to_string());
        assert_eq!(average("123.456789012", 2).as_deref(), Some("61.728394506"));
        assert_eq!(average("0.000000001", 2).as_deref(), Some("0.000000001"));
        assert_eq!(average("-0.000000001", 2).as_deref(), Some("-0.000000001"));
        assert_eq!(average("10", 3).as_deref(), Some("3.333333333"));
        assert_eq!(average("20", 3).as_deref(), Some("6.666666667"));
        assert_eq!(average("5", 0), None);
    }

    proptest! {
        #[test]
        fn formatted_values_parse_to_the_same_value(nanos in -(LIMIT - 1)..LIMIT) {
            let quantity = Quantity(nanos);
            prop_assert_eq!(Quantity::from_decimal(&quantity.to_string()), Ok(quantity));
            let json = serde_json::to_string(&quantity).unwrap();
            prop_assert!(!json.contains(['e', 'E', '"']));
            let value: serde_json::Value = serde_json::from_str(&json).unwrap();
            prop_assert_eq!(Quantity::from_json(&value), Ok(quantity));
        }
    }
}
