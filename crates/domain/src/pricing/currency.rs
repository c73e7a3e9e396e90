//! Currencies by their lower-case ISO 4217 codes.

use std::fmt;

use iso_currency::Currency as Iso;
use serde::{Serialize, Serializer};
use serde_json::Value;

use crate::base::fields::{self, Parsed, Violation};

/// A currency with minor units; some, such as the yen, have no fractional digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Currency(Iso);

/// Currencies that are no longer legal tender. New prices must not use them.
const WITHDRAWN: [Iso; 5] = [Iso::BGN, Iso::CUC, Iso::HRK, Iso::SLL, Iso::ZWL];

impl Currency {
    pub fn parse(code: &str) -> Parsed<Self> {
        let is_lower = code.bytes().all(|byte| byte.is_ascii_lowercase());
        match Iso::from_code(&code.to_ascii_uppercase()).filter(|_| is_lower) {
            Some(currency) if currency.exponent().is_some() => Ok(Self(currency)),
            _ => Violation::only(
                "unknown_currency",
                format!("must be a lower-case ISO 4217 code, such as `usd`; got {}", fields::received(code)),
            ),
        }
    }

    pub fn read(value: Value) -> Parsed<Self> {
        Self::parse(&fields::text(value)?)
    }

    /// Returns a violation if the currency is withdrawn. Only new input is validated; stored input stays
    /// readable.
    pub fn validate_not_withdrawn(self) -> Option<Violation> {
        let detail =
            || format!("must be a current currency; {self} was withdrawn from ISO 4217, use its successor");
        WITHDRAWN.contains(&self.0).then(|| Violation::new("unknown_currency", detail()).under("currency"))
    }

    pub fn code(self) -> String {
        self.0.code().to_ascii_lowercase()
    }

    /// Returns the number of digits after the point of a major unit.
    pub fn digits(self) -> u32 {
        self.0.exponent().unwrap_or_default().into()
    }
}

impl fmt::Display for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.code())
    }
}

impl PartialOrd for Currency {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Currency {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.code().cmp(other.0.code())
    }
}

impl Serialize for Currency {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn currencies_know_their_code_and_number_of_fractional_digits() {
        let digits = |code: &str| Currency::parse(code).ok().map(Currency::digits);
        let cases =
            [("usd", Some(2)), ("eur", Some(2)), ("jpy", Some(0)), ("kwd", Some(3)), ("krw", Some(0))];
        for (code, expected) in cases {
            assert_eq!(digits(code), expected, "{code}");
        }
        for (code, is_withdrawn) in
            [("hrk", true), ("bgn", true), ("eur", false), ("ves", false), ("xcg", false)]
        {
            assert_eq!(
                Currency::parse(code).unwrap().validate_not_withdrawn().is_some(),
                is_withdrawn,
                "{code}"
            );
        }
        for unknown in ["USD", "us", "zzz", "", "xau", "dollar", "Usd"] {
            assert_eq!(Currency::parse(unknown).unwrap_err()[0].code, "unknown_currency", "{unknown}");
        }
    }
}
