//! Exchange rates as they were set, each with its time. Where none was, nothing is guessed: neither
//! from the other direction nor by way of a third currency.

use serde::Serialize;

use super::amount::Amount;
use super::currency::Currency;
use crate::domain::timestamp::Timestamp;

/// So many major units of one currency for one of another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Rate {
    pub from: Currency,
    pub to: Currency,
    pub rate: Amount,
    /// Since when it holds.
    pub as_of: Timestamp,
}

impl Rate {
    /// An amount in minor units of the one as minor units of the other.
    #[must_use]
    pub fn converted(&self, amount: &Amount) -> Amount {
        let digits = |currency: Currency| i32::try_from(currency.digits()).unwrap_or_default();
        (amount * &self.rate).shifted(digits(self.to) - digits(self.from))
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rates(Vec<Rate>);

impl FromIterator<Rate> for Rates {
    fn from_iter<I: IntoIterator<Item = Rate>>(rates: I) -> Self {
        Self(rates.into_iter().collect())
    }
}

impl Rates {
    /// The latest that holds at a time.
    pub fn at(&self, from: Currency, to: Currency, at: Timestamp) -> Option<&Rate> {
        let holds = |rate: &&Rate| rate.from == from && rate.to == to && rate.as_of <= at;
        self.0.iter().filter(holds).max_by_key(|rate| rate.as_of)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_holds_from_its_time_in_its_direction() {
        let currency = |code: &str| Currency::parse(code).unwrap();
        let at = |text: &str| Timestamp::parse(text).unwrap();
        let rate = |to, rate, as_of| Rate {
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
    }
}
