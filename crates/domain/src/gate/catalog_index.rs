//! Who stands where, and which limits meet a use of a meter: those of every subject on the path, each
//! by its own plan.

use std::borrow::Cow;
use std::collections::HashMap;

use uuid::Uuid;

use super::applicable_cap::{CapTerms, PriceBook, Priced};
use crate::base::limits::{CLOSING, EVENT_AHEAD_MAX};
use crate::base::names::{ItemKey, MeterKey, PlanKey, SubjectId};
use crate::base::quantity::Quantity;
use crate::base::timestamp::Timestamp;
use crate::base::window::Span;
use crate::catalog::Catalog;
use crate::catalog::meter::{Aggregation, StoredMeter};
use crate::catalog::plan::{Enforcement, Limit, Overage, Plan};
use crate::pricing::commitment::Commitment;
use crate::pricing::currency::Currency;
use crate::pricing::exchange::Rates;
use crate::pricing::price::Price;
use crate::subjects::subscription::Subscription;
use crate::usage::event::Properties;

/// A subject on a path.
#[derive(Debug, Clone, Default)]
pub struct PathSubject {
    pub subject_id: i64,
    pub subject: String,
    pub subscription: Option<Subscription>,
    /// Of its own, beside those of its plan.
    pub caps: Vec<CapTerms>,
    /// When it came under its parent; none: it has always stood where it stands.
    pub moved_at: Option<Timestamp>,
    /// Itself and those above it now, where they are others than on this path.
    pub current_ancestors: Option<Box<[PathSubject]>>,
}

/// A subject and its ancestors, nearest first.
#[derive(Debug, Clone)]
pub struct Path {
    pub id: i64,
    /// The nearest customer on it.
    pub customer_id: Option<i64>,
    pub members: Vec<PathSubject>,
}

impl Path {
    /// Of somebody whom nobody has met.
    pub fn of_stranger(subject: &SubjectId) -> Self {
        let member = PathSubject { subject: subject.to_string(), ..PathSubject::default() };
        Self { id: 0, customer_id: None, members: vec![member] }
    }

    pub fn subject(&self) -> &str {
        self.members.first().map_or("", |member| &member.subject)
    }

    /// The subject at the top.
    pub fn root(&self) -> Option<&PathSubject> {
        self.members.last()
    }

    /// A member and those above it, nearest first, as they stand now.
    pub fn ancestors_of(&self, index: usize) -> &[PathSubject] {
        match self.members.get(index).and_then(|member| member.current_ancestors.as_deref()) {
            Some(chain) => chain,
            None => self.members.get(index..).unwrap_or_default(),
        }
    }

    pub fn has_subscription(&self) -> bool {
        self.members.iter().any(|member| member.subscription.is_some())
    }

    /// The nearest subscription, and whose it is.
    pub fn nearest(&self) -> Option<(&PathSubject, &Subscription)> {
        self.members.iter().find_map(|member| Some((member, member.subscription.as_ref()?)))
    }

    /// What use there costs: the prices of the nearest plan on it that has any.
    pub fn prices<'a>(&'a self, catalog: &'a Catalog) -> Option<Cow<'a, [Price]>> {
        let subscriptions = self.members.iter().filter_map(|member| member.subscription.as_ref());
        subscriptions.map(|subscription| subscription.prices(catalog)).find(|prices| !prices.is_empty())
    }

    /// What bounds the bill of the subject at its start: where the prices are those of its own plan, for a
    /// bill is that of whoever is on a plan, and of nobody below.
    pub fn commitment<'a>(&'a self, catalog: &'a Catalog, currency: Currency) -> Option<&'a Commitment> {
        let own = self.members.first()?.subscription.as_ref()?;
        if own.prices(catalog).is_empty() { None } else { own.commitment(catalog, currency) }
    }

    /// Whether a subscription on it has come to its end without that being carried out.
    pub fn has_due_end(&self, now: Timestamp, terms: &CatalogIndex) -> bool {
        self.members
            .iter()
            .filter_map(|member| member.subscription.as_ref())
            .any(|subscription| subscription.ended(&terms.catalog, now).is_some())
    }

    /// As it stands with what is due carried out: ends, and the default plan where nobody on it ever
    /// had a subscription.
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

/// When a limit came to its plan: by the clock, and by the version of the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EffectiveFrom {
    pub at: Timestamp,
    pub version: i64,
}

impl EffectiveFrom {
    /// Later than anything.
    pub const UNKNOWN: Self = Self { at: Timestamp::MAX, version: i64::MAX };

    /// When both were there.
    #[must_use]
    pub fn later(self, other: Self) -> Self {
        Self { at: self.at.max(other.at), version: self.version.max(other.version) }
    }
}

/// A limit of a plan in force.
#[derive(Debug, Clone)]
pub struct LimitTerms {
    pub limit: Limit,
    pub meter_id: i32,
    pub aggregation: Aggregation,
    /// See [`Limit::definition`].
    pub definition: Uuid,
    /// Since when its plan has had a limit of this definition.
    pub since: EffectiveFrom,
}

impl LimitTerms {
    pub fn is_hard(&self) -> bool {
        self.limit.enforcement == Enforcement::Hard
    }

    /// Whether credits cover what is above its quota.
    pub fn is_covered(&self) -> bool {
        self.limit.overage == Overage::Credits
    }

    /// Whether it compares a counter, which can be held; else a level, which is read.
    pub fn uses_counter(&self) -> bool {
        self.aggregation.is_reservable()
    }
}

/// The catalog as it decides.
#[derive(Debug, Default)]
pub struct CatalogIndex {
    pub catalog: Catalog,
    meters: HashMap<MeterKey, StoredMeter>,
    /// In order.
    meter_keys: Vec<MeterKey>,
    by_event_name: HashMap<String, Vec<MeterKey>>,
    by_stripe_name: HashMap<String, MeterKey>,
    limits: HashMap<PlanKey, Vec<LimitTerms>>,
    priced: HashMap<PlanKey, Priced>,
    pub rates: Rates,
}

impl CatalogIndex {
    /// `since`: by plan and definition.
    pub fn new(
        catalog: Catalog,
        meters: Vec<StoredMeter>,
        since: &HashMap<(String, Uuid), EffectiveFrom>,
        rates: Rates,
    ) -> Self {
        let meters: HashMap<MeterKey, StoredMeter> =
            meters.into_iter().map(|terms| (terms.meter.key.clone(), terms)).collect();
        let limit = |plan: &Plan, limit: &Limit| {
            let terms = meters.get(&limit.meter)?;
            let definition = limit.definition();
            let since = since.get(&(plan.key.to_string(), definition)).copied();
            Some(LimitTerms {
                limit: limit.clone(),
                meter_id: terms.id,
                aggregation: terms.meter.aggregation,
                definition,
                since: since.unwrap_or(EffectiveFrom::UNKNOWN),
            })
        };
        let limits = catalog
            .plans
            .iter()
            .map(|plan| (plan.key.clone(), plan.limits.iter().filter_map(|l| limit(plan, l)).collect()))
            .collect();
        let priced = |plan: &Plan| {
            let meter = |key: &MeterKey| meters.get(key).map(|stored| (stored.id, stored.meter.aggregation));
            let since =
                |id| since.get(&(plan.key.to_string(), id)).copied().unwrap_or(EffectiveFrom::UNKNOWN);
            Priced::of(&plan.prices, &plan.spend_caps, meter, since)
        };
        let priced = catalog.plans.iter().map(|plan| (plan.key.clone(), priced(plan))).collect();
        let mut by_event_name: HashMap<String, Vec<MeterKey>> = HashMap::new();
        let mut keys: Vec<&MeterKey> = meters.keys().collect();
        keys.sort();
        let mut by_stripe_name = HashMap::new();
        for key in keys.iter().copied() {
            let meter = &meters[key].meter;
            by_event_name.entry(meter.event_name.to_string()).or_default().push(key.clone());
            if let Some(stripe) = &meter.stripe {
                by_stripe_name.entry(stripe.event_name.clone()).or_insert_with(|| key.clone());
            }
        }
        let meter_keys = keys.into_iter().cloned().collect();
        Self { catalog, meters, meter_keys, by_event_name, by_stripe_name, limits, priced, rates }
    }

    pub fn meter(&self, key: &MeterKey) -> Option<&StoredMeter> {
        self.meters.get(key)
    }

    /// Every meter, by key.
    pub fn meters(&self) -> impl Iterator<Item = &StoredMeter> {
        self.meter_keys.iter().filter_map(|key| self.meters.get(key))
    }

    pub fn meter_by_id(&self, id: i32) -> Option<&StoredMeter> {
        self.meters.values().find(|terms| terms.id == id)
    }

    /// The meters that look at events of a name, by key.
    pub fn meters_of(&self, event_name: &str) -> impl Iterator<Item = &StoredMeter> + Clone {
        let keys = self.by_event_name.get(event_name).map_or(&[][..], Vec::as_slice);
        keys.iter().filter_map(|key| self.meters.get(key))
    }

    /// The meter that Stripe knows by an event name: the first by key, before those whose own name it is.
    pub fn meter_in_stripe(&self, event_name: &str) -> Option<&StoredMeter> {
        let named = self.by_stripe_name.get(event_name).and_then(|key| self.meters.get(key));
        named.or_else(|| self.meters_of(event_name).next())
    }

    /// Whether credits cover what is above the quota of any limit.
    pub fn has_covered(&self) -> bool {
        self.limits.values().flatten().any(LimitTerms::is_covered)
    }

    pub fn limits_of(&self, plan: &PlanKey) -> &[LimitTerms] {
        self.limits.get(plan).map_or(&[], Vec::as_slice)
    }

    /// A limit of a definition, of any plan.
    pub fn limit_of(&self, definition: Uuid) -> Option<&LimitTerms> {
        self.limits.values().flatten().find(|terms| terms.definition == definition)
    }

    /// The spend caps of a plan.
    pub fn caps_of(&self, plan: &PlanKey) -> &[CapTerms] {
        self.priced.get(plan).map_or(&[], |priced| &priced.caps)
    }

    /// The prices of a subscription, one sheet for each currency: those of its plan, and its own.
    pub fn price_books_of<'a>(&'a self, subscription: &'a Subscription) -> &'a [PriceBook] {
        if !subscription.prices.is_empty() {
            return subscription.price_books.get_or_init(|| self.own_price_books(subscription));
        }
        self.priced.get(&subscription.plan).map_or(&[], |priced| &priced.price_books)
    }

    fn own_price_books(&self, subscription: &Subscription) -> Vec<PriceBook> {
        let meter = |key: &MeterKey| self.meters.get(key).map(|stored| (stored.id, stored.meter.aggregation));
        let since = |_| EffectiveFrom { at: subscription.terms_since, ..EffectiveFrom::UNKNOWN };
        Priced::of(&subscription.prices(&self.catalog), &[], meter, since).price_books
    }

    /// The limits that meet a use of a meter, the nearest subject's first.
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

    /// Every limit of every plan on a path, the nearest subject's first.
    pub fn of_path<'a>(&'a self, path: &'a Path) -> impl Iterator<Item = ApplicableLimit<'a>> {
        path.members.iter().flat_map(|member| self.of_member(member))
    }

    /// The limits of a subject by its own plan.
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

/// A limit as it meets a subject.
#[derive(Debug, Clone, Copy)]
pub struct ApplicableLimit<'a> {
    pub member: &'a PathSubject,
    pub subscription: &'a Subscription,
    pub terms: &'a LimitTerms,
}

/// Names a counter: the order in which they are locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CounterKey {
    pub subject_id: i64,
    pub definition: Uuid,
    pub period_start: Timestamp,
}

/// A counter of a limit, and what it counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CounterPeriod {
    pub key: CounterKey,
    /// The period; what lies before `since` in it is not counted.
    pub period: Span,
    pub since: Timestamp,
    /// Where there is no such counter while its period lasts, nothing can have been recorded for it.
    pub starts_at_zero: bool,
}

impl CounterPeriod {
    /// What it counts.
    pub fn counted_span(&self) -> Span {
        Span { from: self.since, to: self.period.to }
    }
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

    /// The counter around an instant; none where what happens then is not counted any more.
    pub fn counter_at(&self, at: Timestamp) -> Option<CounterPeriod> {
        let counter = self.counter_of(self.period_at(at));
        (counter.since <= at).then_some(counter)
    }

    fn counter_of(&self, period: Span) -> CounterPeriod {
        let Self { member, subscription, terms } = self;
        let reset = subscription.resets.get(&terms.definition).copied();
        // While a limit is assigned, whatever is recorded for it makes its counter. So a counter that
        // is missing though its period began later counts nothing; events may lie a little ahead.
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

impl CounterPeriod {
    /// Whether its time is over for good: then only a counter that exists goes on being counted.
    pub fn is_closed(&self, now: Timestamp) -> bool {
        self.period.to.saturating_add(CLOSING) <= now
    }

    /// Whether it has been closed for so long that nobody can be about to make it.
    pub fn is_forgotten(&self, now: Timestamp) -> bool {
        self.period.to.saturating_add(CLOSING * 2) <= now
    }
}
