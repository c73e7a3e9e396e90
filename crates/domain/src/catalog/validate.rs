//! Reads a catalog document, and checks the references between its parts.

use serde_json::Value;

use super::meter::{Aggregation, Meter, has_repeats};
use super::model::Catalog;
use super::plan::{Limit, Plan};
use super::yaml;
use crate::base::fields::{self, ObjectParser, Parsed, Violation};
use crate::base::limits::CATALOG_ITEMS_MAX;
use crate::base::names::{MeterKey, PlanKey};
use crate::base::timestamp::Timestamp;
use crate::credits::catalog as credits;
use crate::credits::offers::CreditPack;
use crate::credits::unit::CreditUnit;
use crate::pricing::cap::SpendCap;
use crate::pricing::exchange::Rates;
use crate::pricing::price::{ModelName, Price};
use crate::pricing::price_book;

impl Catalog {
    /// Reads a catalog that is about to be applied.
    pub fn read(value: Value) -> Parsed<Self> {
        let catalog = Self::read_stored(value)?;
        let refused = |(index, plan): (usize, &Plan)| {
            let prices = price_book::validate_price_list(&plan.prices, &[]).err();
            let prices = prices.into_iter().flatten().map(|violation| violation.under("prices"));
            let caps = SpendCap::validate_not_withdrawn(&plan.spend_caps)
                .map(|violation| violation.under("spend_caps"));
            prices.chain(caps).map(|violation| credits::at(violation, "plans", index)).collect::<Vec<_>>()
        };
        let violations: Vec<Violation> = catalog.plans.iter().enumerate().flat_map(refused).collect();
        Violation::check_all(violations).map(|()| catalog)
    }

    /// Reads a catalog that was applied before. Unlike [`Self::read`], accepts currencies withdrawn
    /// since then, and prices that overlap.
    pub fn read_stored(value: Value) -> Parsed<Self> {
        let map = fields::object(value)?;
        fields::no_nul(&map)?;
        fields::no_monstrous_numbers(&map)?;
        let mut fields = ObjectParser::new(Value::Object(map))?;
        // the answer shows `version` with the document, but it is not part of the catalog
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

    /// Reads YAML. Scalars keep their spelling, so that no number passes through a float.
    pub fn read_yaml(text: &str) -> Parsed<Self> {
        Self::read(yaml::to_json(text)?)
    }

    fn inconsistencies(&self) -> Vec<Violation> {
        let mut violations = Vec::new();
        let meter_keys: Vec<&MeterKey> = self.meters.iter().map(|meter| &meter.key).collect();
        let plan_keys: Vec<&PlanKey> = self.plans.iter().map(|plan| &plan.key).collect();
        if has_repeats(&meter_keys) {
            violations.push(
                Violation::new(
                    "duplicate_key",
                    "must not contain two meters with one key; rename or remove one",
                )
                .under("meters"),
            );
        }
        if has_repeats(&plan_keys) {
            violations.push(
                Violation::new(
                    "duplicate_key",
                    "must not contain two plans with one key; rename or remove one",
                )
                .under("plans"),
            );
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
            let at = |violation: Violation| credits::at(violation, "plans", index);
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
        credits::inconsistencies(self, &mut violations);
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
        credits::validate_overage(meter, limit).or_else(|| meter.validate_filter(&limit.filter))
    }

    /// Returns the violations of the prices of a plan or a subscription, each under its index. The
    /// prices `beside` are rated together with these.
    pub fn validate_prices(&self, prices: &[Price], beside: &[&Price]) -> Vec<Violation> {
        let violation = |(place, price): (usize, &Price)| {
            let others = beside.iter().copied().chain(&prices[..place]);
            let violation = self.validate_price(price).or_else(|| self.validate_slice(price, others))?;
            Some(violation.under(&place.to_string()))
        };
        prices.iter().enumerate().filter_map(violation).collect()
    }

    /// Refuses a price that overlaps another one on a gauge: a gauge cannot be split between two
    /// prices.
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
            "must not overlap the filter of the price `{1}`, because `{0}` is not a sum; give both filters different values of one dimension",
            meter.key, other.key
        );
        Some(Violation::new("unsupported_slice", detail).under("filter"))
    }

    /// Refuses spend caps in a currency that has neither prices nor an exchange rate.
    pub fn validate_caps(&self, rates: &Rates, now: Timestamp) -> Parsed<()> {
        let mut violations = Vec::new();
        for (index, plan) in self.plans.iter().enumerate() {
            let Some(first) = plan.prices.first() else { continue };
            for (place, cap) in plan.spend_caps.iter().enumerate() {
                if plan.prices.iter().any(|price| price.currency == cap.currency) {
                    continue;
                }
                if let Err(unknown) = rates.known(first.currency, cap.currency, now) {
                    let at =
                        |violation| credits::at(credits::at(violation, "spend_caps", place), "plans", index);
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
        meter.validate_filter(&price.filter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

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
