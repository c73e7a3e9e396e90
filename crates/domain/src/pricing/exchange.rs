//! Exchange rates as they were set, each with its time. Where none was, nothing is guessed: neither
//! from the other direction nor by way of a third currency.

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

/// So many major units of one currency for one of another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ExchangeRate {
    pub from: Currency,
    pub to: Currency,
    pub rate: Amount,
    /// Since when it holds.
    pub as_of: Timestamp,
}

impl ExchangeRate {
    /// An amount in minor units of the one as minor units of the other.
    #[must_use]
    pub fn converted(&self, amount: &Amount) -> Amount {
        let digits = |currency: Currency| i32::try_from(currency.digits()).unwrap_or_default();
        (amount * &self.rate).shifted(digits(self.to) - digits(self.from))
    }
}

impl ExchangeRate {
    /// Reads a rate as a caller states it: without `as_of` it holds from now.
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

    /// Reads `{"rates": […]}`, or one rate alone.
    pub fn read_all(value: Value, now: Timestamp) -> Parsed<Vec<Self>> {
        if value.get("rates").is_none() {
            return Ok(vec![Self::read(value, now)?]);
        }
        let mut fields = ObjectParser::new(value)?;
        let rates = fields.list("rates", RATES_MAX, |value| Self::read(value, now));
        if rates.is_empty() && !fields.has_errors() {
            fields.add_error(Violation::new("empty", "must have at least one rate").under("rates"));
        }
        let names: Vec<_> = rates.iter().map(|rate| (rate.from, rate.to, rate.as_of)).collect();
        if has_repeats(&names) {
            let detail = "must state each rate of a time once";
            fields.add_error(Violation::new("duplicate_key", detail).under("rates"));
        }
        fields.finish()?;
        Ok(rates)
    }
}

/// By their currencies and times.
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
    /// Returns the rate between two currencies, or the error that there is none.
    pub fn known(&self, from: Currency, to: Currency, at: Timestamp) -> Parsed<&ExchangeRate> {
        self.at(from, to, at).ok_or_else(|| {
            let detail = format!(
                "must be a currency with an exchange rate from {from}; got {to}: set a rate with `PUT /v1/rates`"
            );
            Violation::new("no_rate", detail).under("currency").into()
        })
    }

    /// The latest that holds at a time.
    pub fn at(&self, from: Currency, to: Currency, at: Timestamp) -> Option<&ExchangeRate> {
        Some(self.0.get(&(from, to))?.range(..=at).next_back()?.1)
    }

    /// When another comes to hold after a time.
    pub fn next_after(&self, from: Currency, to: Currency, at: Timestamp) -> Option<Timestamp> {
        Some(*self.0.get(&(from, to))?.range((Bound::Excluded(at), Bound::Unbounded)).next()?.0)
    }

    /// Those that hold at a time, by their currencies.
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
