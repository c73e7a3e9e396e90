//! Spend caps as they meet a subject: its cost is what it and all below it used, rated by the prices
//! of the nearest plan above it that has some. What each price rates has counters of its own, which
//! are locked and held as those of limits are.

use std::collections::BTreeSet;

use uuid::Uuid;

use super::catalog_index::{
    ApplicableLimit, CatalogIndex, CounterKey, CounterPeriod, EffectiveFrom, Path, PathSubject,
};
use super::decision::CounterState;
use crate::base::digest::Digest;
use crate::base::limits::EVENT_AHEAD_MAX;
use crate::base::names::MeterKey;
use crate::base::quantity::{Quantity, Total};
use crate::base::timestamp::Timestamp;
use crate::base::window::Span;
use crate::catalog::meter::Aggregation;
use crate::pricing::amount::Amount;
use crate::pricing::cap::SpendCap;
use crate::pricing::currency::Currency;
use crate::pricing::exchange::ExchangeRate;
use crate::pricing::list::PriceList;
use crate::pricing::price::{Model, Price};
use crate::pricing::rating::RatedQuantity;
use crate::subjects::subscription::Subscription;
use crate::usage::event::Properties;

/// A cap, and since when it is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CapTerms {
    pub cap: SpendCap,
    pub since: EffectiveFrom,
}

/// The prices of a plan in one currency, as they are counted.
#[derive(Debug, Clone)]
pub struct PriceBook {
    pub currency: Currency,
    pub slices: Vec<PricedSlice>,
}

/// The use of a meter that one price rates.
#[derive(Debug, Clone)]
pub struct PricedSlice {
    pub price: Price,
    pub meter: MeterKey,
    pub meter_id: i32,
    pub aggregation: Aggregation,
    /// The prices that come before it.
    pub rivals: Vec<Price>,
    /// What it rates, whatever the amounts.
    pub definition: Uuid,
    pub since: EffectiveFrom,
}

impl PriceBook {
    /// Of the prices of a plan, or of a subscription. `since`: by definition.
    pub fn of(
        prices: &[Price],
        currency: Currency,
        meter: impl Fn(&MeterKey) -> Option<(i32, Aggregation)>,
        since: impl Fn(Uuid) -> EffectiveFrom,
    ) -> Self {
        let list = PriceList::of(prices, currency);
        let slice = |price: &Price| {
            let key = price.meter.as_ref()?;
            let (meter_id, aggregation) = meter(key)?;
            let rivals = list.of_meter(key).take_while(|rival| rival.key != price.key).cloned().collect();
            let definition = definition(price, &rivals);
            let each = each_definition(price, definition);
            let since = each.map(&since).into_iter().fold(since(definition), EffectiveFrom::later);
            Some(PricedSlice {
                price: price.clone(),
                meter: key.clone(),
                meter_id,
                aggregation,
                rivals,
                definition,
                since,
            })
        };
        Self { currency, slices: list.prices().filter_map(slice).collect() }
    }
}

/// Of what a price rates: another amount does not change it.
fn definition(price: &Price, rivals: &Vec<Price>) -> Uuid {
    let part = |price: &Price| (price.filter.clone(), price.effective_from, price.effective_to);
    let parts: Vec<_> = std::iter::once(price).chain(rivals).map(part).collect();
    // names and times always serialise
    let text = serde_json::to_vec(&(&price.meter, parts)).unwrap_or_default();
    Digest::default().text("price").bytes(&text).finish()
}

/// Of what a price takes of each event by itself; none where it looks at their sum alone.
fn each_definition(price: &Price, definition: Uuid) -> Option<Uuid> {
    let Model::Percentage { .. } = price.model else { return None };
    let text = serde_json::to_vec(&(&price.model, !price.free_units.is_zero())).unwrap_or_default();
    Some(Digest::default().text("each").bytes(definition.as_bytes()).bytes(&text).finish())
}

impl SpendCap {
    /// Of its periods.
    pub fn definition(&self) -> Uuid {
        let text = serde_json::to_vec(&(self.period, self.anchor, &self.timezone)).unwrap_or_default();
        Digest::default().text("cap").bytes(&text).finish()
    }
}

impl PricedSlice {
    /// Whether a use at a time is rated by this price.
    pub fn admits(&self, properties: &Properties, at: Timestamp) -> bool {
        let rates = |price: &Price| price.is_in_force(at) && price.filter.admits(properties);
        rates(&self.price) && !self.rivals.iter().any(rates)
    }

    /// The dimensions that tell what it rates.
    pub fn dimensions(&self) -> Vec<String> {
        let prices = self.rivals.iter().chain([&self.price]);
        let names = prices.flat_map(|price| price.filter.iter().map(|(name, _)| name.to_owned()));
        names.collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// What an event of a quantity adds to what is counted.
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

    /// What a hold of a quantity adds at most, whatever part of it is used; it is taken to be one event. Of
    /// nothing, nothing.
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

    /// Takes the sum of a measure for what was used; the quantity comes first.
    fn enter(&self, used: &mut RatedQuantity, measure: CapMeasure, sum: Total) {
        match measure {
            CapMeasure::Quantity => used.quantity = sum,
            CapMeasure::Fees => used.event_fees = Amount::of(sum),
            CapMeasure::Excess => {
                used.event_fees = Amount::of(sum) + self.price.model.plain_fee(used.quantity);
            }
        }
    }

    /// What has to be counted of it, the quantity first.
    fn measures(&self) -> &'static [CapMeasure] {
        match self.price.model {
            // without free units what events cost by themselves is all there is, and grows with each
            Model::Percentage { .. } if self.price.free_units.is_zero() => {
                &[CapMeasure::Quantity, CapMeasure::Fees]
            }
            // less may cost more: free units take their share off a bounded fee all the same
            Model::Percentage { .. } => &[CapMeasure::Quantity, CapMeasure::Excess],
            _ => &[CapMeasure::Quantity],
        }
    }
}

/// What a counter adds up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CapMeasure {
    Quantity,
    /// What each event costs by itself, in minor units, rounded up to the digits of a quantity.
    Fees,
    /// By how much what each event costs by itself passes the plain share of its value; rounded likewise.
    Excess,
}

impl CapMeasure {
    /// Names what is counted event by event.
    fn word(self) -> Option<&'static str> {
        match self {
            Self::Quantity => None,
            Self::Fees => Some("fees"),
            Self::Excess => Some("excess"),
        }
    }
}

/// A cap as it meets a subject.
#[derive(Debug, Clone, Copy)]
pub struct ApplicableCap<'a> {
    pub member: &'a PathSubject,
    pub cap: &'a SpendCap,
    pub price_book: &'a PriceBook,
    /// Its prices rate what the member uses.
    holder: &'a PathSubject,
    subscription: &'a Subscription,
    /// Since when its prices and the cap, the holder's subscription, and what lies between are what they are.
    effective_from: [Timestamp; 3],
    /// Nothing was recorded for the member before that.
    has_no_earlier_usage: bool,
    /// From the currency of the prices to that of the cap.
    exchange: Exchange<'a>,
    /// When another rate holds; none while none is known.
    rate_until: Option<Timestamp>,
}

#[derive(Debug, Clone, Copy)]
enum Exchange<'a> {
    Same,
    By(&'a ExchangeRate),
    /// Nothing can be said of what anything costs.
    Unknown,
}

/// What a price rates of a subject's use, within the periods of a cap.
#[derive(Debug, Clone, Copy)]
pub struct PricedUsage<'a> {
    applicable_cap: ApplicableCap<'a>,
    pub slice: &'a PricedSlice,
    pub measure: CapMeasure,
}

impl<'a> ApplicableCap<'a> {
    /// The period of the cap around an instant.
    pub fn period_at(&self, at: Timestamp) -> Span {
        self.cap.period_at(&self.subscription.cycle, at)
    }

    /// Everything that is counted for it.
    pub fn priced_usages(self) -> impl Iterator<Item = PricedUsage<'a>> {
        self.price_book.slices.iter().flat_map(move |slice| {
            slice.measures().iter().map(move |measure| PricedUsage {
                applicable_cap: self,
                slice,
                measure: *measure,
            })
        })
    }

    /// Whether a use costs something that it counts.
    pub fn is_met_by(&self, meter: &MeterKey, properties: &Properties, at: Timestamp) -> bool {
        self.price_book.slices.iter().any(|slice| slice.meter == *meter && slice.admits(properties, at))
    }

    /// When another of its prices comes into force or goes out of it, or another exchange rate holds.
    pub fn next_change(&self, now: Timestamp) -> Option<Timestamp> {
        self.changes().filter(|change| now < *change).chain(self.rate_until).min()
    }

    /// From the currency of the prices to that of the cap, where they differ.
    pub fn rate(&self) -> Option<&'a ExchangeRate> {
        match self.exchange {
            Exchange::By(rate) => Some(rate),
            Exchange::Same | Exchange::Unknown => None,
        }
    }

    /// When that happened last.
    pub fn last_change(&self, now: Timestamp) -> Option<Timestamp> {
        let rate_since = self.rate().map(|rate| rate.as_of);
        self.changes().filter(|change| *change <= now).chain(rate_since).max()
    }

    fn changes(&self) -> impl Iterator<Item = Timestamp> {
        let prices = self.price_book.slices.iter().map(|slice| &slice.price);
        prices.flat_map(|price| [price.effective_from, price.effective_to]).flatten()
    }

    /// What prices come to in the currency of the cap; none where there is no rate.
    pub fn converted(&self, amount: Amount) -> Option<Amount> {
        match self.exchange {
            Exchange::Same => Some(amount),
            Exchange::By(rate) => Some(rate.converted(&amount)),
            Exchange::Unknown => None,
        }
    }
}

impl PricedUsage<'_> {
    pub fn member(&self) -> &PathSubject {
        self.applicable_cap.member
    }

    /// The counter around an instant.
    pub fn counter_at(&self, at: Timestamp) -> CounterPeriod {
        let ApplicableCap { member, cap, holder, effective_from, has_no_earlier_usage, .. } =
            self.applicable_cap;
        let period = self.applicable_cap.period_at(at);
        let mut digest = Digest::default();
        digest.bytes(self.slice.definition.as_bytes()).bytes(cap.definition().as_bytes());
        digest.bytes(&holder.subject_id.to_le_bytes());
        for since in effective_from {
            digest.bytes(&since.micros().to_le_bytes());
        }
        if let (Some(word), Ok(text)) = (self.measure.word(), serde_json::to_vec(&self.slice.price.model)) {
            digest.text(word).bytes(&text);
        }
        let began_after = |since: &Timestamp| period.from >= since.saturating_add(EVENT_AHEAD_MAX);
        CounterPeriod {
            key: CounterKey {
                subject_id: member.subject_id,
                definition: digest.finish(),
                period_start: period.from,
            },
            period,
            since: period.from,
            starts_at_zero: has_no_earlier_usage || effective_from.iter().all(began_after),
        }
    }
}

/// What a counter is kept for.
#[derive(Debug, Clone, Copy)]
pub enum CounterSource<'a> {
    Limit(ApplicableLimit<'a>),
    PricedUsage(PricedUsage<'a>),
}

impl CounterSource<'_> {
    pub fn member(&self) -> &PathSubject {
        match self {
            Self::Limit(found) => found.member,
            Self::PricedUsage(priced_usage) => priced_usage.applicable_cap.member,
        }
    }

    pub fn meter(&self) -> &MeterKey {
        match self {
            Self::Limit(found) => &found.terms.limit.meter,
            Self::PricedUsage(priced_usage) => &priced_usage.slice.meter,
        }
    }

    pub fn meter_id(&self) -> i32 {
        match self {
            Self::Limit(found) => found.terms.meter_id,
            Self::PricedUsage(priced_usage) => priced_usage.slice.meter_id,
        }
    }

    /// Whether it has a counter, which can be held; else it is a level, which is read.
    pub fn uses_counter(&self) -> bool {
        match self {
            Self::Limit(found) => found.terms.uses_counter(),
            Self::PricedUsage(priced_usage) => priced_usage.slice.aggregation.is_reservable(),
        }
    }

    /// The counter around an instant; none where what happens then is not counted any more.
    pub fn counter_at(&self, at: Timestamp) -> Option<CounterPeriod> {
        match self {
            Self::Limit(found) => found.counter_at(at),
            Self::PricedUsage(priced_usage) => Some(priced_usage.counter_at(at)),
        }
    }

    /// Whether it counts a use of its meter at a time.
    pub fn admits(&self, properties: &Properties, at: Timestamp) -> bool {
        match self {
            Self::Limit(found) => found.terms.limit.filter.admits(properties),
            Self::PricedUsage(priced_usage) => priced_usage.slice.admits(properties, at),
        }
    }

    /// What an event of a quantity adds.
    pub fn measure(&self, quantity: Quantity) -> Total {
        match self {
            Self::Limit(_) => quantity.into(),
            Self::PricedUsage(priced_usage) => priced_usage.slice.measure(priced_usage.measure, quantity),
        }
    }

    /// What a hold of a quantity adds.
    pub fn measure_held(&self, quantity: Quantity) -> Total {
        match self {
            Self::Limit(_) => quantity.into(),
            Self::PricedUsage(priced_usage) => {
                priced_usage.slice.measure_held(priced_usage.measure, quantity)
            }
        }
    }
}

impl CatalogIndex {
    /// Everything that counts a use: the limits that meet it, and what it costs those who have caps.
    pub fn counter_sources<'a>(
        &'a self,
        path: &'a Path,
        meter: &MeterKey,
        properties: &Properties,
        at: Timestamp,
    ) -> impl Iterator<Item = CounterSource<'a>> {
        let applicable_caps = self.applicable_caps(path, at);
        let priced_usages =
            applicable_caps.into_iter().flat_map(ApplicableCap::priced_usages).filter(move |priced_usage| {
                priced_usage.slice.meter == *meter && priced_usage.slice.admits(properties, at)
            });
        self.matching(path, meter, properties)
            .map(CounterSource::Limit)
            .chain(priced_usages.map(CounterSource::PricedUsage))
    }

    /// The caps of everybody on a path, by whose prices they are compared.
    pub fn applicable_caps<'a>(&'a self, path: &'a Path, at: Timestamp) -> Vec<ApplicableCap<'a>> {
        let mut applicable_caps = Vec::new();
        for (index, member) in path.members.iter().enumerate() {
            let mut caps = self.caps_on(member).peekable();
            if caps.peek().is_some()
                && let Some(pricing) = self.pricing(path.ancestors_of(index))
            {
                applicable_caps.extend(caps.filter_map(|cap| self.applicable_cap(member, cap, &pricing, at)));
            }
        }
        applicable_caps
    }

    /// The caps of a subject: those of its plan, and its own.
    pub fn caps_on<'a>(&'a self, member: &'a PathSubject) -> impl Iterator<Item = &'a CapTerms> {
        let of_plan = member.subscription.as_ref().map_or(&[][..], |own| self.caps_of(&own.plan));
        of_plan.iter().chain(&member.caps)
    }

    /// The currency in which the prices of the subject at the start of a path lie, where no rate leads from
    /// it to another.
    pub fn prices_lie_in(&self, path: &Path, wanted: Currency, at: Timestamp) -> Option<Currency> {
        let price_books = self.pricing(path.ancestors_of(0))?.price_books;
        let first = price_books.first()?.currency;
        let is_there = price_books.iter().any(|price_book| price_book.currency == wanted);
        (!is_there && self.rates.at(first, wanted, at).is_none()).then_some(first)
    }

    /// A cap of the subject at the start of a path; none where nothing has a price.
    pub fn applicable_cap_of<'a>(
        &'a self,
        path: &'a Path,
        cap: &'a CapTerms,
        at: Timestamp,
    ) -> Option<ApplicableCap<'a>> {
        self.applicable_cap(path.members.first()?, cap, &self.pricing(path.ancestors_of(0))?, at)
    }

    /// Whose prices rate what a subject uses: those of the nearest plan that has some.
    fn pricing<'a>(&'a self, chain: &'a [PathSubject]) -> Option<CapPricing<'a>> {
        let mut between_since = Timestamp::MIN;
        for (index, holder) in chain.iter().enumerate() {
            if let Some(subscription) = &holder.subscription
                && let price_books @ [_, ..] = self.price_books_of(subscription)
            {
                return Some(CapPricing {
                    holder,
                    subscription,
                    price_books,
                    between_since,
                    is_own: index == 0,
                });
            }
            let subscribed_at = holder.subscription.as_ref().map(|own| own.terms_since);
            between_since =
                [holder.moved_at, subscribed_at].into_iter().flatten().fold(between_since, Ord::max);
        }
        None
    }

    fn applicable_cap<'a>(
        &'a self,
        member: &'a PathSubject,
        terms: &'a CapTerms,
        pricing: &CapPricing<'a>,
        at: Timestamp,
    ) -> Option<ApplicableCap<'a>> {
        let CapPricing { holder, subscription, price_books, between_since, is_own } = *pricing;
        let cap = &terms.cap;
        let first = price_books.first()?;
        let price_book =
            price_books.iter().find(|price_book| price_book.currency == cap.currency).unwrap_or(first);
        let exchange = if price_book.currency == cap.currency {
            Exchange::Same
        } else {
            self.rates.at(price_book.currency, cap.currency, at).map_or(Exchange::Unknown, Exchange::By)
        };
        let rate_until = self.rates.next_after(price_book.currency, cap.currency, at);
        let since = || price_book.slices.iter().map(|slice| slice.since).chain([terms.since]);
        let priced_at = since().map(|since| since.at).max()?;
        let effective_from = [priced_at, subscription.terms_since, between_since];
        let began = subscription.pristine_version.filter(|_| is_own);
        let has_no_earlier_usage = began.is_some_and(|began| since().all(|since| since.version <= began));
        Some(ApplicableCap {
            member,
            cap,
            price_book,
            holder,
            subscription,
            effective_from,
            has_no_earlier_usage,
            exchange,
            rate_until,
        })
    }
}

/// Whose prices rate a subject's use.
#[derive(Clone, Copy)]
struct CapPricing<'a> {
    holder: &'a PathSubject,
    subscription: &'a Subscription,
    price_books: &'a [PriceBook],
    /// When the subject, or somebody between it and the holder, came under its parent or to its subscription.
    between_since: Timestamp,
    is_own: bool,
}

impl ApplicableCap<'_> {
    /// What it costs at most, whatever part of what is held and of `more` is used: unrounded, in the
    /// currency of the cap. A level is what it becomes with `more`. None where there is no rate to say it
    /// with.
    pub fn highest(
        &self,
        at: Timestamp,
        level: impl Fn(&CounterKey) -> CounterState,
        more: impl Fn(&PricedUsage<'_>, &CounterKey) -> Total,
    ) -> Option<Amount> {
        let period = self.period_at(at);
        let mut sum = Amount::default();
        for slice in &self.price_book.slices {
            let starts_later = slice.price.effective_from.is_some_and(|from| period.to <= from);
            let ended_before = slice.price.effective_to.is_some_and(|to| to <= period.from);
            if starts_later || ended_before {
                continue;
            }
            let (mut used, mut at_most) = (RatedQuantity::default(), RatedQuantity::default());
            for measure in slice.measures() {
                let priced_usage = PricedUsage { applicable_cap: *self, slice, measure: *measure };
                let key = priced_usage.counter_at(at).key;
                let now = level(&key);
                let most = now.used + now.held + more(&priced_usage, &key);
                let least = if slice.aggregation.is_reservable() { now.used } else { most };
                slice.enter(&mut used, *measure, least);
                slice.enter(&mut at_most, *measure, most);
            }
            sum = sum + slice.price.highest_cost(&used, &at_most);
        }
        self.converted(sum)
    }
}

impl ApplicableCap<'_> {
    /// What it costs that is used, and what is held beside it may cost more. None where there is no rate.
    pub fn spent(
        &self,
        at: Timestamp,
        level: impl Fn(&CounterKey) -> CounterState,
    ) -> Option<(Amount, Amount)> {
        let nothing = |_: &PricedUsage<'_>, _: &CounterKey| Total::default();
        let spent = self.highest(at, |key| CounterState { held: Total::default(), ..level(key) }, nothing)?;
        let committed = self.highest(at, level, nothing)?;
        Some((spent.clone(), committed - spent))
    }
}

/// The definitions that a plan's prices and caps have, to be noted when they come and go.
pub fn definitions(prices: &[Price], caps: &[SpendCap]) -> BTreeSet<Uuid> {
    let plan = Priced::of(prices, caps, |_| Some((0, Aggregation::Sum)), |_| EffectiveFrom::UNKNOWN);
    let slices = plan.price_books.iter().flat_map(|price_book| &price_book.slices);
    let of_slice =
        |slice: &PricedSlice| [Some(slice.definition), each_definition(&slice.price, slice.definition)];
    slices.flat_map(of_slice).flatten().chain(caps.iter().map(SpendCap::definition)).collect()
}

/// The prices and caps of a plan, as they are counted.
#[derive(Debug, Default)]
pub(super) struct Priced {
    pub(super) price_books: Vec<PriceBook>,
    pub(super) caps: Vec<CapTerms>,
}

impl Priced {
    pub(super) fn of(
        prices: &[Price],
        caps: &[SpendCap],
        meter: impl Fn(&MeterKey) -> Option<(i32, Aggregation)>,
        since: impl Fn(Uuid) -> EffectiveFrom,
    ) -> Self {
        let mut currencies: Vec<Currency> = Vec::new();
        for price in prices {
            if !currencies.contains(&price.currency) {
                currencies.push(price.currency);
            }
        }
        let price_books =
            currencies.into_iter().map(|currency| PriceBook::of(prices, currency, &meter, &since)).collect();
        let caps =
            caps.iter().map(|cap| CapTerms { cap: cap.clone(), since: since(cap.definition()) }).collect();
        Self { price_books, caps }
    }
}
