//! Query strings: parameters read one by one, so that every flaw is named and nothing unknown passes.

use std::collections::BTreeMap;

use axum::http::Uri;

use super::problem::Problem;
use metergate_domain::base::fields::{Parsed, Violation};
use metergate_domain::base::limits::{PAGE_ROWS_DEFAULT, PAGE_ROWS_MAX};
use metergate_domain::base::timestamp::Timestamp;

/// The parameters of a request that have not been read yet.
#[derive(Debug)]
pub(super) struct Parameters {
    rest: Vec<(String, String)>,
    violations: Vec<Violation>,
}

impl Parameters {
    pub(super) fn of(uri: &Uri) -> Self {
        let query = uri.query().unwrap_or_default();
        Self::given(form_urlencoded::parse(query.as_bytes()).into_owned().collect())
    }

    pub(super) fn given(rest: Vec<(String, String)>) -> Self {
        Self { rest, violations: Vec::new() }
    }

    /// Every value of a parameter.
    pub(super) fn all<T>(&mut self, name: &str, read: impl Fn(String) -> Parsed<T>) -> Vec<T> {
        let mut values = Vec::new();
        for (_, value) in self.rest.extract_if(.., |(given, _)| given == name) {
            match read(value) {
                Ok(value) => values.push(value),
                Err(violations) => {
                    self.violations.extend(violations.into_iter().map(|violation| violation.under(name)))
                }
            }
        }
        values
    }

    /// A parameter that is given at most once.
    pub(super) fn optional<T>(&mut self, name: &str, read: impl Fn(String) -> Parsed<T>) -> Option<T> {
        let mut values = self.all(name, read);
        if values.len() > 1 {
            self.violations
                .push(Violation::new("duplicate_parameter", "is given more than once").under(name));
        }
        values.pop()
    }

    pub(super) fn required<T>(&mut self, name: &str, read: impl Fn(String) -> Parsed<T>) -> Option<T> {
        if !self.rest.iter().any(|(given, _)| given == name) {
            self.violations
                .push(Violation::new("missing_parameter", format!("`{name}` is required")).under(name));
        }
        self.optional(name, read)
    }

    /// `name[key]=value`, by key; a key may repeat.
    pub(super) fn bracketed(&mut self, name: &str) -> BTreeMap<String, Vec<String>> {
        let mut values: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let key = |given: &str| -> Option<String> {
            Some(given.strip_prefix(name)?.strip_prefix('[')?.strip_suffix(']')?.to_owned())
        };
        for (given, value) in self.rest.extract_if(.., |(given, _)| key(given).is_some()) {
            if let Some(key) = key(&given) {
                values.entry(key).or_default().push(value);
            }
        }
        values
    }

    pub(super) fn flag(&mut self, name: &str) -> bool {
        self.optional(name, |value| match value.as_str() {
            "true" | "1" | "" => Ok(true),
            "false" | "0" => Ok(false),
            _ => Violation::only("invalid_choice", "must be true or false"),
        })
        .unwrap_or(false)
    }

    /// The size of a page.
    pub(super) fn limit(&mut self) -> u32 {
        self.optional("limit", |value| match value.parse::<u32>() {
            Ok(limit) if (1..=PAGE_ROWS_MAX).contains(&limit) => Ok(limit),
            _ => {
                Violation::only("invalid_value", format!("must be a whole number from 1 to {PAGE_ROWS_MAX}"))
            }
        })
        .unwrap_or(PAGE_ROWS_DEFAULT)
    }

    pub(super) fn add_error(&mut self, violation: Violation) {
        self.violations.push(violation);
    }

    /// What is left is unknown.
    pub(super) fn finish(mut self) -> Result<(), Problem> {
        for (name, _) in &self.rest {
            let violation = Violation::new("unknown_parameter", format!("there is no parameter `{name}`"));
            self.violations.push(violation.under(name));
        }
        if self.violations.is_empty() { Ok(()) } else { Err(Problem::invalid(self.violations)) }
    }
}

/// A time. A `+` that a client left unescaped has become a space: it can have meant nothing else.
pub(super) fn timestamp(value: String) -> Parsed<Timestamp> {
    match Timestamp::parse(&value.replace(' ', "+")) {
        Ok(timestamp) => Ok(timestamp),
        Err(why) => Violation::only("invalid_timestamp", why.to_string()),
    }
}

/// One of a few words.
pub(super) fn word<T: Copy>(value: String, words: &[(&'static str, T)]) -> Parsed<T> {
    metergate_domain::base::fields::one_of(serde_json::Value::String(value), words)
}

/// Any text without NUL.
pub(super) fn text(value: String) -> Parsed<String> {
    if value.contains('\0') {
        return Violation::only("nul_character", "must not contain the NUL character");
    }
    Ok(value)
}
