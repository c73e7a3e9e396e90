//! Exchange rates as the operator set them, each with its time. A missing rate is never derived from the
//! opposite direction or through a third currency.

use std::collections::BTreeMap;
use std::ops::Bound;

use serde::Serialize;
use serde_json::Value;

use super::amount;
use super::amount::Amount;
use super::currency::Currency;
use crate::base::fields::{self, ObjectParser, Parsed, Violation};
use crate::base::limits::{RATE_AHEAD_MAX, RATES_MAX};
use crate::base::timestamp::Timestamp;
use crate::catalog::meter::has_repeats;

/// An exchange rate: the number of major units of `to` for one major unit of `from`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ExchangeRate {
    pub from: Currency,
    pub to: Currency,
    pub rate: Amount,
    /// The instant from which the rate holds.
    pub as_of: Timestamp,
}

impl ExchangeRate {
    /// Converts an amount from minor units of `from` to minor units of `to`.
    #[must_use]
    pub fn converted(&self, amount: &Amount) -> Amount {
        let digits = |currency: Currency| i32::try_from(currency.digits()).unwrap_or_default();
        (amount * &self.rate).shifted(digits(self.to) - digits(self.from))
    }
}

impl ExchangeRate {
    /// Reads a rate from a request. Without `as_of` the rate is in effect from now.
    pub fn read(value: Value, now: Timestamp) -> Parsed<Self> {
        let mut fields = ObjectParser::new(value)?;
        let from = fields.required("from", Currency::read);
        let to = fields.required("to", Currency::read);
        let rate = fields.required("rate", |value| {
            let rate = amount::read(value)?;
            if rate.is_zero() {
                return Violation::only("invalid_value", "must be greater than 0");
            }
            Ok(rate)
        });
        let as_of = fields.optional("as_of", |value| {
            let as_of = fields::timestamp(value)?;
            if as_of > now.saturating_add(RATE_AHEAD_MAX) {
                return Violation::only("timestamp_in_future", "must be at most 5 minutes ahead of now");
            }
            Ok(as_of)
        });
        if let (Some(from), Some(to)) = (from, to)
            && from == to
        {
            fields.add_error(
                Violation::new("same_currency", "must be another currency than `from`").under("to"),
            );
        }
        let (from, to, rate) = fields.finish_with((from, to, rate))?;
        Ok(Self { from, to, rate, as_of: as_of.unwrap_or(now) })
    }

    /// Reads `{"rates": […]}` or a single rate.
    pub fn read_all(value: Value, now: Timestamp) -> Parsed<Vec<Self>> {
        if value.get("rates").is_none() {
            return Ok(vec![Self::read(value, now)?]);
        }
        let mut fields = ObjectParser::new(value)?;
        let rates = fields.list("rates", RATES_MAX, |value| Self::read(value, now));
        if rates.is_empty() && !fields.has_errors() {
            fields.add_error(Violation::new("empty", "must contain at least one rate").under("rates"));
        }
        let names: Vec<_> = rates.iter().map(|rate| (rate.from, rate.to, rate.as_of)).collect();
        if has_repeats(&names) {
            let detail = "must contain one rate per pair of currencies and time; remove the duplicate";
            fields.add_error(Violation::new("duplicate_key", detail).under("rates"));
        }
        fields.finish()?;
        Ok(rates)
    }
}

/// Exchange rates by pair of currencies and time.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rates(BTreeMap<(Currency, Currency), BTreeMap<Timestamp, ExchangeRate>>);

impl FromIterator<ExchangeRate> for Rates {
    fn from_iter<I: IntoIterator<Item = ExchangeRate>>(rates: I) -> Self {
        let mut known = Self::default();
        for rate in rates {
            known.0.entry((rate.from, rate.to)).or_default().insert(rate.as_of, rate);
        }
        known
    }
}

impl Rates {
    /// Returns the rate between two currencies, or a violation if it is missing.
    pub fn known(&self, from: Currency, to: Currency, at: Timestamp) -> Parsed<&ExchangeRate> {
        self.at(from, to, at).ok_or_else(|| {
            let detail = format!(
                "must be a currency with an exchange rate from {from}; got {to}: set a rate with `PUT /v1/rates`"
            );
            Violation::new("no_rate", detail).under("currency").into()
        })
    }

    /// Returns the latest rate that holds at an instant.
    pub fn at(&self, from: Currency, to: Currency, at: Timestamp) -> Option<&ExchangeRate> {
        Some(self.0.get(&(from, to))?.range(..=at).next_back()?.1)
    }

    /// Returns the time of the first rate after an instant.
    pub fn next_after(&self, from: Currency, to: Currency, at: Timestamp) -> Option<Timestamp> {
        Some(*self.0.get(&(from, to))?.range((Bound::Excluded(at), Bound::Unbounded)).next()?.0)
    }

    /// Returns the rates that hold at an instant, by currency pair.
    pub fn in_force(&self, at: Timestamp) -> impl Iterator<Item = &ExchangeRate> {
        self.0.values().filter_map(move |rates| Some(rates.range(..=at).next_back()?.1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exchange_rates_apply_from_their_time_in_one_direction() {
        let currency = |code: &str| Currency::parse(code).unwrap();
        let at = |text: &str| Timestamp::parse(text).unwrap();
        let rate = |to, rate, as_of| ExchangeRate {
            from: currency("usd"),
            to: currency(to),
            rate: Amount::from_decimal(rate).unwrap(),
            as_of: at(as_of),
        };
        let rates: Rates = [
            rate("jpy", "150.5", "2026-01-02T00:00:00Z"),
            rate("jpy", "149", "2026-01-01T00:00:00Z"),
            rate("kwd", "0.3", "2026-01-01T00:00:00Z"),
        ]
        .into_iter()
        .collect();
        let converted = |to, when: &str, cents: &str| {
            let found = rates.at(currency("usd"), currency(to), at(when));
            found.map(|rate| rate.converted(&Amount::from_decimal(cents).unwrap()).to_string())
        };
        assert_eq!(converted("jpy", "2026-01-01T12:00:00Z", "250"), Some("372.5".to_owned()));
        assert_eq!(converted("jpy", "2026-01-02T00:00:00Z", "200"), Some("301".to_owned()));
        assert_eq!(converted("kwd", "2026-01-02T00:00:00Z", "100"), Some("300".to_owned()));
        assert_eq!(converted("jpy", "2025-12-31T23:59:59Z", "1"), None);
        assert_eq!(rates.at(currency("jpy"), currency("usd"), at("2026-02-01T00:00:00Z")), None);
        let next = |when: &str| rates.next_after(currency("usd"), currency("jpy"), at(when));
        assert_eq!(next("2026-01-01T00:00:00Z"), Some(at("2026-01-02T00:00:00Z")));
        assert_eq!(next("2026-01-02T00:00:00Z"), None);
    }
}
