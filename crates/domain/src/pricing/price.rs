//! A price of the catalog: the cost of a meter, or of a slice of it, in one currency.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use super::amount;
use super::amount::{Amount, one};
use super::currency::Currency;
use crate::base::environment::Environment;
use crate::base::fields::{self, ObjectParser, Parsed, Violation};
use crate::base::limits::{NAME_CHARS_MAX, PRICE_TIERS_MAX};
use crate::base::names::{ItemKey, MeterKey};
use crate::base::quantity::{Quantity, Total};
use crate::base::timestamp::Timestamp;
use crate::base::window::Span;
use crate::catalog::meter::Filter;
use crate::usage::event::Properties;
use crate::usage::query::UsageSlice;

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Price {
    pub key: ItemKey,
    /// The meter. None means a fee for the plan as a whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub meter: Option<MeterKey>,
    #[serde(skip_serializing_if = "Filter::is_empty")]
    pub filter: Filter,
    #[serde(flatten)]
    pub model: Model,
    pub currency: Currency,
    /// The start of the span of usage that the price rates. None means unbounded, as in `effective_to`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub effective_from: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub effective_to: Option<Timestamp>,
    /// The free part of the quantity; for percentage prices, of the value.
    pub free_units: Quantity,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minimum_amount: Option<Amount>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub maximum_amount: Option<Amount>,
    pub charge_when_unused: bool,
    /// The matching price at Stripe: one id, or one per environment, kept word for word.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stripe_price_id: Option<StripePriceId>,
}

/// `"price_…"`, or `{"test": "price_…", "live": "price_…"}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum StripePriceId {
    Same(String),
    Each(BTreeMap<Environment, String>),
}

impl StripePriceId {
    fn read(value: Value) -> Parsed<Self> {
        if value.is_string() {
            return Ok(Self::Same(stripe_price_id(value)?));
        }
        let mut fields = ObjectParser::new(value)?;
        let ids = Environment::ALL
            .map(|environment| Some((environment, fields.optional(environment.as_str(), stripe_price_id)?)));
        fields.finish()?;
        Ok(Self::Each(ids.into_iter().flatten().collect()))
    }

    pub fn in_environment(&self, environment: Environment) -> Option<&str> {
        match self {
            Self::Same(id) => Some(id),
            Self::Each(ids) => ids.get(&environment).map(String::as_str),
        }
    }
}

fn stripe_price_id(value: Value) -> Parsed<String> {
    let id = fields::text(value)?;
    if id.is_empty() || id.chars().count() > NAME_CHARS_MAX {
        return Violation::only("invalid_value", format!("must have 1 to {NAME_CHARS_MAX} characters"));
    }
    Ok(id)
}

/// The formula from quantity to amount; amounts are in minor units, rates in percent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "model", rename_all = "snake_case")]
pub enum Model {
    PerUnit {
        unit_amount: Amount,
        per_units: Quantity,
    },
    /// Whole packages of `per_units` units cost `unit_amount` each.
    Package {
        unit_amount: Amount,
        per_units: Quantity,
        round: Round,
    },
    /// Each tier rates only its own part of the quantity.
    Graduated {
        tiers: Vec<Tier>,
    },
    /// The tier that contains the whole quantity rates all of it.
    Volume {
        tiers: Vec<Tier>,
    },
    /// A share of each event's value, which is in minor units.
    Percentage {
        rate: Amount,
        fixed_amount: Amount,
        #[serde(skip_serializing_if = "Option::is_none")]
        event_minimum: Option<Amount>,
        #[serde(skip_serializing_if = "Option::is_none")]
        event_maximum: Option<Amount>,
    },
    /// Each tier takes a share of its own part of the value.
    GraduatedPercentage {
        tiers: Vec<RateTier>,
    },
    Flat {
        amount: Amount,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Round {
    Up,
    Down,
}

/// A tier. It begins above the bound of the previous tier and includes `up_to`. Without `up_to` it is
/// unbounded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Tier {
    pub up_to: Option<Quantity>,
    pub unit_amount: Amount,
    /// The amount that is charged once the tier is reached.
    pub flat_amount: Amount,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RateTier {
    pub up_to: Option<Quantity>,
    pub rate: Amount,
    pub flat_amount: Amount,
}

/// The name of a pricing model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelName {
    PerUnit,
    Package,
    Graduated,
    Volume,
    Percentage,
    GraduatedPercentage,
    Flat,
}

impl ModelName {
    const WORDS: [(&'static str, Self); 7] = [
        ("per_unit", Self::PerUnit),
        ("package", Self::Package),
        ("graduated", Self::Graduated),
        ("volume", Self::Volume),
        ("percentage", Self::Percentage),
        ("graduated_percentage", Self::GraduatedPercentage),
        ("flat", Self::Flat),
    ];
}

impl Model {
    pub fn name(&self) -> ModelName {
        match self {
            Self::PerUnit { .. } => ModelName::PerUnit,
            Self::Package { .. } => ModelName::Package,
            Self::Graduated { .. } => ModelName::Graduated,
            Self::Volume { .. } => ModelName::Volume,
            Self::Percentage { .. } => ModelName::Percentage,
            Self::GraduatedPercentage { .. } => ModelName::GraduatedPercentage,
            Self::Flat { .. } => ModelName::Flat,
        }
    }

    /// Reads the fields of a model.
    fn read(name: ModelName, fields: &mut ObjectParser) -> Option<Self> {
        match name {
            ModelName::PerUnit => {
                let unit_amount = fields.required("unit_amount", amount::read);
                let per_units = fields.optional("per_units", per_units).unwrap_or(Quantity::ONE);
                Some(Self::PerUnit { unit_amount: unit_amount?, per_units })
            }
            ModelName::Package => {
                let unit_amount = fields.required("unit_amount", amount::read);
                let per_units = fields.required("per_units", per_units);
                let words = [("up", Round::Up), ("down", Round::Down)];
                let round = fields.optional("round", |v| fields::one_of(v, &words)).unwrap_or(Round::Up);
                Some(Self::Package { unit_amount: unit_amount?, per_units: per_units?, round })
            }
            ModelName::Graduated => Some(Self::Graduated { tiers: read_tiers(fields, Tier::read)? }),
            ModelName::Volume => Some(Self::Volume { tiers: read_tiers(fields, Tier::read)? }),
            ModelName::Percentage => {
                let rate = fields.required("rate", amount::read);
                let fixed_amount = fields.optional("fixed_amount", amount::read).unwrap_or_default();
                let event_minimum = fields.optional("event_minimum", amount::read);
                let event_maximum = fields.optional("event_maximum", amount::read);
                validate_crossed(fields, "event_maximum", event_minimum.as_ref(), event_maximum.as_ref());
                Some(Self::Percentage { rate: rate?, fixed_amount, event_minimum, event_maximum })
            }
            ModelName::GraduatedPercentage => {
                Some(Self::GraduatedPercentage { tiers: read_tiers(fields, RateTier::read)? })
            }
            ModelName::Flat => Some(Self::Flat { amount: fields.required("amount", amount::read)? }),
        }
    }

    /// Returns the fee of one event with a value, for a percentage price.
    pub fn event_fee(&self, value: &Amount) -> Option<Amount> {
        let Self::Percentage { rate, fixed_amount, event_minimum, event_maximum } = self else { return None };
        let fee = rate.percent_of(value) + fixed_amount.clone();
        let fee = event_minimum.clone().map_or(fee.clone(), |least| fee.max(least));
        Some(event_maximum.clone().map_or(fee.clone(), |most| fee.min(most)))
    }

    /// Returns the percentage of a sum of values, without the fixed amount and the bounds of each event.
    pub fn plain_fee(&self, values: Total) -> Amount {
        let Self::Percentage { rate, .. } = self else { return Amount::default() };
        rate.percent_of(&Amount::of(values))
    }

    /// Returns the fee of an event minus the plain percentage of its value; it may be negative.
    pub fn event_excess(&self, value: Quantity) -> Option<Amount> {
        Some(self.event_fee(&value.into())? - self.plain_fee(value.into()))
    }

    /// Returns the upper bound of [`Self::event_excess`] over all values. The excess never grows with the
    /// value, so the bound is the excess of a value of zero.
    pub fn event_excess_most(&self) -> Option<Amount> {
        self.event_fee(&Amount::default())
    }

    /// Returns whether the price bounds the fee of each event.
    pub fn bounds_events(&self) -> bool {
        matches!(self, Self::Percentage { event_minimum, event_maximum, .. }
            if event_minimum.is_some() || event_maximum.is_some())
    }
}

fn per_units(value: Value) -> Parsed<Quantity> {
    let units = fields::quantity(value)?;
    if units <= Quantity::default() {
        return Violation::only("invalid_value", "must be greater than 0");
    }
    Ok(units)
}

fn validate_crossed(fields: &mut ObjectParser, name: &str, least: Option<&Amount>, most: Option<&Amount>) {
    if let (Some(least), Some(most)) = (least, most)
        && most < least
    {
        fields.add_error(Violation::new("invalid_range", "must be at least the minimum amount").under(name));
    }
}

/// A tier with an upper bound.
trait Bounded {
    fn up_to(&self) -> Option<Quantity>;
}

impl Bounded for Tier {
    fn up_to(&self) -> Option<Quantity> {
        self.up_to
    }
}

impl Bounded for RateTier {
    fn up_to(&self) -> Option<Quantity> {
        self.up_to
    }
}

impl Tier {
    fn read(value: Value) -> Parsed<Self> {
        let mut fields = ObjectParser::new(value)?;
        let up_to = fields.optional("up_to", bound);
        let unit_amount = fields.optional("unit_amount", amount::read);
        let flat_amount = fields.optional("flat_amount", amount::read);
        if unit_amount.is_none() && flat_amount.is_none() && !fields.has_errors() {
            fields.add_error(Violation::new("missing_field", "`unit_amount` or `flat_amount` is required"));
        }
        fields.finish()?;
        let (unit_amount, flat_amount) = (unit_amount.unwrap_or_default(), flat_amount.unwrap_or_default());
        Ok(Self { up_to, unit_amount, flat_amount })
    }
}

impl RateTier {
    fn read(value: Value) -> Parsed<Self> {
        let mut fields = ObjectParser::new(value)?;
        let up_to = fields.optional("up_to", bound);
        let rate = fields.optional("rate", amount::read);
        let flat_amount = fields.optional("flat_amount", amount::read);
        if rate.is_none() && flat_amount.is_none() && !fields.has_errors() {
            fields.add_error(Violation::new("missing_field", "`rate` or `flat_amount` is required"));
        }
        fields.finish()?;
        let (rate, flat_amount) = (rate.unwrap_or_default(), flat_amount.unwrap_or_default());
        Ok(Self { up_to, rate, flat_amount })
    }
}

fn bound(value: Value) -> Parsed<Quantity> {
    let bound = fields::quantity(value)?;
    if bound <= Quantity::default() {
        return Violation::only("invalid_value", "must be greater than 0, or null for the last tier");
    }
    Ok(bound)
}

fn read_tiers<T: Bounded>(fields: &mut ObjectParser, read: impl Fn(Value) -> Parsed<T>) -> Option<Vec<T>> {
    let tiers = fields.required("tiers", |value| fields::items(value, PRICE_TIERS_MAX, read))?;
    match validate_tiers(&tiers) {
        None => Some(tiers),
        Some(violation) => {
            fields.add_error(violation.under("tiers"));
            None
        }
    }
}

/// Validates that bounds ascend and that the last tier is unbounded.
fn validate_tiers<T: Bounded>(tiers: &[T]) -> Option<Violation> {
    let violation = |code, detail: &str, index: usize| {
        Some(Violation::new(code, detail).under("up_to").under(&index.to_string()))
    };
    if tiers.is_empty() {
        return Some(Violation::new("empty", "must contain at least one tier"));
    }
    let last = tiers.len() - 1;
    for (index, tier) in tiers.iter().enumerate() {
        match tier.up_to() {
            None if index < last => {
                return violation(
                    "open_tier",
                    "must be a number: only the last tier may have no bound (`up_to: null`)",
                    index,
                );
            }
            Some(_) if index == last => {
                let detail = "must be null on the last tier; otherwise larger quantities have no price";
                return violation("gapped_tiers", detail, index);
            }
            _ => {}
        }
    }
    for (index, pair) in tiers.windows(2).enumerate() {
        if let (Some(before), Some(after)) = (pair[0].up_to(), pair[1].up_to()) {
            if after == before {
                return violation(
                    "overlapping_tiers",
                    "must lie above the bound of the previous tier; got the same bound",
                    index + 1,
                );
            }
            if after < before {
                return violation(
                    "unsorted_tiers",
                    "must lie above the bound of the previous tier; got a lower one",
                    index + 1,
                );
            }
        }
    }
    None
}

impl Price {
    pub fn read(value: Value) -> Parsed<Self> {
        let mut fields = ObjectParser::new(value)?;
        let key = fields.required("key", |v| Ok(ItemKey::parse(fields::text(v)?)?));
        let meter = fields.optional("meter", |v| Ok(MeterKey::parse(fields::text(v)?)?));
        let filter = fields.optional("filter", Filter::read).unwrap_or_default();
        let name = fields.required("model", |v| fields::one_of(v, &ModelName::WORDS));
        let currency = fields.required("currency", Currency::read);
        let effective_from = fields.optional("effective_from", fields::timestamp);
        let effective_to = fields.optional("effective_to", fields::timestamp);
        let free_units = fields.optional("free_units", fields::quota).unwrap_or_default();
        let minimum_amount = fields.optional("minimum_amount", amount::read);
        let maximum_amount = fields.optional("maximum_amount", amount::read);
        let charge_when_unused = fields.optional("charge_when_unused", fields::boolean).unwrap_or(true);
        let stripe_price_id = fields.optional("stripe_price_id", StripePriceId::read);
        validate_crossed(&mut fields, "maximum_amount", minimum_amount.as_ref(), maximum_amount.as_ref());
        if let (Some(from), Some(to)) = (effective_from, effective_to)
            && to <= from
        {
            let detail = "must be after `effective_from`";
            fields.add_error(Violation::new("invalid_range", detail).under("effective_to"));
        }
        if meter.is_none() && !filter.is_empty() {
            fields.add_error(
                Violation::new("missing_field", "`meter` is required for a price with a filter")
                    .under("meter"),
            );
        }
        if meter.is_none() && name.is_some_and(|name| name != ModelName::Flat) && !fields.has_errors() {
            let detail = "`meter` is required for every model but `flat`";
            fields.add_error(Violation::new("missing_field", detail).under("meter"));
        }
        let Some(name) = name else {
            // the other fields depend on the model, which is unknown
            fields.ignore_rest();
            return fields.finish_with(None::<Self>);
        };
        let model = Model::read(name, &mut fields);
        let (key, model, currency) = fields.finish_with((key, model, currency))?;
        Ok(Self {
            key,
            meter,
            filter,
            model,
            currency,
            effective_from,
            effective_to,
            free_units,
            minimum_amount,
            maximum_amount,
            charge_when_unused,
            stripe_price_id,
        })
    }

    /// Returns whether the price is in force at an instant.
    pub fn is_in_force(&self, at: Timestamp) -> bool {
        self.effective_from.is_none_or(|from| from <= at) && self.effective_to.is_none_or(|to| at < to)
    }

    /// Returns whether the price is in force at some time of a span.
    pub fn is_in_force_within(&self, span: Span) -> bool {
        self.effective_from.is_none_or(|from| from < span.to)
            && self.effective_to.is_none_or(|to| span.from < to)
    }

    /// Returns whether the price rates a use at an instant, unless another price takes precedence.
    pub fn may_rate(&self, properties: &Properties, at: Timestamp) -> bool {
        self.is_in_force(at) && self.filter.admits(properties)
    }

    /// Returns the slice of the meter's usage that the price rates.
    pub fn slice(&self) -> UsageSlice {
        let filter = self.filter.iter().map(|(name, values)| (name.to_owned(), values.to_vec())).collect();
        UsageSlice { filter, from: self.effective_from, to: self.effective_to }
    }

    /// Returns whether two prices are in force at some common time.
    pub fn meets(&self, other: &Self) -> bool {
        let from = self.effective_from.max(other.effective_from);
        let to = [self.effective_to, other.effective_to].into_iter().flatten().min();
        match (from, to) {
            (Some(from), Some(to)) => from < to,
            _ => true,
        }
    }
}

impl Tier {
    /// Returns the cost of the tier's part of a quantity.
    pub(super) fn amount_of(&self, quantity: &Amount) -> Amount {
        &self.unit_amount * quantity + self.flat_amount.clone()
    }
}

impl RateTier {
    /// Returns the tier with the share of one minor unit as its unit price.
    pub(super) fn as_tier(&self) -> Tier {
        Tier {
            up_to: self.up_to,
            unit_amount: self.rate.percent_of(&one()),
            flat_amount: self.flat_amount.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn violation(price: Value) -> (String, &'static str) {
        let violations = Price::read(price).unwrap_err();
        (violations[0].pointer.clone(), violations[0].code)
    }

    fn tiered(tiers: Value) -> Value {
        json!({"key": "p", "meter": "m", "model": "graduated", "currency": "usd", "tiers": tiers})
    }

    #[test]
    fn invalid_tiers_are_refused_with_their_code() {
        let open = json!({"up_to": null, "unit_amount": 1});
        let cases = [
            (json!([]), "/tiers", "empty"),
            (json!([{"up_to": 10, "unit_amount": 1}]), "/tiers/0/up_to", "gapped_tiers"),
            (json!([open, {"up_to": 10, "unit_amount": 1}]), "/tiers/0/up_to", "open_tier"),
            (json!([open, open]), "/tiers/0/up_to", "open_tier"),
            (
                json!([{"up_to": 10, "unit_amount": 1}, {"up_to": 10, "unit_amount": 1}, open]),
                "/tiers/1/up_to",
                "overlapping_tiers",
            ),
            (
                json!([{"up_to": 10, "unit_amount": 1}, {"up_to": 9.5, "unit_amount": 1}, open]),
                "/tiers/1/up_to",
                "unsorted_tiers",
            ),
            (json!([{"up_to": 0, "unit_amount": 1}, open]), "/tiers/0/up_to", "invalid_value"),
            (json!([{"up_to": null, "unit_amount": -1}]), "/tiers/0/unit_amount", "negative_amount"),
            (json!([{"up_to": null}]), "/tiers/0", "missing_field"),
            (json!([{"up_to": null, "unit_amount": 1, "unit": 1}]), "/tiers/0/unit", "unknown_field"),
        ];
        for (tiers, pointer, code) in cases {
            assert_eq!(violation(tiered(tiers.clone())), (pointer.to_owned(), code), "{tiers}");
        }
        // a flat amount alone is enough for both kinds of tiers
        for model in ["graduated", "volume", "graduated_percentage"] {
            let of = |tier: Value| {
                let mut price = tiered(json!([tier]));
                price["model"] = model.into();
                price
            };
            assert_eq!(
                violation(of(json!({"up_to": null}))),
                ("/tiers/0".to_owned(), "missing_field"),
                "{model}"
            );
            assert!(Price::read(of(json!({"up_to": null, "flat_amount": 5}))).is_ok(), "{model}");
        }
    }

    #[test]
    fn invalid_prices_are_refused_with_their_pointer() {
        let altered = |field: &str, value: Value| {
            let mut price =
                json!({"key": "p", "meter": "m", "model": "per_unit", "currency": "usd", "unit_amount": 1});
            price[field] = value;
            violation(price)
        };
        let cases = [
            ("unit_amount", json!(-0.01), "negative_amount"),
            ("unit_amount", json!("0.0000000000001"), "invalid_amount"),
            ("unit_amount", json!(null), "missing_field"),
            ("per_units", json!(0), "invalid_value"),
            ("currency", json!("zzz"), "unknown_currency"),
            ("currency", json!("USD"), "unknown_currency"),
            ("model", json!("free"), "invalid_choice"),
            ("tiers", json!([]), "unknown_field"),
            ("free_units", json!(-1), "invalid_value"),
            ("minimum_amount", json!(-1), "negative_amount"),
            ("charge_when_unused", json!("no"), "invalid_type"),
            ("effective_from", json!("tomorrow"), "invalid_timestamp"),
            ("meter", json!(null), "missing_field"),
        ];
        for (field, value, code) in cases {
            assert_eq!(altered(field, value.clone()), (format!("/{field}"), code), "{field}: {value}");
        }
        let crossed = json!({"key": "p", "meter": "m", "model": "per_unit", "currency": "usd", "unit_amount": 1,
                             "minimum_amount": 2, "maximum_amount": 1});
        assert_eq!(violation(crossed), ("/maximum_amount".to_owned(), "invalid_range"));
    }

    #[test]
    fn prices_read_back_unchanged_after_serialization() {
        let prices = [
            json!({"key": "a", "meter": "m", "model": "per_unit", "currency": "usd", "unit_amount": "0.000000000001",
                   "per_units": 3, "free_units": 10, "minimum_amount": 1, "maximum_amount": 2,
                   "effective_from": "2026-01-01T00:00:00Z", "filter": {"model": ["x"]}}),
            json!({"key": "b", "meter": "m", "model": "package", "currency": "jpy", "unit_amount": 5, "per_units": 10,
                   "round": "down"}),
            json!({"key": "c", "meter": "m", "model": "volume", "currency": "kwd",
                   "tiers": [{"up_to": 99.5, "unit_amount": 1, "flat_amount": 2}, {"up_to": null, "unit_amount": 0.5}]}),
            json!({"key": "d", "meter": "m", "model": "percentage", "currency": "usd", "rate": 2.9, "fixed_amount": 30,
                   "event_minimum": 50, "event_maximum": 500}),
            json!({"key": "e", "meter": "m", "model": "graduated_percentage", "currency": "usd",
                   "tiers": [{"up_to": 1000, "rate": 3}, {"up_to": null, "rate": 1, "flat_amount": 5}]}),
            json!({"key": "f", "model": "flat", "currency": "usd", "amount": 2000, "charge_when_unused": false}),
        ];
        for price in prices {
            let read =
                Price::read(price.clone()).unwrap_or_else(|violations| panic!("{price}: {violations:?}"));
            assert_eq!(Price::read(serde_json::to_value(&read).unwrap()).unwrap(), read, "{price}");
        }
    }
}
