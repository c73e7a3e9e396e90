//! Prices and spend caps of the model. The nearest plan with prices rates the usage of a subject. Costs are
//! whole minor units, and quantities are whole.

use std::cmp::Ordering;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::plans::{CALLS, METERS, Period, SUBJECTS, TOKENS};
use super::steps::Ask;
use super::{Subscription, World};

/// The prices of a plan.
pub(super) struct Prices(pub(super) &'static [Price]);

pub(super) struct Price {
    key: &'static str,
    meter: usize,
    /// The model that the price filters by; none rates all other usage.
    model: Option<&'static str>,
    /// The rates by edition of the catalog.
    rates: [Rate; 3],
}

#[derive(Clone, Copy)]
enum Rate {
    PerUnit(i64),
    /// An amount for each started package of three.
    Package(i64),
    /// An amount for each of the first ten units, an amount for each further unit, and a flat fee.
    Graduated(i64, i64, i64),
    /// An amount per unit for up to ten units, or another amount for all units.
    Volume(i64, i64),
}

use Rate::{Graduated, Package, PerUnit, Volume};

pub(super) const FREE: Prices = Prices(&[
    Price { key: "tokens", meter: TOKENS, model: None, rates: [Volume(2, 1), Volume(4, 1), PerUnit(2)] },
    Price { key: "tokens_a", meter: TOKENS, model: Some("a"), rates: [PerUnit(3), PerUnit(4), PerUnit(3)] },
    Price {
        key: "calls",
        meter: CALLS,
        model: None,
        rates: [Graduated(1, 2, 1), Graduated(2, 2, 0), Package(5)],
    },
]);
pub(super) const ORG: Prices = Prices(&[
    Price {
        key: "tokens",
        meter: TOKENS,
        model: None,
        rates: [PerUnit(1), Graduated(2, 1, 3), Volume(3, 2)],
    },
    Price { key: "calls", meter: CALLS, model: None, rates: [Package(4), Package(4), PerUnit(1)] },
]);

/// A cap of a plan: its period, and its amount in each edition.
pub(super) struct Cap {
    pub(super) period: Period,
    pub(super) amounts: [Option<i64>; 3],
}

/// The period of subjects' own caps.
const OWN: Period = Period::Month("UTC");

impl Rate {
    fn cost(self, quantity: i64) -> i64 {
        match self {
            PerUnit(each) => quantity * each,
            Package(each) => -(-quantity).div_euclid(3) * each,
            Graduated(first, then, fee) => quantity.min(10) * first + (quantity - 10).max(0) * then + fee,
            Volume(few, many) => quantity * if quantity <= 10 { few } else { many },
        }
    }

    fn to_json(self) -> Value {
        let tiers = |model: &str, first: i64, then: i64, fee: i64| {
            json!({"model": model, "tiers": [{"up_to": 10, "unit_amount": first, "flat_amount": fee},
                                             {"up_to": null, "unit_amount": then}]})
        };
        match self {
            PerUnit(each) => json!({"model": "per_unit", "unit_amount": each}),
            Package(each) => json!({"model": "package", "unit_amount": each, "per_units": 3}),
            Graduated(first, then, fee) => tiers("graduated", first, then, fee),
            Volume(few, many) => tiers("volume", few, many, 0),
        }
    }
}

impl Prices {
    pub(super) fn to_json(&self, edition: usize) -> Vec<Value> {
        let price = |price: &Price| {
            let mut value = price.rates[edition].to_json();
            value["key"] = json!(price.key);
            value["meter"] = json!(METERS[price.meter]);
            value["currency"] = json!("usd");
            if let Some(model) = price.model {
                value["filter"] = json!({"model": [model]});
            }
            value
        };
        self.0.iter().map(price).collect()
    }

    /// Returns the cost of a unit, if that does not depend on earlier usage.
    pub(super) fn each(&self, meter: usize, model: Option<&str>, edition: usize) -> Option<i64> {
        match self.of(meter, model)?.rates[edition] {
            PerUnit(each) => Some(each),
            _ => None,
        }
    }

    /// Returns whether all prices of a meter are per unit.
    pub(super) fn is_plain(&self, meter: usize, edition: usize) -> bool {
        let of_it = |price: &&Price| price.meter == meter;
        self.0.iter().filter(of_it).all(|price| matches!(price.rates[edition], PerUnit(_)))
    }

    /// Returns the price that rates a use.
    fn of(&self, meter: usize, model: Option<&str>) -> Option<&Price> {
        let own = |price: &&Price| price.meter == meter && price.model.is_some() && price.model == model;
        let rest = |price: &&Price| price.meter == meter && price.model.is_none();
        self.0.iter().find(own).or_else(|| self.0.iter().find(rest))
    }
}

impl Cap {
    pub(super) fn to_json(&self, edition: usize) -> Option<Value> {
        let mut value = self.period.to_json();
        value["key"] = json!("budget");
        value["currency"] = json!("usd");
        value["amount"] = json!(self.amounts[edition]?);
        Some(value)
    }
}

/// A cap that applies to a subject.
struct Budget {
    subject: usize,
    key: &'static str,
    amount: i64,
    period: (Timestamp, Timestamp),
    is_lasting: bool,
    prices: &'static Prices,
}

impl World {
    /// Returns the caps of all subjects on a path.
    fn applicable_caps(&self, path: &[usize], at: Timestamp) -> Vec<Budget> {
        let mut applicable_caps = Vec::new();
        for (index, subject) in path.iter().enumerate() {
            applicable_caps.extend(self.budgets_of(path, index, *subject, at));
        }
        applicable_caps
    }

    fn budgets_of(&self, path: &[usize], index: usize, subject: usize, at: Timestamp) -> Vec<Budget> {
        let Some((prices, anchor)) = self.priced_by(path, index) else { return Vec::new() };
        let on_path = self.on_path(path);
        let own = on_path.iter().find(|(member, _)| *member == subject);
        let of_plan = own.and_then(|(_, own)| super::PLANS[own.plan].cap.as_ref());
        let of_plan = of_plan.and_then(|cap| Some(("budget", cap.amounts[self.edition]?, cap.period)));
        let of_its_own = self.caps[subject].map(|amount| ("own", amount, OWN));
        let applicable_cap = |(key, amount, period): (&'static str, i64, Period)| Budget {
            subject,
            key,
            amount,
            period: period.around(at, anchor),
            is_lasting: period == Period::Lifetime,
            prices,
        };
        of_plan.into_iter().chain(of_its_own).map(applicable_cap).collect()
    }

    /// Returns the prices for usage on a path, from the subject at `index` and its current ancestors.
    fn priced_by(&self, path: &[usize], index: usize) -> Option<(&'static Prices, Timestamp)> {
        let above = self.path(path[index]);
        let on_chain: Vec<(usize, Subscription)> = if above == path[index..] {
            self.on_path(path).into_iter().filter(|(subject, _)| above.contains(subject)).collect()
        } else {
            above
                .iter()
                .filter_map(|subject| Some((*subject, self.subscriptions[*subject].clone()?)))
                .collect()
        };
        on_chain.iter().find_map(|(_, own)| Some((super::PLANS[own.plan].prices.as_ref()?, own.anchor)))
    }

    /// Returns the highest cost of used, held and requested quantities.
    fn highest(&self, applicable_cap: &Budget, more: &[(usize, Option<&str>, i64)], with_held: bool) -> i64 {
        let within = |path: &[usize], at: Timestamp| {
            path.contains(&applicable_cap.subject)
                && applicable_cap.period.0 <= at
                && at < applicable_cap.period.1
        };
        let is_rated_by = |price: &Price, meter: usize, model: Option<&str>| {
            applicable_cap.prices.of(meter, model).is_some_and(|rating| rating.key == price.key)
        };
        let cost = |price: &Price| {
            let used = self.sum(price.meter, |event| {
                within(&event.path, event.at) && is_rated_by(price, price.meter, event.model)
            });
            let open = self
                .reservations
                .iter()
                .filter(|held| held.status == "held" && within(&held.path, held.created));
            let held: i64 = open
                .flat_map(|held| held.holds.iter().filter(|hold| is_rated_by(price, hold.meter, held.model)))
                .map(super::Hold::rest)
                .sum();
            let asked: i64 = more
                .iter()
                .filter(|(meter, model, _)| is_rated_by(price, *meter, *model))
                .map(|(_, _, value)| value)
                .sum();
            let top = used + if with_held { held } else { 0 } + asked;
            (used..=top).map(|quantity| price.rates[self.edition].cost(quantity)).max().unwrap_or_default()
        };
        applicable_cap.prices.0.iter().map(cost).sum()
    }

    /// Returns whether a use has a cost under any cap.
    pub(super) fn meets_caps(&self, path: &[usize], asks: &[Ask], model: Option<&str>) -> bool {
        self.applicable_caps_met(path, asks, model, self.now).next().is_some()
    }

    fn applicable_caps_met(
        &self,
        path: &[usize],
        asks: &[Ask],
        model: Option<&str>,
        at: Timestamp,
    ) -> impl Iterator<Item = Budget> {
        let meters: Vec<usize> = asks.iter().map(|ask| ask.meter).collect();
        let met = move |applicable_cap: &Budget| {
            meters.iter().any(|meter| applicable_cap.prices.of(*meter, model).is_some())
        };
        self.applicable_caps(path, at).into_iter().filter(met)
    }

    /// Returns the parts of the grants that fit the caps, or the caps that deny.
    pub(super) fn within_caps(
        &self,
        path: &[usize],
        model: Option<&'static str>,
        asks: &[Ask],
        granted: &[i64],
        at: Timestamp,
    ) -> Result<Vec<i64>, Vec<Value>> {
        let applicable_caps: Vec<Budget> = self.applicable_caps_met(path, asks, model, at).collect();
        let more = |values: &[i64]| -> Vec<(usize, Option<&str>, i64)> {
            asks.iter().zip(values).map(|(ask, value)| (ask.meter, model, *value)).collect()
        };
        let is_over = |applicable_cap: &&Budget, values: &[i64]| {
            self.highest(applicable_cap, &more(values), true) > applicable_cap.amount
        };
        let fits =
            |values: &[i64]| !applicable_caps.iter().any(|applicable_cap| is_over(&applicable_cap, values));
        if fits(granted) {
            return Ok(granted.to_vec());
        }
        let least = |(ask, grant): (&Ask, &i64)| if ask.up_to { *grant.min(&1) } else { *grant };
        let mut values: Vec<i64> = asks.iter().zip(granted).map(least).collect();
        let denying: Vec<&Budget> =
            applicable_caps.iter().filter(|applicable_cap| is_over(applicable_cap, &values)).collect();
        if !denying.is_empty() {
            return Err(denying
                .iter()
                .map(|applicable_cap| self.cap_denier(applicable_cap, &more(granted)))
                .collect());
        }
        // The remaining amount goes to one request after the other, ordered by meter.
        let mut places: Vec<usize> = (0..asks.len()).filter(|place| asks[*place].up_to).collect();
        places.sort_by_key(|place| METERS[asks[*place].meter]);
        for place in places {
            let with = |value: i64| {
                let mut tried = values.clone();
                tried[place] = value;
                tried
            };
            let most = (values[place]..=granted[place]).rev().find(|value| fits(&with(*value)));
            values[place] = most.unwrap_or(values[place]);
        }
        Ok(values)
    }

    fn cap_denier(&self, applicable_cap: &Budget, more: &[(usize, Option<&str>, i64)]) -> Value {
        let (spent, taken) =
            (self.highest(applicable_cap, &[], false), self.highest(applicable_cap, &[], true));
        let resets_at =
            if applicable_cap.is_lasting { Value::Null } else { json!(applicable_cap.period.1.to_string()) };
        json!({"subject": SUBJECTS[applicable_cap.subject], "key": applicable_cap.key, "cap": applicable_cap.amount, "spent": spent,
            "held": taken - spent, "requested": self.highest(applicable_cap, more, true) - taken, "resets_at": resets_at})
    }

    /// Returns whether a cap counts the given instant in a closed period.
    pub(super) fn has_cap_of_the_past(&self, path: &[usize], at: Timestamp) -> bool {
        self.applicable_caps(path, at).iter().any(|applicable_cap| applicable_cap.period.1 <= self.now)
    }

    /// Returns the caps of a subject as the API shows them.
    pub(super) fn caps_shown(&self, who: usize) -> Value {
        let path = self.path(who);
        let shown = |applicable_cap: &Budget| {
            let (spent, taken) =
                (self.highest(applicable_cap, &[], false), self.highest(applicable_cap, &[], true));
            let left = match applicable_cap.amount.cmp(&taken) {
                Ordering::Less => 0,
                _ => applicable_cap.amount - taken,
            };
            json!({"key": applicable_cap.key, "amount": applicable_cap.amount, "spent": spent, "held": taken - spent, "remaining": left})
        };
        let caps: Vec<Value> = self.budgets_of(&path, 0, who, self.now).iter().map(shown).collect();
        if self.priced_by(&path, 0).is_none() {
            // Without prices the API shows caps without spending.
            return json!({"subject": SUBJECTS[who]});
        }
        json!({"subject": SUBJECTS[who], "spend_caps": caps})
    }
}

/// Returns the body that sets a subject's own cap.
pub(super) fn own_cap(amount: Option<i64>) -> Value {
    let cap = |amount: i64| {
        let mut value = OWN.to_json();
        value["key"] = json!("own");
        value["amount"] = json!(amount);
        value["currency"] = json!("usd");
        value
    };
    json!({"spend_caps": amount.map(cap).into_iter().collect::<Vec<_>>()})
}
