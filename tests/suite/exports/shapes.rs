//! Calls match the shapes in Stripe's own `OpenAPI` description.

use serde_json::{Map, Value, json};

use super::Pair;

fn slice() -> Value {
    serde_json::from_str(include_str!("../../data/stripe-slice.json")).unwrap()
}

/// Collects violations of the schema words that the excerpt uses. Any other word fails the test.
fn violations(schema: &Value, value: &Value, at: &str, found: &mut Vec<String>) {
    let mut violation = |what: &str| found.push(format!("{at}: {what}: {value}"));
    for (word, wanted) in schema.as_object().unwrap() {
        match word.as_str() {
            "type" => {
                let fits = match wanted.as_str().unwrap() {
                    "object" => value.is_object(),
                    "string" => value.is_string(),
                    "integer" => value.is_i64(),
                    "array" => value.is_array(),
                    other => panic!("the checker does not know the type {other}"),
                };
                if !fits {
                    violation("must have the type of the schema");
                }
            }
            "maxLength" => {
                if value.as_str().is_some_and(|text| text.chars().count() as u64 > wanted.as_u64().unwrap()) {
                    violation("must not be longer than `maxLength`");
                }
            }
            "enum" => {
                if !wanted.as_array().unwrap().contains(value) {
                    violation("must be one of the choices");
                }
            }
            "pattern" => {
                // the only pattern in use: a number
                assert_eq!(wanted, r"^-?[0-9]+(\.[0-9]+)?$");
                let text = value.as_str().unwrap_or_default();
                if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
                    violation("must be a whole number of at least 0");
                }
            }
            "required" => {
                for name in wanted.as_array().unwrap().iter().filter_map(Value::as_str) {
                    if value.get(name).is_none() {
                        violation(&format!("must have `{name}`"));
                    }
                }
            }
            "additionalProperties" => {
                for (name, part) in value.as_object().unwrap() {
                    if schema["properties"].get(name).is_some() {
                        continue;
                    }
                    if wanted == &Value::Bool(false) {
                        violation(&format!("must not have `{name}`"));
                    } else {
                        assert!(part.is_string(), "{at}.{name}");
                    }
                }
            }
            "properties" | "items" | "format" | "description" => {}
            other => panic!("the checker does not know the schema word {other}"),
        }
    }
    if let Some(properties) = schema["properties"].as_object() {
        for (name, schema) in properties {
            if let Some(part) = value.get(name) {
                violations(schema, part, &format!("{at}.{name}"), found);
            }
        }
    }
}

/// Reads a form according to its schema: `a[b]=c` is an object, and integers are read if the schema
/// asks for them.
fn read(form: &str, schema: &Value) -> Value {
    let mut fields = Map::new();
    for (name, text) in form_urlencoded::parse(form.as_bytes()) {
        let integer = schema["properties"][&*name]["type"] == "integer";
        let value = if integer { json!(text.parse::<i64>().unwrap()) } else { json!(text) };
        let twice = match name.split_once('[') {
            None => fields.insert(name.into_owned(), value),
            Some((outer, inner)) => {
                let inner = inner.strip_suffix(']').unwrap().to_owned();
                let object = fields.entry(outer).or_insert_with(|| json!({}));
                object.as_object_mut().unwrap().insert(inner, value)
            }
        };
        assert!(twice.is_none(), "a field must not occur twice: {form}");
    }
    Value::Object(fields)
}

/// Returns a query's parameters as one schema.
fn parameters(operation: &Value) -> Value {
    let query = operation["parameters"].as_array().unwrap().iter().filter(|given| given["in"] == "query");
    let (mut properties, mut required) = (Map::new(), Vec::new());
    for given in query {
        properties.insert(given["name"].as_str().unwrap().to_owned(), given["schema"].clone());
        if given["required"] == true {
            required.push(given["name"].clone());
        }
    }
    json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false})
}

#[tokio::test(flavor = "multi_thread")]
async fn sent_calls_match_the_stripe_openapi_description() {
    let pair = Pair::start().await;
    pair.map("acme", "cus_acme").await;
    pair.track("a", "acme", json!("999999999999999"), "2026-11-20T11:10:00Z").await;
    pair.track("b", "acme", json!(1), "2026-11-20T11:10:00Z").await;
    pair.run().await;
    pair.void("b").await;
    pair.run().await;
    for window in ["hour", "day"] {
        let query = format!(
            "customer=cus_acme&meter=ai_tokens&window={window}&from=2026-11-20T00:00:00Z&to=2026-11-21T00:00:00Z"
        );
        assert_eq!(pair.service.get(&format!("/v1/reconciliation?{query}")).await.status, 200);
    }
    let slice = slice();
    let mut seen = Vec::new();
    for (method, path, sent) in pair.stripe.requests() {
        let known = if path.ends_with("/event_summaries") {
            "/v1/billing/meters/{id}/event_summaries"
        } else {
            path.as_str()
        };
        let operation = &slice["paths"][known][method.to_lowercase()];
        assert!(operation.is_object(), "{method} {path} must be in the excerpt");
        let schema = if method == "GET" {
            parameters(operation)
        } else {
            operation["requestBody"]["content"]["application/x-www-form-urlencoded"]["schema"].clone()
        };
        let mut found = Vec::new();
        violations(&schema, &read(&sent, &schema), known, &mut found);
        assert_eq!(found, Vec::<String>::new(), "{sent}");
        seen.push(format!("{method} {known}"));
    }
    seen.sort();
    seen.dedup();
    let expected = [
        "GET /v1/billing/meters",
        "GET /v1/billing/meters/{id}/event_summaries",
        "POST /v1/billing/meter_event_adjustments",
        "POST /v1/billing/meter_events",
    ];
    assert_eq!(seen, expected);
    pair.assert_lawful();
}
