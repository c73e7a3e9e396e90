//! The subjects and reservations of a batch, and the counters that its decision needs.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::calls::Call;
use super::counters::{CounterRequest, CounterRequests, request_counter};
use super::processor::Findings;
use crate::engine::subjects::resolution::{Arrivals, SubjectPaths, find_paths};
use crate::engine::writers::interrupt::Interrupt;
use crate::engine::writers::prerequisite::{Prerequisite, Recheck};
use crate::engine::writers::transaction::BatchTransaction;
use crate::store;
use metergate_domain::base::limits::SWEEP_RESERVATIONS_MAX;
use metergate_domain::base::{Timestamp, Violations};
use metergate_domain::gate::{
    ApplicableCap, ApplicableLimit, CatalogIndex, CounterKey, CounterSource, HoldRequest, Path, PricedUsage,
    Reservation, Reserve,
};

/// A call and its violations of the catalog.
pub(super) struct CheckedCall<'w> {
    pub(super) call: &'w Call,
    pub(super) errors: Option<Violations>,
}

impl<'w> CheckedCall<'w> {
    pub(super) fn of(call: &'w Call, terms: &CatalogIndex) -> Self {
        let errors = call.reserve().and_then(|request| request.validate(terms, true).err());
        Self { call, errors }
    }
}

/// Returns the calls without violations.
fn acceptable<'w>(calls: &[CheckedCall<'w>]) -> impl Iterator<Item = &'w Call> + Clone {
    calls.iter().filter(|checked| checked.errors.is_none()).map(|checked| checked.call)
}

/// Returns the reserve requests of the calls without violations.
pub(super) fn requests<'w>(calls: &[CheckedCall<'w>]) -> impl Iterator<Item = &'w Reserve> {
    acceptable(calls).filter_map(Call::reserve)
}

/// The subjects and reservations of a batch.
#[derive(Default)]
pub(super) struct BatchContext {
    pub(super) subject_paths: SubjectPaths,
    /// The locked reservations.
    pub(super) locked: Vec<Reservation>,
    /// The paths of the subjects and of the locked reservations.
    pub(super) paths: HashMap<i64, Arc<Path>>,
}

impl BatchContext {
    /// Locks the existing reservations of calls, and resolves the subjects of new ones.
    pub(super) async fn gather(
        transaction: &mut BatchTransaction<'_>,
        calls: &[CheckedCall<'_>],
        findings: &Findings,
    ) -> Result<Self, Interrupt> {
        let keys = reservations_to_lock(transaction, calls, findings).await?;
        let mut context = Self::default();
        if !keys.is_empty() {
            context.locked = store::gate::reservations::lock(&mut transaction.scope, &keys).await?;
        }
        let ids = context.locked.iter().map(|reservation| reservation.path_id).collect();
        context.paths = find_paths(transaction, &ids).await?;
        let known: BTreeSet<_> = context.locked.iter().map(|reservation| reservation.key).collect();
        let is_new = |call: &&Call| call.key().is_some_and(|key| !known.contains(&key));
        let new = acceptable(calls).filter(is_new).filter_map(Call::reserve);
        let names: BTreeSet<&str> = new.map(|request| request.subject.as_str()).collect();
        context.subject_paths = resolve(transaction, &names, findings).await?;
        let subject_paths = context.subject_paths.values().map(|path| (path.id, Arc::clone(path)));
        context.paths.extend(subject_paths);
        Ok(context)
    }

    /// Interrupts the attempt if the end of a subscription is due.
    pub(super) fn refuse_due_ends(&self, now: Timestamp, terms: &CatalogIndex) -> Result<(), Interrupt> {
        let is_due = self.paths.values().any(|path| path.has_due_end(now, terms));
        if is_due { Err(Prerequisite::EndSubscriptions.into()) } else { Ok(()) }
    }

    /// Returns the counters that calls test, change or show.
    pub(super) fn needed<'a>(
        &'a self,
        terms: &'a CatalogIndex,
        calls: &[CheckedCall<'_>],
        now: Timestamp,
    ) -> NeededCounters<'a> {
        let mut needed = NeededCounters::default();
        for request in requests(calls) {
            if let Some(path) = self.subject_paths.get(request.subject.as_str()) {
                needed.add_request(terms, path, request, now);
            }
        }
        for reservation in &self.locked {
            if let Some(path) = self.paths.get(&reservation.path_id) {
                needed.add_reservation(terms, path, reservation, now);
            }
        }
        needed
    }
}

async fn reservations_to_lock(
    transaction: &mut BatchTransaction<'_>,
    calls: &[CheckedCall<'_>],
    findings: &Findings,
) -> Result<Vec<uuid::Uuid>, Interrupt> {
    let BatchTransaction { scope, now, .. } = transaction;
    let mut keys = findings.expired_to_commit.clone();
    if acceptable(calls).any(|call| matches!(call, Call::Sweep)) {
        let limit = SWEEP_RESERVATIONS_MAX;
        keys.extend(store::gate::reservations::due(scope, *now, limit).await?);
    }
    // Most ids are new, so existing reservations are read only after an insert found a taken id.
    let is_looked_for = |call: &&Call| findings.check_existing || call.reserve().is_none();
    keys.extend(acceptable(calls).filter(is_looked_for).filter_map(Call::key));
    Ok(keys)
}

/// Resolves subjects. Creates unknown subjects if the catalog has a default plan.
async fn resolve(
    transaction: &mut BatchTransaction<'_>,
    names: &BTreeSet<&str>,
    findings: &Findings,
) -> Result<SubjectPaths, Interrupt> {
    let has_default_plan = transaction.cache.terms.catalog.default_plan.is_some();
    let mut arrivals = Arrivals::find(transaction, names).await?;
    if arrivals.found.len() < names.len() && has_default_plan {
        let unknown = names.iter().filter(|name| !arrivals.found.contains_key(**name));
        let unknown: Vec<String> = unknown.map(|name| (*name).to_owned()).collect();
        arrivals.make(&unknown).await?;
    }
    match arrivals.subscribe().await? {
        None => Ok(arrivals.found),
        // A retry of an existing reservation must not start subscriptions, so existing ones are read first.
        Some(_) if !findings.check_existing => Err(Recheck::Reservations.into()),
        Some(prerequisite) => Err(prerequisite.into()),
    }
}

/// The counters that a batch needs.
#[derive(Default)]
pub(super) struct NeededCounters<'a> {
    pub(super) counters: CounterRequests<'a>,
    /// The gauges that caps test; they have no counters.
    pub(super) gauges: CounterRequests<'a>,
    /// The earliest end of a present period, or the earliest change of a price.
    pub(super) until: Option<Timestamp>,
}

impl<'a> NeededCounters<'a> {
    fn add_request(&mut self, terms: &'a CatalogIndex, path: &'a Path, request: &Reserve, now: Timestamp) {
        for ask in &request.asks {
            for found in terms.matching(path, &ask.meter, &ask.properties) {
                self.add_present(found, now);
            }
        }
        for applicable_cap in terms.applicable_caps(path, now) {
            self.ends_at(applicable_cap.next_change(now));
            let meets = |ask: &HoldRequest| applicable_cap.is_met_by(&ask.meter, &ask.properties, now);
            if request.asks.iter().any(meets) {
                for priced_usage in applicable_cap.priced_usages() {
                    let key = self.add_portion(priced_usage, now);
                    self.ends_with(key);
                }
            }
        }
    }

    fn add_reservation(
        &mut self,
        terms: &'a CatalogIndex,
        path: &'a Path,
        reservation: &Reservation,
        now: Timestamp,
    ) {
        let made_at = reservation.created_at;
        for hold in &reservation.holds {
            for found in terms.matching(path, &hold.meter, &hold.properties) {
                request_counter(&mut self.counters, CounterSource::Limit(found), made_at);
                self.add_present(found, now);
            }
        }
        // Growing holds are tested against everything that caps count.
        for priced_usage in
            terms.applicable_caps(path, made_at).into_iter().flat_map(ApplicableCap::priced_usages)
        {
            self.add_portion(priced_usage, made_at);
        }
    }

    fn add_present(&mut self, found: ApplicableLimit<'a>, now: Timestamp) {
        let key = request_counter(&mut self.counters, CounterSource::Limit(found), now);
        self.ends_with(key);
    }

    fn add_portion(&mut self, priced_usage: PricedUsage<'a>, at: Timestamp) -> Option<CounterKey> {
        let counter_source = CounterSource::PricedUsage(priced_usage);
        let key = request_counter(&mut self.counters, counter_source, at);
        if key.is_none() {
            let counter = priced_usage.counter_at(at);
            self.gauges.entry(counter.key).or_insert(CounterRequest { counter_source, counter });
        }
        key
    }

    fn ends_with(&mut self, key: Option<CounterKey>) {
        let need = key.and_then(|key| self.counters.get(&key));
        self.ends_at(need.map(|need| need.counter.period.to));
    }

    fn ends_at(&mut self, end: Option<Timestamp>) {
        self.until = self.until.into_iter().chain(end).min();
    }

    /// Returns the counters of priced usage.
    pub(super) fn of_prices(&self) -> BTreeSet<CounterKey> {
        let is_of_price =
            |need: &&CounterRequest<'_>| matches!(need.counter_source, CounterSource::PricedUsage(_));
        self.counters.values().filter(is_of_price).map(|need| need.counter.key).collect()
    }
}
