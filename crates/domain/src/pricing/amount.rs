//! Exact amounts of money in minor units of a currency. They are fractions, so nothing rounds before a line
//! does.

use std::fmt;
use std::iter::Sum;
use std::ops::{Add, Mul, Neg, Sub};

use num_bigint::{BigInt, Sign};
use num_traits::{Signed, ToPrimitive};
use serde::{Serialize, Serializer};
use serde_json::Value;

use super::fraction::Fraction;
use crate::base::fields::{Parsed, Violation};
use crate::base::quantity::{NotAQuantity, Quantity, Total};

/// The number of digits that a price may have after the point.
const PRICE_FRACTION_DIGITS: u32 = 12;
/// The number of digits that an amount may have before the point.
const INTEGER_DIGITS: u32 = 19;
/// The number of fractional digits shown for an amount with an endless decimal, such as a third.
const SHOWN_FRACTION_DIGITS: u32 = 24;
/// The number of nano-units in one unit.
const NANOS: i64 = 1_000_000_000;

/// An amount in minor units, or a price per unit.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Amount(Fraction);

impl Default for Amount {
    fn default() -> Self {
        Self(Fraction::from(0))
    }
}

impl Amount {
    /// Reads a JSON number or a decimal string of at most 19 integer and 12 fractional digits.
    pub fn from_json(value: &Value) -> Result<Self, NotAQuantity> {
        let text = match value {
            Value::Number(number) => number.as_str(),
            Value::String(text) if !text.contains(['e', 'E', '+']) => text.as_str(),
            _ => return Err(NotAQuantity::NotDecimal),
        };
        Self::from_decimal(text)
    }

    /// Reads a decimal number in the notation of JSON.
    pub fn from_decimal(text: &str) -> Result<Self, NotAQuantity> {
        let digits_max = INTEGER_DIGITS + PRICE_FRACTION_DIGITS;
        let (mantissa, exponent) = match text.split_once(['e', 'E']) {
            Some((mantissa, exponent)) => {
                (mantissa, exponent.parse::<i32>().map_err(|_| NotAQuantity::NotDecimal)?)
            }
            None => (text, 0),
        };
        let (integer, fraction) = mantissa.split_once('.').unwrap_or((mantissa, "0"));
        let digits = integer.strip_prefix('-').unwrap_or(integer);
        let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        if !is_number(digits) || !is_number(fraction) {
            return Err(NotAQuantity::NotDecimal);
        }
        let significant = fraction.trim_end_matches('0');
        let span = |part: &str| u32::try_from(part.len()).unwrap_or(u32::MAX);
        if span(digits.trim_start_matches('0')).saturating_add(span(significant)) > digits_max
            || exponent.unsigned_abs() > digits_max
        {
            return Err(NotAQuantity::TooManyDigits);
        }
        // at most 31 digits always parse as an integer
        let coefficient: BigInt = format!("{integer}{significant}").parse().unwrap_or_default();
        let scale = exponent - i32::try_from(significant.len()).unwrap_or(i32::MAX);
        let amount = &Fraction::from(coefficient) * &Fraction::ten_to(scale);
        let granularity = Fraction::ten_to(PRICE_FRACTION_DIGITS.cast_signed());
        let limit = Fraction::ten_to(INTEGER_DIGITS.cast_signed());
        if amount.abs() >= limit || !(&amount * &granularity).is_integer() {
            return Err(NotAQuantity::TooManyDigits);
        }
        Ok(Self(amount))
    }

    /// Reads a decimal of any length, such as a sum of exact products.
    pub fn from_sum(text: &str) -> Option<Self> {
        let (integer, fraction) = text.split_once('.').unwrap_or((text, ""));
        let digits: BigInt = format!("{integer}{fraction}").parse().ok()?;
        let scale = i32::try_from(fraction.len()).ok()?;
        Some(Self(&Fraction::from(digits) * &Fraction::ten_to(-scale)))
    }

    pub fn from_minor_units(units: i64) -> Self {
        Self(Fraction::from(i128::from(units)))
    }

    /// Returns the number of units as an amount.
    pub fn of(quantity: Total) -> Self {
        Self(Fraction::new(quantity.nanos(), NANOS))
    }

    pub fn is_negative(&self) -> bool {
        self.0.is_negative()
    }

    pub fn is_zero(&self) -> bool {
        self.0.is_zero()
    }

    /// Divides by another amount; returns zero if the divisor is zero.
    #[must_use]
    pub fn divided_by(&self, by: &Self) -> Self {
        if by.is_zero() { Self::default() } else { Self(&self.0 / &by.0) }
    }

    /// Returns `self` percent of another amount.
    #[must_use]
    pub fn percent_of(&self, whole: &Self) -> Self {
        Self(&(&self.0 * &whole.0) / &Fraction::from(100))
    }

    /// Multiplies by a power of ten.
    #[must_use]
    pub fn shifted(&self, decimals: i32) -> Self {
        Self(&self.0 * &Fraction::ten_to(decimals))
    }

    #[must_use]
    pub fn ceil(&self) -> Self {
        Self(self.0.ceil())
    }

    #[must_use]
    pub fn floor(&self) -> Self {
        Self(self.0.floor())
    }

    /// Rounds to whole minor units, half away from zero. A line rounds only here.
    pub fn rounded(&self) -> MinorUnits {
        MinorUnits(self.0.round())
    }

    /// Writes the amount as a fraction that reads back exactly: `4`, `10/3`.
    pub fn fraction(&self) -> String {
        self.0.to_string()
    }

    pub fn from_fraction(text: &str) -> Option<Self> {
        text.parse().ok().map(Self)
    }

    /// Returns the amount as a quantity, rounded down to nano-units.
    pub fn quantity_below(&self) -> Total {
        Total::default() - Self(-&self.0).quantity_above()
    }

    /// Returns the amount as a quantity, rounded up to nano-units.
    pub fn quantity_above(&self) -> Total {
        let nanos = (&self.0 * &Fraction::from(i128::from(NANOS))).ceil().to_integer();
        let bound = if nanos.is_negative() { i128::MIN } else { i128::MAX };
        Total::from_nanos(nanos.to_i128().unwrap_or(bound))
    }
}

impl From<Quantity> for Amount {
    fn from(quantity: Quantity) -> Self {
        Self::of(quantity.into())
    }
}

impl From<&MinorUnits> for Amount {
    fn from(units: &MinorUnits) -> Self {
        Self(Fraction::from(units.0.clone()))
    }
}

impl Add for Amount {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self(&self.0 + &other.0)
    }
}

impl Sub for Amount {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self(&self.0 - &other.0)
    }
}

impl Mul<&Amount> for &Amount {
    type Output = Amount;

    fn mul(self, other: &Amount) -> Amount {
        Amount(&self.0 * &other.0)
    }
}

impl Neg for Amount {
    type Output = Self;

    fn neg(self) -> Self {
        Self(-&self.0)
    }
}

impl Sum for Amount {
    fn sum<I: Iterator<Item = Self>>(amounts: I) -> Self {
        amounts.fold(Self::default(), Add::add)
    }
}

/// Writes a finite decimal in full; an endless one to 24 digits, rounded half away from zero.
impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_integer() {
            return self.0.fmt(f);
        }
        let shown = self.0.decimals().unwrap_or(SHOWN_FRACTION_DIGITS);
        let scaled = (&self.0 * &Fraction::ten_to(shown.cast_signed())).round();
        let digits = scaled.magnitude().to_string();
        let width = shown as usize;
        let padded = format!("{digits:0>filled$}", filled = width + 1);
        let (integer, fraction) = padded.split_at(padded.len() - width);
        if scaled.sign() == Sign::Minus {
            f.write_str("-")?;
        }
        f.write_str(integer)?;
        let fraction = fraction.trim_end_matches('0');
        if fraction.is_empty() { Ok(()) } else { write!(f, ".{fraction}") }
    }
}

impl Serialize for Amount {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let number: serde_json::Number = self.to_string().parse().map_err(serde::ser::Error::custom)?;
        number.serialize(serializer)
    }
}

/// A whole number of minor units.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct MinorUnits(BigInt);

impl MinorUnits {
    /// Parses whole digits with an optional sign.
    pub fn parse(text: &str) -> Option<Self> {
        text.parse().ok().map(Self)
    }

    /// Writes the amount in major units of a currency with `digits` fractional digits.
    pub fn in_major_units(&self, digits: u32) -> String {
        let text = self.0.magnitude().to_string();
        let sign = if self.0.is_negative() { "-" } else { "" };
        let width = digits as usize;
        let padded = format!("{text:0>filled$}", filled = width + 1);
        let (integer, fraction) = padded.split_at(padded.len() - width);
        if width == 0 { format!("{sign}{integer}") } else { format!("{sign}{integer}.{fraction}") }
    }
}

impl From<i64> for MinorUnits {
    fn from(units: i64) -> Self {
        Self(units.into())
    }
}

impl Add for MinorUnits {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }
}

impl Sub for MinorUnits {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self(self.0 - other.0)
    }
}

impl Sum for MinorUnits {
    fn sum<I: Iterator<Item = Self>>(units: I) -> Self {
        units.fold(Self::default(), Add::add)
    }
}

impl fmt::Display for MinorUnits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for MinorUnits {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let number: serde_json::Number = self.to_string().parse().map_err(serde::ser::Error::custom)?;
        number.serialize(serializer)
    }
}

/// Reads a price or an amount of the catalog; negative numbers are violations.
pub fn read(value: Value) -> Parsed<Amount> {
    let amount = match Amount::from_json(&value) {
        Ok(amount) => amount,
        Err(NotAQuantity::NotDecimal) => {
            return Violation::only("invalid_amount", "must be a decimal number of minor units");
        }
        Err(NotAQuantity::TooManyDigits) => {
            let detail = format!(
                "must have at most {INTEGER_DIGITS} integer and {PRICE_FRACTION_DIGITS} fractional digits"
            );
            return Violation::only("invalid_amount", detail);
        }
    };
    if amount.is_negative() {
        return Violation::only("negative_amount", "must not be negative");
    }
    Ok(amount)
}

/// Returns the amount of one minor unit.
pub fn one() -> Amount {
    Amount::from_minor_units(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn amount(text: &str) -> Amount {
        Amount::from_decimal(text).unwrap()
    }

    #[test]
    fn parses_accepted_spellings_and_rejects_others() {
        use NotAQuantity::{NotDecimal, TooManyDigits};
        let cases: &[(&str, Result<&str, NotAQuantity>)] = &[
            ("0", Ok("0")),
            ("-0.0", Ok("0")),
            ("0.000000000001", Ok("0.000000000001")),
            ("1e-12", Ok("0.000000000001")),
            ("1.500", Ok("1.5")),
            ("2.5e3", Ok("2500")),
            ("9999999999999999999.999999999999", Ok("9999999999999999999.999999999999")),
            ("10000000000000000000", Err(TooManyDigits)),
            ("0.0000000000001", Err(TooManyDigits)),
            ("1e400", Err(TooManyDigits)),
            ("1e4000000000000", Err(NotDecimal)),
            ("", Err(NotDecimal)),
            ("-", Err(NotDecimal)),
            (".5", Err(NotDecimal)),
            ("5.", Err(NotDecimal)),
            ("1_000", Err(NotDecimal)),
            ("NaN", Err(NotDecimal)),
        ];
        for (text, expected) in cases {
            let read = Amount::from_decimal(text).map(|amount| amount.to_string());
            assert_eq!(read.as_deref().map_err(|e| *e), *expected, "{text}");
        }
        assert!(Amount::from_json(&json!("1e3")).is_err(), "a string must not have an exponent");
        assert_eq!(read(json!(-1)).unwrap_err()[0].code, "negative_amount");
    }

    #[test]
    fn a_line_rounds_half_away_from_zero() {
        let cases =
            [("0.5", "1"), ("-0.5", "-1"), ("0.49", "0"), ("267.5", "268"), ("-267.5", "-268"), ("2.4", "2")];
        for (exact, expected) in cases {
            assert_eq!(amount(exact).rounded().to_string(), expected, "{exact}");
        }
    }

    #[test]
    fn unending_fractions_are_shown_to_24_digits() {
        let third = amount("1").divided_by(&amount("3"));
        assert_eq!(third.to_string(), "0.333333333333333333333333");
        assert_eq!(amount("2").divided_by(&amount("3")).to_string(), "0.666666666666666666666667");
        assert_eq!((third.clone() + third.clone() + third).to_string(), "1");
        // finite decimals are shown in full
        let small = amount("0.000000000001").divided_by(&amount("1048576"));
        assert_eq!(small.to_string(), "0.00000000000000000095367431640625");
    }

    #[test]
    fn minor_units_are_written_in_major_units_of_each_currency() {
        let shown = |units: i64, digits| MinorUnits::from(units).in_major_units(digits);
        assert_eq!(shown(1_234, 2), "12.34");
        assert_eq!(shown(-5, 2), "-0.05");
        assert_eq!(shown(1_234, 0), "1234");
        assert_eq!(shown(1_234, 3), "1.234");
    }

    proptest! {
        #[test]
        fn formatted_values_parse_to_the_same_value(units in any::<i64>(), fraction in 0_i64..1_000_000_000_000) {
            let amount = amount(&format!("{units}.{fraction:012}"));
            prop_assert_eq!(&Amount::from_decimal(&amount.to_string()).unwrap(), &amount);
            prop_assert_eq!(&Amount::from_json(&serde_json::to_value(&amount).unwrap()).unwrap(), &amount);
            let third = amount.divided_by(&Amount::from_minor_units(3));
            prop_assert_eq!(&Amount::from_fraction(&third.fraction()).unwrap(), &third);
            let (below, above) = (third.quantity_below(), third.quantity_above());
            prop_assert!(Amount::of(below) <= third && third <= Amount::of(above));
            prop_assert!(above.nanos() - below.nanos() <= 1);
        }
    }
}
