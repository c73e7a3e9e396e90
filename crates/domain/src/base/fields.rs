//! Parses input field by field. Every violation has a pointer (RFC 6901), and unknown fields are
//! refused.

use std::ops::Deref;

use serde::Serialize;
use serde_json::{Map, Value};

use super::names::BadName;
use super::quantity::Quantity;
use super::timestamp::Timestamp;

pub use crate::received::received;

/// One violation of the input's rules.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Violation {
    pub pointer: String,
    pub code: &'static str,
    pub detail: String,
}

/// Violations, at least one, so that a refusal always has a reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Violations(Vec<Violation>);

/// A parsed value, or all violations that were found.
pub type Parsed<T> = Result<T, Violations>;

impl Violation {
    /// Creates a violation that points at the value itself.
    pub fn new(code: &'static str, detail: impl Into<String>) -> Self {
        Self { pointer: String::new(), code, detail: detail.into() }
    }

    /// Refuses with this violation alone.
    pub fn only<T>(code: &'static str, detail: impl Into<String>) -> Parsed<T> {
        Err(Self::new(code, detail).into())
    }

    /// Refuses if the list has a violation.
    pub fn check_all(found: Vec<Self>) -> Parsed<()> {
        if found.is_empty() { Ok(()) } else { Err(Violations(found)) }
    }

    /// Puts the name of a field, or an index, before the pointer.
    #[must_use]
    pub fn under(mut self, name: &str) -> Self {
        let escaped = name.replace('~', "~0").replace('/', "~1");
        self.pointer = format!("/{escaped}{}", self.pointer);
        self
    }
}

impl Violations {
    pub fn first(&self) -> &Violation {
        // every constructor adds at least one violation
        &self.0[0]
    }

    /// Puts the name of a field, or an index, before every pointer.
    #[must_use]
    pub fn under(self, name: &str) -> Self {
        Self(self.0.into_iter().map(|violation| violation.under(name)).collect())
    }
}

impl Deref for Violations {
    type Target = [Violation];

    fn deref(&self) -> &[Violation] {
        &self.0
    }
}

impl IntoIterator for Violations {
    type Item = Violation;
    type IntoIter = std::vec::IntoIter<Violation>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl From<Violation> for Violations {
    fn from(violation: Violation) -> Self {
        Self(vec![violation])
    }
}

impl From<BadName> for Violations {
    fn from(bad: BadName) -> Self {
        Violation::new(bad.code, bad.detail).into()
    }
}

/// Named values that a parser takes out one by one, such as JSON fields or query parameters.
pub trait NamedValues {
    type Value;
    const MISSING: &'static str;
    const UNKNOWN: &'static str;

    /// Takes a value out, unless it is absent or null. The flag is true if the name was repeated.
    fn take(&mut self, name: &str) -> Option<(Self::Value, bool)>;

    /// Returns the remaining names.
    fn names(&self) -> Vec<&str>;

    /// Drops the remaining values.
    fn clear(&mut self);
}

impl NamedValues for Map<String, Value> {
    type Value = Value;
    const MISSING: &'static str = "missing_field";
    const UNKNOWN: &'static str = "unknown_field";

    fn take(&mut self, name: &str) -> Option<(Value, bool)> {
        self.remove(name).filter(|value| !value.is_null()).map(|value| (value, false))
    }

    fn names(&self) -> Vec<&str> {
        self.keys().map(String::as_str).collect()
    }

    fn clear(&mut self) {
        Map::clear(self);
    }
}

/// A parser of named values that collects violations.
#[derive(Debug)]
pub struct Parser<S> {
    rest: S,
    violations: Vec<Violation>,
}

/// A parser of a JSON object.
pub type ObjectParser = Parser<Map<String, Value>>;

impl<S: NamedValues> Parser<S> {
    /// Creates a parser of some named values.
    pub fn over(rest: S) -> Self {
        Self { rest, violations: Vec::new() }
    }

    /// Returns the remaining values, for a parser that does not take them by name.
    pub fn values_mut(&mut self) -> &mut S {
        &mut self.rest
    }

    /// Parses a value, unless it is absent or null.
    pub fn optional<T>(&mut self, name: &str, read: impl FnOnce(S::Value) -> Parsed<T>) -> Option<T> {
        let (value, is_repeated) = self.rest.take(name)?;
        let parsed = self.keep(name, read(value));
        if is_repeated {
            let detail = format!("`{name}` must be given at most once");
            self.add_error(Violation::new("duplicate_parameter", detail).under(name));
        }
        parsed
    }

    /// Parses a value, and adds a violation if it is absent or null.
    pub fn required<T>(&mut self, name: &str, read: impl FnOnce(S::Value) -> Parsed<T>) -> Option<T> {
        let mut is_there = false;
        let parsed = self.optional(name, |value| {
            is_there = true;
            read(value)
        });
        if !is_there {
            self.add_error(Violation::new(S::MISSING, format!("`{name}` is required")).under(name));
        }
        parsed
    }

    pub fn has_errors(&self) -> bool {
        !self.violations.is_empty()
    }

    /// Adds a violation that concerns no single field.
    pub fn add_error(&mut self, violation: Violation) {
        self.violations.push(violation);
    }

    /// Accepts names that are not parsed.
    pub fn ignore_rest(&mut self) {
        self.rest.clear();
    }

    /// Refuses unknown names and returns all violations.
    pub fn finish(self) -> Parsed<()> {
        self.finish_with(())
    }

    /// Returns the parsed values if there are no violations, no unknown names and no missing values.
    pub fn finish_with<P: ParsedValues>(mut self, parsed: P) -> Parsed<P::Values> {
        let unknown = |name: &str| {
            let detail = format!("{} is unknown; remove it or check its spelling", received(name));
            Violation::new(S::UNKNOWN, detail).under(name)
        };
        self.violations.extend(self.rest.names().into_iter().map(unknown));
        Violation::check_all(self.violations)?;
        let missing = || Violation::new(S::MISSING, "a required value is missing");
        parsed.values().ok_or_else(|| missing().into())
    }

    /// Returns the value, or adds its violations under the name.
    pub fn keep<T>(&mut self, name: &str, read: Parsed<T>) -> Option<T> {
        match read {
            Ok(value) => Some(value),
            Err(violations) => {
                self.violations.extend(violations.under(name));
                None
            }
        }
    }
}

/// Values that a parser may have failed to parse.
pub trait ParsedValues {
    type Values;

    /// Returns the values if all of them were parsed.
    fn values(self) -> Option<Self::Values>;
}

impl ParsedValues for () {
    type Values = ();

    fn values(self) -> Option<()> {
        Some(())
    }
}

impl<T> ParsedValues for Option<T> {
    type Values = T;

    fn values(self) -> Option<T> {
        self
    }
}

macro_rules! parsed_values {
    ($($name:ident: $type:ident),+) => {
        impl<$($type),+> ParsedValues for ($(Option<$type>,)+) {
            type Values = ($($type,)+);

            fn values(self) -> Option<Self::Values> {
                let ($($name,)+) = self;
                Some(($($name?,)+))
            }
        }
    };
}

parsed_values!(a: A, b: B);
parsed_values!(a: A, b: B, c: C);
parsed_values!(a: A, b: B, c: C, d: D);
parsed_values!(a: A, b: B, c: C, d: D, e: E);

impl ObjectParser {
    /// Creates a parser of a JSON object, and refuses other values.
    pub fn new(value: Value) -> Parsed<Self> {
        Ok(Self::over(object(value)?))
    }

    /// Parses a field: outer `None` if it is absent, inner `None` if it is null.
    pub fn nullable<T>(&mut self, name: &str, read: impl FnOnce(Value) -> Parsed<T>) -> Option<Option<T>> {
        match self.rest.remove(name)? {
            Value::Null => Some(None),
            value => self.keep(name, read(value)).map(Some),
        }
    }

    /// Parses every element of an array field. An absent field gives an empty list.
    pub fn list<T>(&mut self, name: &str, max: usize, read: impl Fn(Value) -> Parsed<T>) -> Vec<T> {
        self.optional(name, |value| items(value, max, read)).unwrap_or_default()
    }

    /// Takes a field without parsing it.
    pub fn take(&mut self, name: &str) -> Option<Value> {
        self.rest.remove(name)
    }

    /// Returns whether the field is present and not null.
    pub fn has(&self, name: &str) -> bool {
        self.rest.get(name).is_some_and(|value| !value.is_null())
    }
}

/// Returns the name of a JSON value's type.
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

fn wrong_type<T>(expected: &str, got: &Value) -> Parsed<T> {
    Violation::only("invalid_type", format!("must be {expected}; got {}", kind(got)))
}

pub fn text(value: Value) -> Parsed<String> {
    match value {
        Value::String(text) => Ok(text),
        other => wrong_type("a string", &other),
    }
}

pub fn boolean(value: Value) -> Parsed<bool> {
    match value {
        Value::Bool(truth) => Ok(truth),
        other => wrong_type("true or false", &other),
    }
}

pub fn object(value: Value) -> Parsed<Map<String, Value>> {
    match value {
        Value::Object(map) => Ok(map),
        other => wrong_type("an object", &other),
    }
}

/// Parses every element of an array with at most `max` elements.
pub fn items<T>(value: Value, max: usize, read: impl Fn(Value) -> Parsed<T>) -> Parsed<Vec<T>> {
    let Value::Array(values) = value else { return wrong_type("an array", &value) };
    if values.len() > max {
        return Violation::only(
            "too_many",
            format!("must have at most {max} elements; got {}", values.len()),
        );
    }
    let (mut parsed, mut found) = (Vec::with_capacity(values.len()), Vec::new());
    for (index, value) in values.into_iter().enumerate() {
        match read(value) {
            Ok(item) => parsed.push(item),
            Err(violations) => found.extend(violations.under(&index.to_string())),
        }
    }
    Violation::check_all(found)?;
    Ok(parsed)
}

/// Parses a quantity: a JSON number or a decimal string.
pub fn quantity(value: Value) -> Parsed<Quantity> {
    Quantity::from_json(&value).or_else(|why| Violation::only("invalid_value", why.to_string()))
}

/// Parses a quantity that is not negative.
pub fn quota(value: Value) -> Parsed<Quantity> {
    let quota = quantity(value)?;
    if quota.is_negative() {
        return Violation::only("invalid_value", format!("must not be negative; got {quota}"));
    }
    Ok(quota)
}

pub fn timestamp(value: Value) -> Parsed<Timestamp> {
    parse_timestamp(&text(value)?)
}

/// Parses an RFC 3339 time.
pub fn parse_timestamp(text: &str) -> Parsed<Timestamp> {
    Timestamp::parse(text)
        .or_else(|why| Violation::only("invalid_timestamp", format!("{why}; got {}", received(text))))
}

/// Parses one of a list of words.
pub fn one_of<T: Copy>(value: Value, words: &[(&'static str, T)]) -> Parsed<T> {
    word(&text(value)?, words)
}

/// Returns the value that belongs to a word.
pub fn word<T: Copy>(given: &str, words: &[(&'static str, T)]) -> Parsed<T> {
    if let Some((_, meant)) = words.iter().find(|(word, _)| *word == given) {
        return Ok(*meant);
    }
    let known: Vec<String> = words.iter().map(|(word, _)| format!("`{word}`")).collect();
    let detail = format!("must be one of {}; got {}", known.join(", "), received(given));
    Violation::only("invalid_choice", detail)
}

/// Refuses properties that contain a text or a number for which `is_good` is false.
fn check_properties(
    map: &Map<String, Value>,
    violation: &Violation,
    is_good: impl Fn(&str, &Value) -> bool,
) -> Parsed<()> {
    fn passes(name: &str, value: &Value, is_good: &impl Fn(&str, &Value) -> bool) -> bool {
        is_good(name, value)
            && match value {
                Value::Array(values) => values.iter().all(|value| passes("", value, is_good)),
                Value::Object(map) => map.iter().all(|(name, value)| passes(name, value, is_good)),
                Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => true,
            }
    }
    let refused = map.iter().filter(|(name, value)| !passes(name, value, &is_good));
    Violation::check_all(refused.map(|(name, _)| violation.clone().under(name)).collect())
}

/// Refuses the NUL character in all texts, because PostgreSQL cannot store it.
pub fn no_nul(map: &Map<String, Value>) -> Parsed<()> {
    let violation = Violation::new("nul_character", "must not contain the NUL character");
    check_properties(map, &violation, |name, value| {
        !name.contains('\0') && value.as_str().is_none_or(|text| !text.contains('\0'))
    })
}

/// Refuses numbers that PostgreSQL would store with thousands of digits.
pub fn no_monstrous_numbers(map: &Map<String, Value>) -> Parsed<()> {
    use super::limits::{PROPERTY_NUMBER_CHARS_MAX, PROPERTY_NUMBER_EXPONENT_MAX};
    let detail = format!(
        "must not contain a number with more than {PROPERTY_NUMBER_CHARS_MAX} characters or an exponent beyond \
         {PROPERTY_NUMBER_EXPONENT_MAX}; send it as a string"
    );
    check_properties(map, &Violation::new("invalid_value", detail), |_, value| {
        let Value::Number(number) = value else { return true };
        let text = number.as_str();
        let exponent = text.split_once(['e', 'E']).map_or(Ok(0), |(_, exponent)| exponent.parse::<i32>());
        text.len() <= PROPERTY_NUMBER_CHARS_MAX
            && exponent.is_ok_and(|e| e.abs() <= PROPERTY_NUMBER_EXPONENT_MAX)
    })
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
        let found: Vec<(&str, &str)> = violations.iter().map(|it| (it.pointer.as_str(), it.code)).collect();
        let expected = [
            ("/a", "invalid_type"),
            ("/gone", "missing_field"),
            ("/list/1", "invalid_type"),
            ("/b~1c", "unknown_field"),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn a_value_that_was_never_parsed_is_refused_with_a_reason() {
        let fields = ObjectParser::new(json!({})).unwrap();
        assert_eq!(fields.finish_with((Some(1), None::<u8>)).unwrap_err().first().code, "missing_field");
        let fields = ObjectParser::new(json!({})).unwrap();
        assert_eq!(fields.finish_with((Some(1), Some(2))), Ok((1, 2)));
    }
}
