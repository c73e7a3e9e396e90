//! The test against limits: a use must fit under every hard limit that applies to it.

use super::request::HoldRequest;
use super::state::{Counter, GateState};
use crate::base::names::MeterKey;
use crate::base::quantity::{Quantity, Total};
use crate::base::timestamp::Timestamp;
use crate::catalog::meter::Aggregation;
use crate::gate::catalog_index::ApplicableLimit;
use crate::gate::counter::{CounterKey, CounterState};
use crate::gate::decision::{Denier, GrantMode, LimitState, granted};
use crate::gate::path::Path;
use crate::usage::event::Properties;

impl<'a> GateState<'a> {
    /// Returns the part of a request that fits its limits, or none for a denial.
    pub(super) fn fit_limits(
        &self,
        ask: &HoldRequest,
        limits: &[(ApplicableLimit<'_>, CounterState)],
    ) -> Option<Quantity> {
        match self.terms.meter(&ask.meter) {
            Some(found) if !found.meter.aggregation.is_reservable() => self.fit_gauge(ask, limits),
            _ => granted(ask.value.amount(), ask.grant, self.is_whole(ask), limits),
        }
    }

    /// Returns the granted quantity of a gauge. Its new value must fit.
    fn fit_gauge(
        &self,
        ask: &HoldRequest,
        limits: &[(ApplicableLimit<'_>, CounterState)],
    ) -> Option<Quantity> {
        let fits = limits.iter().filter(|(found, _)| found.terms.is_hard()).all(|(found, _)| {
            let becomes = self.counter_at(found, self.moment.now).and_then(|(_, counter)| counter.becomes);
            found.quota().is_none_or(|quota| becomes.unwrap_or_default() <= Total::from(quota))
        });
        fits.then(|| ask.value.quantity.unwrap_or(Quantity::ONE))
    }

    pub(super) fn is_whole(&self, ask: &HoldRequest) -> bool {
        self.terms.meter(&ask.meter).is_some_and(|found| found.meter.aggregation == Aggregation::Count)
    }

    /// Returns the smallest quantity that can be granted to a request.
    pub(super) fn least(&self, ask: &HoldRequest) -> Quantity {
        match (ask.grant, self.is_whole(ask)) {
            (GrantMode::Exactly, _) => ask.value.amount(),
            (GrantMode::UpTo, true) => ask.value.amount().min(Quantity::ONE),
            (GrantMode::UpTo, false) => ask.value.amount().min(Quantity::SMALLEST),
        }
    }

    /// Returns the limits that even the smallest quantity of a request would exceed. Limits that credits
    /// extend are left out.
    pub(super) fn deniers(
        &self,
        ask: &HoldRequest,
        limits: &[(ApplicableLimit<'_>, CounterState)],
    ) -> Vec<Denier> {
        let least = self.least(ask);
        let denies = |found: &ApplicableLimit<'_>, level: CounterState| {
            let becomes = self.counter_at(found, self.moment.now).and_then(|(_, counter)| counter.becomes);
            let would = becomes.unwrap_or(level.used + level.held + least.into());
            let is_plain = found.terms.is_hard() && !found.terms.is_covered();
            is_plain && found.quota().is_some_and(|quota| would > Total::from(quota))
        };
        let requested = ask.value.quantity.unwrap_or(Quantity::ONE);
        limits
            .iter()
            .filter(|(found, level)| denies(found, *level))
            .map(|(found, level)| Denier::of(found, *level, requested, self.moment.now))
            .collect()
    }

    pub(super) fn counter_at(
        &self,
        found: &ApplicableLimit<'_>,
        at: Timestamp,
    ) -> Option<(CounterKey, &Counter)> {
        let period = found.counter_at(at)?;
        Some((period.key, self.counters.get(&period.key)?))
    }

    fn level_at(&self, found: &ApplicableLimit<'_>, at: Timestamp) -> CounterState {
        self.counter_at(found, at).map(|(_, counter)| counter.level).unwrap_or_default()
    }

    /// Returns the limits that apply to a use, with their counter states in the periods around an instant.
    pub(super) fn levels<'p>(
        &self,
        path: &'p Path,
        meter: &MeterKey,
        properties: &Properties,
        at: Timestamp,
    ) -> Vec<(ApplicableLimit<'p>, CounterState)>
    where
        'a: 'p,
    {
        let terms = self.terms;
        let limits = terms.matching(path, meter, properties);
        limits.map(|found| (found, self.level_at(&found, at))).collect()
    }

    /// Returns the present states of the limits that apply to some uses.
    pub fn limits<'u>(
        &self,
        path: &Path,
        uses: impl Iterator<Item = (&'u MeterKey, &'u Properties)>,
    ) -> Vec<LimitState> {
        let uses: Vec<_> = uses.collect();
        let now = self.moment.now;
        let meets = |found: &ApplicableLimit<'_>| {
            let limit = &found.terms.limit;
            uses.iter().any(|(meter, properties)| **meter == limit.meter && limit.filter.admits(properties))
        };
        let limits = self.terms.of_path(path).filter(meets);
        limits.map(|found| LimitState::of(&found, self.level_at(&found, now), now)).collect()
    }
}
