//! The requests of the gate's callers: parsing and validation.

use serde_json::Value;
use uuid::Uuid;

use super::catalog_index::CatalogIndex;
use super::decision::GrantMode;
use crate::base::digest::Digest;
use crate::base::fields::{self, ObjectParser, Parsed, Violation};
use crate::base::limits::{
    REASON_CHARS_MAX, RESERVATION_HOLDS_MAX, RESERVATION_TTL_SECONDS_DEFAULT, RESERVATION_TTL_SECONDS_MAX,
};
use crate::base::names::{EventId, MeterKey, SubjectId};
use crate::base::quantity::Quantity;
use crate::catalog::meter::{Aggregation, dimension_value, has_repeats};
use crate::usage::event::Properties;

/// A requested use of one meter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HoldRequest {
    pub meter: MeterKey,
    pub value: RequestedValue,
    pub grant: GrantMode,
    pub properties: Properties,
}

/// A quantity, or the new member in a check of a `unique_count` meter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestedValue {
    pub quantity: Option<Quantity>,
    pub member: String,
}

impl RequestedValue {
    fn read(value: Value) -> Parsed<Self> {
        let quantity = Quantity::from_json(&value);
        match (dimension_value(&value), quantity) {
            (_, Ok(quantity)) if quantity.is_negative() => {
                Violation::only("invalid_value", "must not be negative")
            }
            (Some(member), Ok(quantity)) => Ok(Self { quantity: Some(quantity), member }),
            // A `unique_count` meter takes text. The meter is known only when the catalog validates the
            // request.
            (Some(member), Err(_)) if !value.is_number() && !member.contains('\0') => {
                Ok(Self { quantity: None, member })
            }
            (_, Err(why)) => Violation::only("invalid_value", why.to_string()),
            (None, Ok(_)) => Violation::only("invalid_value", "must be a decimal number"),
        }
    }

    fn one() -> Self {
        Self { quantity: Some(Quantity::ONE), member: Quantity::ONE.to_string() }
    }

    /// Returns the quantity of a valid request.
    pub fn amount(&self) -> Quantity {
        self.quantity.unwrap_or_default()
    }
}

/// The effect of an expiry on a hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OnExpiry {
    Release,
    Commit,
}

/// The request of a reservation or a check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reserve {
    pub id: Option<EventId>,
    pub subject: SubjectId,
    pub asks: Vec<HoldRequest>,
    /// True if the request gives its only hold at the top level.
    pub is_short: bool,
    pub ttl_seconds: u32,
    pub on_expiry: OnExpiry,
    pub dry_run: bool,
}

impl Reserve {
    pub fn read(value: Value) -> Parsed<Self> {
        let mut fields = ObjectParser::new(value)?;
        let id = fields.optional("id", |v| Ok(EventId::parse(fields::text(v)?)?));
        let subject = fields.required("subject", |v| Ok(SubjectId::parse(fields::text(v)?)?));
        let is_short = !fields.has("holds") && fields.has("meter");
        let asks = if fields.has("holds") {
            let asks = fields.list("holds", RESERVATION_HOLDS_MAX, |v| {
                let mut fields = ObjectParser::new(v)?;
                let ask = read_ask(&mut fields);
                fields.finish_with(ask)
            });
            if asks.is_empty() && !fields.has_errors() {
                fields.add_error(Violation::new("empty", "must have at least one hold").under("holds"));
            }
            asks
        } else if is_short {
            read_ask(&mut fields).into_iter().collect()
        } else {
            fields.add_error(Violation::new("missing_field", "`holds` is required").under("holds"));
            Vec::new()
        };
        let ttl_seconds = fields.optional("ttl_seconds", read_ttl);
        let on_expiry = fields.optional("on_expiry", |v| {
            fields::one_of(v, &[("release", OnExpiry::Release), ("commit", OnExpiry::Commit)])
        });
        let dry_run = fields.optional("dry_run", fields::boolean);
        let meters: Vec<&MeterKey> = asks.iter().map(|ask| &ask.meter).collect();
        if has_repeats(&meters) {
            fields.add_error(
                Violation::new("duplicate_meter", "must name each meter once; merge the holds of one meter")
                    .under("holds"),
            );
        }
        let subject = fields.finish_with(subject)?;
        Ok(Self {
            id,
            subject,
            asks,
            is_short,
            ttl_seconds: ttl_seconds.unwrap_or(RESERVATION_TTL_SECONDS_DEFAULT),
            on_expiry: on_expiry.unwrap_or(OnExpiry::Release),
            dry_run: dry_run.unwrap_or(false),
        })
    }

    /// Validates the request against the catalog. `to_hold` rejects gauges, which can be checked but not
    /// reserved.
    pub fn validate(&self, terms: &CatalogIndex, to_hold: bool) -> Parsed<()> {
        let mut violations = Vec::new();
        for (index, ask) in self.asks.iter().enumerate() {
            let violation = validate_ask(ask, terms, to_hold);
            let place = |violation: Violation| {
                if self.is_short { violation } else { violation.under(&index.to_string()).under("holds") }
            };
            violations.extend(violation.map(place));
        }
        Violation::check_all(violations)
    }

    /// Returns a fingerprint of the request without its id, independent of the order of holds.
    pub fn content(&self) -> Uuid {
        let mut asks: Vec<&HoldRequest> = self.asks.iter().collect();
        asks.sort_by(|a, b| a.meter.cmp(&b.meter));
        let mut digest = Digest::default();
        digest.text(self.subject.as_str()).number(u64::from(self.ttl_seconds));
        digest.number(u64::from(self.on_expiry == OnExpiry::Commit));
        for ask in asks {
            digest.text(ask.meter.as_str()).quantity(ask.value.amount());
            digest.number(u64::from(ask.grant == GrantMode::UpTo)).map(ask.properties.as_map());
        }
        digest.finish()
    }
}

/// Returns the positions of requests in the order of decision, which does not depend on their order in the
/// call. Requests for a whole quantity precede those for an available part; within each kind, meters are
/// ordered by key.
pub(super) fn order(asks: &[HoldRequest]) -> Vec<usize> {
    let mut places: Vec<usize> = (0..asks.len()).collect();
    places.sort_by_key(|place| (asks[*place].grant == GrantMode::UpTo, &asks[*place].meter));
    places
}

fn read_ask(fields: &mut ObjectParser) -> Option<HoldRequest> {
    let meter = fields.required("meter", |v| Ok(MeterKey::parse(fields::text(v)?)?));
    let value = fields.optional("value", RequestedValue::read);
    let grant = fields
        .optional("grant", |v| fields::one_of(v, &[("up_to", GrantMode::UpTo), ("all", GrantMode::Exactly)]));
    let properties = fields.optional("properties", Properties::read);
    Some(HoldRequest {
        meter: meter?,
        value: value.unwrap_or_else(RequestedValue::one),
        grant: grant.unwrap_or(GrantMode::Exactly),
        properties: properties.unwrap_or_default(),
    })
}

fn validate_ask(ask: &HoldRequest, terms: &CatalogIndex, to_hold: bool) -> Option<Violation> {
    let Some(found) = terms.meter(&ask.meter) else {
        let detail = format!("must be the key of a meter in the catalog; got `{}`", ask.meter);
        return Some(Violation::new("unknown_meter", detail).under("meter"));
    };
    if to_hold && !found.meter.aggregation.is_reservable() {
        let detail =
            format!("must be a sum or count meter to be reserved; `{}` can be checked only", ask.meter);
        return Some(Violation::new("not_reservable", detail).under("meter"));
    }
    if found.meter.aggregation == Aggregation::UniqueCount {
        return None;
    }
    match ask.value.quantity {
        None => Some(Violation::new("invalid_value", "must be a decimal number").under("value")),
        Some(quantity) => {
            validate_fraction(found.meter.aggregation, quantity).map(|violation| violation.under("value"))
        }
    }
}

fn validate_fraction(aggregation: Aggregation, quantity: Quantity) -> Option<Violation> {
    (aggregation == Aggregation::Count && !quantity.is_whole())
        .then(|| Violation::new("invalid_value", "must be a whole number on a count meter"))
}

fn read_ttl(value: Value) -> Parsed<u32> {
    let ttl = value.as_number().and_then(|number| number.as_str().parse::<u32>().ok());
    match ttl {
        Some(ttl @ 1..=RESERVATION_TTL_SECONDS_MAX) => Ok(ttl),
        _ => Violation::only(
            "invalid_ttl",
            format!("must be a whole number from 1 to {RESERVATION_TTL_SECONDS_MAX}; got {value}"),
        ),
    }
}

/// A meter and its new total.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeterAmount {
    pub meter: MeterKey,
    pub value: Quantity,
}

fn read_amounts(fields: &mut ObjectParser, name: &str) -> Vec<MeterAmount> {
    let amounts = fields.list(name, RESERVATION_HOLDS_MAX, |v| {
        let mut fields = ObjectParser::new(v)?;
        let meter = fields.required("meter", |v| Ok(MeterKey::parse(fields::text(v)?)?));
        let value = fields.required("value", fields::quota);
        let (meter, value) = fields.finish_with((meter, value))?;
        Ok(MeterAmount { meter, value })
    });
    let meters: Vec<&MeterKey> = amounts.iter().map(|amount| &amount.meter).collect();
    if has_repeats(&meters) {
        fields.add_error(
            Violation::new("duplicate_meter", "must name each meter once; merge the entries of one meter")
                .under(name),
        );
    }
    amounts
}

/// The used quantities, as totals for the whole reservation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    pub values: Vec<MeterAmount>,
    pub properties: Properties,
    /// False for a partial commit, after which the rest stays held.
    pub is_final: bool,
}

impl Commit {
    pub fn read(value: Option<Value>) -> Parsed<Self> {
        let mut fields = ObjectParser::new(value.unwrap_or_else(|| Value::Object(serde_json::Map::new())))?;
        let values = read_amounts(&mut fields, "values");
        let properties = fields.optional("properties", Properties::read);
        let is_final = fields.optional("final", fields::boolean);
        fields.finish()?;
        Ok(Self { values, properties: properties.unwrap_or_default(), is_final: is_final.unwrap_or(true) })
    }

    pub fn content(&self) -> Uuid {
        let mut values: Vec<&MeterAmount> = self.values.iter().collect();
        values.sort_by(|a, b| a.meter.cmp(&b.meter));
        let mut digest = Digest::default();
        digest.number(u64::from(self.is_final)).map(self.properties.as_map());
        for amount in values {
            digest.text(amount.meter.as_str()).quantity(amount.value);
        }
        digest.finish()
    }
}

/// The end of a reservation without use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    pub reason: Option<String>,
}

impl Release {
    pub fn read(value: Option<Value>) -> Parsed<Self> {
        let mut fields = ObjectParser::new(value.unwrap_or_else(|| Value::Object(serde_json::Map::new())))?;
        let reason = fields.optional("reason", read_reason);
        fields.finish()?;
        Ok(Self { reason })
    }
}

/// Parses the caller's reason for a call.
pub fn read_reason(value: Value) -> Parsed<String> {
    let reason = fields::text(value)?;
    if reason.chars().count() > REASON_CHARS_MAX || reason.contains('\0') {
        let detail = format!("must have at most {REASON_CHARS_MAX} characters and no NUL");
        return Violation::only("too_long", detail);
    }
    Ok(reason)
}

/// A change of a reservation's expiry or of its totals.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extend {
    /// The time to live from now on; none keeps the expiry.
    pub ttl_seconds: Option<u32>,
    /// The new totals, which include the quantities of partial commits.
    pub holds: Vec<MeterAmount>,
}

impl Extend {
    pub fn read(value: Option<Value>) -> Parsed<Self> {
        let mut fields = ObjectParser::new(value.unwrap_or_else(|| Value::Object(serde_json::Map::new())))?;
        let ttl_seconds = fields.optional("ttl_seconds", read_ttl);
        let holds = read_amounts(&mut fields, "holds");
        fields.finish()?;
        let ttl_seconds = ttl_seconds.or_else(|| holds.is_empty().then_some(RESERVATION_TTL_SECONDS_DEFAULT));
        Ok(Self { ttl_seconds, holds })
    }
}

/// Validates totals for the meters of a reservation. `held` returns the aggregation of a meter that the
/// reservation holds.
pub fn validate_amounts(
    amounts: &[MeterAmount],
    under: &str,
    held: impl Fn(&MeterKey) -> Option<Aggregation>,
) -> Parsed<()> {
    let mut violations = Vec::new();
    for (index, amount) in amounts.iter().enumerate() {
        let violation = match held(&amount.meter) {
            None => {
                let detail = format!("must be a meter that the reservation holds; got `{}`", amount.meter);
                Some(Violation::new("meter_not_held", detail).under("meter"))
            }
            Some(aggregation) => {
                validate_fraction(aggregation, amount.value).map(|violation| violation.under("value"))
            }
        };
        violations.extend(violation.map(|violation| violation.under(&index.to_string()).under(under)));
    }
    Violation::check_all(violations)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn accepts_a_single_hold_at_the_top_level() {
        let short =
            Reserve::read(json!({"subject": "s", "meter": "m", "value": 5, "grant": "up_to"})).unwrap();
        let long = Reserve::read(
            json!({"subject": "s", "holds": [{"meter": "m", "value": "5.0", "grant": "up_to"}]}),
        );
        assert_eq!(short.content(), long.unwrap().content());
    }

    #[test]
    fn fingerprints_ignore_ids_and_the_order_of_holds() {
        let base = json!({"id": "a", "subject": "s", "holds": [{"meter": "m", "value": 1}, {"meter": "n"}]});
        let content = |value: Value| Reserve::read(value).unwrap().content();
        let swapped = json!({"id": "b", "subject": "s", "ttl_seconds": 60,
            "holds": [{"meter": "n", "value": 1}, {"meter": "m", "value": "1.0"}]});
        assert_eq!(content(base.clone()), content(swapped));
        for (name, value) in [
            ("subject", json!("t")),
            ("ttl_seconds", json!(61)),
            ("on_expiry", json!("commit")),
            ("holds", json!([{"meter": "m", "value": 2}, {"meter": "n"}])),
            ("holds", json!([{"meter": "m", "value": 1, "properties": {"a": 1}}, {"meter": "n"}])),
        ] {
            let mut other = base.clone();
            other[name] = value;
            assert_ne!(content(base.clone()), content(other), "{name}");
        }
    }

    #[test]
    fn reports_violations_with_their_pointers() {
        let first = |value: Value| {
            let violations = Reserve::read(value).unwrap_err();
            (violations[0].pointer.clone(), violations[0].code)
        };
        let holds = |count: usize| -> Vec<Value> {
            (0..count).map(|n| json!({"meter": format!("m{n}"), "value": 1})).collect()
        };
        let with = |name: &str, value: Value| {
            let mut body = json!({"subject": "s", "meter": "m", "value": 1});
            body[name] = value;
            body
        };
        let cases = [
            (json!({"subject": "s"}), "/holds", "missing_field"),
            (json!({"subject": "s", "holds": []}), "/holds", "empty"),
            (json!({"subject": "s", "holds": holds(33)}), "/holds", "too_many"),
            (json!({"subject": "s", "holds": [{"meter": "m"}, {"meter": "m"}]}), "/holds", "duplicate_meter"),
            (
                json!({"subject": "s", "holds": [{"meter": "m", "value": -1}]}),
                "/holds/0/value",
                "invalid_value",
            ),
            (json!({"subject": "s", "holds": [{"value": 1}]}), "/holds/0/meter", "missing_field"),
            (json!({"meter": "m"}), "/subject", "missing_field"),
            (with("value", json!("-0.5")), "/value", "invalid_value"),
            (with("value", json!(1e20)), "/value", "invalid_value"),
            (with("value", json!([])), "/value", "invalid_value"),
            (with("ttl_seconds", json!(0)), "/ttl_seconds", "invalid_ttl"),
            (with("ttl_seconds", json!(86_401)), "/ttl_seconds", "invalid_ttl"),
            (with("ttl_seconds", json!(1.5)), "/ttl_seconds", "invalid_ttl"),
            (with("on_expiry", json!("explode")), "/on_expiry", "invalid_choice"),
            (with("grant", json!("some")), "/grant", "invalid_choice"),
            (with("dry_run", json!("yes")), "/dry_run", "invalid_type"),
            (with("holds", json!([{"meter": "n"}])), "/meter", "unknown_field"),
        ];
        for (body, pointer, code) in cases {
            assert_eq!(first(body.clone()), (pointer.to_owned(), code), "{body}");
        }
        assert!(Reserve::read(json!({"subject": "s", "holds": holds(32)})).is_ok());
    }
}
