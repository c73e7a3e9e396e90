//! Validation of the credits of a catalog.

use super::cost;
use super::unit::Unit;
use crate::base::environment::Environment;
use crate::base::fields::{Parsed, Violation};
use crate::base::names::ItemKey;
use crate::base::period::Period;
use crate::catalog::Catalog;
use crate::catalog::meter::{Meter, has_repeats};
use crate::catalog::plan::{Enforcement, Limit, Overage};

/// Puts a violation under an item of a list.
pub fn at(violation: Violation, list: &str, index: usize) -> Violation {
    violation.under(&index.to_string()).under(list)
}

fn in_plan(violation: Violation, list: &str, position: usize, plan: usize) -> Violation {
    at(at(violation, list, position), "plans", plan)
}

/// Adds the violations of credits that reference missing or unsuitable parts of the catalog.
pub fn inconsistencies(catalog: &Catalog, violations: &mut Vec<Violation>) {
    let keys: Vec<&ItemKey> = catalog.credit_units.iter().map(|unit| &unit.key).collect();
    if has_repeats(&keys) {
        violations.push(
            Violation::new("duplicate_key", "must not contain two units with one key; rename or remove one")
                .under("credit_units"),
        );
    }
    let keys: Vec<&ItemKey> = catalog.credit_packs.iter().map(|pack| &pack.key).collect();
    if has_repeats(&keys) {
        violations.push(
            Violation::new("duplicate_key", "must not contain two packs with one key; rename or remove one")
                .under("credit_packs"),
        );
    }
    for (index, unit) in catalog.credit_units.iter().enumerate() {
        for (position, cost) in unit.costs.iter().enumerate() {
            let violation = match catalog.meter(&cost.meter) {
                None => validate_unit(catalog, &Unit::Meter(cost.meter.clone())),
                Some(meter) => meter.validate_filter(&cost.filter),
            };
            violations.extend(
                violation.map(|violation| at(at(violation, "costs", position), "credit_units", index)),
            );
        }
    }
    for (index, pack) in catalog.credit_packs.iter().enumerate() {
        violations
            .extend(validate_unit(catalog, &pack.unit).map(|violation| at(violation, "credit_packs", index)));
    }
    for (index, plan) in catalog.plans.iter().enumerate() {
        for (position, credits) in plan.credit_grants.iter().enumerate() {
            let violation = validate_unit(catalog, &credits.unit);
            violations
                .extend(violation.map(|violation| in_plan(violation, "credit_grants", position, index)));
        }
        for (position, alert) in plan.credit_alerts.iter().enumerate() {
            let missing = alert.top_up.as_ref().filter(|key| catalog.credit_pack(key).is_none());
            let missing = missing.map(|key| {
                Violation::new(
                    "unknown_pack",
                    format!("must be the key of a credit pack in the catalog; got `{key}`"),
                )
                .under("top_up")
            });
            let found = validate_unit(catalog, &alert.unit).into_iter().chain(missing);
            violations.extend(found.map(|violation| in_plan(violation, "credit_alerts", position, index)));
        }
    }
}

/// Validates a new catalog: money must be spendable, costs payable, and each provider price must buy one
/// pack. Catalogs from before these rules stay readable.
pub fn validate_applied(catalog: &Catalog) -> Parsed<()> {
    let mut violations = Vec::new();
    for (index, unit) in catalog.credit_units.iter().enumerate() {
        for (position, cost) in unit.costs.iter().enumerate() {
            let violation = validate_unit(catalog, &Unit::Meter(cost.meter.clone()));
            violations.extend(
                violation.map(|violation| at(at(violation, "costs", position), "credit_units", index)),
            );
        }
    }
    for (index, pack) in catalog.credit_packs.iter().enumerate() {
        let bought =
            |environment| pack.stripe_price_ids.of(environment).iter().map(move |id| (environment, id));
        let mut prices = [Environment::Live, Environment::Test].into_iter().flat_map(bought);
        let taken = prices.find_map(|(environment, id)| {
            let others = &catalog.credit_packs[..index];
            Some((id, others.iter().find(|other| other.stripe_price_ids.contains(environment, id))?))
        });
        violations.extend(taken.map(|(id, other)| {
            let detail = format!("must not contain `{id}`: it already buys the pack `{}`", other.key);
            let violation = Violation::new("duplicate_stripe_price", detail).under("stripe_price_ids");
            at(violation, "credit_packs", index)
        }));
    }
    for (index, plan) in catalog.plans.iter().enumerate() {
        for (position, credits) in plan.credit_grants.iter().enumerate() {
            let Unit::Currency(currency) = credits.unit else { continue };
            let violation = cost::validate_money_limits(&plan.limits, &plan.prices, currency);
            violations
                .extend(violation.map(|violation| in_plan(violation, "credit_grants", position, index)));
        }
    }
    Violation::check_all(violations)
}

/// Returns a violation if credits cannot be granted in a unit.
pub fn validate_unit(catalog: &Catalog, unit: &Unit) -> Option<Violation> {
    match unit {
        Unit::Meter(key) => match catalog.meter(key) {
            None => Some(
                Violation::new(
                    "unknown_meter",
                    format!("must be the key of a meter in the catalog; got `{key}`"),
                )
                .under("meter"),
            ),
            Some(meter) if !meter.aggregation.is_reservable() => {
                let detail = format!("must be the key of a sum or count meter; got `{key}`");
                Some(Violation::new("uncoverable_meter", detail).under("meter"))
            }
            Some(_) => None,
        },
        Unit::CreditUnit(key) => catalog.credit_unit(key).is_none().then(|| {
            let detail = format!("must be the key of a credit unit in the catalog; got `{key}`");
            Violation::new("unknown_credit_unit", detail).under("credit_unit")
        }),
        Unit::Currency(_) => None,
    }
}

/// Returns a violation if credits cannot cover the overage of a limit.
pub fn validate_overage(meter: &Meter, limit: &Limit) -> Option<Violation> {
    if limit.overage == Overage::None {
        return None;
    }
    if !meter.aggregation.is_reservable() {
        let detail = format!(
            "must be `none`: credits can only cover sum and count meters, and `{}` is neither",
            meter.key
        );
        return Some(Violation::new("uncoverable_meter", detail).under("overage"));
    }
    if limit.period == Period::Minute {
        let detail = "must be `none` on a limit per minute, because credits do not pay for rate limits";
        return Some(Violation::new("uncoverable_period", detail).under("overage"));
    }
    if limit.enforcement == Enforcement::Soft {
        let detail =
            "must be `none` on a soft limit, because it denies nothing; leave out `overage` or `enforcement`";
        return Some(Violation::new("uncoverable_enforcement", detail).under("overage"));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn applied_costs_are_payable_and_each_price_buys_one_pack() {
        let catalog = |more: serde_json::Value| {
            let mut catalog = json!({"meters": [
                {"key": "users", "event_name": "e", "aggregation": "unique_count", "value_property": "user"},
                {"key": "tokens", "event_name": "e", "aggregation": "sum"}]});
            catalog.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            catalog
        };
        let pack = |key: &str, prices: serde_json::Value| json!({"key": key, "meter": "tokens", "amount": 1, "stripe_price_ids": prices});
        let cases = [
            (
                json!({"credit_units": [{"key": "u", "costs": [{"meter": "tokens", "cost": 1}, {"meter": "users", "cost": 1}]}]}),
                Err(("/credit_units/0/costs/1/meter", "uncoverable_meter")),
            ),
            (
                json!({"credit_packs": [pack("a", json!(["x"])), pack("b", json!(["y", "x"]))]}),
                Err(("/credit_packs/1/stripe_price_ids", "duplicate_stripe_price")),
            ),
            (
                json!({"credit_packs": [pack("a", json!({"live": ["x"]})), pack("b", json!(["x"]))]}),
                Err(("/credit_packs/1/stripe_price_ids", "duplicate_stripe_price")),
            ),
            (
                json!({"credit_packs": [pack("a", json!({"live": ["x"]})), pack("b", json!({"test": ["x", "x"]}))]}),
                Ok(()),
            ),
        ];
        for (more, expected) in cases {
            let read = validate_applied(&Catalog::read(catalog(more.clone())).unwrap());
            let read =
                read.as_ref().map_err(|violations| (violations[0].pointer.as_str(), violations[0].code));
            assert_eq!(read, expected.as_ref().map_err(|violation| *violation), "{more}");
        }
    }
}
