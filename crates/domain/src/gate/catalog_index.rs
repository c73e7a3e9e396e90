//! The catalog, indexed for decisions: meters by name, and the limits, prices and caps of each plan.

use std::collections::HashMap;

use uuid::Uuid;

use super::counted_prices::{CountedPrices, OwnPrices};
use super::counter::{CounterKey, CounterPeriod, EffectiveFrom};
use super::path::{CapTerms, Path, PathSubject};
use crate::base::limits::EVENT_AHEAD_MAX;
use crate::base::names::{ItemKey, MeterKey, PlanKey};
use crate::base::quantity::Quantity;
use crate::base::timestamp::Timestamp;
use crate::base::window::Span;
use crate::catalog::Catalog;
use crate::catalog::meter::{Aggregation, StoredMeter};
use crate::catalog::plan::{Enforcement, Limit, Overage, Plan};
use crate::pricing::cap::SpendCap;
use crate::pricing::commitment::Commitment;
use crate::pricing::currency::Currency;
use crate::pricing::exchange::Rates;
use crate::pricing::price_book::PriceBook;
use crate::subjects::subscription::Subscription;
use crate::usage::event::Properties;

/// A limit of a plan in force.
#[derive(Debug, Clone)]
pub struct LimitTerms {
    pub limit: Limit,
    pub meter_id: i32,
    pub aggregation: Aggregation,
    /// See [`Limit::definition`].
    pub definition: Uuid,
    /// The instant from which the plan has a limit of this definition.
    pub since: EffectiveFrom,
}

impl LimitTerms {
    pub fn is_hard(&self) -> bool {
        self.limit.enforcement == Enforcement::Hard
    }

    /// Returns whether credits cover use above the quota.
    pub fn is_covered(&self) -> bool {
        self.limit.overage == Overage::Credits
    }

    /// Returns whether the limit has a counter that can be held. Otherwise its gauge is read.
    pub fn uses_counter(&self) -> bool {
        self.aggregation.is_reservable()
    }
}

/// The indexed limits, prices and caps of a plan.
#[derive(Debug, Default)]
struct PlanTerms {
    limits: Vec<LimitTerms>,
    /// The prices of each currency.
    prices: Vec<CountedPrices>,
    caps: Vec<CapTerms>,
}

/// The catalog, indexed for decisions.
#[derive(Debug, Default)]
pub struct CatalogIndex {
    pub catalog: Catalog,
    meters: HashMap<MeterKey, StoredMeter>,
    /// The meter keys, in order.
    meter_keys: Vec<MeterKey>,
    by_event_name: HashMap<String, Vec<MeterKey>>,
    by_stripe_name: HashMap<String, MeterKey>,
    plans: HashMap<PlanKey, PlanTerms>,
    own_prices: OwnPrices,
    pub rates: Rates,
}

impl CatalogIndex {
    /// Builds the index. `since` is keyed by plan and definition.
    pub fn new(
        catalog: Catalog,
        meters: Vec<StoredMeter>,
        since: &HashMap<(String, Uuid), EffectiveFrom>,
        rates: Rates,
    ) -> Self {
        let mut index = Self { catalog, rates, ..Self::default() };
        index.add_meters(meters);
        let plan_terms = |plan: &Plan| {
            let since = |definition: Uuid| {
                since.get(&(plan.key.to_string(), definition)).copied().unwrap_or(EffectiveFrom::UNKNOWN)
            };
            let limit = |limit: &Limit| {
                let (meter_id, aggregation) = index.numbered(&limit.meter)?;
                let definition = limit.definition();
                let since = since(definition);
                Some(LimitTerms { limit: limit.clone(), meter_id, aggregation, definition, since })
            };
            let cap = |cap: &SpendCap| CapTerms { cap: cap.clone(), since: since(cap.definition()) };
            let terms = PlanTerms {
                limits: plan.limits.iter().filter_map(limit).collect(),
                prices: CountedPrices::of_each_currency(&plan.prices, |key| index.numbered(key), since),
                caps: plan.spend_caps.iter().map(cap).collect(),
            };
            (plan.key.clone(), terms)
        };
        index.plans = index.catalog.plans.iter().map(plan_terms).collect();
        index
    }

    fn add_meters(&mut self, mut meters: Vec<StoredMeter>) {
        meters.sort_by(|a, b| a.meter.key.cmp(&b.meter.key));
        for stored in meters {
            let key = stored.meter.key.clone();
            self.by_event_name.entry(stored.meter.event_name.to_string()).or_default().push(key.clone());
            if let Some(stripe) = &stored.meter.stripe {
                self.by_stripe_name.entry(stripe.event_name.clone()).or_insert_with(|| key.clone());
            }
            self.meter_keys.push(key.clone());
            self.meters.insert(key, stored);
        }
    }

    fn numbered(&self, key: &MeterKey) -> Option<(i32, Aggregation)> {
        self.meters.get(key).map(|stored| (stored.id, stored.meter.aggregation))
    }

    pub fn meter(&self, key: &MeterKey) -> Option<&StoredMeter> {
        self.meters.get(key)
    }

    /// Returns all meters, ordered by key.
    pub fn meters(&self) -> impl Iterator<Item = &StoredMeter> {
        self.meter_keys.iter().filter_map(|key| self.meters.get(key))
    }

    pub fn meter_by_id(&self, id: i32) -> Option<&StoredMeter> {
        self.meters.values().find(|terms| terms.id == id)
    }

    /// Returns the meters of an event name, ordered by key.
    pub fn meters_of(&self, event_name: &str) -> impl Iterator<Item = &StoredMeter> + Clone {
        let keys = self.by_event_name.get(event_name).map_or(&[][..], Vec::as_slice);
        keys.iter().filter_map(|key| self.meters.get(key))
    }

    /// Returns the first meter with this Stripe event name, otherwise the first meter with this event
    /// name of its own.
    pub fn meter_in_stripe(&self, event_name: &str) -> Option<&StoredMeter> {
        let named = self.by_stripe_name.get(event_name).and_then(|key| self.meters.get(key));
        named.or_else(|| self.meters_of(event_name).next())
    }

    /// Returns whether any limit lets credits cover use above its quota.
    pub fn has_covered(&self) -> bool {
        self.plans.values().flat_map(|plan| &plan.limits).any(LimitTerms::is_covered)
    }

    pub fn limits_of(&self, plan: &PlanKey) -> &[LimitTerms] {
        self.plans.get(plan).map_or(&[], |plan| &plan.limits)
    }

    /// Returns a limit of a definition, from any plan.
    pub fn limit_of(&self, definition: Uuid) -> Option<&LimitTerms> {
        self.plans.values().flat_map(|plan| &plan.limits).find(|terms| terms.definition == definition)
    }

    /// Returns the spend caps of a plan.
    pub fn caps_of(&self, plan: &PlanKey) -> &[CapTerms] {
        self.plans.get(plan).map_or(&[], |plan| &plan.caps)
    }

    /// Returns the prices of a subscription in each currency. Its own prices are merged with those of its
    /// plan.
    pub fn prices_of<'a>(&'a self, subscription: &Subscription) -> &'a [CountedPrices] {
        if subscription.prices.is_empty() {
            return self.plans.get(&subscription.plan).map_or(&[], |plan| &plan.prices);
        }
        self.own_prices.get_or_init(subscription, || {
            let since = |_| EffectiveFrom { at: subscription.terms_since, ..EffectiveFrom::UNKNOWN };
            let prices = subscription.prices(&self.catalog);
            CountedPrices::of_each_currency(&prices, |key| self.numbered(key), since)
        })
    }

    /// Returns the price books of a subscription.
    pub fn books_of(&self, subscription: &Subscription) -> Vec<&PriceBook> {
        self.prices_of(subscription).iter().map(|prices| &prices.book).collect()
    }

    /// Returns whether the index keeps so many subscriptions with own prices that it must be read again.
    pub fn is_full(&self) -> bool {
        self.own_prices.is_full()
    }

    /// Returns the prices that rate the usage of a path: those of the nearest plan with prices.
    pub fn prices_on<'a>(&'a self, path: &Path) -> &'a [CountedPrices] {
        let subscriptions = path.members.iter().filter_map(|member| member.subscription.as_ref());
        subscriptions.map(|own| self.prices_of(own)).find(|prices| !prices.is_empty()).unwrap_or_default()
    }

    /// Returns the commitment of the subject at the start of a path, if its own plan has prices. Subjects
    /// below it have no bill.
    pub fn commitment_of<'a>(&'a self, path: &'a Path, currency: Currency) -> Option<&'a Commitment> {
        let own = path.members.first()?.subscription.as_ref()?;
        if self.prices_of(own).is_empty() { None } else { own.commitment(&self.catalog, currency) }
    }

    /// Returns the limits that apply to a use of a meter, beginning with the nearest subject.
    pub fn matching<'a>(
        &'a self,
        path: &'a Path,
        meter: &MeterKey,
        properties: &Properties,
    ) -> impl Iterator<Item = ApplicableLimit<'a>> {
        self.of_path(path).filter(move |found| {
            found.terms.limit.meter == *meter && found.terms.limit.filter.admits(properties)
        })
    }

    /// Returns all limits of the path's plans, beginning with the nearest subject.
    pub fn of_path<'a>(&'a self, path: &'a Path) -> impl Iterator<Item = ApplicableLimit<'a>> {
        path.members.iter().flat_map(|member| self.of_member(member))
    }

    /// Returns the limits of a subject's own plan.
    pub fn of_member<'a>(&'a self, member: &'a PathSubject) -> impl Iterator<Item = ApplicableLimit<'a>> {
        let own = member.subscription.as_ref();
        own.into_iter().flat_map(move |subscription| {
            self.limits_of(&subscription.plan).iter().map(move |terms| ApplicableLimit {
                member,
                subscription,
                terms,
            })
        })
    }
}

impl Path {
    /// Returns whether a subscription of the path has ended and its end is not applied yet.
    pub fn has_due_end(&self, now: Timestamp, terms: &CatalogIndex) -> bool {
        let mut subscriptions = self.members.iter().filter_map(|member| member.subscription.as_ref());
        subscriptions.any(|subscription| subscription.ended(&terms.catalog, now).is_some())
    }

    /// Returns the path after due cancellations and the default plan are applied.
    #[must_use]
    pub fn settled(&self, now: Timestamp, terms: &CatalogIndex) -> Self {
        let mut settled = self.clone();
        for member in &mut settled.members {
            if let Some(ended) = member.subscription.as_ref().and_then(|s| s.ended(&terms.catalog, now)) {
                member.subscription = Some(ended);
            }
        }
        if !settled.has_subscription()
            && let (Some(plan), Some(root)) = (&terms.catalog.default_plan, settled.members.last_mut())
        {
            root.subscription = Some(Subscription::begin(plan.clone(), now));
        }
        settled
    }
}

/// A limit that applies to a subject.
#[derive(Debug, Clone, Copy)]
pub struct ApplicableLimit<'a> {
    pub member: &'a PathSubject,
    pub subscription: &'a Subscription,
    pub terms: &'a LimitTerms,
}

impl ApplicableLimit<'_> {
    pub fn key(&self) -> &ItemKey {
        &self.terms.limit.key
    }

    pub fn quota(&self) -> Option<Quantity> {
        match self.subscription.overrides.get(self.key()) {
            Some(quota) => *quota,
            None => self.terms.limit.quota,
        }
    }

    pub fn period_at(&self, at: Timestamp) -> Span {
        self.terms.limit.period_at(&self.subscription.cycle, at)
    }

    /// Returns the counter of the period around an instant, or none if usage of that time is no longer
    /// counted.
    pub fn counter_at(&self, at: Timestamp) -> Option<CounterPeriod> {
        let counter = self.counter_of(self.period_at(at));
        (counter.since <= at).then_some(counter)
    }

    fn counter_of(&self, period: Span) -> CounterPeriod {
        let Self { member, subscription, terms } = self;
        let reset = subscription.resets.get(&terms.definition).copied();
        // While a limit is assigned, every writer creates its counter. So a missing counter is zero if its
        // period began after the assignment. Event times may lie slightly ahead of the clock.
        let assigned = subscription.terms_since.max(terms.since.at);
        let began_assigned = period.from >= assigned.saturating_add(EVENT_AHEAD_MAX);
        let nothing_before = subscription.pristine_version.is_some_and(|began| terms.since.version <= began);
        CounterPeriod {
            key: CounterKey {
                subject_id: member.subject_id,
                definition: terms.definition,
                period_start: period.from,
            },
            period,
            since: reset.map_or(period.from, |reset| reset.max(period.from)),
            starts_at_zero: began_assigned || nothing_before,
        }
    }
}
