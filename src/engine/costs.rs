//! What usage costs: read in one snapshot, apart for each price, and rated by the prices that were in
//! force when it happened. Sums and counts are told apart by the prices' slices, in one question per
//! meter; levels are read for each price by itself.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use sqlx::PgConnection;

use super::EngineError;
use super::reading::Ground;
use crate::domain::environment::Environment;
use crate::domain::meter::{Aggregation, StoredMeter};
use crate::domain::names::MeterKey;
use crate::domain::pricing::amount::MinorUnits;
use crate::domain::pricing::currency::Currency;
use crate::domain::pricing::exchange::Rate;
use crate::domain::pricing::list::PriceList;
use crate::domain::pricing::parts::{Part, Taken};
use crate::domain::pricing::price::{Model, Price};
use crate::domain::pricing::quote::Unpriced;
use crate::domain::pricing::rating::Line;
use crate::domain::quantity::Total;
use crate::domain::statement::{Pricing, Statement};
use crate::domain::timestamp::Timestamp;
use crate::domain::usage::{Found, Group, Slice, UsageQuery, Whose};
use crate::domain::window::{Span, Zone};
use crate::store;
use crate::store::event_fees::Fee;
use crate::store::usage::{Holders, Question};

/// What usage comes to, price by price, in the currency that was asked for.
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
    pub(super) fn of(statement: &Statement<'_>, total: &Part<'_>, pricing: Pricing<'_>) -> Self {
        let lines = statement.lines(total, pricing);
        Self {
            currency: pricing.currency(),
            total: lines.iter().map(|line| line.rounded_amount.clone()).sum(),
            lines,
            exchange_rate: pricing.rate.cloned(),
            unpriced: unpriced(total, pricing.list),
        }
    }
}

/// What no price rates, by meter: of meters that have prices a part, of others all.
fn unpriced(part: &Part<'_>, list: &PriceList<'_>) -> Vec<Unpriced> {
    let (with_prices, mut found) = (list.meters(), part.unpriced.clone());
    for (meter, taken) in &part.meters {
        if let Some(value) = taken.value().filter(|_| !with_prices.contains(meter)) {
            found.insert(*meter, value);
        }
    }
    let unpriced = |(meter, quantity): (&MeterKey, Total)| Unpriced { meter: meter.clone(), quantity };
    found.into_iter().map(unpriced).collect()
}

/// What was found, by holder and by the number of the part between bounds.
pub(super) type Parts<'a> = BTreeMap<(Option<String>, usize), Part<'a>>;

/// A look at usage on some paths, between one bound and the next.
#[derive(Debug, Clone, Copy)]
pub(super) struct Look<'l, 'a> {
    pub(super) environment: Environment,
    pub(super) paths: &'l [i64],
    /// For whom the paths are kept apart; none: all are one.
    pub(super) holders: Option<&'l Holders>,
    pub(super) bounds: &'l [Timestamp],
    /// From which bound on levels are looked at; before it only what adds up.
    pub(super) levels_from: usize,
    pub(super) list: Option<&'l PriceList<'a>>,
    pub(super) ground: &'l Ground,
}

impl<'a> Look<'_, 'a> {
    /// What was found of meters, and of what their prices rate.
    pub(super) async fn parts<'m: 'a>(
        &self,
        snapshot: &mut PgConnection,
        meters: &[&'m StoredMeter],
    ) -> Result<Parts<'a>, EngineError> {
        let mut parts = Parts::default();
        let with_prices: BTreeSet<&MeterKey> = self.list.map(PriceList::meters).unwrap_or_default();
        for stored in meters {
            let prices: Vec<&'a Price> = match self.list {
                Some(list) if with_prices.contains(&stored.meter.key) => {
                    list.of_meter(&stored.meter.key).collect()
                }
                _ => Vec::new(),
            };
            if stored.meter.aggregation.is_reservable() {
                self.sums(snapshot, stored, &prices, &mut parts).await?;
            } else {
                self.levels(snapshot, stored, &prices, &mut parts).await?;
            }
        }
        Ok(parts)
    }

    async fn sums<'m: 'a>(
        &self,
        snapshot: &mut PgConnection,
        stored: &'m StoredMeter,
        prices: &[&'a Price],
        parts: &mut Parts<'a>,
    ) -> Result<(), EngineError> {
        let key = &stored.meter.key;
        let slices = prices.iter().map(|price| price.slice()).collect();
        let query = query(stored, self.span(0), BTreeMap::new(), slices);
        let question = self.question(stored, &query, self.bounds);
        for ((index, group), found) in self.found(snapshot, &question).await? {
            let part = parts.entry((group.subject, index)).or_default();
            let taken = Taken::of(stored.meter.aggregation, found);
            part.meters.entry(key).and_modify(|known| known.join(&taken)).or_insert_with(|| taken.clone());
            match group.slice.and_then(|place| prices.get(place)) {
                Some(price) => {
                    part.priced.insert(&price.key, taken);
                }
                None if prices.is_empty() => {}
                None => {
                    part.unpriced.insert(key, found.sum.unwrap_or_default());
                }
            }
        }
        for (place, price) in prices.iter().enumerate() {
            let Some(fee) = Some(&price.model).filter(|model| model.bounds_events()).and_then(fee) else {
                continue;
            };
            let fees = store::event_fees::sums(snapshot, self.environment, &question, place, fee).await?;
            for (whose, event_fees) in fees {
                let part = parts.get_mut(&whose);
                if let Some(taken) = part.and_then(|part| part.priced.get_mut(&price.key)) {
                    taken.event_fees = Some(event_fees);
                }
            }
        }
        Ok(())
    }

    async fn levels<'m: 'a>(
        &self,
        snapshot: &mut PgConnection,
        stored: &'m StoredMeter,
        prices: &[&'a Price],
        parts: &mut Parts<'a>,
    ) -> Result<(), EngineError> {
        let (aggregation, span) = (stored.meter.aggregation, self.span(self.levels_from));
        let slices: Vec<Slice> = prices.iter().map(|price| price.slice()).collect();
        let whole = |slice: &Slice| slice.filter.is_empty() && slice.within(span) == span;
        for (whose, found) in self.level(snapshot, stored, BTreeMap::new(), span).await? {
            let part = parts.entry(whose).or_default();
            let taken = Taken::of(aggregation, found);
            for (price, _) in prices.iter().zip(&slices).filter(|(_, slice)| whole(slice)) {
                part.priced.insert(&price.key, taken.clone());
            }
            part.meters.insert(&stored.meter.key, taken);
        }
        for (price, slice) in prices.iter().zip(slices).filter(|(_, slice)| !whole(slice)) {
            let within = slice.within(span);
            for (whose, found) in self.level(snapshot, stored, slice.filter, within).await? {
                parts.entry(whose).or_default().priced.insert(&price.key, Taken::of(aggregation, found));
            }
        }
        Ok(())
    }

    /// A level, part by part.
    async fn level(
        &self,
        snapshot: &mut PgConnection,
        stored: &StoredMeter,
        filter: BTreeMap<String, Vec<String>>,
        span: Span,
    ) -> Result<Vec<((Option<String>, usize), Found)>, EngineError> {
        if span.is_empty() {
            return Ok(Vec::new());
        }
        let bounds = &self.bounds[self.levels_from..];
        let mut query = query(stored, span, filter, Vec::new());
        query.tells_new = stored.meter.aggregation == Aggregation::UniqueCount && bounds.len() > 2;
        let found = self.found(snapshot, &self.question(stored, &query, bounds)).await?;
        let whose = |(index, group): (usize, Group)| (group.subject, index + self.levels_from);
        Ok(found.into_iter().map(|(place, found)| (whose(place), found)).collect())
    }

    async fn found(
        &self,
        snapshot: &mut PgConnection,
        question: &Question<'_>,
    ) -> Result<BTreeMap<(usize, Group), Found>, EngineError> {
        self.ground.found(snapshot, self.environment, question).await
    }

    fn question<'q>(
        &'q self,
        stored: &'q StoredMeter,
        query: &'q UsageQuery,
        bounds: &'q [Timestamp],
    ) -> Question<'q> {
        Question {
            stored,
            query,
            paths: Some(self.paths),
            holders: self.holders,
            bounds,
            is_usual: self.holders.is_none(),
        }
    }

    fn span(&self, from: usize) -> Span {
        let edge = |edge: Option<&Timestamp>| edge.copied().unwrap_or(Timestamp::MIN);
        Span { from: edge(self.bounds.get(from)), to: edge(self.bounds.last()) }
    }
}

/// What a percentage takes of each event.
fn fee(model: &Model) -> Option<Fee<'_>> {
    let Model::Percentage { rate, fixed_amount, event_minimum, event_maximum } = model else { return None };
    Some(Fee { rate, fixed_amount, least: event_minimum.as_ref(), most: event_maximum.as_ref() })
}

fn query(
    stored: &StoredMeter,
    span: Span,
    filter: BTreeMap<String, Vec<String>>,
    slices: Vec<Slice>,
) -> UsageQuery {
    UsageQuery {
        meter: stored.meter.key.clone(),
        span,
        window: None,
        zone: Zone::default(),
        subjects: Vec::new(),
        descendants: false,
        whose: Whose::All,
        group_by: Vec::new(),
        filter,
        slices,
        tells_new: false,
        fill: false,
    }
}
