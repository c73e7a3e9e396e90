//! The changes that applying another catalog makes.

use std::collections::HashSet;

use serde::Serialize;

use super::meter::Meter;
use super::model::Catalog;
use super::plan::Plan;
use crate::base::fields::{Parsed, Violation};
use crate::credits::offers::CreditPack;
use crate::credits::unit::{CreditUnit, Unit};

/// One change that applying a catalog makes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CatalogChange {
    pub action: Action,
    pub kind: CatalogItemKind,
    pub key: String,
    /// The names of the fields that differ; empty unless the action is an update.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub fields: Vec<&'static str>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    Create,
    Update,
    Delete,
}

/// The kind of a changed item; `Catalog` stands for settings of the document itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CatalogItemKind {
    Catalog,
    Meter,
    Plan,
    CreditUnit,
    CreditPack,
}

/// The parts of a catalog that the next one must not leave out.
#[derive(Debug, Default)]
pub struct CatalogUse {
    /// Keys of meters with recorded usage or open holds.
    pub meters: HashSet<String>,
    /// Keys of plans with subscribers.
    pub plans: HashSet<String>,
    /// Units of open grants.
    pub granted_units: Vec<Unit>,
}

/// An entry of the catalog under a key.
trait CatalogEntry: PartialEq {
    const KIND: CatalogItemKind;

    fn key(&self) -> &str;

    /// Returns the names of the fields that differ.
    fn differences(&self, next: &Self) -> Vec<&'static str>;
}

macro_rules! entry {
    ($type:ident, [$($field:ident),*]) => {
        impl CatalogEntry for $type {
            const KIND: CatalogItemKind = CatalogItemKind::$type;

            fn key(&self) -> &str {
                self.key.as_str()
            }

            fn differences(&self, next: &Self) -> Vec<&'static str> {
                let fields = [$((stringify!($field), self.$field != next.$field)),*];
                fields.into_iter().filter(|(_, differs)| *differs).map(|(name, _)| name).collect()
            }
        }
    };
}

entry!(Meter, [display_name, event_name, aggregation, value_property, dimensions, filter, unit, stripe]);
entry!(
    Plan,
    [
        name,
        unmatched,
        fallback_plan,
        on_plan_change,
        features,
        limits,
        prices,
        commitments,
        spend_caps,
        credit_grants,
        credit_alerts,
        stripe_price_ids
    ]
);
entry!(CreditUnit, [name, costs]);
entry!(CreditPack, [name, unit, amount, priority, expires_after, stripe_price_ids]);

/// Returns the entries that the next catalog leaves out.
fn left_out<'a, T: CatalogEntry>(present: &'a [T], next: &'a [T]) -> impl Iterator<Item = &'a T> {
    present.iter().filter(|old| next.iter().all(|entry| entry.key() != old.key()))
}

fn compare<T: CatalogEntry>(present: &[T], next: &[T], changes: &mut Vec<CatalogChange>) {
    let change = |action, entry: &T, fields| CatalogChange {
        action,
        kind: T::KIND,
        key: entry.key().to_owned(),
        fields,
    };
    for entry in next {
        match present.iter().find(|old| old.key() == entry.key()) {
            None => changes.push(change(Action::Create, entry, Vec::new())),
            Some(old) if old == entry => {}
            Some(old) => changes.push(change(Action::Update, entry, old.differences(entry))),
        }
    }
    changes.extend(left_out(present, next).map(|old| change(Action::Delete, old, Vec::new())));
}

impl Catalog {
    /// Returns the changes that applying `next` makes, or the reasons why `next` must not be applied.
    pub fn changes_to(&self, next: &Self, in_use: &CatalogUse) -> Parsed<Vec<CatalogChange>> {
        let violations = self.refuse_next(next, in_use);
        Violation::check_all(violations)?;
        let mut changes = Vec::new();
        if self.default_plan != next.default_plan {
            let name = "default_plan";
            let (action, kind) = (Action::Update, CatalogItemKind::Catalog);
            changes.push(CatalogChange { action, kind, key: name.to_owned(), fields: vec![name] });
        }
        compare(&self.meters, &next.meters, &mut changes);
        compare(&self.plans, &next.plans, &mut changes);
        compare(&self.credit_units, &next.credit_units, &mut changes);
        compare(&self.credit_packs, &next.credit_packs, &mut changes);
        Ok(changes)
    }

    fn refuse_next(&self, next: &Self, in_use: &CatalogUse) -> Vec<Violation> {
        let mut violations = Vec::new();
        for (index, meter) in next.meters.iter().enumerate() {
            let violation = self.meter(&meter.key).and_then(|present| validate_meter_change(present, meter));
            violations.extend(violation.map(|violation| violation.under(&index.to_string()).under("meters")));
        }
        let mut refuse =
            |code, detail: String, place| violations.push(Violation::new(code, detail).under(place));
        for Meter { key, .. } in left_out(&self.meters, &next.meters) {
            if in_use.meters.contains(key.as_str()) {
                let detail = format!("must keep the meter `{key}`, which has recorded or reserved usage");
                refuse("meter_in_use", detail, "meters");
            }
        }
        for Plan { key, .. } in left_out(&self.plans, &next.plans) {
            if in_use.plans.contains(key.as_str()) {
                let detail = format!("must keep the plan `{key}`, which has subscribers");
                refuse("plan_in_use", detail, "plans");
            }
        }
        for CreditUnit { key, .. } in left_out(&self.credit_units, &next.credit_units) {
            if in_use.granted_units.contains(&Unit::CreditUnit(key.clone())) {
                let detail = format!("must keep the credit unit `{key}`, which has open grants");
                refuse("credit_unit_in_use", detail, "credit_units");
            }
        }
        for Meter { key, .. } in left_out(&self.meters, &next.meters) {
            if in_use.granted_units.contains(&Unit::Meter(key.clone())) {
                let detail = format!("must keep the meter `{key}`, which has open grants");
                refuse("meter_in_use", detail, "meters");
            }
        }
        violations
    }
}

/// Returns a violation if a meter must not change. A meter may gain dimensions and a `stripe` block, and
/// change its display fields.
fn validate_meter_change(present: &Meter, next: &Meter) -> Option<Violation> {
    if !present.same_counting(next) {
        let detail = format!(
            "must keep event_name, aggregation, value_property and filter of the meter `{}`; to count differently, add a meter with a new key",
            present.key
        );
        return Some(Violation::new("meter_immutable", detail));
    }
    let lost = present.dimensions.iter().find(|dimension| !next.dimensions.contains(dimension));
    lost.map(|dimension| {
        let detail = format!("the meter `{}` must keep its dimension `{dimension}`", present.key);
        Violation::new("meter_immutable", detail).under("dimensions")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn catalog(meters: Value) -> Catalog {
        Catalog::read(json!({"meters": meters})).unwrap()
    }

    #[test]
    fn meters_may_gain_but_not_lose_properties() {
        let meter = json!({"key": "m", "event_name": "e", "aggregation": "sum", "dimensions": ["a"]});
        let altered = |field: &str, value: Value| {
            let mut other = meter.clone();
            other[field] = value;
            catalog(json!([other]))
        };
        let before = catalog(json!([meter]));
        let verdict = |next: &Catalog, recorded: bool| {
            let mut in_use = CatalogUse::default();
            in_use.meters.extend(recorded.then(|| "m".to_owned()));
            match before.changes_to(next, &in_use) {
                Ok(changes) => changes
                    .iter()
                    .map(|c| format!("{:?} {:?}", c.action, c.fields))
                    .collect::<Vec<_>>()
                    .concat(),
                Err(violations) => violations[0].code.to_owned(),
            }
        };
        let cases = [
            (before.clone(), true, ""),
            (altered("dimensions", json!(["a", "b"])), true, "Update [\"dimensions\"]"),
            (altered("unit", json!("x")), true, "Update [\"unit\"]"),
            (altered("stripe", json!({"event_name": "e"})), true, "Update [\"stripe\"]"),
            (altered("dimensions", json!([])), false, "meter_immutable"),
            (altered("aggregation", json!("max")), false, "meter_immutable"),
            (altered("event_name", json!("f")), false, "meter_immutable"),
            (catalog(json!([])), false, "Delete []"),
            (catalog(json!([])), true, "meter_in_use"),
        ];
        for (next, recorded, expected) in cases {
            assert_eq!(verdict(&next, recorded), expected, "{next:?}");
        }
    }
}
