//! The catalog: the meters and plans of an environment as one document, and what applying another
//! one would change.

pub mod meter;
pub mod plan;

use serde::Serialize;
use serde_json::Value;

use crate::base::environment::Environment;
use crate::base::fields::{self, ObjectParser, Parsed, Violation, Violations};
use crate::base::limits::CATALOG_ITEMS_MAX;
use crate::base::names::{ItemKey, MeterKey, PlanKey};
use crate::base::timestamp::Timestamp;
use crate::credits::offers::CreditPack;
use crate::credits::unit::{CreditUnit, Unit};
use crate::pricing::cap::SpendCap;
use crate::pricing::exchange::Rates;
use crate::pricing::list;
use crate::pricing::price::{ModelName, Price};
use crate::pricing::quote;
use meter::{Aggregation, Filter, Meter, has_repeats};
use plan::{Limit, Plan};

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Catalog {
    pub default_plan: Option<PlanKey>,
    pub meters: Vec<Meter>,
    pub plans: Vec<Plan>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub credit_units: Vec<CreditUnit>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub credit_packs: Vec<CreditPack>,
}

/// One thing that applying a catalog does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CatalogChange {
    pub action: Action,
    pub kind: CatalogItemKind,
    pub key: String,
    /// For an update: which fields differ.
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

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CatalogItemKind {
    Catalog,
    Meter,
    Plan,
    CreditUnit,
    CreditPack,
}

impl Catalog {
    pub fn read(value: Value) -> Parsed<Self> {
        let catalog = Self::read_stored(value)?;
        let refused = |(index, plan): (usize, &Plan)| {
            let prices = list::validate_price_list(&plan.prices, &[]).err();
            let prices = prices.into_iter().flatten().map(|violation| violation.under("prices"));
            let caps = SpendCap::validate_not_withdrawn(&plan.spend_caps)
                .map(|violation| violation.under("spend_caps"));
            let at = |violation: Violation| violation.under(&index.to_string()).under("plans");
            prices.chain(caps).map(at).collect::<Vec<_>>()
        };
        let violations: Vec<Violation> = catalog.plans.iter().enumerate().flat_map(refused).collect();
        Violation::check_all(violations).map(|()| catalog)
    }

    /// Reads a catalog that was applied before. Unlike [`Self::read`], accepts currencies that were
    /// withdrawn since, and prices that overlap.
    pub fn read_stored(value: Value) -> Parsed<Self> {
        let map = fields::object(value)?;
        fields::no_nul(&map)?;
        fields::no_monstrous_numbers(&map)?;
        let mut fields = ObjectParser::new(Value::Object(map))?;
        // shown with the document, and no part of it
        fields.take("version");
        let default_plan = fields.optional("default_plan", |v| Ok(PlanKey::parse(fields::text(v)?)?));
        let meters = fields.list("meters", CATALOG_ITEMS_MAX, Meter::read);
        let plans = fields.list("plans", CATALOG_ITEMS_MAX, Plan::read);
        let credit_units = fields.list("credit_units", CATALOG_ITEMS_MAX, CreditUnit::read);
        let credit_packs = fields.list("credit_packs", CATALOG_ITEMS_MAX, CreditPack::read);
        fields.finish()?;
        let catalog = Self { default_plan, meters, plans, credit_units, credit_packs };
        let violations = catalog.inconsistencies();
        Violation::check_all(violations).map(|()| catalog)
    }

    /// Reads YAML. Scalars keep their own spelling, so that no number passes through a float.
    pub fn read_yaml(text: &str) -> Parsed<Self> {
        Self::read(yaml_to_json(text)?)
    }

    pub fn meter(&self, key: &MeterKey) -> Option<&Meter> {
        self.meters.iter().find(|meter| meter.key == *key)
    }

    pub fn plan(&self, key: &PlanKey) -> Option<&Plan> {
        self.plans.iter().find(|plan| plan.key == *key)
    }

    pub fn credit_unit(&self, key: &ItemKey) -> Option<&CreditUnit> {
        self.credit_units.iter().find(|unit| unit.key == *key)
    }

    pub fn credit_pack(&self, key: &ItemKey) -> Option<&CreditPack> {
        self.credit_packs.iter().find(|pack| pack.key == *key)
    }

    /// The plan of the first of Stripe's prices that is any plan's.
    pub fn plan_of_prices(&self, environment: Environment, prices: &[String]) -> Option<&Plan> {
        let plan_of = |price: &String| self.plans.iter().find(|p| p.has_stripe_price(environment, price));
        prices.iter().find_map(plan_of)
    }

    fn inconsistencies(&self) -> Vec<Violation> {
        let mut violations = Vec::new();
        let meter_keys: Vec<&MeterKey> = self.meters.iter().map(|meter| &meter.key).collect();
        let plan_keys: Vec<&PlanKey> = self.plans.iter().map(|plan| &plan.key).collect();
        if has_repeats(&meter_keys) {
            violations.push(Violation::new("duplicate_key", "must use each key once").under("meters"));
        }
        if has_repeats(&plan_keys) {
            violations.push(Violation::new("duplicate_key", "must use each key once").under("plans"));
        }
        let unknown_plan = |key: &PlanKey| {
            Violation::new("unknown_plan", format!("must be the key of a plan in the catalog; got `{key}`"))
        };
        if let Some(key) = &self.default_plan
            && self.plan(key).is_none()
        {
            violations.push(unknown_plan(key).under("default_plan"));
        }
        for (index, plan) in self.plans.iter().enumerate() {
            let at = |violation: Violation| violation.under(&index.to_string()).under("plans");
            if let Some(key) = &plan.fallback_plan
                && self.plan(key).is_none()
            {
                violations.push(at(unknown_plan(key).under("fallback_plan")));
            }
            for (position, limit) in plan.limits.iter().enumerate() {
                if let Some(violation) = self.validate_limit(limit) {
                    violations.push(at(violation.under(&position.to_string()).under("limits")));
                }
            }
            violations.extend(
                self.validate_prices(&plan.prices, &[])
                    .into_iter()
                    .map(|violation| at(violation.under("prices"))),
            );
        }
        crate::credits::catalog::inconsistencies(self, &mut violations);
        violations
    }

    fn validate_limit(&self, limit: &Limit) -> Option<Violation> {
        let Some(meter) = self.meter(&limit.meter) else {
            let detail = format!("must be the key of a meter in the catalog; got `{}`", limit.meter);
            return Some(Violation::new("unknown_meter", detail).under("meter"));
        };
        if matches!(meter.aggregation, Aggregation::Avg | Aggregation::Min) {
            let detail = format!(
                "must not be an average or minimum meter, which cannot have a limit; got `{}`",
                meter.key
            );
            return Some(Violation::new("unlimitable_meter", detail).under("meter"));
        }
        crate::credits::catalog::validate_overage(meter, limit)
            .or_else(|| validate_filter(meter, &limit.filter))
    }

    /// What speaks against prices, of a plan or of a subscription, each under its place. `beside`: others
    /// that rate with them.
    pub fn validate_prices(&self, prices: &[Price], beside: &[&Price]) -> Vec<Violation> {
        let violation = |(place, price): (usize, &Price)| {
            let others = beside.iter().copied().chain(&prices[..place]);
            let violation = self.validate_price(price).or_else(|| self.validate_slice(price, others))?;
            Some(violation.under(&place.to_string()))
        };
        prices.iter().enumerate().filter_map(violation).collect()
    }

    /// A level is no sum of parts: what one price leaves to another cannot be taken off it.
    fn validate_slice<'p>(
        &self,
        price: &Price,
        mut others: impl Iterator<Item = &'p Price>,
    ) -> Option<Violation> {
        let meter = self.meter(price.meter.as_ref()?)?;
        let meets = |other: &&Price| {
            other.meter == price.meter
                && other.currency == price.currency
                && other.meets(price)
                && !other.filter.excludes(&price.filter)
        };
        let other = others.find(meets).filter(|_| !meter.aggregation.is_reservable())?;
        let detail = format!(
            "must exclude the use that `{1}` prices, as `{0}` is not a sum; give both filters different values of one dimension",
            meter.key, other.key
        );
        Some(Violation::new("unsupported_slice", detail).under("filter"))
    }

    /// What speaks against the spend caps of plans: a currency in which nothing has a price, and to
    /// which no rate leads.
    pub fn validate_caps(&self, rates: &Rates, now: Timestamp) -> Parsed<()> {
        let mut violations = Vec::new();
        for (index, plan) in self.plans.iter().enumerate() {
            let Some(first) = plan.prices.first() else { continue };
            for (place, cap) in plan.spend_caps.iter().enumerate() {
                if plan.prices.iter().any(|price| price.currency == cap.currency) {
                    continue;
                }
                if let Err(unknown) = quote::known_rate(rates, first.currency, cap.currency, now) {
                    let at = |violation: Violation| {
                        violation
                            .under(&place.to_string())
                            .under("spend_caps")
                            .under(&index.to_string())
                            .under("plans")
                    };
                    violations.extend(unknown.into_iter().map(at));
                }
            }
        }
        Violation::check_all(violations)
    }

    fn validate_price(&self, price: &Price) -> Option<Violation> {
        let key = price.meter.as_ref()?;
        let Some(meter) = self.meter(key) else {
            return Some(
                Violation::new(
                    "unknown_meter",
                    format!("must be the key of a meter in the catalog; got `{key}`"),
                )
                .under("meter"),
            );
        };
        let is_percentage = matches!(price.model.name(), ModelName::Percentage);
        if matches!(meter.aggregation, Aggregation::Avg | Aggregation::Min) {
            let detail =
                format!("must not be an average or minimum meter, which cannot have a price; got `{key}`");
            return Some(Violation::new("unpriceable_meter", detail).under("meter"));
        }
        if is_percentage && meter.aggregation != Aggregation::Sum {
            let detail = format!("must be a sum meter for a percentage price; got `{key}`");
            return Some(Violation::new("unpriceable_meter", detail).under("meter"));
        }
        validate_filter(meter, &price.filter)
    }

    /// What applying `next` to this one changes, or why it may not be: `recorded` says which
    /// meters have seen events, `in_use` which plans have subscribers.
    pub fn changes_to(
        &self,
        next: &Self,
        recorded: impl Fn(&MeterKey) -> bool,
        in_use: impl Fn(&PlanKey) -> bool,
        granted: impl Fn(&Unit) -> bool,
    ) -> Parsed<Vec<CatalogChange>> {
        let mut changes = Vec::new();
        let mut violations = Vec::new();
        if self.default_plan != next.default_plan {
            let fields = vec!["default_plan"];
            changes.push(CatalogChange {
                action: Action::Update,
                kind: CatalogItemKind::Catalog,
                key: "default_plan".to_owned(),
                fields,
            });
        }
        for (index, meter) in next.meters.iter().enumerate() {
            let change = |action, fields| CatalogChange {
                action,
                kind: CatalogItemKind::Meter,
                key: meter.key.to_string(),
                fields,
            };
            match self.meter(&meter.key) {
                None => changes.push(change(Action::Create, Vec::new())),
                Some(present) if present == meter => {}
                Some(present) => {
                    if let Some(violation) = validate_meter_change(present, meter) {
                        violations.push(violation.under(&index.to_string()).under("meters"));
                    }
                    changes.push(change(Action::Update, meter_differences(present, meter)));
                }
            }
        }
        for meter in self.meters.iter().filter(|meter| next.meter(&meter.key).is_none()) {
            if recorded(&meter.key) {
                let detail =
                    format!("must keep the meter `{}`, which has recorded or reserved usage", meter.key);
                violations.push(Violation::new("meter_in_use", detail).under("meters"));
            }
            let key = meter.key.to_string();
            changes.push(CatalogChange {
                action: Action::Delete,
                kind: CatalogItemKind::Meter,
                key,
                fields: Vec::new(),
            });
        }
        for plan in &next.plans {
            let change = |action, fields| CatalogChange {
                action,
                kind: CatalogItemKind::Plan,
                key: plan.key.to_string(),
                fields,
            };
            match self.plan(&plan.key) {
                None => changes.push(change(Action::Create, Vec::new())),
                Some(present) if present == plan => {}
                Some(present) => changes.push(change(Action::Update, plan_differences(present, plan))),
            }
        }
        for plan in self.plans.iter().filter(|plan| next.plan(&plan.key).is_none()) {
            if in_use(&plan.key) {
                let detail = format!("must keep the plan `{}`, which has subscribers", plan.key);
                violations.push(Violation::new("plan_in_use", detail).under("plans"));
            }
            let key = plan.key.to_string();
            changes.push(CatalogChange {
                action: Action::Delete,
                kind: CatalogItemKind::Plan,
                key,
                fields: Vec::new(),
            });
        }
        crate::credits::catalog::changes(self, next, granted, &mut changes, &mut violations);
        Violation::check_all(violations).map(|()| changes)
    }
}

/// A filter of the catalog names dimensions, by which usage is kept apart.
pub(super) fn validate_filter(meter: &Meter, filter: &Filter) -> Option<Violation> {
    let is_dimension = |name: &str| meter.dimensions.iter().any(|known| known.as_str() == name);
    let unknown = filter.iter().map(|(name, _)| name).find(|name| !is_dimension(name))?;
    let detail = format!("must name dimensions of the meter `{}`; got `{unknown}`", meter.key);
    Some(Violation::new("unknown_dimension", detail).under(unknown).under("filter"))
}

/// A meter may gain dimensions, a `stripe` block and display fields; nothing else.
fn validate_meter_change(present: &Meter, next: &Meter) -> Option<Violation> {
    if !present.same_counting(next) {
        let detail = format!(
            "must keep event_name, aggregation, value_property and filter of the meter `{}`; make a new meter instead",
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

fn meter_differences(a: &Meter, b: &Meter) -> Vec<&'static str> {
    differing(&[
        ("display_name", a.display_name != b.display_name),
        ("event_name", a.event_name != b.event_name),
        ("aggregation", a.aggregation != b.aggregation),
        ("value_property", a.value_property != b.value_property),
        ("dimensions", a.dimensions != b.dimensions),
        ("filter", a.filter != b.filter),
        ("unit", a.unit != b.unit),
        ("stripe", a.stripe != b.stripe),
    ])
}

fn plan_differences(a: &Plan, b: &Plan) -> Vec<&'static str> {
    differing(&[
        ("name", a.name != b.name),
        ("unmatched", a.unmatched != b.unmatched),
        ("fallback_plan", a.fallback_plan != b.fallback_plan),
        ("on_plan_change", a.on_plan_change != b.on_plan_change),
        ("features", a.features != b.features),
        ("limits", a.limits != b.limits),
        ("prices", a.prices != b.prices),
        ("commitments", a.commitments != b.commitments),
        ("spend_caps", a.spend_caps != b.spend_caps),
        ("credit_grants", a.credit_grants != b.credit_grants),
        ("credit_alerts", a.credit_alerts != b.credit_alerts),
        ("stripe_price_ids", a.stripe_price_ids != b.stripe_price_ids),
    ])
}

pub(super) fn differing(fields: &[(&'static str, bool)]) -> Vec<&'static str> {
    fields.iter().filter(|(_, differs)| *differs).map(|(name, _)| *name).collect()
}

fn yaml_to_json(text: &str) -> Parsed<Value> {
    use saphyr::{YamlLoader, YamlOwned};

    fn convert(node: &YamlOwned) -> Option<Value> {
        Some(match node {
            YamlOwned::Representation(text, saphyr::ScalarStyle::Plain, None) => plain_scalar(text),
            YamlOwned::Representation(text, _, _) => Value::String(text.clone()),
            YamlOwned::Sequence(items) => Value::Array(items.iter().map(convert).collect::<Option<_>>()?),
            YamlOwned::Mapping(map) => Value::Object(
                map.iter()
                    .map(|(name, value)| match name {
                        YamlOwned::Representation(name, _, _) => Some((name.clone(), convert(value)?)),
                        _ => None,
                    })
                    .collect::<Option<_>>()?,
            ),
            _ => return None,
        })
    }

    fn plain_scalar(text: &str) -> Value {
        match text {
            "" | "~" | "null" | "Null" | "NULL" => Value::Null,
            "true" | "True" | "TRUE" => Value::Bool(true),
            "false" | "False" | "FALSE" => Value::Bool(false),
            other => match other.parse::<serde_json::Number>() {
                Ok(number) => Value::Number(number),
                Err(_) => Value::String(other.to_owned()),
            },
        }
    }

    let unreadable = |why: String| Violations::from(Violation::new("malformed_yaml", why));
    let mut loader = YamlLoader::<YamlOwned>::default();
    loader.early_parse(false);
    saphyr_parser::Parser::new_from_str(text)
        .load(&mut loader, true)
        .map_err(|why| unreadable(format!("the request body is not valid YAML: {why}")))?;
    if let Some(why) = loader.error() {
        return Err(unreadable(format!("the request body is not valid YAML: {why}")));
    }
    let documents = loader.into_documents();
    match documents.as_slice() {
        [document] => convert(document)
            .ok_or_else(|| unreadable("the YAML document must have text keys only and no tags".to_owned())),
        _ => Err(unreadable("the request body must be exactly one YAML document".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

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
        let verdict = |next: &Catalog, recorded: bool| match before.changes_to(
            next,
            |_| recorded,
            |_| false,
            |_| false,
        ) {
            Ok(changes) => {
                changes.iter().map(|c| format!("{:?} {:?}", c.action, c.fields)).collect::<Vec<_>>().concat()
            }
            Err(violations) => violations[0].code.to_owned(),
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

    #[test]
    fn yaml_numbers_keep_all_their_digits() {
        let yaml = "
default_plan: free
meters:
  - {key: tokens, event_name: ai, aggregation: sum, unit: 'true'}
plans:
  - key: free
    features: {ratio: 0.1234567890123456789, on: true, nothing: ~}
    limits:
      - {key: l, meter: tokens, quota: 9007199254740993.5, period: month}
";
        let catalog = Catalog::read_yaml(yaml).unwrap();
        assert_eq!(catalog.plans[0].limits[0].quota.unwrap().to_string(), "9007199254740993.5");
        assert_eq!(
            serde_json::to_string(&catalog.plans[0].features).unwrap(),
            r#"{"nothing":null,"on":true,"ratio":0.1234567890123456789}"#
        );
        assert_eq!(catalog.meters[0].unit.as_deref(), Some("true"));
        let round = serde_json::to_value(&catalog).unwrap();
        assert_eq!(Catalog::read(round).unwrap(), catalog);
        assert_eq!(Catalog::read_yaml("a: [").unwrap_err()[0].code, "malformed_yaml");
    }

    #[test]
    fn references_to_missing_items_are_rejected() {
        let read = |document| Catalog::read(document).unwrap_err()[0].clone();
        let price = |key: &str, value: &str| json!({"key": key, "meter": "m", "filter": {"a": ["x", value]}, "model": "per_unit", "currency": "usd", "unit_amount": 1});
        let shared = json!({"meters": [{"key": "m", "event_name": "e", "aggregation": "sum", "dimensions": ["a"]}],
                            "plans": [{"key": "p", "prices": [price("one", "y"), price("two", "z")]}]});
        assert_eq!(Catalog::read_stored(shared.clone()).unwrap().plans[0].prices.len(), 2);
        let violation = read(shared);
        assert_eq!((violation.pointer.as_str(), violation.code), ("/plans/0/prices/1", "overlapping_prices"));
        let violation = read(json!({"default_plan": "x"}));
        assert_eq!((violation.pointer.as_str(), violation.code), ("/default_plan", "unknown_plan"));
        let violation = read(
            json!({"plans": [{"key": "p", "limits": [{"key": "l", "meter": "m", "quota": 1, "period": "day"}]}]}),
        );
        assert_eq!(
            (violation.pointer.as_str(), violation.code),
            ("/plans/0/limits/0/meter", "unknown_meter")
        );
        let price = |meter: &str, more: Value| {
            let mut price =
                json!({"key": "p", "meter": meter, "model": "per_unit", "currency": "usd", "unit_amount": 1});
            price.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            price
        };
        let priced = |prices: Value| {
            let violation = read(json!({
                "meters": [{"key": "m", "event_name": "e", "aggregation": "sum", "dimensions": ["a"]},
                           {"key": "least", "event_name": "e", "aggregation": "min"}],
                "plans": [{"key": "p", "prices": prices}],
            }));
            (violation.pointer, violation.code)
        };
        let cases = [
            (json!([price("x", json!({}))]), "/plans/0/prices/0/meter", "unknown_meter"),
            (json!([price("least", json!({}))]), "/plans/0/prices/0/meter", "unpriceable_meter"),
            (
                json!([price("m", json!({"filter": {"b": "x"}}))]),
                "/plans/0/prices/0/filter/b",
                "unknown_dimension",
            ),
            (json!([price("m", json!({})), price("m", json!({}))]), "/plans/0/prices", "duplicate_key"),
            (
                json!([price("m", json!({})), price("m", json!({"key": "q"}))]),
                "/plans/0/prices/1",
                "overlapping_prices",
            ),
        ];
        for (prices, pointer, code) in cases {
            assert_eq!(priced(prices.clone()), (pointer.to_owned(), code), "{prices}");
        }
    }
}
