//! Reading a JSON object field by field, so that every flaw is named with a pointer (RFC 6901)
//! and nothing unknown passes.

use serde::Serialize;
use serde_json::{Map, Value};

use super::names::BadName;
use super::quantity::Quantity;
use super::timestamp::Timestamp;

/// One flaw of the input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Violation {
    pub pointer: String,
    pub code: &'static str,
    pub detail: String,
}

/// Something read, or every flaw that was found.
pub type Parsed<T> = Result<T, Vec<Violation>>;

impl Violation {
    pub fn new(code: &'static str, detail: impl Into<String>) -> Self {
        Self { pointer: String::new(), code, detail: detail.into() }
    }

    /// A flaw as the only one found.
    pub fn only<T>(code: &'static str, detail: impl Into<String>) -> Parsed<T> {
        Err(vec![Self::new(code, detail)])
    }

    /// The same flaw, seen from the object around it.
    #[must_use]
    pub fn under(mut self, name: &str) -> Self {
        let escaped = name.replace('~', "~0").replace('/', "~1");
        self.pointer = format!("/{escaped}{}", self.pointer);
        self
    }
}

impl From<BadName> for Vec<Violation> {
    fn from(bad: BadName) -> Self {
        vec![Violation::new(bad.code, bad.detail)]
    }
}

/// A JSON object that is being read.
#[derive(Debug)]
pub struct ObjectParser {
    rest: Map<String, Value>,
    violations: Vec<Violation>,
}

impl ObjectParser {
    pub fn new(value: Value) -> Parsed<Self> {
        match value {
            Value::Object(rest) => Ok(Self { rest, violations: Vec::new() }),
            other => Violation::only("invalid_type", format!("must be an object, not {}", kind(&other))),
        }
    }

    /// The field, unless it is absent or null.
    pub fn optional<T>(&mut self, name: &str, read: impl FnOnce(Value) -> Parsed<T>) -> Option<T> {
        match self.rest.remove(name) {
            None | Some(Value::Null) => None,
            Some(value) => self.keep(name, read(value)),
        }
    }

    /// The field: outer `None` when it is absent, inner `None` when it is null.
    pub fn nullable<T>(&mut self, name: &str, read: impl FnOnce(Value) -> Parsed<T>) -> Option<Option<T>> {
        match self.rest.remove(name) {
            None => None,
            Some(Value::Null) => Some(None),
            Some(value) => self.keep(name, read(value)).map(Some),
        }
    }

    /// The field, whose absence is a flaw.
    pub fn required<T>(&mut self, name: &str, read: impl FnOnce(Value) -> Parsed<T>) -> Option<T> {
        match self.rest.remove(name) {
            None | Some(Value::Null) => {
                self.violations
                    .push(Violation::new("missing_field", format!("`{name}` is required")).under(name));
                None
            }
            Some(value) => self.keep(name, read(value)),
        }
    }

    /// Every element of an array field, read alike; an absent one is empty.
    pub fn list<T>(&mut self, name: &str, max: usize, read: impl Fn(Value) -> Parsed<T>) -> Vec<T> {
        self.optional(name, |value| items(value, max, read)).unwrap_or_default()
    }

    /// Takes a field as it is.
    pub fn take(&mut self, name: &str) -> Option<Value> {
        self.rest.remove(name)
    }

    /// Whether the field is there, and not null.
    pub fn has(&self, name: &str) -> bool {
        self.rest.get(name).is_some_and(|value| !value.is_null())
    }

    pub fn has_errors(&self) -> bool {
        !self.violations.is_empty()
    }

    /// Notes a flaw that no single field shows.
    pub fn add_error(&mut self, violation: Violation) {
        self.violations.push(violation);
    }

    /// What is left is unknown; what was read is good only if nothing was flawed.
    pub fn finish(mut self) -> Parsed<()> {
        for name in self.rest.keys() {
            self.violations
                .push(Violation::new("unknown_field", format!("there is no field `{name}`")).under(name));
        }
        if self.violations.is_empty() { Ok(()) } else { Err(self.violations) }
    }

    /// Reads on without looking at what is left.
    pub fn finish_ignoring_rest(self) -> Parsed<()> {
        if self.violations.is_empty() { Ok(()) } else { Err(self.violations) }
    }

    fn keep<T>(&mut self, name: &str, read: Parsed<T>) -> Option<T> {
        match read {
            Ok(value) => Some(value),
            Err(violations) => {
                self.violations.extend(violations.into_iter().map(|violation| violation.under(name)));
                None
            }
        }
    }
}

/// What a JSON value is, in words.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

pub fn text(value: Value) -> Parsed<String> {
    match value {
        Value::String(text) => Ok(text),
        other => Violation::only("invalid_type", format!("must be a string, not {}", kind(&other))),
    }
}

pub fn boolean(value: Value) -> Parsed<bool> {
    match value {
        Value::Bool(truth) => Ok(truth),
        other => Violation::only("invalid_type", format!("must be true or false, not {}", kind(&other))),
    }
}

pub fn object(value: Value) -> Parsed<Map<String, Value>> {
    match value {
        Value::Object(map) => Ok(map),
        other => Violation::only("invalid_type", format!("must be an object, not {}", kind(&other))),
    }
}

pub fn items<T>(value: Value, max: usize, read: impl Fn(Value) -> Parsed<T>) -> Parsed<Vec<T>> {
    let Value::Array(values) = value else {
        return Violation::only("invalid_type", format!("must be an array, not {}", kind(&value)));
    };
    if values.len() > max {
        return Violation::only(
            "too_many",
            format!("must have at most {max} elements, not {}", values.len()),
        );
    }
    let (mut good, mut violations) = (Vec::with_capacity(values.len()), Vec::new());
    for (index, value) in values.into_iter().enumerate() {
        match read(value) {
            Ok(item) => good.push(item),
            Err(found) => {
                violations.extend(found.into_iter().map(|violation| violation.under(&index.to_string())))
            }
        }
    }
    if violations.is_empty() { Ok(good) } else { Err(violations) }
}

/// A quantity: a JSON number or a decimal string.
pub fn quantity(value: Value) -> Parsed<Quantity> {
    match Quantity::from_json(&value) {
        Ok(quantity) => Ok(quantity),
        Err(why) => Violation::only("invalid_value", why.to_string()),
    }
}

/// A quantity that a quota can be.
pub fn quota(value: Value) -> Parsed<Quantity> {
    let quota = quantity(value)?;
    if quota.is_negative() {
        return Violation::only("invalid_value", "must not be negative");
    }
    Ok(quota)
}

pub fn timestamp(value: Value) -> Parsed<Timestamp> {
    match Timestamp::parse(&text(value)?) {
        Ok(timestamp) => Ok(timestamp),
        Err(why) => Violation::only("invalid_timestamp", why.to_string()),
    }
}

/// One of a few words.
pub fn one_of<T: Copy>(value: Value, words: &[(&'static str, T)]) -> Parsed<T> {
    let given = text(value)?;
    if let Some((_, meant)) = words.iter().find(|(word, _)| *word == given) {
        return Ok(*meant);
    }
    let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
    Violation::only("invalid_choice", format!("must be one of {}", known.join(", ")))
}

/// Refuses NUL anywhere inside: PostgreSQL cannot hold it, not even escaped.
pub fn no_nul(map: &Map<String, Value>) -> Parsed<()> {
    fn clean(value: &Value) -> bool {
        match value {
            Value::String(text) => !text.contains('\0'),
            Value::Array(values) => values.iter().all(clean),
            Value::Object(map) => map.iter().all(|(name, value)| !name.contains('\0') && clean(value)),
            Value::Null | Value::Bool(_) | Value::Number(_) => true,
        }
    }
    let violations: Vec<Violation> = map
        .iter()
        .filter(|(name, value)| name.contains('\0') || !clean(value))
        .map(|(name, _)| Violation::new("nul_character", "must not contain the NUL character").under(name))
        .collect();
    if violations.is_empty() { Ok(()) } else { Err(violations) }
}

/// Refuses numbers that PostgreSQL would have to hold with thousands of digits.
pub fn no_monstrous_numbers(map: &Map<String, Value>) -> Parsed<()> {
    use super::limits::{PROPERTY_NUMBER_CHARS_MAX, PROPERTY_NUMBER_EXPONENT_MAX};
    fn tame(value: &Value) -> bool {
        match value {
            Value::Number(number) => {
                let text = number.as_str();
                let exponent =
                    text.split_once(['e', 'E']).map_or(Ok(0), |(_, exponent)| exponent.parse::<i32>());
                text.len() <= PROPERTY_NUMBER_CHARS_MAX
                    && exponent.is_ok_and(|e| e.abs() <= PROPERTY_NUMBER_EXPONENT_MAX)
            }
            Value::Array(values) => values.iter().all(tame),
            Value::Object(map) => map.values().all(tame),
            Value::Null | Value::Bool(_) | Value::String(_) => true,
        }
    }
    let violations: Vec<Violation> = map
        .iter()
        .filter(|(_, value)| !tame(value))
        .map(|(name, _)| Violation::new("invalid_value", "has a number with too many digits").under(name))
        .collect();
    if violations.is_empty() { Ok(()) } else { Err(violations) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_violation_is_reported_with_its_pointer() {
        let mut fields = ObjectParser::new(json!({"a": 5, "b/c": {"d": 1}, "list": ["x", 2]})).unwrap();
        fields.required("a", text);
        fields.required("gone", text);
        fields.list("list", 10, text);
        let violations = fields.finish().unwrap_err();
        let found: Vec<(&str, &str)> = violations.iter().map(|f| (f.pointer.as_str(), f.code)).collect();
        let expected = [
            ("/a", "invalid_type"),
            ("/gone", "missing_field"),
            ("/list/1", "invalid_type"),
            ("/b~1c", "unknown_field"),
        ];
        assert_eq!(found, expected);
    }
}
