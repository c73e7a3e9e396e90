//! What usage costs: read in one snapshot, apart for each price, and rated by the prices that were in
//! force when it happened. Sums and counts are told apart by the prices' slices in one question per
//! meter; levels are read for each price by itself.

use std::collections::BTreeMap;

use serde::Serialize;
use sqlx::PgConnection;

use super::{EngineError, reading};
use crate::domain::environment::Environment;
use crate::domain::gate::standing::Terms;
use crate::domain::meter::StoredMeter;
use crate::domain::names::ItemKey;
use crate::domain::pricing::amount::MinorUnits;
use crate::domain::pricing::currency::Currency;
use crate::domain::pricing::exchange::Rate;
use crate::domain::pricing::list::PriceList;
use crate::domain::pricing::price::{Model, Price};
use crate::domain::pricing::quote::Unpriced;
use crate::domain::pricing::rating::{Line, Used};
use crate::domain::quantity::Total;
use crate::domain::timestamp::Timestamp;
use crate::domain::usage::{Slice, UsageQuery, Whose};
use crate::domain::window::{Span, Zone};
use crate::store;
use crate::store::event_fees::Fee;

/// What usage comes to, price by price.
#[derive(Debug, Clone, Default)]
pub(super) struct Cost {
    pub(super) lines: Vec<Line>,
    /// What no price rates of the meters that have prices and add up.
    pub(super) unpriced: Vec<Unpriced>,
}

/// The same as it is shown, in the currency that was asked for.
#[derive(Debug, Clone, Serialize)]
pub struct CostView {
    pub currency: Currency,
    pub lines: Vec<Line>,
    /// The sum of the rounded lines.
    pub total: MinorUnits,
    /// Between the currency of the prices and the one asked for, where they differ.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exchange_rate: Option<Rate>,
    /// What no price rates.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unpriced: Vec<Unpriced>,
}

impl CostView {
    pub(super) fn of(cost: Cost, currency: Currency, exchange_rate: Option<Rate>) -> Self {
        let converted = |line: Line| exchange_rate.as_ref().map_or(line.clone(), |rate| line.converted(rate));
        let lines: Vec<Line> = cost.lines.into_iter().map(converted).collect();
        Self {
            currency: exchange_rate.as_ref().map_or(currency, |rate| rate.to),
            total: lines.iter().map(|line| line.rounded_amount.clone()).sum(),
            lines,
            exchange_rate,
            unpriced: cost.unpriced,
        }
    }
}

/// What was used of what prices rate, between bounds.
#[derive(Debug, Clone, Default)]
pub(super) struct Rated<'a> {
    pub(super) used: BTreeMap<&'a ItemKey, Used>,
    pub(super) unpriced: Vec<Unpriced>,
}

/// What the usage on some paths costs in a span, in the currency of the list: one line for each price
/// that has something to say about it.
pub(super) async fn lines(
    snapshot: &mut PgConnection,
    environment: Environment,
    terms: &Terms,
    list: &PriceList<'_>,
    paths: &[i64],
    span: Span,
) -> Result<Cost, EngineError> {
    let bounds = [span.from, span.to];
    let mut parts = rated(snapshot, environment, terms, list, paths, &bounds).await?;
    let part = parts.pop().unwrap_or_default();
    let line = |price: &Price| price.rate(part.used.get(&price.key).unwrap_or(&Used::default()));
    Ok(Cost { lines: list.in_force_in(span).map(line).collect(), unpriced: part.unpriced })
}

/// What was used of what each price rates on some paths, between one bound and the next.
pub(super) async fn rated<'a>(
    snapshot: &mut PgConnection,
    environment: Environment,
    terms: &Terms,
    list: &PriceList<'a>,
    paths: &[i64],
    bounds: &[Timestamp],
) -> Result<Vec<Rated<'a>>, EngineError> {
    let mut parts = vec![Rated::default(); bounds.len().saturating_sub(1)];
    for meter in list.meters() {
        let Some(stored) = terms.meter(meter) else { continue };
        let prices: Vec<&Price> = list.of_meter(meter).collect();
        let mut asked = Asked { environment, stored, prices: &prices, paths, bounds };
        if stored.meter.aggregation.is_reservable() {
            asked.sums(snapshot, &mut parts).await?;
        } else {
            asked.levels(snapshot, &mut parts).await?;
        }
    }
    Ok(parts)
}

/// A question for what the prices of one meter rate.
struct Asked<'q, 'a> {
    environment: Environment,
    stored: &'q StoredMeter,
    /// By precedence.
    prices: &'q [&'a Price],
    paths: &'q [i64],
    bounds: &'q [Timestamp],
}

impl<'a> Asked<'_, 'a> {
    async fn sums(
        &mut self,
        snapshot: &mut PgConnection,
        parts: &mut [Rated<'a>],
    ) -> Result<(), EngineError> {
        let slices = self.prices.iter().map(|price| price.slice()).collect();
        let query = self.question(self.span(), BTreeMap::new(), slices);
        let Self { environment, stored, paths, bounds, .. } = *self;
        let found = reading::found_on(snapshot, environment, stored, &query, Some(paths), bounds).await?;
        for ((index, group), found) in found {
            let Some(part) = parts.get_mut(index) else { continue };
            let quantity = found.sum.unwrap_or_default();
            match group.slice.and_then(|place| self.prices.get(place)) {
                Some(price) => {
                    part.used.insert(&price.key, Used::of_sum(price, quantity, found.count));
                }
                None if quantity == Total::default() => {}
                None => part.unpriced.push(Unpriced { meter: stored.meter.key.clone(), quantity }),
            }
        }
        for (place, price) in self.prices.iter().enumerate() {
            if !price.model.bounds_events() {
                continue;
            }
            let Some(fee) = fee(&price.model) else { continue };
            let fees =
                store::event_fees::sums(snapshot, environment, stored, (&query, place), paths, bounds, fee)
                    .await?;
            for (index, event_fees) in fees {
                if let Some(used) = parts.get_mut(index).and_then(|part| part.used.get_mut(&price.key)) {
                    used.event_fees = event_fees;
                }
            }
        }
        Ok(())
    }

    async fn levels(
        &mut self,
        snapshot: &mut PgConnection,
        parts: &mut [Rated<'a>],
    ) -> Result<(), EngineError> {
        let Self { environment, stored, paths, bounds, .. } = *self;
        for price in self.prices {
            let slice = price.slice();
            // a level needs no slice beside others: it is read for what is this price's alone
            let span = self.span().intersect(Span {
                from: slice.from.unwrap_or(Timestamp::MIN),
                to: slice.to.unwrap_or(Timestamp::MAX),
            });
            if span.is_empty() {
                continue;
            }
            let query = self.question(span, slice.filter, Vec::new());
            let found = reading::found_on(snapshot, environment, stored, &query, Some(paths), bounds).await?;
            for ((index, _), found) in found {
                let Some(part) = parts.get_mut(index) else { continue };
                let level = found.value(stored.meter.aggregation).unwrap_or_default();
                part.used.insert(&price.key, Used::of_sum(price, level, found.count));
            }
        }
        Ok(())
    }

    fn span(&self) -> Span {
        let edge = |edge: Option<&Timestamp>| edge.copied().unwrap_or(Timestamp::MIN);
        Span { from: edge(self.bounds.first()), to: edge(self.bounds.last()) }
    }

    fn question(&self, span: Span, filter: BTreeMap<String, Vec<String>>, slices: Vec<Slice>) -> UsageQuery {
        UsageQuery {
            meter: self.stored.meter.key.clone(),
            span,
            window: None,
            zone: Zone::default(),
            subjects: Vec::new(),
            descendants: false,
            whose: Whose::All,
            group_by: Vec::new(),
            filter,
            slices,
            fill: false,
        }
    }
}

/// What a percentage takes of each event.
fn fee(model: &Model) -> Option<Fee<'_>> {
    let Model::Percentage { rate, fixed_amount, event_minimum, event_maximum } = model else { return None };
    Some(Fee { rate, fixed_amount, least: event_minimum.as_ref(), most: event_maximum.as_ref() })
}
