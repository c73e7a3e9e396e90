//! Meters: the events that a meter counts, the value that it takes from each, and the aggregation of
//! the values.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use crate::base::fields::{self, ObjectParser, Parsed, Violation, Violations};
use crate::base::limits::{FILTER_VALUES_MAX, METER_DIMENSIONS_MAX, NAME_CHARS_MAX};
use crate::base::names::{EventName, MeterKey, PropertyName};
use crate::base::quantity::{Quantity, Total};
use crate::usage::event::Properties;

/// The rule that combines the values of a period's events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Aggregation {
    Sum,
    Count,
    Min,
    Max,
    Avg,
    Last,
    UniqueCount,
}

impl Aggregation {
    const WORDS: [(&'static str, Self); 7] = [
        ("sum", Self::Sum),
        ("count", Self::Count),
        ("min", Self::Min),
        ("max", Self::Max),
        ("avg", Self::Avg),
        ("last", Self::Last),
        ("unique_count", Self::UniqueCount),
    ];

    /// Returns whether the aggregation takes a number from each event.
    pub fn needs_number(self) -> bool {
        !matches!(self, Self::Count | Self::UniqueCount)
    }

    /// Returns whether voiding an event needs a recount, because its value cannot be subtracted.
    pub fn is_order_statistic(self) -> bool {
        matches!(self, Self::Min | Self::Max | Self::Last)
    }

    /// Returns whether values add up, so that quantities can be held. All other aggregations are
    /// gauges.
    pub fn is_reservable(self) -> bool {
        matches!(self, Self::Sum | Self::Count)
    }

    /// Returns the total over no events; none for an aggregation that needs at least one.
    pub fn of_nothing(self) -> Option<Total> {
        matches!(self, Self::Sum | Self::Count | Self::UniqueCount).then(Total::default)
    }
}

/// A filter of events: each property named must have one of the values given. An empty filter admits
/// all.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(transparent)]
pub struct Filter(BTreeMap<String, Vec<String>>);

impl Filter {
    /// Reads `{"model": ["gpt-4o", …]}`. A single value needs no array.
    pub fn read(value: Value) -> Parsed<Self> {
        let mut filter = BTreeMap::new();
        for (name, allowed) in fields::object(value)? {
            let under = |violations: Violations| violations.under(&name);
            let allowed = if allowed.is_array() { allowed } else { Value::Array(vec![allowed]) };
            let mut values = fields::items(allowed, FILTER_VALUES_MAX, scalar).map_err(under)?;
            if values.is_empty() {
                return Err(under(Violation::new("empty", "must allow at least one value").into()));
            }
            values.sort();
            values.dedup();
            PropertyName::parse(name.as_str()).map_err(|bad| under(bad.into()))?;
            filter.insert(name, values);
        }
        Ok(Self(filter))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the allowed values by property.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[String])> {
        self.0.iter().map(|(name, values)| (name.as_str(), values.as_slice()))
    }

    /// Returns whether both filters name the same dimensions.
    pub fn is_alike(&self, other: &Self) -> bool {
        self.0.keys().eq(other.0.keys())
    }

    /// Returns whether no event can pass both filters.
    pub fn excludes(&self, other: &Self) -> bool {
        self.0.iter().any(|(name, values)| {
            other.0.get(name).is_some_and(|others| values.iter().all(|value| !others.contains(value)))
        })
    }

    /// Returns whether an event's properties pass the filter. A missing property never does.
    pub fn admits(&self, properties: &Properties) -> bool {
        self.iter().all(|(name, allowed)| {
            properties.get(name).and_then(dimension_value).is_some_and(|value| allowed.contains(&value))
        })
    }
}

fn scalar(value: Value) -> Parsed<String> {
    dimension_value(&value).map_or_else(
        || Violation::only("invalid_type", "must be a string, a number or a boolean"),
        |text| {
            if text.chars().count() > NAME_CHARS_MAX {
                return Violation::only("too_long", format!("must have at most {NAME_CHARS_MAX} characters"));
            }
            Ok(text)
        },
    )
}

/// Returns a property as a dimension value: text unchanged, numbers and booleans as text, and none for
/// anything else. The database function `dimension_value` follows the same rule.
pub fn dimension_value(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Bool(truth) => Some(truth.to_string()),
        Value::Number(number) => Quantity::from_json_number(number.as_str()).ok().map(|q| q.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

/// The address of the meter at Stripe, and the formula there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StripeMeter {
    pub event_name: String,
    pub customer_key: String,
    pub value_key: String,
    pub formula: StripeFormula,
    pub scale: Quantity,
}

/// The formula of the meter at Stripe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StripeFormula {
    Sum,
    Last,
}

impl StripeMeter {
    fn read(value: Value) -> Parsed<Self> {
        let name = |value| -> Parsed<String> {
            let text = fields::text(value)?;
            match text.chars().count() {
                1..=100 => Ok(text),
                _ => Violation::only("too_long", "must have 1 to 100 characters"),
            }
        };
        let mut fields = ObjectParser::new(value)?;
        let event_name = fields.required("event_name", name);
        let customer_key = fields.optional("customer_key", name);
        let value_key = fields.optional("value_key", name);
        let formula = fields.optional("formula", |v| {
            fields::one_of(v, &[("sum", StripeFormula::Sum), ("last", StripeFormula::Last)])
        });
        let scale = fields.optional("scale", |v| {
            let scale = fields::quantity(v)?;
            if scale <= Quantity::default() {
                return Violation::only("invalid_value", "must be greater than 0");
            }
            Ok(scale)
        });
        let event_name = fields.finish_with(event_name)?;
        Ok(Self {
            event_name,
            customer_key: customer_key.unwrap_or_else(|| "stripe_customer_id".to_owned()),
            value_key: value_key.unwrap_or_else(|| "value".to_owned()),
            formula: formula.unwrap_or(StripeFormula::Sum),
            scale: scale.unwrap_or(Quantity::ONE),
        })
    }
}

/// A meter of the catalog.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Meter {
    pub key: MeterKey,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub display_name: Option<String>,
    pub event_name: EventName,
    pub aggregation: Aggregation,
    /// The property with the value; `value` names the event's own value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value_property: Option<PropertyName>,
    pub dimensions: Vec<PropertyName>,
    #[serde(skip_serializing_if = "Filter::is_empty")]
    pub filter: Filter,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stripe: Option<StripeMeter>,
}

/// The name of the event's own value.
pub const VALUE: &str = "value";

impl Meter {
    /// Returns a violation if a filter names a property that is not a dimension of the meter.
    pub(crate) fn validate_filter(&self, filter: &Filter) -> Option<Violation> {
        let is_dimension = |name: &str| self.dimensions.iter().any(|known| known.as_str() == name);
        let unknown = filter.iter().map(|(name, _)| name).find(|name| !is_dimension(name))?;
        let detail = format!("must name dimensions of the meter `{}`; got `{unknown}`", self.key);
        Some(Violation::new("unknown_dimension", detail).under(unknown).under("filter"))
    }

    pub fn read(value: Value) -> Parsed<Self> {
        let mut fields = ObjectParser::new(value)?;
        let key = fields.required("key", |v| Ok(MeterKey::parse(fields::text(v)?)?));
        let display_name = fields.optional("display_name", short_text);
        let event_name = fields.required("event_name", |v| Ok(EventName::parse(fields::text(v)?)?));
        let aggregation = fields.required("aggregation", |v| fields::one_of(v, &Aggregation::WORDS));
        let value_property =
            fields.optional("value_property", |v| Ok(PropertyName::parse(fields::text(v)?)?));
        let dimensions =
            fields.list("dimensions", METER_DIMENSIONS_MAX, |v| Ok(PropertyName::parse(fields::text(v)?)?));
        let filter = fields.optional("filter", Filter::read);
        let unit = fields.optional("unit", short_text);
        let stripe = fields.optional("stripe", StripeMeter::read);
        if has_repeats(&dimensions) {
            fields.add_error(
                Violation::new("duplicate_key", "must name each dimension once; remove the duplicate")
                    .under("dimensions"),
            );
        }
        if dimensions.iter().any(|d| d.as_str() == "subject") {
            let detail = "must not contain `subject`; usage can be grouped by subject without it";
            fields.add_error(Violation::new("invalid_key", detail).under("dimensions"));
        }
        if let (Some(stripe), Some(aggregation)) = (&stripe, aggregation) {
            let fits = match stripe.formula {
                StripeFormula::Sum => matches!(aggregation, Aggregation::Sum | Aggregation::Count),
                StripeFormula::Last => matches!(aggregation, Aggregation::Last | Aggregation::Max),
            };
            if !fits {
                let detail = "must be `sum` for sum and count meters and `last` for last and max meters; others cannot be exported";
                fields.add_error(Violation::new("invalid_formula", detail).under("formula").under("stripe"));
            }
        }
        let (key, event_name, aggregation) = fields.finish_with((key, event_name, aggregation))?;
        let value_property = match aggregation {
            Aggregation::Count => value_property,
            _ => value_property.or_else(|| PropertyName::parse(VALUE).ok()),
        };
        Ok(Self {
            key,
            display_name,
            event_name,
            aggregation,
            value_property,
            dimensions,
            filter: filter.unwrap_or_default(),
            unit,
            stripe,
        })
    }

    /// Returns the property that the number or the member is read from; none for the event's own value.
    pub fn property(&self) -> Option<&str> {
        self.value_property.as_ref().map(PropertyName::as_str).filter(|name| *name != VALUE)
    }

    /// Returns a violation if an event that the meter counts has a value that is not a number.
    pub fn refuses(&self, properties: &Properties) -> Option<Violation> {
        if !self.aggregation.needs_number() || !self.filter.admits(properties) {
            return None;
        }
        let name = self.property()?;
        match properties.get(name) {
            None | Some(Value::Null) => None,
            Some(value) => Quantity::from_json(value).err().map(|why| {
                let detail = format!("{why}, because the meter `{}` counts it", self.key);
                Violation::new("invalid_value", detail).under(name).under("properties")
            }),
        }
    }

    /// Returns the value that the meter takes from an event of its name; none if the event does not
    /// count. Count and `unique_count` meters take 1.
    pub fn measure(&self, value: Quantity, properties: &Properties) -> Option<Quantity> {
        if !self.filter.admits(properties) {
            return None;
        }
        match (self.aggregation, self.property()) {
            (Aggregation::Count, _) | (Aggregation::UniqueCount, None) => Some(Quantity::ONE),
            (Aggregation::UniqueCount, Some(name)) => {
                properties.get(name).and_then(dimension_value).map(|_| Quantity::ONE)
            }
            (_, None) => Some(value),
            (_, Some(name)) => properties.get(name).and_then(|found| Quantity::from_json(found).ok()),
        }
    }

    /// Returns whether both meters count alike. Any difference would change recorded usage.
    pub fn same_counting(&self, other: &Self) -> bool {
        self.event_name == other.event_name
            && self.aggregation == other.aggregation
            && self.value_property == other.value_property
            && self.filter == other.filter
    }
}

/// A meter with its numbers in the database.
#[derive(Debug, Clone)]
pub struct StoredMeter {
    pub id: i32,
    pub event_name_id: i32,
    pub meter: Meter,
}

fn short_text(value: Value) -> Parsed<String> {
    let text = fields::text(value)?;
    if text.chars().count() > NAME_CHARS_MAX || text.contains('\0') {
        return Violation::only(
            "too_long",
            format!("must have at most {NAME_CHARS_MAX} characters, none of them NUL"),
        );
    }
    Ok(text)
}

/// Returns whether any two items are equal.
pub(crate) fn has_repeats<T: Ord + Clone>(items: &[T]) -> bool {
    let mut sorted = items.to_vec();
    sorted.sort();
    sorted.windows(2).any(|pair| pair[0] == pair[1])
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn measured_value_comes_from_the_value_property() {
        let meter = |aggregation: &str, property: Option<&str>| {
            Meter::read(
                json!({"key": "m", "event_name": "e", "aggregation": aggregation, "value_property": property,
                "filter": {"tier": ["1", "pro"]}}),
            )
            .unwrap()
        };
        let taken = |meter: &Meter, properties: Value| {
            meter
                .measure(Quantity::from_decimal("7").unwrap(), &Properties::read(properties).unwrap())
                .map(|q| q.to_string())
        };
        let cases = [
            (meter("sum", None), json!({"tier": "pro"}), Some("7")),
            (meter("sum", None), json!({"tier": 1.0}), Some("7")),
            (meter("sum", None), json!({"tier": "free"}), None),
            (meter("sum", None), json!({}), None),
            (meter("sum", Some("n")), json!({"tier": 1, "n": "2.50"}), Some("2.5")),
            (meter("sum", Some("n")), json!({"tier": 1}), None),
            (meter("sum", Some("n")), json!({"tier": 1, "n": "many"}), None),
            (meter("count", Some("n")), json!({"tier": 1}), Some("1")),
            (meter("unique_count", Some("n")), json!({"tier": 1, "n": "x"}), Some("1")),
            (meter("unique_count", Some("n")), json!({"tier": 1, "n": {}}), None),
        ];
        for (meter, properties, expected) in cases {
            assert_eq!(taken(&meter, properties.clone()).as_deref(), expected, "{meter:?} {properties}");
        }
        let refused =
            |meter: &Meter, properties| meter.refuses(&Properties::read(properties).unwrap()).is_some();
        assert!(refused(&meter("sum", Some("n")), json!({"tier": 1, "n": "many"})));
        assert!(!refused(&meter("sum", Some("n")), json!({"tier": "free", "n": "many"})));
        assert!(!refused(&meter("sum", Some("n")), json!({"tier": 1})));
        assert!(!refused(&meter("count", Some("n")), json!({"tier": 1, "n": "many"})));
    }

    #[test]
    fn meters_that_cannot_be_billed_are_rejected() {
        let read = |aggregation: &str, formula: &str| {
            Meter::read(json!({"key": "m", "event_name": "e", "aggregation": aggregation,
                "stripe": {"event_name": "e", "formula": formula}}))
            .is_ok()
        };
        assert!(read("sum", "sum") && read("count", "sum") && read("max", "last") && read("last", "last"));
        assert!(!read("avg", "sum") && !read("sum", "last") && !read("max", "sum"));
    }
}
