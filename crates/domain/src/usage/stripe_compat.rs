//! Stripe's meter events and their adjustments, translated to events and voids.

use serde_json::{Map, Value};
use uuid::Uuid;

use super::event::Properties;
use crate::base::digest::Digest;
use crate::base::fields::{self, ObjectParser, Parsed, Violation, Violations};
use crate::base::limits::STRIPE_NAME_CHARS_MAX;
use crate::base::names::{EventId, EventName, EventSource, StripeCustomerId, SubjectId};
use crate::base::quantity::Quantity;
use crate::base::timestamp::{MICROS_PER_SECOND, Timestamp};
use crate::catalog::meter::{Meter, StripeMeter};
use crate::gate::catalog_index::CatalogIndex;

/// Returns the source of Stripe-compatible events, so that their ids differ from all others.
pub fn source() -> EventSource {
    match EventSource::parse("stripe") {
        Ok(source) => source,
        Err(_) => unreachable!("the text `stripe` is a valid source"),
    }
}

const CUSTOMER_KEY: &str = "stripe_customer_id";
const VALUE_KEY: &str = "value";
/// The payload key of the subject, in addition to the paying customer.
const SUBJECT_KEY: &str = "subject";

/// A meter event as received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeterEvent {
    pub event_name: String,
    /// Values by key, all of them texts.
    pub payload: Map<String, Value>,
    pub identifier: Option<EventId>,
    pub timestamp: Option<Timestamp>,
}

/// A meter event, interpreted with a catalog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParsedMeterEvent {
    pub customer: StripeCustomerId,
    /// The subject that the payload names, if any.
    pub subject: Option<SubjectId>,
    pub event_name: EventName,
    pub value: Quantity,
    pub properties: Properties,
}

/// The adjustment that voids a meter event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adjustment {
    pub event_name: String,
    pub identifier: EventId,
}

impl MeterEvent {
    /// Parses the form of a meter event.
    pub fn read(form: Value) -> Parsed<Self> {
        let mut fields = ObjectParser::new(form)?;
        let event_name = fields.required("event_name", name);
        let payload = fields.required("payload", payload);
        let identifier = fields.optional("identifier", identifier);
        let timestamp = fields.optional("timestamp", unix_seconds);
        fields.take("expand");
        let (event_name, payload) = fields.finish_with((event_name, payload))?;
        Ok(Self { event_name, payload, identifier, timestamp })
    }

    /// Returns the event's own identifier, or an identifier derived from the idempotency key.
    pub fn identity(&self, idempotency_key: Option<&EventId>) -> Option<EventId> {
        let derived = |key: &EventId| {
            let digest = Digest::default().text("stripe idempotency key").text(key.as_str()).finish();
            EventId::parse(Uuid::new_v8(digest.into_bytes()).to_string()).ok()
        };
        self.identifier.clone().or_else(|| idempotency_key.and_then(derived))
    }

    /// Returns the fingerprint of the call. A retry with the same idempotency key has the same
    /// fingerprint; another call with the same identifier does not.
    pub fn statement(&self, idempotency_key: Option<&EventId>) -> Uuid {
        let mut digest = Digest::default();
        digest.text("stripe meter event").text(idempotency_key.map_or("", EventId::as_str));
        digest.text(&self.event_name).map(&self.payload).finish()
    }

    /// Interprets the payload with the catalog's meter of the event name.
    pub fn meaning(&self, terms: &CatalogIndex) -> Parsed<ParsedMeterEvent> {
        let meter = meter(terms, &self.event_name)?;
        let event_name = meter.event_name.clone();
        let stripe = meter.stripe.as_ref();
        let in_payload =
            |violation: Violation, key: &str| Violations::from(violation.under(key).under("payload"));

        let mut rest = self.payload.clone();
        let key = stripe.map_or(CUSTOMER_KEY, |stripe| &stripe.customer_key);
        let Some(customer) = take(&mut rest, key) else {
            let violation =
                Violation::new("payload_no_customer_defined", "is required; it names the customer");
            return Err(in_payload(violation, key));
        };
        let customer = StripeCustomerId::parse(customer)
            .map_err(|bad| in_payload(Violation::new(bad.code, bad.detail), key))?;

        let key = stripe.map_or(VALUE_KEY, |stripe| &stripe.value_key);
        let counted = || terms.meters_of(event_name.as_str()).map(|stored| &stored.meter);
        let value = match take(&mut rest, key) {
            Some(text) => own_value(&text, stripe).map_err(|violation| in_payload(violation, key))?,
            None if counted().any(|meter| meter.aggregation.needs_number()) => {
                let violation =
                    Violation::new("payload_no_value_defined", "is required; it is the value of the event");
                return Err(in_payload(violation, key));
            }
            None => Quantity::ONE,
        };
        let subject = take(&mut rest, SUBJECT_KEY)
            .map(SubjectId::parse)
            .transpose()
            .map_err(|bad| in_payload(Violation::new(bad.code, bad.detail), SUBJECT_KEY))?;

        // a meter with a value property finds the value there
        for name in counted().filter(|meter| meter.aggregation.needs_number()).filter_map(Meter::property) {
            rest.entry(name).or_insert_with(|| Value::String(value.to_string()));
        }
        let properties =
            Properties::read(Value::Object(rest)).map_err(|violations| violations.under("payload"))?;
        Ok(ParsedMeterEvent { customer, subject, event_name, value, properties })
    }
}

impl Adjustment {
    /// Parses the form of an adjustment.
    pub fn read(form: Value) -> Parsed<Self> {
        let mut fields = ObjectParser::new(form)?;
        let event_name = fields.required("event_name", name);
        fields.required("type", |v| fields::one_of(v, &[("cancel", ())]));
        let identifier = fields.required("cancel", |v| {
            let mut cancel = ObjectParser::new(v)?;
            let given = cancel.required("identifier", identifier);
            cancel.finish_with(given)
        });
        fields.take("expand");
        let (event_name, identifier) = fields.finish_with((event_name, identifier))?;
        Ok(Self { event_name, identifier })
    }
}

/// Returns the meter with an event name of Stripe.
pub fn meter<'t>(terms: &'t CatalogIndex, event_name: &str) -> Parsed<&'t Meter> {
    let found = terms.meter_in_stripe(event_name).map(|stored| &stored.meter);
    found.ok_or_else(|| {
        let detail = format!(
            "must be the `stripe.event_name` of a meter in the catalog; got {}",
            fields::received(event_name)
        );
        Violation::new("no_meter", detail).under("event_name").into()
    })
}

/// Returns the value in the meter's own unit. Stripe values are multiplied by the meter's scale.
fn own_value(text: &str, stripe: Option<&StripeMeter>) -> Result<Quantity, Violation> {
    let refused = |detail: String| Violation::new("payload_invalid_value", detail);
    let value = Quantity::from_decimal(text).map_err(|why| refused(why.to_string()))?;
    let scale = stripe.map_or(Quantity::ONE, |stripe| stripe.scale);
    value.divided_exactly(scale).ok_or_else(|| {
        refused(format!("must be divisible by the scale of the meter, {scale}, within 9 fractional digits"))
    })
}

fn take(payload: &mut Map<String, Value>, key: &str) -> Option<String> {
    match payload.remove(key) {
        Some(Value::String(text)) => Some(text),
        _ => None,
    }
}

fn name(value: Value) -> Parsed<String> {
    let text = EventName::parse(fields::text(value)?)?.into_string();
    if text.chars().count() > STRIPE_NAME_CHARS_MAX {
        return Violation::only("too_long", format!("must have at most {STRIPE_NAME_CHARS_MAX} characters"));
    }
    Ok(text)
}

fn identifier(value: Value) -> Parsed<EventId> {
    Ok(EventId::parse(name(value)?)?)
}

fn payload(value: Value) -> Parsed<Map<String, Value>> {
    let map = fields::object(value)?;
    let nested = map.iter().filter(|(_, value)| !value.is_string());
    let violations: Vec<Violation> =
        nested.map(|(key, _)| Violation::new("invalid_type", "must be a string").under(key)).collect();
    Violation::check_all(violations).map(|()| map)
}

fn unix_seconds(value: Value) -> Parsed<Timestamp> {
    let text = fields::text(value)?;
    let micros = text.parse::<i64>().ok().and_then(|seconds| seconds.checked_mul(MICROS_PER_SECOND));
    match micros.and_then(Timestamp::from_micros) {
        Some(timestamp) => Ok(timestamp),
        None => Violation::only("invalid_integer", "must be a time in whole seconds since 1970"),
    }
}
