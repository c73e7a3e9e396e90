//! Prices as spend caps count their usage. Each price has its own counters, named by the usage that it
//! rates.

use std::collections::BTreeSet;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use uuid::Uuid;

use super::counter::EffectiveFrom;
use crate::base::digest::Digest;
use crate::base::names::{MeterKey, PlanKey};
use crate::base::quantity::{Quantity, Total};
use crate::base::timestamp::Timestamp;
use crate::catalog::meter::Aggregation;
use crate::pricing::amount::Amount;
use crate::pricing::cap::SpendCap;
use crate::pricing::price::{Model, Price};
use crate::pricing::price_book::{PriceBook, RatedSlice};
use crate::pricing::rating::RatedQuantity;
use crate::subjects::subscription::Subscription;
use crate::usage::event::Properties;

/// The amount that a counter sums.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CapMeasure {
    Quantity,
    /// The fee of each event, in minor units, rounded up to the digits of a quantity.
    Fees,
    /// The part of each event's fee above the plain percentage of its value, rounded up to the digits of
    /// a quantity.
    Excess,
}

impl CapMeasure {
    /// Returns the name of a measure that is summed event by event.
    pub(super) fn word(self) -> Option<&'static str> {
        match self {
            Self::Quantity => None,
            Self::Fees => Some("fees"),
            Self::Excess => Some("excess"),
        }
    }
}

/// A price book with the ids of its meters.
#[derive(Debug, Clone)]
pub struct CountedPrices {
    pub book: PriceBook,
    slices: Vec<SliceTerms>,
    /// The instant from which all prices of the book are in effect.
    pub(super) since: EffectiveFrom,
}

#[derive(Debug, Clone, Copy)]
struct SliceTerms {
    /// The position of the price in the book.
    place: usize,
    meter_id: i32,
    aggregation: Aggregation,
    definition: Uuid,
}

impl AsRef<PriceBook> for CountedPrices {
    fn as_ref(&self) -> &PriceBook {
        &self.book
    }
}

impl CountedPrices {
    /// Returns the prices of each currency. `meter` looks up a meter, and `since` a definition.
    pub(super) fn of_each_currency(
        prices: &[Price],
        meter: impl Fn(&MeterKey) -> Option<(i32, Aggregation)>,
        since: impl Fn(Uuid) -> EffectiveFrom,
    ) -> Vec<Self> {
        let counted = |book: PriceBook| {
            let (mut slices, mut latest) = (Vec::new(), EffectiveFrom::ALWAYS);
            for (place, rated) in book.slices() {
                let Some((meter_id, aggregation)) = meter(rated.meter) else { continue };
                let definition = definition(&rated);
                let all = [Some(definition), event_definition(rated.price, definition)];
                latest = all.into_iter().flatten().map(&since).fold(latest, EffectiveFrom::later);
                slices.push(SliceTerms { place, meter_id, aggregation, definition });
            }
            Self { book, slices, since: latest }
        };
        PriceBook::of_each_currency(prices).into_iter().map(counted).collect()
    }

    /// Returns the usage that each price rates.
    pub fn slices(&self) -> impl Iterator<Item = CountedSlice<'_>> {
        self.slices.iter().filter_map(|terms| {
            let SliceTerms { place, meter_id, aggregation, definition } = *terms;
            let rated = self.book.slice(place)?;
            let RatedSlice { price, meter, .. } = rated;
            Some(CountedSlice { price, meter, meter_id, aggregation, definition, rated })
        })
    }
}

/// Returns the name of the usage that a price rates. The price's amount is not part of the name.
fn definition(rated: &RatedSlice<'_>) -> Uuid {
    let part = |price: &Price| (price.filter.clone(), price.effective_from, price.effective_to);
    let parts: Vec<_> = std::iter::once(rated.price).chain(rated.rivals()).map(part).collect();
    // Names and times always serialize.
    let text = serde_json::to_vec(&(&rated.price.meter, parts)).unwrap_or_default();
    Digest::default().text("price").bytes(&text).finish()
}

/// Returns the name of the fees that a price takes from each event. Returns none for a price that rates
/// only the sum.
fn event_definition(price: &Price, definition: Uuid) -> Option<Uuid> {
    let Model::Percentage { .. } = price.model else { return None };
    let text = serde_json::to_vec(&(&price.model, !price.free_units.is_zero())).unwrap_or_default();
    Some(Digest::default().text("each").bytes(definition.as_bytes()).bytes(&text).finish())
}

/// Returns the definitions of a plan's prices and caps. The catalog stores the time of each definition.
pub fn definitions(prices: &[Price], caps: &[SpendCap]) -> BTreeSet<Uuid> {
    let mut found: BTreeSet<Uuid> = caps.iter().map(SpendCap::definition).collect();
    for book in PriceBook::of_each_currency(prices) {
        for (_, rated) in book.slices() {
            let definition = definition(&rated);
            found.extend([definition]);
            found.extend(event_definition(rated.price, definition));
        }
    }
    found
}

impl SpendCap {
    /// Returns the definition of the cap's periods.
    pub fn definition(&self) -> Uuid {
        let text = serde_json::to_vec(&(self.period, self.anchor, &self.timezone)).unwrap_or_default();
        Digest::default().text("cap").bytes(&text).finish()
    }
}

/// The counted usage of a meter that one price rates.
#[derive(Debug, Clone, Copy)]
pub struct CountedSlice<'a> {
    pub price: &'a Price,
    pub meter: &'a MeterKey,
    pub meter_id: i32,
    pub aggregation: Aggregation,
    pub(super) definition: Uuid,
    pub rated: RatedSlice<'a>,
}

impl CountedSlice<'_> {
    /// Returns whether the price rates a use at a time.
    pub fn admits(&self, properties: &Properties, at: Timestamp) -> bool {
        self.rated.admits(properties, at)
    }

    /// Returns the amount that an event of this quantity adds to the counter.
    pub fn measure(&self, measure: CapMeasure, quantity: Quantity) -> Total {
        match measure {
            CapMeasure::Quantity => quantity.into(),
            CapMeasure::Fees => {
                let fee = self.price.model.event_fee(&quantity.into());
                fee.map_or(Total::default(), |fee| fee.quantity_above())
            }
            CapMeasure::Excess => {
                let excess = self.price.model.event_excess(quantity);
                excess.map_or(Total::default(), |excess| excess.quantity_above())
            }
        }
    }

    /// Returns the most that a hold of this quantity can add to the counter, if any part of it is used
    /// as one event.
    pub fn measure_held(&self, measure: CapMeasure, quantity: Quantity) -> Total {
        match measure {
            _ if quantity.is_zero() => Total::default(),
            CapMeasure::Quantity | CapMeasure::Fees => self.measure(measure, quantity),
            CapMeasure::Excess => {
                let most = self.price.model.event_excess_most();
                most.map_or(Total::default(), |most| most.quantity_above())
            }
        }
    }

    /// Sets the sum of a measure. The quantity must be set first.
    pub(super) fn enter(&self, used: &mut RatedQuantity, measure: CapMeasure, sum: Total) {
        match measure {
            CapMeasure::Quantity => used.quantity = sum,
            CapMeasure::Fees => used.event_fees = Amount::of(sum),
            CapMeasure::Excess => {
                used.event_fees = Amount::of(sum) + self.price.model.plain_fee(used.quantity);
            }
        }
    }

    /// Returns the measures that have counters, beginning with the quantity.
    pub(super) fn measures(&self) -> &'static [CapMeasure] {
        match self.price.model {
            // Without free units the cost is the sum of the fees, which grows with each event.
            Model::Percentage { .. } if self.price.free_units.is_zero() => {
                &[CapMeasure::Quantity, CapMeasure::Fees]
            }
            // With free units less usage may cost more, since their share is deducted even from a bounded
            // fee.
            Model::Percentage { .. } => &[CapMeasure::Quantity, CapMeasure::Excess],
            _ => &[CapMeasure::Quantity],
        }
    }
}

const BUCKETS: usize = 256;
/// The number of subscriptions with own prices above which the index is read again at the next version.
const OWN_PRICES_MAX: usize = 20_000;

/// The counted prices of subscriptions with own prices, computed once. Entries are only added, so
/// references stay valid without a lock.
#[derive(Debug)]
pub(super) struct OwnPrices {
    buckets: [Link; BUCKETS],
    count: AtomicUsize,
}

type Link = OnceLock<Box<OwnEntry>>;

#[derive(Debug)]
struct OwnEntry {
    plan: PlanKey,
    prices: Vec<Price>,
    terms_since: Timestamp,
    counted: Vec<CountedPrices>,
    next: Link,
}

impl Default for OwnPrices {
    fn default() -> Self {
        Self { buckets: [const { OnceLock::new() }; BUCKETS], count: AtomicUsize::new(0) }
    }
}

impl OwnPrices {
    pub(super) fn get_or_init(
        &self,
        subscription: &Subscription,
        count: impl Fn() -> Vec<CountedPrices>,
    ) -> &[CountedPrices] {
        let Subscription { plan, prices, terms_since, .. } = subscription;
        let bucket = usize::try_from(terms_since.micros().unsigned_abs()).unwrap_or_default() % BUCKETS;
        let mut link = &self.buckets[bucket];
        loop {
            let entry = link.get_or_init(|| {
                self.count.fetch_add(1, Ordering::Relaxed);
                let (plan, prices) = (plan.clone(), prices.clone());
                let next = OnceLock::new();
                Box::new(OwnEntry { plan, prices, terms_since: *terms_since, counted: count(), next })
            });
            if entry.terms_since == *terms_since && entry.plan == *plan && entry.prices == *prices {
                return &entry.counted;
            }
            link = &entry.next;
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.count.load(Ordering::Relaxed) >= OWN_PRICES_MAX
    }
}
