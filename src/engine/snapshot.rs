//! Read-only checks and limit states from one snapshot.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use uuid::Uuid;

use super::pricing::priced_usage;
use super::usage::reader;
use crate::engine::credits::wallets::{HolderSubscriptions, WalletLoader, add_holder};
use crate::engine::error::EngineError;
use crate::engine::gate::counters::{
    CounterRequest, CounterRequests, count, request_counter, usage_query_for,
};
use crate::engine::services::Engine;
use crate::store::subjects::subject::Which;
use crate::store::{self, Scope, StoreError};
use metergate_domain::base::names::{EventName, MeterKey, SubjectId};
use metergate_domain::base::{Environment, Quantity, Timestamp, Total};
use metergate_domain::catalog::Aggregation;
use metergate_domain::gate::reservation::holds;
use metergate_domain::gate::{
    ApplicableCap, ApplicableLimit, CallOutcome, CatalogIndex, Counter, CounterKey, CounterSource,
    GateAnswer, GateState, LimitState, Moment, Path, PathSubject, Reserve,
};
use metergate_domain::usage::{Event, Properties};

/// An event for which limit states are shown.
#[derive(Debug)]
pub(crate) struct TrackedUse {
    subject: SubjectId,
    event_name: EventName,
    value: Quantity,
    properties: Properties,
}

impl TrackedUse {
    pub(crate) fn of(event: &Event) -> Self {
        Self {
            subject: event.subject.clone(),
            event_name: event.event_name.clone(),
            value: event.value,
            properties: event.properties.clone(),
        }
    }
}

/// A snapshot, with the catalog and the time that apply in it.
pub(crate) struct ReadSnapshot {
    pub(crate) snapshot: sqlx::Transaction<'static, sqlx::Postgres>,
    pub(crate) environment: Environment,
    pub(crate) terms: Arc<CatalogIndex>,
    pub(crate) now: Timestamp,
}

impl ReadSnapshot {
    /// Returns the environment on the connection of this snapshot.
    pub(crate) fn scope(&mut self) -> Scope<'_> {
        Scope::new(&mut self.snapshot, self.environment)
    }

    /// Returns the path of a subject after due cancellations and the default plan are applied.
    pub(crate) async fn subject_path(&mut self, subject: &SubjectId) -> Result<Path, StoreError> {
        let names = [subject.to_string()];
        let found = store::subjects::subject::paths(&mut self.scope(), Which::Of(&names)).await?;
        let path = found.into_iter().next().unwrap_or_else(|| Path::of_stranger(subject));
        Ok(path.settled(self.now, &self.terms))
    }

    /// Returns whether the snapshot stores the subject's subscription, or the subject has none.
    pub(crate) async fn is_as_written(&mut self, member: &PathSubject) -> Result<bool, StoreError> {
        Ok(member.subscription.is_none()
            || store::subjects::subscriptions::find(&mut self.snapshot, member.subject_id).await?.is_some())
    }

    /// Returns the present counters of limits and of priced usage. Gauges are read and returned as
    /// counters.
    pub(crate) async fn counters<'m>(
        &mut self,
        counter_sources: impl Iterator<Item = CounterSource<'m>>,
    ) -> Result<BTreeMap<CounterKey, Counter>, StoreError> {
        let (mut counter_requests, mut levels) = (CounterRequests::new(), Vec::new());
        for counter_source in counter_sources {
            if request_counter(&mut counter_requests, counter_source, self.now).is_none()
                && let Some(counter) = counter_source.counter_at(self.now)
            {
                levels.push(CounterRequest { counter_source, counter });
            }
        }
        let mut counters = self.counted(&counter_requests).await?;
        let scope = &mut Scope::new(&mut self.snapshot, self.environment);
        for level in levels {
            let read = count(scope, &self.terms, &level).await?;
            counters.insert(level.counter.key, read.counter(self.now));
        }
        Ok(counters)
    }

    async fn counted(
        &mut self,
        counter_requests: &CounterRequests<'_>,
    ) -> Result<BTreeMap<CounterKey, Counter>, StoreError> {
        let mut counters = BTreeMap::new();
        if counter_requests.is_empty() {
            return Ok(counters);
        }
        let scope = &mut Scope::new(&mut self.snapshot, self.environment);
        let mut rows =
            store::gate::counters::find(scope.connection, counter_requests.keys().copied()).await?;
        rows.retain(|row| counter_requests.get(&row.key).is_some_and(|need| row.counts(&need.counter)));
        counters.extend(rows.iter().map(|row| (row.key, Counter::from(row))));
        for (key, line) in store::gate::hold_lines::expired(scope.connection, &rows, self.now).await? {
            if let Some(counter) = counters.get_mut(&key.counter) {
                counter.level = counter.level.without_expired(&line);
            }
        }
        for (key, need) in counter_requests {
            if !counters.contains_key(key) {
                let counter = if need.counter.starts_at_zero {
                    Counter::default()
                } else {
                    count(scope, &self.terms, need).await?.counter(self.now)
                };
                counters.insert(*key, counter);
            }
        }
        Ok(counters)
    }

    /// Sets the gauge values that a request would lead to.
    async fn with_gauge_value(
        &mut self,
        path: &Path,
        request: &Reserve,
        counters: &mut BTreeMap<CounterKey, Counter>,
    ) -> Result<(), StoreError> {
        let terms = Arc::clone(&self.terms);
        for ask in &request.asks {
            let Some(stored) = terms.meter(&ask.meter) else { continue };
            for counter_source in terms.counter_sources(path, &ask.meter, &ask.properties, self.now) {
                let Some(counter) =
                    counter_source.counter_at(self.now).filter(|_| !counter_source.uses_counter())
                else {
                    continue;
                };
                let Some(known) = counters.get_mut(&counter.key) else { continue };
                let (used, asked) = (known.level.used, Total::from(ask.value.amount()));
                let becomes = match (stored.meter.aggregation, counter_source) {
                    (Aggregation::UniqueCount, _) => {
                        let query = match counter_source {
                            CounterSource::Limit(found) => Some(usage_query_for(&found, &counter, stored)),
                            CounterSource::PricedUsage(priced_usage) => {
                                priced_usage::level(&priced_usage, stored, counter.period)
                            }
                        };
                        let Some(query) = query else { continue };
                        let member = &ask.value.member;
                        let is_known = reader::has_member(&mut self.scope(), stored, &query, member).await?;
                        used + Total::from(i64::from(!is_known))
                    }
                    (Aggregation::Max, CounterSource::PricedUsage(_)) => used.max(asked),
                    _ => asked,
                };
                known.becomes = Some(becomes);
            }
        }
        Ok(())
    }
}

impl Engine {
    /// Returns a snapshot in which all due charges are recorded.
    pub(crate) async fn read_snapshot(&self, environment: Environment) -> Result<ReadSnapshot, EngineError> {
        let mut snapshot = self.settled_snapshot(environment).await?;
        let scope = &mut Scope::new(&mut snapshot, environment);
        let (versions, now) = store::configuration::versions(scope).await?;
        let cache = self.inner.caches.at(scope, versions).await?;
        let now = self.inner.clock.now(environment, now);
        if store::gate::reservations::has_due_charges(scope, now).await? {
            // A reservation expired after the charges were recorded.
            drop(snapshot);
            return Box::pin(self.read_snapshot(environment)).await;
        }
        Ok(ReadSnapshot { snapshot, environment, terms: Arc::clone(&cache.terms), now })
    }

    /// Returns a moment for a test without changes.
    fn moment<'t>(&self, now: Timestamp, none: &'t BTreeSet<Uuid>) -> Moment<'t> {
        Moment { now, age_max: self.inner.settings.event_age_max, taken: none }
    }

    /// Decides a request without holding or creating anything. `to_hold` also rejects meters that cannot be
    /// reserved.
    pub async fn check(
        &self,
        environment: Environment,
        request: &Reserve,
        to_hold: bool,
    ) -> Result<GateAnswer, EngineError> {
        let mut snapshot = self.read_snapshot(environment).await?;
        let terms = Arc::clone(&snapshot.terms);
        request.validate(&terms, to_hold)?;
        let path = snapshot.subject_path(&request.subject).await?;
        let meets = |found: &ApplicableLimit<'_>| {
            let limit = &found.terms.limit;
            request.asks.iter().any(|ask| ask.meter == limit.meter && limit.filter.admits(&ask.properties))
        };
        let limits = terms.of_path(&path).filter(meets).map(CounterSource::Limit);
        let applicable_caps =
            terms.applicable_caps(&path, snapshot.now).into_iter().filter(|applicable_cap| {
                request
                    .asks
                    .iter()
                    .any(|ask| applicable_cap.is_met_by(&ask.meter, &ask.properties, snapshot.now))
            });
        let applicable_caps: Vec<ApplicableCap<'_>> = applicable_caps.collect();
        let priced_usages = applicable_caps
            .into_iter()
            .flat_map(ApplicableCap::priced_usages)
            .map(CounterSource::PricedUsage);
        let mut counters = snapshot.counters(limits.chain(priced_usages)).await?;
        snapshot.with_gauge_value(&path, request, &mut counters).await?;
        let now = snapshot.now;
        let mut holders = HolderSubscriptions::new();
        for found in terms.of_path(&path).filter(meets).filter(|found| found.terms.is_covered()) {
            add_holder(&mut holders, found.member);
        }
        let mut wallets = BTreeMap::new();
        if !holders.is_empty() {
            let wallet_loader =
                WalletLoader { environment, terms: &terms, clock: &self.inner.clock, began: now };
            wallets = wallet_loader.look(&mut snapshot.snapshot, &holders).await?;
        }
        snapshot.snapshot.commit().await?;
        let none = BTreeSet::new();
        let mut book = GateState::open(&terms, self.moment(now, &none));
        book.counters = counters;
        book.credits.wallets = wallets;
        let limits = book.limits(&path, request.asks.iter().map(|ask| (&ask.meter, &ask.properties)));
        let outcome = match book.test(&request.asks, &path) {
            Err(denial) => CallOutcome::Denied(denial),
            Ok(grants) => CallOutcome::Allowed { holds: holds(&request.asks, &grants) },
        };
        Ok(GateAnswer { outcome, limits, at: now })
    }

    /// Returns the states of the limits that apply to some events, each limit once.
    pub(crate) async fn limits_met(
        &self,
        environment: Environment,
        uses: Vec<TrackedUse>,
    ) -> Result<Vec<LimitState>, EngineError> {
        let mut snapshot = self.read_snapshot(environment).await?;
        let terms = Arc::clone(&snapshot.terms);
        let mut by_subject: BTreeMap<&SubjectId, Vec<&TrackedUse>> = BTreeMap::new();
        for event in &uses {
            by_subject.entry(&event.subject).or_default().push(event);
        }
        let (mut shown, mut limits) = (BTreeSet::new(), Vec::new());
        for (subject, events) in by_subject {
            let path = snapshot.subject_path(subject).await?;
            let mut met: Vec<(&MeterKey, &Properties)> = Vec::new();
            for event in events {
                for stored in terms.meters_of(event.event_name.as_str()) {
                    if stored.meter.measure(event.value, &event.properties).is_some() {
                        met.push((&stored.meter.key, &event.properties));
                    }
                }
            }
            let meets = |found: &ApplicableLimit<'_>| {
                let limit = &found.terms.limit;
                met.iter()
                    .any(|(meter, properties)| **meter == limit.meter && limit.filter.admits(properties))
            };
            let counters =
                snapshot.counters(terms.of_path(&path).filter(meets).map(CounterSource::Limit)).await?;
            let none = BTreeSet::new();
            let mut book = GateState::open(&terms, self.moment(snapshot.now, &none));
            book.counters = counters;
            for state in book.limits(&path, met.iter().copied()) {
                if shown.insert((state.subject.clone(), state.key.clone())) {
                    limits.push(state);
                }
            }
        }
        snapshot.snapshot.commit().await?;
        Ok(limits)
    }
}
