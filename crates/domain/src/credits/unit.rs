//! Units of credits: units of a meter, a credit unit of the catalog, or money.

use std::fmt;

use serde::Serialize;
use serde_json::Value;

use crate::base::fields::{self, ObjectParser, Parsed, Violation};
use crate::base::limits::{CATALOG_ITEMS_MAX, NAME_CHARS_MAX};
use crate::base::names::{ItemKey, MeterKey};
use crate::base::quantity::Quantity;
use crate::catalog::meter::Filter;
use crate::pricing::currency::Currency;
use crate::usage::event::Properties;

/// The unit of a grant. It is written as one of the fields `meter`, `credit_unit` and `currency`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// One credit covers one unit of the meter, in any slice.
    Meter(MeterKey),
    /// A credit unit covers usage at its costs.
    CreditUnit(ItemKey),
    /// Money in minor units covers usage at the prices of the subject's plan.
    Currency(Currency),
}

impl Unit {
    /// Reads the unit from the one field that is present.
    pub fn take(fields: &mut ObjectParser) -> Option<Self> {
        let given = ["meter", "credit_unit", "currency"].iter().filter(|name| fields.has(name)).count();
        if given != 1 {
            let detail = "exactly one of `meter`, `credit_unit` and `currency` is required";
            let code = if given == 0 { "missing_field" } else { "ambiguous_unit" };
            fields.add_error(Violation::new(code, detail));
        }
        let meter = fields.optional("meter", |v| Ok(MeterKey::parse(fields::text(v)?)?));
        let unit = fields.optional("credit_unit", |v| Ok(ItemKey::parse(fields::text(v)?)?));
        let currency = fields.optional("currency", Currency::read);
        meter.map(Self::Meter).or(unit.map(Self::CreditUnit)).or(currency.map(Self::Currency))
    }

    /// Returns the stored form: kind and key.
    pub fn kept(&self) -> (&'static str, String) {
        match self {
            Self::Meter(key) => ("meter", key.to_string()),
            Self::CreditUnit(key) => ("credit_unit", key.to_string()),
            Self::Currency(currency) => ("currency", currency.code()),
        }
    }

    pub fn from_kept(kind: &str, key: &str) -> Option<Self> {
        match kind {
            "meter" => MeterKey::parse(key).ok().map(Self::Meter),
            "credit_unit" => ItemKey::parse(key).ok().map(Self::CreditUnit),
            "currency" => Currency::parse(key).ok().map(Self::Currency),
            _ => None,
        }
    }
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, key) = self.kept();
        write!(f, "{kind} {key}")
    }
}

/// A credit unit of the catalog, with its cost per unit of some meters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CreditUnit {
    pub key: ItemKey,
    pub name: String,
    pub costs: Vec<Cost>,
}

/// The credits per unit of a meter, or of a slice of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Cost {
    pub meter: MeterKey,
    #[serde(skip_serializing_if = "Filter::is_empty")]
    pub filter: Filter,
    pub cost: Quantity,
}

impl Cost {
    fn read(value: Value) -> Parsed<Self> {
        let mut fields = ObjectParser::new(value)?;
        let meter = fields.required("meter", |v| Ok(MeterKey::parse(fields::text(v)?)?));
        let filter = fields.optional("filter", Filter::read).unwrap_or_default();
        let cost = fields.required("cost", above_zero);
        let (meter, cost) = fields.finish_with((meter, cost))?;
        Ok(Self { meter, filter, cost })
    }
}

impl CreditUnit {
    pub fn read(value: Value) -> Parsed<Self> {
        let mut fields = ObjectParser::new(value)?;
        let key = fields.required("key", |v| Ok(ItemKey::parse(fields::text(v)?)?));
        let name = fields.optional("name", short_text);
        let costs = fields.list("costs", CATALOG_ITEMS_MAX, Cost::read);
        let same = |a: &Cost, b: &Cost| a.meter == b.meter && a.filter == b.filter;
        if costs.iter().enumerate().any(|(n, cost)| costs[..n].iter().any(|other| same(cost, other))) {
            fields.add_error(
                Violation::new(
                    "duplicate_cost",
                    "must contain one cost per meter and filter; remove the duplicate",
                )
                .under("costs"),
            );
        }
        let key = fields.finish_with(key)?;
        Ok(Self { name: name.unwrap_or_else(|| key.to_string()), key, costs })
    }

    /// Returns the cost of one unit of a use. The cost with the most dimensions wins; none if no cost
    /// applies.
    pub fn cost_of(&self, meter: &MeterKey, properties: &Properties) -> Option<Quantity> {
        let fits = |cost: &&Cost| cost.meter == *meter && cost.filter.admits(properties);
        // the first of several with equally many dimensions wins
        let best = self.costs.iter().filter(fits).rev().max_by_key(|cost| cost.filter.iter().count());
        best.map(|cost| cost.cost)
    }
}

/// Reads a quantity greater than zero.
pub fn above_zero(value: Value) -> Parsed<Quantity> {
    let quantity = fields::quantity(value)?;
    if quantity <= Quantity::default() {
        return Violation::only("invalid_value", "must be greater than 0");
    }
    Ok(quantity)
}

/// Reads a display name.
pub(super) fn short_text(value: Value) -> Parsed<String> {
    let text = fields::text(value)?;
    if text.chars().count() > NAME_CHARS_MAX {
        return Violation::only("too_long", format!("must have at most {NAME_CHARS_MAX} characters"));
    }
    if text.contains('\0') {
        return Violation::only("nul_character", "must not contain the NUL character");
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn costs_with_the_most_dimensions_take_precedence() {
        let unit = CreditUnit::read(json!({"key": "credits", "costs": [
            {"meter": "tokens", "cost": 1},
            {"meter": "tokens", "filter": {"model": ["big"]}, "cost": 10},
            {"meter": "tokens", "filter": {"model": ["big"], "tier": ["fast"]}, "cost": "20.5"},
            {"meter": "calls", "cost": 0.25},
        ]}))
        .unwrap();
        let cost = |meter: &str, properties: Value| {
            let properties = Properties::stored(Some(properties));
            unit.cost_of(&MeterKey::parse(meter).unwrap(), &properties).map(|cost| cost.to_string())
        };
        let cases = [
            ("tokens", json!({}), Some("1")),
            ("tokens", json!({"model": "small", "tier": "fast"}), Some("1")),
            ("tokens", json!({"model": "big"}), Some("10")),
            ("tokens", json!({"model": "big", "tier": "fast"}), Some("20.5")),
            ("calls", json!({}), Some("0.25")),
            ("images", json!({}), None),
        ];
        for (meter, properties, expected) in cases {
            assert_eq!(cost(meter, properties.clone()).as_deref(), expected, "{meter} {properties}");
        }
    }

    #[test]
    fn units_are_read_from_exactly_one_of_three_fields() {
        let read = |value: Value| {
            let mut fields = ObjectParser::new(value).unwrap();
            let unit = Unit::take(&mut fields);
            fields.finish().map(|()| unit.unwrap().to_string()).map_err(|violations| violations[0].code)
        };
        let cases = [
            (json!({"meter": "m"}), Ok("meter m")),
            (json!({"credit_unit": "u"}), Ok("credit_unit u")),
            (json!({"currency": "usd"}), Ok("currency usd")),
            (json!({}), Err("missing_field")),
            (json!({"meter": "m", "currency": "usd"}), Err("ambiguous_unit")),
            (json!({"currency": "zzz"}), Err("unknown_currency")),
        ];
        for (value, expected) in cases {
            assert_eq!(read(value.clone()).as_deref().map_err(|code| *code), expected, "{value}");
        }
        for unit in ["meter", "credit_unit", "currency"] {
            let unit = Unit::from_kept(unit, "usd").unwrap();
            let (kind, key) = unit.kept();
            assert_eq!(Unit::from_kept(kind, &key), Some(unit));
        }
    }
}
