//! Spend caps as they apply to a subject.
//!
//! The cost of a subject includes the usage of its descendants. The nearest plan with prices above a
//! subject rates its usage. The usage of each price has its own counters, which are locked and held like
//! those of limits.

use super::catalog_index::{ApplicableLimit, CatalogIndex};
use super::counted_prices::{CapMeasure, CountedPrices, CountedSlice};
use super::counter::{CounterKey, CounterPeriod, CounterState};
use super::path::{CapTerms, Path, PathSubject};
use crate::base::digest::Digest;
use crate::base::limits::EVENT_AHEAD_MAX;
use crate::base::names::MeterKey;
use crate::base::quantity::{Quantity, Total};
use crate::base::timestamp::Timestamp;
use crate::base::window::Span;
use crate::pricing::amount::Amount;
use crate::pricing::cap::SpendCap;
use crate::pricing::currency::Currency;
use crate::pricing::exchange::ExchangeRate;
use crate::pricing::price_book::nearest_to;
use crate::pricing::rating::RatedQuantity;
use crate::subjects::subscription::Subscription;
use crate::usage::event::Properties;

/// A cap that applies to a subject.
#[derive(Debug, Clone, Copy)]
pub struct ApplicableCap<'a> {
    pub member: &'a PathSubject,
    pub cap: &'a SpendCap,
    prices: &'a CountedPrices,
    /// The subject with the prices that rate the member's usage.
    holder: &'a PathSubject,
    subscription: &'a Subscription,
    assigned: AssignedSince,
    /// True if the member has no usage older than the cap and its prices.
    has_no_earlier_usage: bool,
    /// The conversion from the currency of the prices to the currency of the cap.
    exchange: Exchange<'a>,
    /// The instant at which the next known rate takes effect.
    rate_until: Option<Timestamp>,
}

/// The instants of the last changes that affect the counters of a cap. The names of the counters include
/// them.
#[derive(Debug, Clone, Copy)]
struct AssignedSince {
    /// The cap and its prices.
    priced: Timestamp,
    /// The holder's subscription.
    subscribed: Timestamp,
    /// The place of the subject below the holder.
    placed: Timestamp,
}

impl AssignedSince {
    fn times(self) -> [Timestamp; 3] {
        [self.priced, self.subscribed, self.placed]
    }
}

#[derive(Debug, Clone, Copy)]
enum Exchange<'a> {
    Same,
    By(&'a ExchangeRate),
    /// No rate is known, so the cost is unknown.
    Unknown,
}

/// The usage of a subject that one price rates, within the periods of a cap.
#[derive(Debug, Clone, Copy)]
pub struct PricedUsage<'a> {
    applicable_cap: ApplicableCap<'a>,
    pub slice: CountedSlice<'a>,
    pub measure: CapMeasure,
}

impl<'a> ApplicableCap<'a> {
    /// Returns the period of the cap around an instant.
    pub fn period_at(&self, at: Timestamp) -> Span {
        self.cap.period_at(&self.subscription.cycle, at)
    }

    /// Returns all usage that the cap counts.
    pub fn priced_usages(self) -> impl Iterator<Item = PricedUsage<'a>> {
        self.prices.slices().flat_map(move |slice| {
            slice.measures().iter().map(move |measure| PricedUsage {
                applicable_cap: self,
                slice,
                measure: *measure,
            })
        })
    }

    /// Returns whether a use has a cost that the cap counts.
    pub fn is_met_by(&self, meter: &MeterKey, properties: &Properties, at: Timestamp) -> bool {
        self.prices.slices().any(|slice| slice.meter == meter && slice.admits(properties, at))
    }

    /// Returns the next change of the prices in force or of the exchange rate.
    pub fn next_change(&self, now: Timestamp) -> Option<Timestamp> {
        self.changes().filter(|change| now < *change).chain(self.rate_until).min()
    }

    /// Returns the last change of the prices in force or of the exchange rate.
    pub fn last_change(&self, now: Timestamp) -> Option<Timestamp> {
        let rate_since = self.rate().map(|rate| rate.as_of);
        self.changes().filter(|change| *change <= now).chain(rate_since).max()
    }

    fn changes(&self) -> impl Iterator<Item = Timestamp> {
        let slices = self.prices.slices();
        slices.flat_map(|slice| [slice.price.effective_from, slice.price.effective_to]).flatten()
    }

    /// Returns the rate from the currency of the prices to the currency of the cap, if they differ.
    pub fn rate(&self) -> Option<&'a ExchangeRate> {
        match self.exchange {
            Exchange::By(rate) => Some(rate),
            Exchange::Same | Exchange::Unknown => None,
        }
    }

    /// Converts an amount of the prices to the currency of the cap. Returns none without a rate.
    pub fn converted(&self, amount: Amount) -> Option<Amount> {
        match self.exchange {
            Exchange::Same => Some(amount),
            Exchange::By(rate) => Some(rate.converted(&amount)),
            Exchange::Unknown => None,
        }
    }

    /// Returns the highest cost, over every part of `held` and `more` that may become used. The result is
    /// unrounded, in the currency of the cap, and none without an exchange rate. A gauge counts with its
    /// value after `more`.
    pub fn highest(
        &self,
        at: Timestamp,
        level: impl Fn(&CounterKey) -> CounterState,
        more: impl Fn(&PricedUsage<'_>, &CounterKey) -> Total,
    ) -> Option<Amount> {
        let period = self.period_at(at);
        let mut sum = Amount::default();
        for slice in self.prices.slices().filter(|slice| slice.price.is_in_force_within(period)) {
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

    /// Returns the cost of the used quantities, and the cost that held quantities may add. Returns none
    /// without an exchange rate.
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

impl PricedUsage<'_> {
    pub fn member(&self) -> &PathSubject {
        self.applicable_cap.member
    }

    /// Returns the counter of the period around an instant.
    pub fn counter_at(&self, at: Timestamp) -> CounterPeriod {
        let ApplicableCap { member, cap, holder, assigned, has_no_earlier_usage, .. } = self.applicable_cap;
        let period = self.applicable_cap.period_at(at);
        let mut digest = Digest::default();
        digest.bytes(self.slice.definition.as_bytes()).bytes(cap.definition().as_bytes());
        digest.bytes(&holder.subject_id.to_le_bytes());
        for since in assigned.times() {
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
            starts_at_zero: has_no_earlier_usage || assigned.times().iter().all(began_after),
        }
    }
}

/// The source of a counter: a limit, or the usage that a price rates.
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
            Self::PricedUsage(priced_usage) => priced_usage.slice.meter,
        }
    }

    pub fn meter_id(&self) -> i32 {
        match self {
            Self::Limit(found) => found.terms.meter_id,
            Self::PricedUsage(priced_usage) => priced_usage.slice.meter_id,
        }
    }

    /// Returns whether the source has a counter that can be held. Otherwise its gauge is read.
    pub fn uses_counter(&self) -> bool {
        match self {
            Self::Limit(found) => found.terms.uses_counter(),
            Self::PricedUsage(priced_usage) => priced_usage.slice.aggregation.is_reservable(),
        }
    }

    /// Returns the counter of the period around an instant, or none if usage of that time is no longer
    /// counted.
    pub fn counter_at(&self, at: Timestamp) -> Option<CounterPeriod> {
        match self {
            Self::Limit(found) => found.counter_at(at),
            Self::PricedUsage(priced_usage) => Some(priced_usage.counter_at(at)),
        }
    }

    /// Returns whether the source counts a use of its meter at a time.
    pub fn admits(&self, properties: &Properties, at: Timestamp) -> bool {
        match self {
            Self::Limit(found) => found.terms.limit.filter.admits(properties),
            Self::PricedUsage(priced_usage) => priced_usage.slice.admits(properties, at),
        }
    }

    /// Returns the amount that an event of this quantity adds to the counter.
    pub fn measure(&self, quantity: Quantity) -> Total {
        match self {
            Self::Limit(_) => quantity.into(),
            Self::PricedUsage(priced_usage) => priced_usage.slice.measure(priced_usage.measure, quantity),
        }
    }

    /// Returns the amount that a hold of this quantity adds to the counter.
    pub fn measure_held(&self, quantity: Quantity) -> Total {
        match self {
            Self::Limit(_) => quantity.into(),
            Self::PricedUsage(priced_usage) => {
                priced_usage.slice.measure_held(priced_usage.measure, quantity)
            }
        }
    }
}

/// The prices that rate a subject's usage, and their holder.
#[derive(Clone, Copy)]
struct PriceSource<'a> {
    holder: &'a PathSubject,
    subscription: &'a Subscription,
    prices: &'a [CountedPrices],
    /// The last time that the subject, or one between it and the holder, moved or subscribed.
    placed_at: Timestamp,
    is_own: bool,
}

impl CatalogIndex {
    /// Returns the counter sources of a use: applicable limits, and priced usage of applicable caps.
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
                priced_usage.slice.meter == meter && priced_usage.slice.admits(properties, at)
            });
        self.matching(path, meter, properties)
            .map(CounterSource::Limit)
            .chain(priced_usages.map(CounterSource::PricedUsage))
    }

    /// Returns the caps of all subjects on a path that have a price source.
    pub fn applicable_caps<'a>(&'a self, path: &'a Path, at: Timestamp) -> Vec<ApplicableCap<'a>> {
        let mut applicable_caps = Vec::new();
        for (index, member) in path.members.iter().enumerate() {
            let mut caps = self.caps_on(member).peekable();
            if caps.peek().is_some()
                && let Some(source) = self.price_source(path.ancestors_of(index))
            {
                applicable_caps.extend(caps.filter_map(|cap| self.applicable_cap(member, cap, &source, at)));
            }
        }
        applicable_caps
    }

    /// Returns the caps of a subject: the caps of its plan and its own caps.
    pub fn caps_on<'a>(&'a self, member: &'a PathSubject) -> impl Iterator<Item = &'a CapTerms> {
        let of_plan = member.subscription.as_ref().map_or(&[][..], |own| self.caps_of(&own.plan));
        of_plan.iter().chain(&member.caps)
    }

    /// Returns the currency of the prices for the start of a path if no rate converts it to `wanted`.
    pub fn prices_lie_in(&self, path: &Path, wanted: Currency, at: Timestamp) -> Option<Currency> {
        let prices = self.price_source(path.ancestors_of(0))?.prices;
        let nearest = nearest_to(prices, Some(wanted))?.book.currency;
        (nearest != wanted && self.rates.at(nearest, wanted, at).is_none()).then_some(nearest)
    }

    /// Applies a cap to the subject at the start of a path. Returns none if no plan above it has prices.
    pub fn applicable_cap_of<'a>(
        &'a self,
        path: &'a Path,
        cap: &'a CapTerms,
        at: Timestamp,
    ) -> Option<ApplicableCap<'a>> {
        self.applicable_cap(path.members.first()?, cap, &self.price_source(path.ancestors_of(0))?, at)
    }

    /// Returns the prices that rate a subject's usage: those of the nearest plan with prices.
    fn price_source<'a>(&'a self, chain: &'a [PathSubject]) -> Option<PriceSource<'a>> {
        let mut placed_at = Timestamp::MIN;
        for (index, holder) in chain.iter().enumerate() {
            if let Some(subscription) = &holder.subscription
                && let prices @ [_, ..] = self.prices_of(subscription)
            {
                return Some(PriceSource { holder, subscription, prices, placed_at, is_own: index == 0 });
            }
            let subscribed_at = holder.subscription.as_ref().map(|own| own.terms_since);
            placed_at = [holder.moved_at, subscribed_at].into_iter().flatten().fold(placed_at, Ord::max);
        }
        None
    }

    fn applicable_cap<'a>(
        &'a self,
        member: &'a PathSubject,
        terms: &'a CapTerms,
        source: &PriceSource<'a>,
        at: Timestamp,
    ) -> Option<ApplicableCap<'a>> {
        let PriceSource { holder, subscription, prices, placed_at, is_own } = *source;
        let cap = &terms.cap;
        let prices = nearest_to(prices, Some(cap.currency))?;
        let currency = prices.book.currency;
        let exchange = if currency == cap.currency {
            Exchange::Same
        } else {
            self.rates.at(currency, cap.currency, at).map_or(Exchange::Unknown, Exchange::By)
        };
        let since = prices.since.later(terms.since);
        let assigned =
            AssignedSince { priced: since.at, subscribed: subscription.terms_since, placed: placed_at };
        let began = subscription.pristine_version.filter(|_| is_own);
        Some(ApplicableCap {
            member,
            cap,
            prices,
            holder,
            subscription,
            assigned,
            has_no_earlier_usage: began.is_some_and(|began| since.version <= began),
            exchange,
            rate_until: self.rates.next_after(currency, cap.currency, at),
        })
    }
}
