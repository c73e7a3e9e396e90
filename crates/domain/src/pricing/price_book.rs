//! The prices of one currency, with their precedence. Among the prices in force for a use, the filter with
//! the most dimensions wins, then the first in the catalog. A price without a filter is the default.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use super::currency::Currency;
use super::exchange::{ExchangeRate, Rates};
use super::price::Price;
use crate::base::fields::{Parsed, Violation};
use crate::base::names::MeterKey;
use crate::base::timestamp::Timestamp;
use crate::base::window::Span;
use crate::catalog::meter::has_repeats;
use crate::usage::event::Properties;

/// The prices of a plan or a subscription in one currency.
#[derive(Debug, Clone)]
pub struct PriceBook {
    pub currency: Currency,
    /// The prices in the order of the catalog.
    entries: Vec<PriceEntry>,
    /// The indexes of the entries by descending number of filter dimensions.
    by_precedence: Vec<usize>,
}

#[derive(Debug, Clone)]
struct PriceEntry {
    price: Price,
    /// The indexes of the prices of the same meter that take precedence.
    rivals: Vec<usize>,
}

impl AsRef<PriceBook> for PriceBook {
    fn as_ref(&self) -> &PriceBook {
        self
    }
}

impl PriceBook {
    /// Builds the book of one currency.
    pub fn new(prices: &[Price], currency: Currency) -> Self {
        let entry = |price: &Price| PriceEntry { price: price.clone(), rivals: Vec::new() };
        let mut entries: Vec<PriceEntry> =
            prices.iter().filter(|price| price.currency == currency).map(entry).collect();
        let mut by_precedence: Vec<usize> = (0..entries.len()).collect();
        by_precedence.sort_by_key(|place| Reverse(entries[*place].price.filter.iter().count()));
        for (rank, place) in by_precedence.iter().enumerate() {
            let meter = entries[*place].price.meter.as_ref();
            let before = by_precedence[..rank].iter().copied();
            let rivals = before.filter(|other| entries[*other].price.meter.as_ref() == meter).collect();
            entries[*place].rivals = rivals;
        }
        Self { currency, entries, by_precedence }
    }

    /// Builds a book for each currency, in the order of their first prices.
    pub fn of_each_currency(prices: &[Price]) -> Vec<Self> {
        let mut currencies: Vec<Currency> = Vec::new();
        for price in prices {
            if !currencies.contains(&price.currency) {
                currencies.push(price.currency);
            }
        }
        currencies.into_iter().map(|currency| Self::new(prices, currency)).collect()
    }

    /// Returns the prices in the order of the catalog.
    pub fn prices(&self) -> impl Iterator<Item = &Price> {
        self.entries.iter().map(|entry| &entry.price)
    }

    /// Returns the prices of a meter by precedence.
    pub fn of_meter(&self, meter: &MeterKey) -> impl Iterator<Item = &Price> {
        let prices = self.by_precedence.iter().map(|place| &self.entries[*place].price);
        prices.filter(move |price| price.meter.as_ref() == Some(meter))
    }

    /// Returns the meters that have prices.
    pub fn meters(&self) -> BTreeSet<&MeterKey> {
        self.prices().filter_map(|price| price.meter.as_ref()).collect()
    }

    /// Returns the price that rates a use of a meter.
    pub fn rating(&self, meter: &MeterKey, properties: &Properties, at: Timestamp) -> Option<&Price> {
        self.of_meter(meter).find(|price| price.may_rate(properties, at))
    }

    /// Returns the prices with a line in a period. Prices of meters must be in force at some time of the
    /// period. Plan fees must be in force at its start, when they fall due.
    pub fn in_force_in(&self, span: Span) -> impl Iterator<Item = &Price> {
        self.prices().filter(move |price| match price.meter {
            None => price.is_in_force(span.from),
            Some(_) => price.is_in_force_within(span),
        })
    }

    /// Returns the exchange rate to another currency, or none if that is the currency of the book.
    pub fn exchanged_to(
        &self,
        currency: Option<Currency>,
        rates: &Rates,
        at: Timestamp,
    ) -> Parsed<Option<ExchangeRate>> {
        let wanted = currency.filter(|currency| *currency != self.currency);
        wanted.map(|wanted| rates.known(self.currency, wanted, at).cloned()).transpose()
    }

    /// Returns the slice of usage that the price at an index rates, or none for a plan fee.
    pub fn slice(&self, place: usize) -> Option<RatedSlice<'_>> {
        let PriceEntry { price, rivals } = self.entries.get(place)?;
        Some(RatedSlice { price, meter: price.meter.as_ref()?, book: self, rivals })
    }

    /// Returns the slices of all prices, with the indexes of the prices.
    pub fn slices(&self) -> impl Iterator<Item = (usize, RatedSlice<'_>)> {
        (0..self.entries.len()).filter_map(|place| Some((place, self.slice(place)?)))
    }
}

/// Returns the book of the requested currency, otherwise the first book.
pub fn nearest_to<T: AsRef<PriceBook>>(books: &[T], currency: Option<Currency>) -> Option<&T> {
    books.iter().find(|book| Some(book.as_ref().currency) == currency).or_else(|| books.first())
}

/// The usage of a meter that one price rates.
#[derive(Debug, Clone, Copy)]
pub struct RatedSlice<'a> {
    pub price: &'a Price,
    pub meter: &'a MeterKey,
    book: &'a PriceBook,
    rivals: &'a [usize],
}

impl<'a> RatedSlice<'a> {
    /// Returns the prices that take precedence, the strongest first.
    pub fn rivals(&self) -> impl Iterator<Item = &'a Price> + use<'a> {
        let book = self.book;
        self.rivals.iter().map(|place| &book.entries[*place].price)
    }

    /// Returns whether the price rates a use at an instant.
    pub fn admits(&self, properties: &Properties, at: Timestamp) -> bool {
        self.price.may_rate(properties, at) && !self.rivals().any(|rival| rival.may_rate(properties, at))
    }

    /// Returns the dimensions that decide whether the price rates a use.
    pub fn dimensions(&self) -> Vec<String> {
        let prices = self.rivals().chain([self.price]);
        let names = prices.flat_map(|price| price.filter.iter().map(|(name, _)| name.to_owned()));
        names.collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// Cuts a period at each start and end of the price and its rivals. Returns the parts in which the
    /// price is in force. Rivals do not cut gauges (`adds_up` is false), because gauges are not shared
    /// with them.
    pub fn segments(&self, period: Span, adds_up: bool) -> Vec<Span> {
        let prices = self.rivals().filter(|_| adds_up).chain([self.price]);
        let edges = prices.flat_map(|price| [price.effective_from, price.effective_to]).flatten();
        let mut edges: BTreeSet<Timestamp> = edges.filter(|edge| period.contains(*edge)).collect();
        edges.extend([period.from, period.to]);
        let starts = edges.iter().copied();
        let spans = starts.clone().zip(starts.skip(1)).map(|(from, to)| Span { from, to });
        spans.filter(|span| self.price.is_in_force(span.from)).collect()
    }
}

/// Validates a list of prices: keys must be unique, and no two prices may rate the same use at the same time
/// with equally many dimensions. The prices `beside` are valid and have other keys.
pub fn validate_price_list(prices: &[Price], beside: &[&Price]) -> Parsed<()> {
    let mut violations = Vec::new();
    if has_repeats(&prices.iter().map(|price| &price.key).collect::<Vec<_>>()) {
        violations.push(Violation::new(
            "duplicate_key",
            "must not contain two prices with one key; rename or remove one",
        ));
    }
    for (index, price) in prices.iter().enumerate() {
        violations.extend(
            price.currency.validate_not_withdrawn().map(|violation| violation.under(&index.to_string())),
        );
    }
    for (index, price) in prices.iter().enumerate().filter(|(_, price)| price.meter.is_some()) {
        let rival = |other: &&Price| {
            other.meter == price.meter
                && other.currency == price.currency
                && other.filter.is_alike(&price.filter)
                && !other.filter.excludes(&price.filter)
                && other.meets(price)
        };
        if let Some(other) = beside.iter().copied().chain(&prices[..index]).find(rival) {
            let detail = format!(
                "must not price the same use at the same time as `{}`; give it another filter or effective time",
                other.key
            );
            violations.push(Violation::new("overlapping_prices", detail).under(&index.to_string()));
        }
    }
    Violation::check_all(violations)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn price(key: &str, filter: Value, times: [&str; 2]) -> Price {
        let time = |day: &str| if day.is_empty() { Value::Null } else { json!(format!("{day}T00:00:00Z")) };
        let [from, to] = times.map(time);
        let price = json!({"key": key, "meter": "m", "filter": filter, "model": "per_unit", "currency": "usd",
                           "unit_amount": 1, "effective_from": from, "effective_to": to});
        Price::read(price.clone()).unwrap_or_else(|violations| panic!("{price}: {violations:?}"))
    }

    #[test]
    fn prices_with_the_same_dimensions_must_not_overlap() {
        let always = ["", ""];
        let (before, after) = (["", "2026-11-01"], ["2026-11-01", ""]);
        let cases = [
            (json!({"a": "x"}), always, json!({"a": "x"}), always, true),
            (json!({"a": ["x", "y"]}), always, json!({"a": ["y", "z"]}), always, true),
            (json!({"a": ["x", "y"]}), always, json!({"a": ["z"]}), always, false),
            (json!({"a": ["x", "y"]}), before, json!({"a": ["y", "z"]}), after, false),
            (json!({}), always, json!({}), always, true),
            (json!({}), always, json!({"a": "x"}), always, false),
            // the order of the list does not matter
            (json!({"a": "x"}), always, json!({"b": "x"}), always, false),
            (json!({"a": "x", "b": ["x", "y"]}), always, json!({"a": ["x", "y"], "b": "y"}), always, true),
            (json!({"a": "x", "b": "x"}), always, json!({"a": "x", "b": "y"}), always, false),
        ];
        for (one, when, other, then, overlaps) in cases {
            let [one, other] = [price("one", one, when), price("other", other, then)];
            let together = validate_price_list(&[one.clone(), other.clone()], &[]);
            let code = together.err().map(|violations| (violations[0].pointer.clone(), violations[0].code));
            assert_eq!(code, overlaps.then(|| ("/1".to_owned(), "overlapping_prices")), "{one:?} {other:?}");
            assert_eq!(validate_price_list(&[one], &[&other]).is_err(), overlaps, "{other:?}");
        }
    }
}
