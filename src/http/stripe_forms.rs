//! Forms as Stripe's SDKs write them: brackets in field names nest, and every value is text. A form becomes a
//! document of the same structure.

use axum::body::Body;
use axum::http::HeaderMap;
use serde_json::{Map, Value};

use super::body;
use super::problem::Problem;
use metergate_domain::base::Violation;
use metergate_domain::base::limits::{FORM_FIELDS_MAX, FORM_LEVELS_MAX};

const MEDIA_TYPE: &str = "application/x-www-form-urlencoded";

/// Reads the fields of a body; an empty body has none.
pub(super) async fn read(headers: &HeaderMap, body: Body) -> Result<Value, Problem> {
    let bytes = body::read_any(body).await?;
    if body::is_empty(&bytes) {
        return Ok(Value::Object(Map::new()));
    }
    match body::media_type(headers).as_str() {
        MEDIA_TYPE => Ok(parse(&bytes)?),
        other => Err(body::unsupported(other, MEDIA_TYPE)),
    }
}

fn parse(bytes: &[u8]) -> Result<Value, Violation> {
    let mut form = Map::new();
    for (count, (name, value)) in form_urlencoded::parse(bytes).enumerate() {
        if count == FORM_FIELDS_MAX {
            return Err(Violation::new("too_many", format!("must have at most {FORM_FIELDS_MAX} fields")));
        }
        let (first, keys) = keys(&name).ok_or_else(|| {
            Violation::new("unknown_field", "must be a name with keys in brackets, such as `payload[value]`")
                .under(&name)
        })?;
        put(&mut form, first, &keys, value.into_owned())
            .ok_or_else(|| {
                Violation::new(
                    "duplicate_parameter",
                    "must be given once, either with keys in brackets or without",
                )
            })
            .map_err(|violation| violation.under(&name))?;
    }
    Ok(Value::Object(form))
}

/// Splits `a[b][c]` into `a` and the keys `b` and `c`.
fn keys(name: &str) -> Option<(&str, Vec<&str>)> {
    let (first, mut rest) = name.split_at(name.find('[').unwrap_or(name.len()));
    let mut keys = Vec::new();
    while !rest.is_empty() {
        let (key, after) = rest.strip_prefix('[')?.split_once(']')?;
        keys.push(key);
        rest = after;
    }
    (keys.len() <= FORM_LEVELS_MAX).then_some((first, keys))
}

/// Inserts a value under nested keys, or returns `None` if the place is taken.
fn put(map: &mut Map<String, Value>, key: &str, deeper: &[&str], value: String) -> Option<()> {
    // `a[]` is the next element
    let key = if key.is_empty() { map.len().to_string() } else { key.to_owned() };
    let Some((next, deeper)) = deeper.split_first() else {
        return map.insert(key, Value::String(value)).is_none().then_some(());
    };
    match map.entry(key).or_insert_with(|| Value::Object(Map::new())) {
        Value::Object(map) => put(map, next, deeper, value),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn bracketed_form_keys_nest() {
        let cases = [
            ("a=1&b=x+y%26", Some(json!({"a": "1", "b": "x y&"}))),
            ("p[a]=1&p%5Bb%5D=2&p[c][d]=3", Some(json!({"p": {"a": "1", "b": "2", "c": {"d": "3"}}}))),
            ("e[]=x&e[]=y", Some(json!({"e": {"0": "x", "1": "y"}}))),
            ("e[0]=x&e[1]=y", Some(json!({"e": {"0": "x", "1": "y"}}))),
            ("a", Some(json!({"a": ""}))),
            ("a=1&a=2", None),
            ("a=1&a[b]=2", None),
            ("a[b]=1&a=2", None),
            ("a[b=1", None),
            ("a[b]c=1", None),
            ("a]b=1", Some(json!({"a]b": "1"}))),
            ("a[1][2][3][4][5]=1", None),
        ];
        for (form, expected) in cases {
            assert_eq!(parse(form.as_bytes()).ok(), expected, "{form}");
        }
        let many = "p[]=1&".repeat(FORM_FIELDS_MAX + 1);
        assert_eq!(parse(many.as_bytes()).unwrap_err().code, "too_many");
    }
}
