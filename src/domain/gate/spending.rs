//! The test against spend caps: the highest cost that any quantity can have, from what is used up to
//! what is used, held and asked for, must not pass a cap. Track may pass it, as it may a quota.

use super::book::Book;
use super::budget::{Budget, Portion};
use super::covering::Asked;
use super::decision::{CapDenier, Denier, Grant, Level, resets_at};
use super::request::{Ask, order};
use super::standing::{CounterKey, Path};
use crate::domain::event::Properties;
use crate::domain::names::MeterKey;
use crate::domain::pricing::amount::Amount;
use crate::domain::quantity::{Quantity, Total};
use crate::domain::timestamp::Timestamp;

/// What is to be held of a meter, instead of what is held already.
#[derive(Debug, Clone, Copy)]
pub(super) struct Growth<'a> {
    pub(super) meter: &'a MeterKey,
    pub(super) properties: &'a Properties,
    pub(super) from: Quantity,
    pub(super) to: Quantity,
}

impl<'a> Growth<'a> {
    /// What is asked for beyond what is held.
    pub(super) fn asked(&self) -> Asked<'a> {
        Asked { meter: self.meter, properties: self.properties, quantity: self.to.above(self.from) }
    }
}

impl Book<'_> {
    /// What of some grants fits under the caps of a path, too; or what stands in the way.
    pub(super) fn within_caps<'k>(
        &self,
        asks: &'k [Ask],
        grants: Vec<Quantity>,
        path: &Path,
    ) -> Result<Vec<Quantity>, Vec<Denier>> {
        let at = self.moment.now;
        let uses = asks.iter().map(|ask| (&ask.meter, &ask.properties));
        let budgets = self.budgets_met(path, uses, at);
        if budgets.is_empty() {
            return Ok(grants);
        }
        let growth = |(ask, to): (&'k Ask, Quantity)| {
            let (meter, properties, from) = (&ask.meter, &ask.properties, Quantity::default());
            Growth { meter, properties, from, to }
        };
        let fits =
            |growths: &[Growth<'_>]| budgets.iter().all(|budget| self.fits_budget(budget, growths, at));
        let asked: Vec<Growth<'_>> = asks.iter().zip(grants.iter().copied()).map(growth).collect();
        if fits(&asked) {
            return Ok(grants);
        }
        let least = |(ask, grant): (&Ask, &Quantity)| self.least(ask).min(*grant);
        let least = asks.iter().zip(&grants).map(least);
        let mut growths: Vec<Growth<'_>> = asks.iter().zip(least).map(growth).collect();
        if !fits(&growths) {
            return Err(self.cap_deniers(&budgets, &growths, &asked, at));
        }
        for place in order(asks) {
            let step = if self.is_whole(&asks[place]) { Quantity::ONE } else { Quantity::SMALLEST };
            let fits = |to: Quantity| {
                let mut tried = growths.clone();
                tried[place].to = to;
                fits(&tried)
            };
            let grant = grants[place];
            if asks[place].grant == Grant::UpTo {
                growths[place].to = if fits(grant) { grant } else { largest(step, grant, fits) };
            }
        }
        Ok(growths.into_iter().map(|growth| growth.to).collect())
    }

    /// The caps that do not leave room for some growths.
    pub(super) fn caps_passed(&self, path: &Path, growths: &[Growth<'_>], at: Timestamp) -> Vec<Denier> {
        let uses = growths.iter().map(|growth| (growth.meter, growth.properties));
        let budgets = self.budgets_met(path, uses, at);
        self.cap_deniers(&budgets, growths, growths, at)
    }

    /// The caps on a path for which one of some uses costs something.
    fn budgets_met<'p, 'u>(
        &'p self,
        path: &'p Path,
        uses: impl Iterator<Item = (&'u MeterKey, &'u Properties)> + Clone,
        at: Timestamp,
    ) -> Vec<Budget<'p>> {
        let mut budgets = self.terms.budgets(path, at);
        budgets
            .retain(|budget| uses.clone().any(|(meter, properties)| budget.is_met_by(meter, properties, at)));
        budgets
    }

    fn fits_budget(&self, budget: &Budget<'_>, growths: &[Growth<'_>], at: Timestamp) -> bool {
        self.highest(budget, growths, at).is_some_and(|cost| cost <= budget.cap.amount)
    }

    fn highest(&self, budget: &Budget<'_>, growths: &[Growth<'_>], at: Timestamp) -> Option<Amount> {
        let more = |portion: &Portion<'_>, key: &CounterKey| {
            let (slice, measure) = (portion.slice, portion.measure);
            let meets =
                |growth: &&Growth<'_>| *growth.meter == slice.meter && slice.admits(growth.properties, at);
            if !slice.aggregation.is_reservable() {
                let is_asked = growths.iter().any(|growth| meets(&growth));
                return if is_asked { self.rise(key) } else { Total::default() };
            }
            let added = |growth: &Growth<'_>| {
                slice.measure_held(measure, growth.to) - slice.measure_held(measure, growth.from)
            };
            growths.iter().filter(meets).fold(Total::default(), |sum, growth| sum + added(growth))
        };
        budget.highest(at, |key| self.level(key), more)
    }

    fn level(&self, key: &CounterKey) -> Level {
        self.counters.get(key).map(|counter| counter.level).unwrap_or_default()
    }

    /// By how much a level that is checked would rise, or fall.
    fn rise(&self, key: &CounterKey) -> Total {
        let counter = self.counters.get(key);
        counter.and_then(|counter| Some(counter.becomes? - counter.level.used)).unwrap_or_default()
    }

    /// The caps that do not leave room for the least of what is asked.
    fn cap_deniers(
        &self,
        budgets: &[Budget<'_>],
        least: &[Growth<'_>],
        asked: &[Growth<'_>],
        at: Timestamp,
    ) -> Vec<Denier> {
        let denies = |budget: &&Budget<'_>| !self.fits_budget(budget, least, at);
        budgets.iter().filter(denies).map(|budget| self.cap_denier(budget, asked, at)).collect()
    }

    fn cap_denier(&self, budget: &Budget<'_>, growths: &[Growth<'_>], at: Timestamp) -> Denier {
        let (spent, held) = budget.spent(at, |key| self.level(key)).unzip();
        let least = self.highest(budget, &[], at);
        let most = self.highest(budget, growths, at);
        Denier::Cap(CapDenier {
            subject: budget.member.subject.clone(),
            key: budget.cap.key.clone(),
            cap: budget.cap.amount.clone(),
            currency: budget.cap.currency,
            spent,
            held,
            requested: most.zip(least).map(|(most, least)| most - least),
            resets_at: resets_at(budget.period_at(at)),
        })
    }
}

/// The largest multiple of a step, up to a bound, that fits, where what fits fits with less, too; one step
/// does.
fn largest(step: Quantity, bound: Quantity, fits: impl Fn(Quantity) -> bool) -> Quantity {
    let multiple = |n: i128| Total::from_nanos(n * step.nanos()).quantity();
    let (mut fitting, mut passing) = (1, bound.nanos() / step.nanos() + 1);
    while passing - fitting > 1 {
        let middle = fitting + (passing - fitting) / 2;
        if multiple(middle).is_some_and(&fits) { fitting = middle } else { passing = middle }
    }
    multiple(fitting).unwrap_or(step)
}
