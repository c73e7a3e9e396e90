//! The cost of usage, read in one snapshot and rated by the prices in force at the time of use. One query per
//! meter splits sums and counts by the slices of the prices. Each price reads a gauge separately. All queries
//! run together.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use sqlx::PgConnection;

use crate::engine::error::EngineError;
use crate::engine::usage::reader::read_each;
use crate::store::usage::fees::{SliceFee, fees};
use crate::store::usage::{AggregatesByGroup, HolderColumns, MeterQuery, RollupCoverage, UsageScope};
use metergate_domain::base::names::MeterKey;
use metergate_domain::base::{Environment, Span, Timestamp, Total};
use metergate_domain::catalog::{Aggregation, StoredMeter};
use metergate_domain::pricing::{
    CostBasis, Currency, ExchangeRate, MeterTotal, MinorUnits, PeriodCosts, Price, PriceBook, RatedLine,
    RatedUsage, Unpriced,
};
use metergate_domain::usage::UsageQuery;

/// The cost of usage by price, in the requested currency.
#[derive(Debug, Clone, Serialize)]
pub struct CostView {
    pub currency: Currency,
    pub lines: Vec<RatedLine>,
    /// The sum of the rounded lines.
    pub total: MinorUnits,
    /// The rate from the currency of the prices to the requested one, if they differ.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exchange_rate: Option<ExchangeRate>,
    /// The usage that no price rates.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unpriced: Vec<Unpriced>,
}

impl CostView {
    pub(crate) fn of(statement: &PeriodCosts<'_>, total: &RatedUsage<'_>, pricing: CostBasis<'_>) -> Self {
        let lines = statement.lines(total, pricing);
        Self {
            currency: pricing.currency(),
            total: lines.iter().map(|line| line.rounded_amount.clone()).sum(),
            lines,
            exchange_rate: pricing.rate.cloned(),
            unpriced: unpriced(total, pricing.book),
        }
    }
}

/// Returns the unpriced usage by meter: the unrated part of meters with prices, and all usage of the others.
fn unpriced(part: &RatedUsage<'_>, book: &PriceBook) -> Vec<Unpriced> {
    let (with_prices, mut found) = (book.meters(), part.unpriced.clone());
    for (meter, taken) in &part.meters {
        if let Some(value) = taken.value().filter(|_| !with_prices.contains(meter)) {
            found.insert(*meter, value);
        }
    }
    let unpriced = |(meter, quantity): (&MeterKey, Total)| Unpriced { meter: meter.clone(), quantity };
    found.into_iter().map(unpriced).collect()
}

/// The usage by holder and by the index of the part between bounds.
pub(crate) type UsageParts<'a> = BTreeMap<(Option<String>, usize), RatedUsage<'a>>;

/// A read of usage on some paths, part by part between the bounds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Look<'l, 'a> {
    pub(crate) environment: Environment,
    pub(crate) paths: &'l [i64],
    /// The columns that separate the holders of the paths. None means that all paths count together.
    pub(crate) holders: Option<&'l HolderColumns>,
    pub(crate) bounds: &'l [Timestamp],
    /// The index of the bound from which gauges are read; earlier parts have only sums and counts.
    pub(crate) levels_from: usize,
    pub(crate) book: Option<&'a PriceBook>,
    pub(crate) rollup_coverage: &'l RollupCoverage,
}

/// A query of a meter and its purpose.
#[derive(Debug)]
struct CostQuery<'m, 'a> {
    stored: &'m StoredMeter,
    query: UsageQuery,
    /// The index of the bound at which the query begins.
    from: usize,
    purpose: QueryPurpose<'a>,
}

#[derive(Debug)]
enum QueryPurpose<'a> {
    /// Sums or counts, by the slices of these prices.
    Sums(Vec<&'a Price>),
    /// A whole gauge, which these prices rate in full.
    Level(Vec<&'a Price>),
    /// The part of a gauge that one price rates.
    OfPrice(&'a Price),
}

impl<'a, 'm: 'a> CostQuery<'m, 'a> {
    /// Adds an answer to the parts that it belongs to.
    fn note(&self, found: AggregatesByGroup, parts: &mut UsageParts<'a>) {
        let key = &self.stored.meter.key;
        for ((index, group), found) in found {
            let part = parts.entry((group.subject, index + self.from)).or_default();
            let taken = MeterTotal::of(self.stored.meter.aggregation, found);
            match &self.purpose {
                QueryPurpose::Sums(prices) => {
                    let known = part.meters.entry(key);
                    known.and_modify(|known| known.join(&taken)).or_insert_with(|| taken.clone());
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
                QueryPurpose::Level(prices) => {
                    part.priced.extend(prices.iter().map(|price| (&price.key, taken.clone())));
                    part.meters.insert(key, taken);
                }
                QueryPurpose::OfPrice(price) => {
                    part.priced.insert(&price.key, taken);
                }
            }
        }
    }
}

impl<'a> Look<'_, 'a> {
    /// Reads the usage of meters and of the slices of their prices.
    pub(crate) async fn parts<'m: 'a>(
        &self,
        snapshot: &mut PgConnection,
        meters: &[&'m StoredMeter],
    ) -> Result<UsageParts<'a>, EngineError> {
        let with_prices: BTreeSet<&MeterKey> = self.book.map(PriceBook::meters).unwrap_or_default();
        let mut asks: Vec<CostQuery<'m, 'a>> = Vec::new();
        for stored in meters.iter().copied() {
            let prices: Vec<&'a Price> = match self.book {
                Some(book) if with_prices.contains(&stored.meter.key) => {
                    book.of_meter(&stored.meter.key).collect()
                }
                _ => Vec::new(),
            };
            if stored.meter.aggregation.is_reservable() {
                asks.push(self.sums(stored, prices));
            } else {
                asks.extend(self.levels(stored, prices));
            }
        }
        let meter_queries: Vec<MeterQuery<'_>> = asks.iter().map(|ask| self.meter_query(ask)).collect();
        let answers = read_each(snapshot, self.rollup_coverage, &meter_queries).await?;
        let mut parts = UsageParts::default();
        for (ask, found) in asks.iter().zip(answers) {
            ask.note(found, &mut parts);
        }
        for (ask, meter_query) in asks.iter().zip(&meter_queries) {
            if let QueryPurpose::Sums(prices) = &ask.purpose {
                self.fees(snapshot, meter_query, prices, &mut parts).await?;
            }
        }
        Ok(parts)
    }

    fn sums<'m>(&self, stored: &'m StoredMeter, prices: Vec<&'a Price>) -> CostQuery<'m, 'a> {
        let slices = prices.iter().map(|price| price.slice()).collect();
        let query = UsageQuery { slices, ..UsageQuery::internal(&stored.meter.key, self.span(0)) };
        CostQuery { stored, query, from: 0, purpose: QueryPurpose::Sums(prices) }
    }

    /// Builds the queries of a gauge: one for the whole, and one for each price that rates a part.
    fn levels<'m>(&self, stored: &'m StoredMeter, prices: Vec<&'a Price>) -> Vec<CostQuery<'m, 'a>> {
        let span = self.span(self.levels_from);
        let is_whole = |price: &&Price| {
            let slice = price.slice();
            slice.filter.is_empty() && slice.within(span) == span
        };
        let (whole, of_parts): (Vec<_>, Vec<_>) = prices.into_iter().partition(is_whole);
        let mut asks = vec![(BTreeMap::new(), span, QueryPurpose::Level(whole))];
        asks.extend(of_parts.into_iter().map(|price| {
            let slice = price.slice();
            let within = slice.within(span);
            (slice.filter, within, QueryPurpose::OfPrice(price))
        }));
        let tells_new = stored.meter.aggregation == Aggregation::UniqueCount
            && self.bounds.len().saturating_sub(self.levels_from) > 2;
        asks.into_iter()
            .filter(|(_, span, _)| !span.is_empty())
            .map(|(filter, span, purpose)| {
                let query = UsageQuery { filter, tells_new, ..UsageQuery::internal(&stored.meter.key, span) };
                CostQuery { stored, query, from: self.levels_from, purpose }
            })
            .collect()
    }

    fn meter_query<'q>(&'q self, ask: &'q CostQuery<'_, '_>) -> MeterQuery<'q> {
        MeterQuery {
            environment: self.environment,
            stored: ask.stored,
            query: &ask.query,
            scope: UsageScope::Paths(self.paths),
            holders: self.holders,
            bounds: self.bounds.get(ask.from..).unwrap_or_default(),
            is_usual: self.holders.is_none(),
        }
    }

    /// Adds the fees of prices that rate each event separately.
    async fn fees(
        &self,
        snapshot: &mut PgConnection,
        meter_query: &MeterQuery<'_>,
        prices: &[&'a Price],
        parts: &mut UsageParts<'a>,
    ) -> Result<(), EngineError> {
        for ((window, group), event_fees) in fees(snapshot, meter_query, &SliceFee::of_prices(prices)).await?
        {
            let price = group.slice.and_then(|place| prices.get(place));
            let part = parts.get_mut(&(group.subject, window));
            if let (Some(price), Some(part)) = (price, part)
                && let Some(taken) = part.priced.get_mut(&price.key)
            {
                taken.event_fees = Some(event_fees);
            }
        }
        Ok(())
    }

    fn span(&self, from: usize) -> Span {
        let edge = |edge: Option<&Timestamp>| edge.copied().unwrap_or(Timestamp::MIN);
        Span { from: edge(self.bounds.get(from)), to: edge(self.bounds.last()) }
    }
}
