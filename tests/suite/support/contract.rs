//! The contract: openapi.yaml, and the check of every answer against it.
//!
//! The check fails on a status, a media type or a field that the document does not list. Object schemas of
//! answers are closed: without `additionalProperties`, they admit only the fields that they declare.

use std::collections::HashMap;
use std::sync::LazyLock;

use axum::http::Method;
use jsonschema::Validator;
use saphyr::{LoadableYamlNode, ScalarOwned, YamlOwned};
use serde_json::{Map, Value, json};

use super::service::Answer;

/// The errors that `info.description` lists for every route; operations need not repeat them.
const EVERYWHERE: [(u16, &str); 4] =
    [(404, "not_found"), (405, "method_not_allowed"), (415, "unsupported_encoding"), (500, "internal_error")];

/// The document as JSON.
pub(crate) static DOCUMENT: LazyLock<Value> = LazyLock::new(|| {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/openapi.yaml")).unwrap();
    let documents = YamlOwned::load_from_str(&text).unwrap();
    to_json(&documents[0])
});

static CONTRACT: LazyLock<Contract> = LazyLock::new(|| Contract::read(&DOCUMENT));

fn to_json(node: &YamlOwned) -> Value {
    match node {
        YamlOwned::Value(ScalarOwned::Null) => Value::Null,
        YamlOwned::Value(ScalarOwned::Boolean(truth)) => json!(truth),
        YamlOwned::Value(ScalarOwned::Integer(number)) => json!(number),
        YamlOwned::Value(ScalarOwned::FloatingPoint(number)) => json!(number.into_inner()),
        YamlOwned::Value(ScalarOwned::String(text)) => json!(text),
        YamlOwned::Sequence(items) => items.iter().map(to_json).collect(),
        YamlOwned::Mapping(map) => {
            // the status of a response may be a number
            let key = |key: &YamlOwned| match to_json(key) {
                Value::String(text) => text,
                other => other.to_string(),
            };
            Value::Object(map.iter().map(|(name, value)| (key(name), to_json(value))).collect())
        }
        other => panic!("openapi.yaml has a node without a JSON form: {other:?}"),
    }
}

struct Contract {
    paths: Vec<DescribedPath>,
    problem: Validator,
    stripe_error: Validator,
}

struct DescribedPath {
    template: Vec<String>,
    operations: HashMap<String, Responses>,
}

/// The responses by status; `None` is `default`.
type Responses = HashMap<Option<u16>, Content>;

/// The media types of a response, those of JSON with a compiled schema.
type Content = HashMap<String, Option<Validator>>;

impl Contract {
    fn read(document: &Value) -> Self {
        let schemas = Schemas::of(document);
        let paths = document["paths"].as_object().unwrap().iter().map(|(path, item)| DescribedPath {
            template: path.split('/').map(str::to_owned).collect(),
            operations: item
                .as_object()
                .unwrap()
                .iter()
                .filter_map(|(method, operation)| {
                    let responses = operation.get("responses")?.as_object().unwrap();
                    let responses = responses
                        .iter()
                        .map(|(status, response)| (status.parse().ok(), schemas.content(response)))
                        .collect();
                    Some((method.to_uppercase(), responses))
                })
                .collect(),
        });
        Self {
            paths: paths.collect(),
            problem: schemas.compile(&json!({"$ref": "#/components/schemas/Problem"})),
            stripe_error: schemas.compile(&json!({"$ref": "#/components/schemas/StripeError"})),
        }
    }

    /// Finds the path by its template; a path without parameters precedes one with.
    fn path(&self, path: &str) -> Option<&DescribedPath> {
        let parts: Vec<&str> = path.split('/').collect();
        let matching = self.paths.iter().filter(|described| {
            let is_prefix = described.template.last().is_some_and(|last| last.starts_with("{*"));
            let length = described.template.len();
            (length == parts.len() || is_prefix && length < parts.len())
                && described.template.iter().zip(&parts).all(|(template, part)| {
                    if template.starts_with('{') { !part.is_empty() } else { template == part }
                })
        });
        matching
            .min_by_key(|described| described.template.iter().filter(|part| part.starts_with('{')).count())
    }

    /// Validates an error that every route may answer.
    fn check_everywhere(&self, path: &str, answer: &Answer) -> Result<(), String> {
        let body = parse(answer)?;
        // Stripe's SDKs get Stripe's shape, also on paths that do not exist here
        let is_problem =
            answer.headers.get("content-type").is_some_and(|kind| kind == "application/problem+json");
        let is_for_stripe = path.starts_with("/v1/billing/") || !is_problem && self.path(path).is_none();
        let (validator, code) =
            if is_for_stripe { (&self.stripe_error, None) } else { (&self.problem, body["code"].as_str()) };
        validate(validator, &body)?;
        let is_listed = EVERYWHERE
            .iter()
            .any(|(status, expected)| answer.status == *status && code.is_none_or(|code| code == *expected));
        if is_listed { Ok(()) } else { Err(format!("does not list the status {}", answer.status)) }
    }

    fn check(&self, method: &Method, path: &str, answer: &Answer) -> Result<(), String> {
        let Some(described) = self.path(path) else {
            return self.check_everywhere(path, answer);
        };
        // gateways call with the method of the original request
        let method =
            if path.starts_with("/v1/gate") || *method == Method::HEAD { "GET" } else { method.as_str() };
        let Some(content) = described.operations.get(method).and_then(|responses| {
            responses.get(&Some(answer.status.as_u16())).or_else(|| responses.get(&None))
        }) else {
            return self.check_everywhere(path, answer);
        };
        let media_type = answer.headers.get("content-type").map_or("", |value| value.to_str().unwrap());
        let media_type = media_type.split(';').next().unwrap_or_default();
        if content.is_empty() && answer.text.is_empty() {
            return Ok(());
        }
        match content.get(media_type) {
            Some(Some(validator)) => validate(validator, &parse(answer)?),
            Some(None) => Ok(()),
            None => Err(format!("does not list the media type `{media_type}` of {}", answer.status)),
        }
    }
}

fn parse(answer: &Answer) -> Result<Value, String> {
    serde_json::from_str(&answer.text).map_err(|why| format!("expects JSON: {why}"))
}

fn validate(validator: &Validator, body: &Value) -> Result<(), String> {
    if validator.is_valid(body) {
        return Ok(());
    }
    let errors = validator.iter_errors(body);
    let errors: Vec<_> = errors.map(|error| format!("{}: {error}", error.instance_path())).collect();
    Err(format!("does not admit the body: {}", errors.join("; ")))
}

/// Panics unless openapi.yaml documents the answer to this call.
pub(crate) fn assert_documented(method: &Method, uri: &str, answer: &Answer) {
    if let Err(why) = check(method, uri, answer) {
        panic!("openapi.yaml {why}\n{method} {uri}: {} {}", answer.status, answer.text);
    }
}

/// Checks the answer to a call. The pages under `/docs` and the preflights of browsers are not in the document.
pub(crate) fn check(method: &Method, uri: &str, answer: &Answer) -> Result<(), String> {
    let path = uri.split('?').next().unwrap_or_default();
    if path == "/docs" || path.starts_with("/docs/") || *method == Method::OPTIONS {
        return Ok(());
    }
    CONTRACT.check(method, path, answer)
}

/// The schemas of the document, each as a closed and as an open definition.
struct Schemas<'a> {
    document: &'a Value,
    definitions: Value,
}

impl<'a> Schemas<'a> {
    fn of(document: &'a Value) -> Self {
        let mut definitions = Map::new();
        for (name, schema) in document["components"]["schemas"].as_object().unwrap() {
            definitions.insert(name.clone(), closed(schema, true));
            definitions.insert(format!("{name}.open"), closed(schema, false));
        }
        Self { document, definitions: Value::Object(definitions) }
    }

    fn content(&self, response: &Value) -> Content {
        let response = match response.get("$ref") {
            Some(pointer) => {
                self.document.pointer(pointer.as_str().unwrap().trim_start_matches('#')).unwrap()
            }
            None => response,
        };
        let content = response.get("content").and_then(Value::as_object).into_iter().flatten();
        content
            .map(|(media_type, described)| {
                let validator = media_type.ends_with("json").then(|| self.compile(&described["schema"]));
                (media_type.clone(), validator)
            })
            .collect()
    }

    /// Compiles a schema together with the definitions that it leads to.
    fn compile(&self, schema: &Value) -> Validator {
        let mut root = closed(schema, true);
        let mut definitions = Map::new();
        self.collect(&root, &mut definitions);
        root["$defs"] = Value::Object(definitions);
        jsonschema::draft202012::options().should_validate_formats(true).build(&root).unwrap()
    }

    fn collect(&self, schema: &Value, found: &mut Map<String, Value>) {
        match schema {
            Value::Array(items) => items.iter().for_each(|item| self.collect(item, found)),
            Value::Object(fields) => {
                for (name, value) in fields {
                    let definition = value.as_str().and_then(|text| text.strip_prefix("#/$defs/"));
                    match definition {
                        Some(definition) if name == "$ref" && !found.contains_key(definition) => {
                            let schema = self.definitions[definition].clone();
                            assert!(schema.is_object(), "openapi.yaml lacks the schema `{definition}`");
                            found.insert(definition.to_owned(), schema.clone());
                            self.collect(&schema, found);
                        }
                        Some(_) => {}
                        None => self.collect(value, found),
                    }
                }
            }
            _ => {}
        }
    }
}

/// Returns the schema with references to definitions, and with closed objects. Parts of a composed schema stay
/// open (`is_closed` is false): the composed schema closes them together.
fn closed(schema: &Value, is_closed: bool) -> Value {
    let Some(fields) = schema.as_object() else { return schema.clone() };
    if let Some(pointer) = fields.get("$ref") {
        let name = pointer.as_str().unwrap().trim_start_matches("#/components/schemas/");
        return json!({ "$ref": format!("#/$defs/{name}{}", if is_closed { "" } else { ".open" }) });
    }
    let has_fields = fields.contains_key("properties");
    let is_whole = fields.contains_key("allOf") || has_fields;
    let mut result = Map::new();
    for (name, value) in fields {
        let value = match (name.as_str(), value) {
            ("description" | "examples" | "default", _) => continue,
            ("properties", Value::Object(properties)) => Value::Object(
                properties.iter().map(|(name, value)| (name.clone(), closed(value, true))).collect(),
            ),
            ("allOf" | "oneOf" | "anyOf", Value::Array(parts)) => {
                parts.iter().map(|part| closed(part, is_closed && !is_whole)).collect()
            }
            ("items" | "additionalProperties", _) => closed(value, true),
            _ => value.clone(),
        };
        result.insert(name.clone(), value);
    }
    let is_object = has_fields || fields.get("type").is_some_and(|kind| kind.to_string().contains("object"));
    if is_closed && (is_object || is_whole) && !fields.contains_key("additionalProperties") {
        let is_composed = ["allOf", "oneOf", "anyOf"].iter().any(|name| fields.contains_key(*name));
        let closing = if is_composed { "unevaluatedProperties" } else { "additionalProperties" };
        result.insert(closing.to_owned(), json!(false));
    }
    Value::Object(result)
}
