//! YAML documents as JSON values.

use serde_json::Value;

use crate::base::fields::{Parsed, Violation, Violations};

/// Reads one YAML document. Scalars keep their spelling, so that no number passes through a float.
pub(super) fn to_json(text: &str) -> Parsed<Value> {
    use saphyr::{YamlLoader, YamlOwned};

    fn convert(node: &YamlOwned) -> Option<Value> {
        Some(match node {
            YamlOwned::Representation(text, saphyr::ScalarStyle::Plain, None) => plain_scalar(text),
            YamlOwned::Representation(text, _, _) => Value::String(text.clone()),
            YamlOwned::Sequence(items) => Value::Array(items.iter().map(convert).collect::<Option<_>>()?),
            YamlOwned::Mapping(map) => Value::Object(
                map.iter()
                    .map(|(name, value)| match name {
                        YamlOwned::Representation(name, _, _) => Some((name.clone(), convert(value)?)),
                        _ => None,
                    })
                    .collect::<Option<_>>()?,
            ),
            _ => return None,
        })
    }

    fn plain_scalar(text: &str) -> Value {
        match text {
            "" | "~" | "null" | "Null" | "NULL" => Value::Null,
            "true" | "True" | "TRUE" => Value::Bool(true),
            "false" | "False" | "FALSE" => Value::Bool(false),
            other => match other.parse::<serde_json::Number>() {
                Ok(number) => Value::Number(number),
                Err(_) => Value::String(other.to_owned()),
            },
        }
    }

    let unreadable = |why: String| Violations::from(Violation::new("malformed_yaml", why));
    let mut loader = YamlLoader::<YamlOwned>::default();
    loader.early_parse(false);
    saphyr_parser::Parser::new_from_str(text)
        .load(&mut loader, true)
        .map_err(|why| unreadable(format!("the request body is not valid YAML: {why}")))?;
    if let Some(why) = loader.error() {
        return Err(unreadable(format!("the request body is not valid YAML: {why}")));
    }
    let documents = loader.into_documents();
    match documents.as_slice() {
        [document] => convert(document)
            .ok_or_else(|| unreadable("the YAML document must have text keys only and no tags".to_owned())),
        _ => Err(unreadable("the request body must be exactly one YAML document".to_owned())),
    }
}
