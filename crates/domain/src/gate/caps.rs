//! The test against spend caps. No part of the held and requested quantities may cost more than a cap
//! when it is used. Recorded usage may exceed a cap, as it may exceed a quota.

use super::applicable_cap::{ApplicableCap, PricedUsage};
use super::counter::{CounterKey, CounterState};
use super::credit_coverage::RequestedUse;
use super::decision::{CapDenier, Denier, GrantMode, resets_at};
use super::path::Path;
use super::request::{HoldRequest, order};
use super::state::GateState;
use crate::base::names::MeterKey;
use crate::base::quantity::{Quantity, Total};
use crate::base::timestamp::Timestamp;
use crate::pricing::amount::Amount;
use crate::usage::event::Properties;

/// The present and the new held quantity of a use.
#[derive(Debug, Clone, Copy)]
pub(super) struct HoldIncrease<'a> {
    pub(super) meter: &'a MeterKey,
    pub(super) properties: &'a Properties,
    pub(super) from: Quantity,
    pub(super) to: Quantity,
}

impl<'a> HoldIncrease<'a> {
    pub(super) fn is_growth(&self) -> bool {
        self.to > self.from
    }

    /// Returns the use that is requested beyond the held quantity.
    pub(super) fn asked(&self) -> RequestedUse<'a> {
        RequestedUse { meter: self.meter, properties: self.properties, quantity: self.to.above(self.from) }
    }
}

impl GateState<'_> {
    /// Returns the part of the grants that fits the caps of a path. If even the smallest grants do not fit,
    /// returns the caps that deny.
    pub(super) fn within_caps<'k>(
        &self,
        asks: &'k [HoldRequest],
        grants: Vec<Quantity>,
        path: &Path,
    ) -> Result<Vec<Quantity>, Vec<Denier>> {
        let at = self.moment.now;
        let uses = asks.iter().map(|ask| (&ask.meter, &ask.properties));
        let applicable_caps = self.applicable_caps_met(path, uses, at);
        if applicable_caps.is_empty() {
            return Ok(grants);
        }
        let growth = |(ask, to): (&'k HoldRequest, Quantity)| {
            let (meter, properties, from) = (&ask.meter, &ask.properties, Quantity::default());
            HoldIncrease { meter, properties, from, to }
        };
        let fits = |growths: &[HoldIncrease<'_>]| {
            applicable_caps.iter().all(|applicable_cap| self.fits_applicable_cap(applicable_cap, growths, at))
        };
        let asked: Vec<HoldIncrease<'_>> = asks.iter().zip(grants.iter().copied()).map(growth).collect();
        if fits(&asked) {
            return Ok(grants);
        }
        let least = |(ask, grant): (&HoldRequest, &Quantity)| self.least(ask).min(*grant);
        let least = asks.iter().zip(&grants).map(least);
        let mut growths: Vec<HoldIncrease<'_>> = asks.iter().zip(least).map(growth).collect();
        if !fits(&growths) {
            return Err(self.cap_deniers(&applicable_caps, &growths, &asked, at));
        }
        for place in order(asks) {
            let step = if self.is_whole(&asks[place]) { Quantity::ONE } else { Quantity::SMALLEST };
            let fits = |to: Quantity| {
                let mut tried = growths.clone();
                tried[place].to = to;
                fits(&tried)
            };
            let grant = grants[place];
            if asks[place].grant == GrantMode::UpTo {
                growths[place].to =
                    if fits(grant) { grant } else { largest_multiple_that_fits(step, grant, fits) };
            }
        }
        Ok(growths.into_iter().map(|growth| growth.to).collect())
    }

    /// Returns the caps that some growths would exceed.
    pub(super) fn caps_passed(
        &self,
        path: &Path,
        growths: &[HoldIncrease<'_>],
        at: Timestamp,
    ) -> Vec<Denier> {
        let uses = growths.iter().map(|growth| (growth.meter, growth.properties));
        let applicable_caps = self.applicable_caps_met(path, uses, at);
        self.cap_deniers(&applicable_caps, growths, growths, at)
    }

    /// Returns the caps on a path that count a cost for any of some uses.
    fn applicable_caps_met<'p, 'u>(
        &'p self,
        path: &'p Path,
        uses: impl Iterator<Item = (&'u MeterKey, &'u Properties)> + Clone,
        at: Timestamp,
    ) -> Vec<ApplicableCap<'p>> {
        let mut applicable_caps = self.terms.applicable_caps(path, at);
        applicable_caps.retain(|applicable_cap| {
            uses.clone().any(|(meter, properties)| applicable_cap.is_met_by(meter, properties, at))
        });
        applicable_caps
    }

    fn fits_applicable_cap(
        &self,
        applicable_cap: &ApplicableCap<'_>,
        growths: &[HoldIncrease<'_>],
        at: Timestamp,
    ) -> bool {
        self.highest(applicable_cap, growths, at).is_some_and(|cost| cost <= applicable_cap.cap.amount)
    }

    fn highest(
        &self,
        applicable_cap: &ApplicableCap<'_>,
        growths: &[HoldIncrease<'_>],
        at: Timestamp,
    ) -> Option<Amount> {
        let more = |priced_usage: &PricedUsage<'_>, key: &CounterKey| {
            let (slice, measure) = (priced_usage.slice, priced_usage.measure);
            let meets = |growth: &&HoldIncrease<'_>| {
                growth.meter == slice.meter && slice.admits(growth.properties, at)
            };
            if !slice.aggregation.is_reservable() {
                let is_asked = growths.iter().any(|growth| meets(&growth));
                return if is_asked { self.gauge_increase(key) } else { Total::default() };
            }
            let added = |growth: &HoldIncrease<'_>| {
                slice.measure_held(measure, growth.to) - slice.measure_held(measure, growth.from)
            };
            growths.iter().filter(meets).fold(Total::default(), |sum, growth| sum + added(growth))
        };
        applicable_cap.highest(at, |key| self.level(key), more)
    }

    fn level(&self, key: &CounterKey) -> CounterState {
        self.counters.get(key).map(|counter| counter.level).unwrap_or_default()
    }

    /// Returns the increase of a checked gauge, negative for a decrease.
    fn gauge_increase(&self, key: &CounterKey) -> Total {
        let counter = self.counters.get(key);
        counter.and_then(|counter| Some(counter.becomes? - counter.level.used)).unwrap_or_default()
    }

    /// Returns the caps that even the least requested quantities would exceed.
    fn cap_deniers(
        &self,
        applicable_caps: &[ApplicableCap<'_>],
        least: &[HoldIncrease<'_>],
        asked: &[HoldIncrease<'_>],
        at: Timestamp,
    ) -> Vec<Denier> {
        let denies =
            |applicable_cap: &&ApplicableCap<'_>| !self.fits_applicable_cap(applicable_cap, least, at);
        applicable_caps
            .iter()
            .filter(denies)
            .map(|applicable_cap| self.cap_denier(applicable_cap, asked, at))
            .collect()
    }

    fn cap_denier(
        &self,
        applicable_cap: &ApplicableCap<'_>,
        growths: &[HoldIncrease<'_>],
        at: Timestamp,
    ) -> Denier {
        let (spent, held) = applicable_cap.spent(at, |key| self.level(key)).unzip();
        let least = self.highest(applicable_cap, &[], at);
        let most = self.highest(applicable_cap, growths, at);
        Denier::Cap(CapDenier {
            subject: applicable_cap.member.subject.clone(),
            key: applicable_cap.cap.key.clone(),
            cap: applicable_cap.cap.amount.clone(),
            currency: applicable_cap.cap.currency,
            spent,
            held,
            requested: most.zip(least).map(|(most, least)| most - least),
            resets_at: resets_at(applicable_cap.period_at(at)),
        })
    }
}

/// Returns the largest multiple of a step, up to a bound, that fits. The caller ensures that one step
/// fits, and that every multiple below a fitting multiple fits.
fn largest_multiple_that_fits(step: Quantity, bound: Quantity, fits: impl Fn(Quantity) -> bool) -> Quantity {
    let multiple = |n: i128| Total::from_nanos(n * step.nanos()).quantity();
    let (mut fitting, mut passing) = (1, bound.nanos() / step.nanos() + 1);
    while passing - fitting > 1 {
        let middle = fitting + (passing - fitting) / 2;
        if multiple(middle).is_some_and(&fits) { fitting = middle } else { passing = middle }
    }
    multiple(fitting).unwrap_or(step)
}
