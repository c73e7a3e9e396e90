//! Which price rates what: the prices of one currency, by precedence. Of those in force, the one that
//! names most dimensions of a use rates it, of several that name as many the one that is listed first; one
//! without a filter is the default for the rest.

use std::collections::BTreeSet;

use super::currency::Currency;
use super::price::Price;
use crate::base::fields::{Parsed, Violation};
use crate::base::names::MeterKey;
use crate::base::timestamp::Timestamp;
use crate::base::window::Span;
use crate::catalog::meter::has_repeats;
use crate::usage::event::Properties;
use crate::usage::query::UsageSlice;

#[derive(Debug, Clone)]
pub struct PriceList<'a> {
    pub currency: Currency,
    /// As they are listed.
    prices: Vec<&'a Price>,
    /// What names more dimensions comes first.
    by_precedence: Vec<&'a Price>,
}

impl<'a> PriceList<'a> {
    /// Those of one currency.
    pub fn of(prices: &'a [Price], currency: Currency) -> Self {
        let prices: Vec<&Price> = prices.iter().filter(|price| price.currency == currency).collect();
        let mut by_precedence = prices.clone();
        by_precedence.sort_by_key(|price| std::cmp::Reverse(price.filter.iter().count()));
        Self { currency, prices, by_precedence }
    }

    /// Those of the currency asked for, else of the first that there are prices in.
    pub fn nearest_to(prices: &'a [Price], currency: Option<Currency>) -> Option<Self> {
        let has = |currency: Currency| prices.iter().any(|price| price.currency == currency);
        let first = prices.first()?.currency;
        Some(Self::of(prices, currency.filter(|currency| has(*currency)).unwrap_or(first)))
    }

    pub fn prices(&self) -> impl Iterator<Item = &'a Price> {
        self.prices.iter().copied()
    }

    /// Those of a meter, by precedence.
    pub fn of_meter(&self, meter: &MeterKey) -> impl Iterator<Item = &'a Price> {
        self.by_precedence.iter().copied().filter(move |price| price.meter.as_ref() == Some(meter))
    }

    /// What each price of a meter rates, by precedence.
    pub fn slices(&self, meter: &MeterKey) -> Vec<UsageSlice> {
        self.of_meter(meter).map(Price::slice).collect()
    }

    /// The meters that have prices.
    pub fn meters(&self) -> BTreeSet<&'a MeterKey> {
        self.prices().filter_map(|price| price.meter.as_ref()).collect()
    }

    /// What rates a use of a meter.
    pub fn rating(&self, meter: &MeterKey, properties: &Properties, at: Timestamp) -> Option<&'a Price> {
        self.of_meter(meter).find(|price| price.is_in_force(at) && price.filter.admits(properties))
    }

    /// The dimensions by which the prices of a meter differ.
    pub fn dimensions(&self, meter: &MeterKey) -> Vec<String> {
        let names =
            self.of_meter(meter).flat_map(|price| price.filter.iter().map(|(name, _)| name.to_owned()));
        names.collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// A range cut where prices of a meter come into force or go out of it.
    pub fn segments(&self, meter: &MeterKey, span: Span) -> Vec<Span> {
        let edges =
            self.of_meter(meter).flat_map(|price| [price.effective_from, price.effective_to]).flatten();
        let mut edges: BTreeSet<Timestamp> = edges.filter(|edge| span.contains(*edge)).collect();
        edges.extend([span.from, span.to]);
        let edges: Vec<Timestamp> = edges.into_iter().collect();
        edges.windows(2).map(|pair| Span { from: pair[0], to: pair[1] }).collect()
    }

    /// Those that have something to say about a period: of a meter, if they are in force at some time
    /// of it; without one, if they are at its start, when a fee for the whole of it is due.
    pub fn in_force_in(&self, span: Span) -> impl Iterator<Item = &'a Price> {
        self.prices().filter(move |price| match price.meter {
            None => price.is_in_force(span.from),
            Some(_) => {
                price.effective_from.is_none_or(|from| from < span.to)
                    && price.effective_to.is_none_or(|to| span.from < to)
            }
        })
    }
}

/// Two prices cannot have one key, nor rate the same use at the same time by the same dimensions. `beside`:
/// others of other keys, which are in order.
pub fn validate_price_list(prices: &[Price], beside: &[&Price]) -> Parsed<()> {
    let mut violations = Vec::new();
    if has_repeats(&prices.iter().map(|price| &price.key).collect::<Vec<_>>()) {
        violations.push(Violation::new("duplicate_key", "must use each key of a price once"));
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
            // whichever is listed first
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
