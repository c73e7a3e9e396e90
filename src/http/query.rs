//! Query strings, parsed parameter by parameter.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};

use axum::http::Uri;

use crate::engine::PageRequest;
use metergate_domain::base::fields::{self, received};
use metergate_domain::base::limits::{PAGE_ROWS_DEFAULT, PAGE_ROWS_MAX};
use metergate_domain::base::names::SubjectId;
use metergate_domain::base::{NamedValues, Parsed, Parser, Span, Timestamp, Violation};

/// The parameters of a query, in order.
#[derive(Debug)]
pub(super) struct QueryParameters(Vec<(String, String)>);

/// A parser of the parameters of a query.
#[derive(Debug)]
pub(super) struct Parameters(Parser<QueryParameters>);

impl Deref for Parameters {
    type Target = Parser<QueryParameters>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl DerefMut for Parameters {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.0
    }
}

impl NamedValues for QueryParameters {
    type Value = String;
    const MISSING: &'static str = "missing_parameter";
    const UNKNOWN: &'static str = "unknown_parameter";

    fn take(&mut self, name: &str) -> Option<(String, bool)> {
        let mut values = self.0.extract_if(.., |(given, _)| given == name).map(|(_, value)| value);
        let first = values.next()?;
        Some((first, values.count() > 0))
    }

    fn names(&self) -> Vec<&str> {
        self.0.iter().map(|(name, _)| name.as_str()).collect()
    }

    fn clear(&mut self) {
        self.0.clear();
    }
}

impl Parameters {
    pub(super) fn of(uri: &Uri) -> Self {
        let query = uri.query().unwrap_or_default();
        Self::given(form_urlencoded::parse(query.as_bytes()).into_owned().collect())
    }

    pub(super) fn given(parameters: Vec<(String, String)>) -> Self {
        Self(Parser::over(QueryParameters(parameters)))
    }

    /// Fails if there is a violation or an unknown parameter.
    pub(super) fn finish(self) -> Parsed<()> {
        self.0.finish()
    }

    /// Returns the values if all of them were parsed and every parameter was used.
    pub(super) fn finish_with<T: fields::ParsedValues>(self, values: T) -> Parsed<T::Values> {
        self.0.finish_with(values)
    }

    /// Parses every value of a parameter.
    pub(super) fn all<T>(&mut self, name: &str, read: impl Fn(String) -> Parsed<T>) -> Vec<T> {
        let values: Vec<(String, String)> =
            self.values_mut().0.extract_if(.., |(given, _)| given == name).collect();
        values.into_iter().filter_map(|(_, value)| self.keep(name, read(value))).collect()
    }

    /// Takes the parameters `name[key]=value`, by key; a key may repeat.
    pub(super) fn bracketed(&mut self, name: &str) -> BTreeMap<String, Vec<String>> {
        let key = |given: &str| -> Option<String> {
            Some(given.strip_prefix(name)?.strip_prefix('[')?.strip_suffix(']')?.to_owned())
        };
        let mut values: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (given, value) in self.values_mut().0.extract_if(.., |(given, _)| key(given).is_some()) {
            if let Some(key) = key(&given) {
                values.entry(key).or_default().push(value);
            }
        }
        values
    }

    pub(super) fn flag(&mut self, name: &str) -> bool {
        let truth = self.optional(name, |value| match value.as_str() {
            "true" | "1" | "" => Ok(true),
            "false" | "0" => Ok(false),
            _ => {
                let detail = format!("must be true or false; got {}", received(&value));
                Violation::only("invalid_choice", detail)
            }
        });
        truth.unwrap_or(false)
    }

    /// Parses a parameter that must be one of a few words.
    pub(super) fn word<T: Copy>(&mut self, name: &str, words: &[(&'static str, T)]) -> Option<T> {
        self.optional(name, |value| fields::word(&value, words))
    }

    pub(super) fn subject(&mut self, name: &str) -> Option<SubjectId> {
        self.optional(name, |value| Ok(SubjectId::parse(value)?))
    }

    /// Parses the required times `from` and `to`.
    pub(super) fn span(&mut self) -> Option<Span> {
        let (from, to) = (self.required("from", timestamp), self.required("to", timestamp));
        self.check_order(from, to);
        from.zip(to).map(|(from, to)| Span { from, to })
    }

    /// Notes a violation if `from` is after `to`.
    pub(super) fn check_order(&mut self, from: Option<Timestamp>, to: Option<Timestamp>) {
        if let (Some(from), Some(to)) = (from, to)
            && from > to
        {
            let detail = format!("must not be after `to`, which is {to}; got {from}");
            self.add_error(Violation::new("invalid_range", detail).under("from"));
        }
    }
}

/// A value parsed from the parameters of a query. `None` means that a violation was noted.
pub(super) trait FromQuery: Sized {
    fn parse(parameters: &mut Parameters) -> Option<Self>;
}

impl FromQuery for () {
    fn parse(_: &mut Parameters) -> Option<Self> {
        Some(())
    }
}

impl<A: FromQuery, B: FromQuery> FromQuery for (A, B) {
    fn parse(parameters: &mut Parameters) -> Option<Self> {
        let (a, b) = (A::parse(parameters), B::parse(parameters));
        a.zip(b)
    }
}

impl FromQuery for PageRequest {
    fn parse(parameters: &mut Parameters) -> Option<Self> {
        let cursor = parameters.optional("cursor", text);
        let limit = parameters.optional("limit", |value| match value.parse::<u32>() {
            Ok(limit) if (1..=PAGE_ROWS_MAX).contains(&limit) => Ok(limit),
            _ => {
                let value = received(&value);
                let detail = format!("must be a whole number from 1 to {PAGE_ROWS_MAX}; got {value}");
                Violation::only("invalid_value", detail)
            }
        });
        Some(Self { cursor, limit: limit.unwrap_or(PAGE_ROWS_DEFAULT) })
    }
}

/// Parses a time. A `+` that a client left unescaped arrives as a space, so a space becomes `+` again.
pub(super) fn timestamp(value: String) -> Parsed<Timestamp> {
    fields::parse_timestamp(&value.replace(' ', "+"))
}

/// Parses a text, which must not contain NUL.
pub(super) fn text(value: String) -> Parsed<String> {
    if value.contains('\0') {
        return Violation::only("nul_character", "must not contain the NUL character");
    }
    Ok(value)
}
