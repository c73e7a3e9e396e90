//! Events as callers send them, with the two fingerprints that make each count once.

use serde_json::{Map, Value};
use uuid::{Uuid, Variant};

use crate::base::digest::Digest;
use crate::base::fields::{self, ObjectParser, Parsed, Violation};
use crate::base::limits::{EVENT_AHEAD_MAX, PROPERTIES_BYTES_MAX};
use crate::base::names::{EventId, EventName, EventSource, SubjectId};
use crate::base::quantity::Quantity;
use crate::base::timestamp::Timestamp;

/// The properties of an event by name: small, without NUL and without oversized numbers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Properties(Map<String, Value>);

impl Properties {
    /// Parses properties from a JSON object.
    pub fn read(value: Value) -> Parsed<Self> {
        let map = fields::object(value)?;
        fields::no_nul(&map)?;
        fields::no_monstrous_numbers(&map)?;
        let properties = Self(map);
        if properties.to_json().is_some_and(|json| json.len() > PROPERTIES_BYTES_MAX) {
            return Violation::only(
                "too_long",
                format!("must have at most {PROPERTIES_BYTES_MAX} bytes as JSON"),
            );
        }
        Ok(properties)
    }

    /// Wraps the properties of a group of events, by dimension.
    pub fn of(map: Map<String, Value>) -> Self {
        Self(map)
    }

    pub fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name)
    }

    /// Returns the properties as JSON text, or none if there are none.
    pub fn to_json(&self) -> Option<String> {
        // a map of strings to JSON values always serialises
        (!self.0.is_empty()).then(|| serde_json::to_string(&self.0).unwrap_or_default())
    }

    /// Wraps the properties of a stored event.
    pub fn stored(value: Option<Value>) -> Self {
        match value {
            Some(Value::Object(map)) => Self(map),
            _ => Self::default(),
        }
    }

    pub fn as_map(&self) -> &Map<String, Value> {
        &self.0
    }

    /// Returns the properties merged with other properties, which take precedence.
    pub fn merged(&self, over: &Self) -> Parsed<Self> {
        let mut map = self.0.clone();
        map.extend(over.0.clone());
        Self::read(Value::Object(map))
    }

    pub fn into_map(self) -> Map<String, Value> {
        self.0
    }
}

/// An event that is valid in itself. Its time and quantity are checked against the current catalog
/// when it is recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The id. None means that the service creates one.
    pub id: Option<EventId>,
    pub source: EventSource,
    pub event_name: EventName,
    pub subject: SubjectId,
    pub value: Quantity,
    pub properties: Properties,
    /// The time of use. None means the time of receipt.
    pub timestamp: Option<Timestamp>,
    /// The fingerprint that identifies a repeat, if the caller sent the event in another format.
    pub statement: Option<Uuid>,
}

/// The filter of a list of events.
#[derive(Debug, Clone, Default)]
pub struct EventFilter {
    pub subject: Option<SubjectId>,
    pub descendants: bool,
    pub event_name: Option<EventName>,
    pub source: Option<String>,
    pub from: Option<Timestamp>,
    pub to: Option<Timestamp>,
    pub voided: Option<bool>,
}

impl Event {
    /// Parses an event in Metergate's own JSON form.
    pub fn read(value: Value) -> Parsed<Self> {
        let mut fields = ObjectParser::new(value)?;
        let id = fields.optional("id", |v| Ok(EventId::parse(fields::text(v)?)?));
        let source = fields.optional("source", |v| Ok(EventSource::parse(fields::text(v)?)?));
        let event_name = fields.required("event_name", |v| Ok(EventName::parse(fields::text(v)?)?));
        let subject = fields.required("subject", |v| Ok(SubjectId::parse(fields::text(v)?)?));
        let value = fields.optional("value", fields::quantity);
        let properties = fields.optional("properties", Properties::read);
        let timestamp = fields.optional("timestamp", fields::timestamp);
        let (event_name, subject) = fields.finish_with((event_name, subject))?;
        Ok(Self {
            id,
            source: source.unwrap_or_default(),
            event_name,
            subject,
            value: value.unwrap_or(Quantity::ONE),
            properties: properties.unwrap_or_default(),
            timestamp,
            statement: None,
        })
    }

    /// Parses a CloudEvents 1.0 event in JSON form. `type` is the event name; `data` contains `value`
    /// and the properties. Extension attributes are ignored.
    pub fn read_cloudevent(value: Value) -> Parsed<Self> {
        let mut fields = ObjectParser::new(value)?;
        fields.required("specversion", |v| fields::one_of(v, &[("1.0", ())]));
        let id = fields.required("id", |v| Ok(EventId::parse(fields::text(v)?)?));
        let source = fields.required("source", |v| Ok(EventSource::parse(fields::text(v)?)?));
        let event_name = fields.required("type", |v| Ok(EventName::parse(fields::text(v)?)?));
        let subject = fields.required("subject", |v| Ok(SubjectId::parse(fields::text(v)?)?));
        let timestamp = fields.optional("time", fields::timestamp);
        if fields.take("data_base64").is_some() {
            fields.add_error(
                Violation::new("invalid_type", "is not supported; send JSON in `data`").under("data_base64"),
            );
        }
        let data = fields.optional("data", |data| {
            let mut data = fields::object(data)?;
            let value = match data.remove("value") {
                None | Some(Value::Null) => Quantity::ONE,
                Some(value) => fields::quantity(value).map_err(|violations| violations.under("value"))?,
            };
            Ok((value, Properties::read(Value::Object(data))?))
        });
        fields.ignore_rest();
        let (value, properties) = data.unwrap_or((Quantity::ONE, Properties::default()));
        let (event_name, subject) = fields.finish_with((event_name, subject))?;
        let source = source.unwrap_or_default();
        Ok(Self { id, source, event_name, subject, value, properties, timestamp, statement: None })
    }

    /// Returns the fingerprint of name, subject, value and properties, but not of the time: 128 bits
    /// of BLAKE3. Other content cannot be built to have the same fingerprint.
    pub fn content(&self) -> Uuid {
        if let Some(statement) = self.statement {
            return statement;
        }
        let mut digest = Digest::default();
        digest.text(self.event_name.as_str()).text(self.subject.as_str()).quantity(self.value);
        digest.map(&self.properties.0).finish()
    }
}

/// Returns the once-only key of an event in its environment. A canonical UUIDv7 without a source is
/// its own key, so that events close in time are close in the index. Other keys are a UUIDv8 from
/// BLAKE3 of (length of source, source, id).
pub fn event_key(source: &EventSource, id: &EventId) -> Uuid {
    if source.is_empty()
        && let Some(uuid) = canonical_uuid_v7(id.as_str())
    {
        return uuid;
    }
    let mut digest = Digest::default();
    digest.text(source.as_str()).bytes(id.as_str().as_bytes());
    Uuid::new_v8(digest.finish().into_bytes())
}

/// Returns whether the key is the id itself, which then is not stored separately.
pub fn key_is_id(source: &EventSource, id: &EventId) -> bool {
    source.is_empty() && canonical_uuid_v7(id.as_str()).is_some()
}

fn canonical_uuid_v7(id: &str) -> Option<Uuid> {
    if id.len() != 36 || id.bytes().any(|b| b.is_ascii_uppercase()) {
        return None;
    }
    let uuid = Uuid::try_parse(id).ok()?;
    (uuid.get_version_num() == 7 && uuid.get_variant() == Variant::RFC4122).then_some(uuid)
}

/// Returns a violation if an event of this time cannot be recorded now.
pub fn validate_time(
    timestamp: Timestamp,
    now: Timestamp,
    age_max: Option<std::time::Duration>,
) -> Option<Violation> {
    if timestamp > now.saturating_add(EVENT_AHEAD_MAX) {
        let detail = format!("must be at most {} s ahead of now, {now}", EVENT_AHEAD_MAX.as_secs());
        return Some(Violation::new("timestamp_in_future", detail).under("timestamp"));
    }
    let oldest = now.saturating_sub(age_max?);
    (timestamp < oldest).then(|| {
        let detail = format!("must not be before {oldest}; to load older events use `?backfill=true`");
        Violation::new("timestamp_too_old", detail).under("timestamp")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn event(value: Value) -> Event {
        Event::read(value).unwrap()
    }

    fn codes(value: Value) -> Vec<(String, &'static str)> {
        Event::read(value)
            .unwrap_err()
            .into_iter()
            .map(|violation| (violation.pointer, violation.code))
            .collect()
    }

    #[test]
    fn errors_are_reported_with_their_pointers() {
        let base = json!({"event_name": "e", "subject": "s"});
        let with = |name: &str, value: Value| {
            let mut changed = base.clone();
            changed[name] = value;
            changed
        };
        let cases = [
            (with("subject", json!(5)), "/subject", "invalid_type"),
            (with("subject", json!("")), "/subject", "empty"),
            (with("subject", json!("x".repeat(256))), "/subject", "too_long"),
            (with("id", json!("a\0")), "/id", "nul_character"),
            (with("value", json!("NaN")), "/value", "invalid_value"),
            (with("value", json!({})), "/value", "invalid_value"),
            (with("value", json!("0.1234567891")), "/value", "invalid_value"),
            (with("properties", json!([])), "/properties", "invalid_type"),
            (with("properties", json!({"p": {"q": "\0"}})), "/properties/p", "nul_character"),
            (with("properties", json!({"p": "x".repeat(20_000)})), "/properties", "too_long"),
            (with("timestamp", json!("yesterday")), "/timestamp", "invalid_timestamp"),
            (with("colour", json!("red")), "/colour", "unknown_field"),
        ];
        for (given, pointer, code) in cases {
            assert_eq!(codes(given), [(pointer.to_owned(), code)]);
        }
        assert_eq!(codes(json!({})).len(), 2);
        assert_eq!(codes(json!("text")), [(String::new(), "invalid_type")]);
    }

    #[test]
    fn content_hash_ignores_spelling_and_time() {
        let first = event(
            json!({"event_name": "e", "subject": "s", "value": 1.50, "properties": {"a": 1, "b": "x"}}),
        );
        let same = event(json!({"subject": "s", "event_name": "e", "value": "1.5",
            "properties": {"b": "x", "a": 1.0}, "timestamp": "2026-01-01T00:00:00Z", "id": "other"}));
        assert_eq!(first.content(), same.content());
        let others = [
            json!({"event_name": "e", "subject": "s", "value": 1.51, "properties": {"a": 1, "b": "x"}}),
            json!({"event_name": "e", "subject": "t", "value": 1.5, "properties": {"a": 1, "b": "x"}}),
            json!({"event_name": "es", "subject": "", "value": 1.5, "properties": {"a": 1, "b": "x"}}),
            json!({"event_name": "e", "subject": "s", "value": 1.5, "properties": {"a": "1", "b": "x"}}),
            json!({"event_name": "e", "subject": "s", "value": 1.5, "properties": {"a": 1, "b": "x", "c": null}}),
        ];
        for other in others {
            if let Ok(other) = Event::read(other) {
                assert_ne!(first.content(), other.content());
            }
        }
    }

    #[test]
    fn event_keys_keep_v7_uuids_and_hash_other_ids() {
        let none = EventSource::default();
        let source = |text: &str| EventSource::parse(text).unwrap();
        let id = |text: &str| EventId::parse(text).unwrap();
        let v7 = "019a9f5e-0c3a-7b12-8d4e-5f60718293a4";
        assert_eq!(event_key(&none, &id(v7)).to_string(), v7);
        let hashed = [
            event_key(&source("api"), &id(v7)),
            event_key(&none, &id(&v7.to_uppercase())),
            event_key(&none, &id("evt_01")),
            event_key(&source("evt"), &id("_01")),
            event_key(&none, &id("019a9f5e-0c3a-4b12-8d4e-5f60718293a4")),
        ];
        for (index, key) in hashed.iter().enumerate() {
            assert_eq!(key.get_version_num(), 8);
            assert!(!hashed[index + 1..].contains(key));
        }
    }

    #[test]
    fn cloudevents_map_to_events() {
        let read = Event::read_cloudevent(json!({
            "specversion": "1.0", "type": "ai_tokens", "source": "gateway", "id": "1", "subject": "user_1",
            "time": "2026-11-20T10:00:00Z", "datacontenttype": "application/json", "traceparent": "00-x",
            "data": {"value": "12.5", "model": "gpt-4o"},
        }))
        .unwrap();
        let plain = event(json!({
            "event_name": "ai_tokens", "source": "gateway", "id": "1", "subject": "user_1", "value": 12.5,
            "timestamp": "2026-11-20T10:00:00Z", "properties": {"model": "gpt-4o"},
        }));
        assert_eq!(read, plain);
        assert!(Event::read_cloudevent(json!({"specversion": "0.3", "type": "x"})).is_err());
    }

    #[test]
    fn event_times_must_lie_within_the_window() {
        let at = |text: &str| Timestamp::parse(text).unwrap();
        let now = at("2026-11-20T10:00:00Z");
        let day = Some(std::time::Duration::from_hours(24));
        let code = |time: &str, age| validate_time(at(time), now, age).map(|violation| violation.code);
        assert_eq!(code("2026-11-20T10:05:00Z", day), None);
        assert_eq!(code("2026-11-20T10:05:00.000001Z", day), Some("timestamp_in_future"));
        assert_eq!(code("2026-11-19T10:00:00Z", day), None);
        assert_eq!(code("2026-11-19T09:59:59.999999Z", day), Some("timestamp_too_old"));
        assert_eq!(code("1999-01-01T00:00:00Z", None), None);
        assert_eq!(code("2027-01-01T00:00:00Z", None), Some("timestamp_in_future"));
    }
}
