//! What the catalog may say of credits, and what a change of it changes.

use super::money;
use super::unit::Unit;
use crate::domain::catalog::{Action, Catalog, Change, Kind, differing, refuse_filter};
use crate::domain::fields::{Read, Violation};
use crate::domain::meter::{Meter, has_repeats};
use crate::domain::names::ItemKey;
use crate::domain::period::Period;
use crate::domain::plan::{Enforcement, Limit, Overage};

/// Names of credits that fit no other part of the catalog.
pub fn inconsistencies(catalog: &Catalog, flaws: &mut Vec<Violation>) {
    let keys: Vec<&ItemKey> = catalog.credit_units.iter().map(|unit| &unit.key).collect();
    if has_repeats(&keys) {
        flaws.push(Violation::new("duplicate_key", "uses a key twice").under("credit_units"));
    }
    let keys: Vec<&ItemKey> = catalog.credit_packs.iter().map(|pack| &pack.key).collect();
    if has_repeats(&keys) {
        flaws.push(Violation::new("duplicate_key", "uses a key twice").under("credit_packs"));
    }
    for (index, unit) in catalog.credit_units.iter().enumerate() {
        for (position, cost) in unit.costs.iter().enumerate() {
            let flaw = match catalog.meter(&cost.meter) {
                None => Some(refuse(catalog, &Unit::Meter(cost.meter.clone()))),
                Some(meter) => Some(refuse_filter(meter, &cost.filter)),
            };
            let at = |flaw: Violation| {
                flaw.under(&position.to_string())
                    .under("costs")
                    .under(&index.to_string())
                    .under("credit_units")
            };
            flaws.extend(flaw.flatten().map(at));
        }
    }
    for (index, pack) in catalog.credit_packs.iter().enumerate() {
        let at = |flaw: Violation| flaw.under(&index.to_string()).under("credit_packs");
        flaws.extend(refuse(catalog, &pack.unit).map(at));
    }
    for (index, plan) in catalog.plans.iter().enumerate() {
        for (position, credits) in plan.credit_grants.iter().enumerate() {
            let at = |flaw: Violation| {
                let flaw = flaw.under(&position.to_string()).under("credit_grants");
                flaw.under(&index.to_string()).under("plans")
            };
            flaws.extend(refuse(catalog, &credits.unit).map(at));
        }
        for (position, alert) in plan.credit_alerts.iter().enumerate() {
            let at = |flaw: Violation| {
                let flaw = flaw.under(&position.to_string()).under("credit_alerts");
                flaw.under(&index.to_string()).under("plans")
            };
            flaws.extend(refuse(catalog, &alert.unit).map(at));
            let missing = alert.top_up.as_ref().filter(|key| catalog.credit_pack(key).is_none());
            let missing = missing.map(|key| {
                Violation::new("unknown_pack", format!("there is no credit pack `{key}`")).under("top_up")
            });
            flaws.extend(missing.map(at));
        }
    }
}

/// What speaks against money that plans give, when they are applied: nobody could burn it. Plans that were
/// applied before that was asked are read all the same.
pub fn refuse_money(catalog: &Catalog) -> Read<()> {
    let mut flaws = Vec::new();
    for (index, plan) in catalog.plans.iter().enumerate() {
        for (position, credits) in plan.credit_grants.iter().enumerate() {
            let Unit::Currency(currency) = credits.unit else { continue };
            let flaw = money::refuse(&plan.limits, &plan.prices, currency);
            flaws.extend(flaw.map(|flaw| {
                let flaw = flaw.under(&position.to_string()).under("credit_grants");
                flaw.under(&index.to_string()).under("plans")
            }));
        }
    }
    if flaws.is_empty() { Ok(()) } else { Err(flaws) }
}

/// What speaks against granting credits in a unit.
pub fn refuse(catalog: &Catalog, unit: &Unit) -> Option<Violation> {
    match unit {
        Unit::Meter(key) => match catalog.meter(key) {
            None => {
                Some(Violation::new("unknown_meter", format!("there is no meter `{key}`")).under("meter"))
            }
            Some(meter) if !meter.aggregation.is_reservable() => {
                let detail = format!("`{key}` is neither a sum nor a count, which alone can be burnt");
                Some(Violation::new("uncoverable_meter", detail).under("meter"))
            }
            Some(_) => None,
        },
        Unit::CreditUnit(key) => catalog.credit_unit(key).is_none().then(|| {
            let detail = format!("there is no credit unit `{key}`");
            Violation::new("unknown_credit_unit", detail).under("credit_unit")
        }),
        Unit::Currency(_) => None,
    }
}

/// What speaks against covering a limit's overage with credits.
pub fn refuse_overage(meter: &Meter, limit: &Limit) -> Option<Violation> {
    if limit.overage == Overage::None {
        return None;
    }
    if !meter.aggregation.is_reservable() {
        let detail = format!("`{}` is neither a sum nor a count, which alone credits can cover", meter.key);
        return Some(Violation::new("uncoverable_meter", detail).under("overage"));
    }
    if limit.period == Period::Minute {
        let detail = "a limit per minute stays hard: credits pay for quotas, not for speed";
        return Some(Violation::new("uncoverable_period", detail).under("overage"));
    }
    if limit.enforcement == Enforcement::Soft {
        let detail = "a soft limit denies nothing that credits could allow; leave one of the two out";
        return Some(Violation::new("uncoverable_enforcement", detail).under("overage"));
    }
    None
}

/// What differs between two catalogs; `granted` says in which units there are open grants.
pub fn changes(
    present: &Catalog,
    next: &Catalog,
    granted: impl Fn(&Unit) -> bool,
    changes: &mut Vec<Change>,
    flaws: &mut Vec<Violation>,
) {
    let change = |action, kind, key: &ItemKey, fields| Change { action, kind, key: key.to_string(), fields };
    for unit in &next.credit_units {
        let kind = Kind::CreditUnit;
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
            let detail = format!("leaves out the credit unit `{}`, of which there are open grants", unit.key);
            flaws.push(Violation::new("credit_unit_in_use", detail).under("credit_units"));
        }
        changes.push(change(Action::Delete, Kind::CreditUnit, &unit.key, Vec::new()));
    }
    for meter in present.meters.iter().filter(|meter| next.meter(&meter.key).is_none()) {
        if granted(&Unit::Meter(meter.key.clone())) {
            let detail = format!("leaves out the meter `{}`, of which there are open grants", meter.key);
            flaws.push(Violation::new("meter_in_use", detail).under("meters"));
        }
    }
    for pack in &next.credit_packs {
        let kind = Kind::CreditPack;
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
        changes.push(change(Action::Delete, Kind::CreditPack, &pack.key, Vec::new()));
    }
}
