//! Measured usage of meters and of the slices that their prices rate, by part of a range. Consecutive parts
//! can be joined.

use std::collections::BTreeMap;

use super::amount::Amount;
use super::line::RatedLine;
use super::price::Price;
use super::price_book::PriceBook;
use super::rating::RatedQuantity;
use crate::base::names::{ItemKey, MeterKey};
use crate::base::quantity::Total;
use crate::base::window::Span;
use crate::catalog::meter::Aggregation;
use crate::usage::query::Aggregate;

/// The usage of a meter or of a slice of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeterTotal {
    pub aggregation: Aggregation,
    pub found: Aggregate,
    /// The sum of the fees of single events; only for prices that bound the fee of each event.
    pub event_fees: Option<Amount>,
}

impl MeterTotal {
    pub fn of(aggregation: Aggregation, found: Aggregate) -> Self {
        Self { aggregation, found, event_fees: None }
    }

    /// Adds the usage of a later part.
    pub fn join(&mut self, later: &Self) {
        self.found = self.found.with_later(&later.found, self.aggregation);
        self.event_fees = match (self.event_fees.take(), later.event_fees.clone()) {
            (Some(fees), Some(more)) => Some(fees + more),
            (fees, more) => fees.or(more),
        };
    }

    pub fn value(&self) -> Option<Total> {
        self.found.value(self.aggregation)
    }

    /// Returns the usage as the quantity that a price rates.
    pub fn used(&self, price: &Price) -> RatedQuantity {
        let mut used = RatedQuantity::of_sum(price, self.value().unwrap_or_default(), self.found.count);
        if let Some(fees) = &self.event_fees {
            used.event_fees = fees.clone();
        }
        used
    }
}

/// The usage found in one part of a range.
#[derive(Debug, Clone, Default)]
pub struct RatedUsage<'a> {
    /// The usage by meter, regardless of the price that rates it.
    pub meters: BTreeMap<&'a MeterKey, MeterTotal>,
    /// The usage that each price rates.
    pub priced: BTreeMap<&'a ItemKey, MeterTotal>,
    /// The usage that no price rates, for additive meters with prices.
    pub unpriced: BTreeMap<&'a MeterKey, Total>,
}

impl RatedUsage<'_> {
    /// Adds the usage of a later part.
    pub fn join(&mut self, later: &Self) {
        let join = |known: &mut MeterTotal, more: &MeterTotal| known.join(more);
        for (key, more) in &later.meters {
            self.meters.entry(key).and_modify(|known| join(known, more)).or_insert_with(|| more.clone());
        }
        for (key, more) in &later.priced {
            self.priced.entry(key).and_modify(|known| join(known, more)).or_insert_with(|| more.clone());
        }
        for (key, more) in &later.unpriced {
            let known = self.unpriced.entry(key).or_default();
            *known = *known + *more;
        }
    }

    /// Returns the quantity that a price rates.
    pub fn used(&self, price: &Price) -> RatedQuantity {
        self.priced.get(&price.key).map(|taken| taken.used(price)).unwrap_or_default()
    }

    /// Returns one line for each price that is in force in the span of this usage.
    pub fn lines(&self, book: &PriceBook, span: Span) -> Vec<RatedLine> {
        book.in_force_in(span).map(|price| price.rate(&self.used(price))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rated_usage_merges_by_each_meters_aggregation() {
        let total = |units: i64| Total::from(units);
        let sum = |count, units| Aggregate { count, sum: Some(total(units)), picked: None };
        let pick = |count, units: Option<i64>| Aggregate { count, sum: None, picked: units.map(total) };
        // new members of each part, and all members seen in it
        let members =
            |count, fresh, seen| Aggregate { count, sum: Some(total(fresh)), picked: Some(total(seen)) };
        let cases = [
            (Aggregation::Sum, vec![sum(2, 5), sum(1, -7)], Some("-2")),
            (Aggregation::Count, vec![sum(2, 2), sum(1, 1)], Some("3")),
            (Aggregation::Avg, vec![sum(2, 5), sum(2, 1)], Some("1.5")),
            (Aggregation::Max, vec![pick(1, Some(4)), pick(1, Some(9)), pick(1, Some(2))], Some("9")),
            (Aggregation::Min, vec![pick(1, Some(4)), pick(1, Some(2)), pick(1, Some(9))], Some("2")),
            (Aggregation::Last, vec![pick(1, Some(4)), pick(1, Some(2)), pick(1, None)], Some("2")),
            (Aggregation::UniqueCount, vec![members(3, 3, 3), members(5, 1, 4)], Some("4")),
            (Aggregation::UniqueCount, vec![pick(3, Some(3))], Some("3")),
            (Aggregation::Max, vec![], None),
        ];
        for (aggregation, parts, expected) in cases {
            let mut all = MeterTotal::of(aggregation, Aggregate::default());
            for found in &parts {
                all.join(&MeterTotal::of(aggregation, *found));
            }
            assert_eq!(all.value().map(|value| value.to_string()).as_deref(), expected, "{aggregation:?}");
        }
    }
}
