//! What the catalog may say of credits, and what a change of it changes.

use super::money;
use super::unit::Unit;
use crate::base::environment::Environment;
use crate::base::fields::{Parsed, Violation};
use crate::base::names::ItemKey;
use crate::base::period::Period;
use crate::catalog::meter::{Meter, has_repeats};
use crate::catalog::plan::{Enforcement, Limit, Overage};
use crate::catalog::{Action, Catalog, CatalogChange, CatalogItemKind, differing, validate_filter};

/// Names of credits that fit no other part of the catalog.
pub fn inconsistencies(catalog: &Catalog, violations: &mut Vec<Violation>) {
    let keys: Vec<&ItemKey> = catalog.credit_units.iter().map(|unit| &unit.key).collect();
    if has_repeats(&keys) {
        violations.push(Violation::new("duplicate_key", "must use each key once").under("credit_units"));
    }
    let keys: Vec<&ItemKey> = catalog.credit_packs.iter().map(|pack| &pack.key).collect();
    if has_repeats(&keys) {
        violations.push(Violation::new("duplicate_key", "must use each key once").under("credit_packs"));
    }
    for (index, unit) in catalog.credit_units.iter().enumerate() {
        for (position, cost) in unit.costs.iter().enumerate() {
            let violation = match catalog.meter(&cost.meter) {
                None => Some(validate_unit(catalog, &Unit::Meter(cost.meter.clone()))),
                Some(meter) => Some(validate_filter(meter, &cost.filter)),
            };
            let at = |violation: Violation| {
                violation
                    .under(&position.to_string())
                    .under("costs")
                    .under(&index.to_string())
                    .under("credit_units")
            };
            violations.extend(violation.flatten().map(at));
        }
    }
    for (index, pack) in catalog.credit_packs.iter().enumerate() {
        let at = |violation: Violation| violation.under(&index.to_string()).under("credit_packs");
        violations.extend(validate_unit(catalog, &pack.unit).map(at));
    }
    for (index, plan) in catalog.plans.iter().enumerate() {
        for (position, credits) in plan.credit_grants.iter().enumerate() {
            let at = |violation: Violation| {
                let violation = violation.under(&position.to_string()).under("credit_grants");
                violation.under(&index.to_string()).under("plans")
            };
            violations.extend(validate_unit(catalog, &credits.unit).map(at));
        }
        for (position, alert) in plan.credit_alerts.iter().enumerate() {
            let at = |violation: Violation| {
                let violation = violation.under(&position.to_string()).under("credit_alerts");
                violation.under(&index.to_string()).under("plans")
            };
            violations.extend(validate_unit(catalog, &alert.unit).map(at));
            let missing = alert.top_up.as_ref().filter(|key| catalog.credit_pack(key).is_none());
            let missing = missing.map(|key| {
                Violation::new(
                    "unknown_pack",
                    format!("must be the key of a credit pack in the catalog; got `{key}`"),
                )
                .under("top_up")
            });
            violations.extend(missing.map(at));
        }
    }
}

/// What speaks against a catalog when it is applied: money that nobody could burn, costs that nobody could pay,
/// a price that buys two packs. One that was applied before that was asked is read all the same.
pub fn validate_applied(catalog: &Catalog) -> Parsed<()> {
    let mut violations = Vec::new();
    for (index, unit) in catalog.credit_units.iter().enumerate() {
        for (position, cost) in unit.costs.iter().enumerate() {
            let at = |violation: Violation| {
                let violation = violation.under(&position.to_string()).under("costs");
                violation.under(&index.to_string()).under("credit_units")
            };
            violations.extend(validate_unit(catalog, &Unit::Meter(cost.meter.clone())).map(at));
        }
    }
    for (index, pack) in catalog.credit_packs.iter().enumerate() {
        let bought = |environment| pack.stripe_prices(environment).map(move |id| (environment, id));
        let mut prices = [Environment::Live, Environment::Test].into_iter().flat_map(bought);
        let taken = prices.find_map(|(environment, id)| {
            let others = &catalog.credit_packs[..index];
            Some((id, others.iter().find(|other| other.has_stripe_price(environment, id))?))
        });
        violations.extend(taken.map(|(id, other)| {
            let detail = format!("must not contain `{id}`, which buys the pack `{}`", other.key);
            let violation = Violation::new("duplicate_stripe_price", detail).under("stripe_price_ids");
            violation.under(&index.to_string()).under("credit_packs")
        }));
    }
    for (index, plan) in catalog.plans.iter().enumerate() {
        for (position, credits) in plan.credit_grants.iter().enumerate() {
            let Unit::Currency(currency) = credits.unit else { continue };
            let violation = money::validate_money_limits(&plan.limits, &plan.prices, currency);
            violations.extend(violation.map(|violation| {
                let violation = violation.under(&position.to_string()).under("credit_grants");
                violation.under(&index.to_string()).under("plans")
            }));
        }
    }
    Violation::check_all(violations)
}

/// What speaks against granting credits in a unit.
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
                let detail = format!("must be a sum or count meter; got `{key}`");
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

/// What speaks against covering a limit's overage with credits.
pub fn validate_overage(meter: &Meter, limit: &Limit) -> Option<Violation> {
    if limit.overage == Overage::None {
        return None;
    }
    if !meter.aggregation.is_reservable() {
        let detail =
            format!("needs a sum or count meter, which `{}` is not; credits cannot cover it", meter.key);
        return Some(Violation::new("uncoverable_meter", detail).under("overage"));
    }
    if limit.period == Period::Minute {
        let detail = "must be `none` on a limit per minute: credits pay for quotas, not for rates";
        return Some(Violation::new("uncoverable_period", detail).under("overage"));
    }
    if limit.enforcement == Enforcement::Soft {
        let detail =
            "must be `none` on a soft limit, which denies nothing; leave out `overage` or `enforcement`";
        return Some(Violation::new("uncoverable_enforcement", detail).under("overage"));
    }
    None
}

/// What differs between two catalogs; `granted` says in which units there are open grants.
pub fn changes(
    present: &Catalog,
    next: &Catalog,
    granted: impl Fn(&Unit) -> bool,
    changes: &mut Vec<CatalogChange>,
    violations: &mut Vec<Violation>,
) {
    let change =
        |action, kind, key: &ItemKey, fields| CatalogChange { action, kind, key: key.to_string(), fields };
    for unit in &next.credit_units {
        let kind = CatalogItemKind::CreditUnit;
        match present.credit_unit(&unit.key) {
            None => changes.push(change(Action::Create, kind, &unit.key, Vec::new())),
            Some(old) if old == unit => {}
            Some(old) => {
                let fields =
                    differing(&[("name", old.name != unit.name), ("costs", old.costs != unit.costs)]);
                changes.push(change(Action::Update, kind, &unit.key, fields));
            }
        }
    }
    for unit in present.credit_units.iter().filter(|unit| next.credit_unit(&unit.key).is_none()) {
        if granted(&Unit::CreditUnit(unit.key.clone())) {
            let detail = format!("must keep the credit unit `{}`, which has open grants", unit.key);
            violations.push(Violation::new("credit_unit_in_use", detail).under("credit_units"));
        }
        changes.push(change(Action::Delete, CatalogItemKind::CreditUnit, &unit.key, Vec::new()));
    }
    for meter in present.meters.iter().filter(|meter| next.meter(&meter.key).is_none()) {
        if granted(&Unit::Meter(meter.key.clone())) {
            let detail = format!("must keep the meter `{}`, which has open grants", meter.key);
            violations.push(Violation::new("meter_in_use", detail).under("meters"));
        }
    }
    for pack in &next.credit_packs {
        let kind = CatalogItemKind::CreditPack;
        match present.credit_pack(&pack.key) {
            None => changes.push(change(Action::Create, kind, &pack.key, Vec::new())),
            Some(old) if old == pack => {}
            Some(old) => {
                let fields = differing(&[
                    ("name", old.name != pack.name),
                    ("unit", old.unit != pack.unit),
                    ("amount", old.amount != pack.amount),
                    ("priority", old.priority != pack.priority),
                    ("expires_after", old.expires_after != pack.expires_after),
                    ("stripe_price_ids", old.stripe_price_ids != pack.stripe_price_ids),
                ]);
                changes.push(change(Action::Update, kind, &pack.key, fields));
            }
        }
    }
    for pack in present.credit_packs.iter().filter(|pack| next.credit_pack(&pack.key).is_none()) {
        changes.push(change(Action::Delete, CatalogItemKind::CreditPack, &pack.key, Vec::new()));
    }
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
