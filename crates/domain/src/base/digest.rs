//! Fingerprints of content: 128 bits of BLAKE3 over a canonical form. Other content cannot be built
//! to have the same fingerprint.

use serde_json::{Map, Value};
use uuid::Uuid;

use super::quantity::Quantity;

/// A builder of a fingerprint from the parts of a statement, in a fixed order.
#[derive(Debug, Default)]
pub struct Digest(blake3::Hasher);

impl Digest {
    /// Adds a text after its length, so that adjacent texts cannot run into each other.
    pub fn text(&mut self, text: &str) -> &mut Self {
        self.0.update(&(text.len() as u64).to_le_bytes());
        self.bytes(text.as_bytes())
    }

    pub fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.update(bytes);
        self
    }

    pub fn quantity(&mut self, quantity: Quantity) -> &mut Self {
        self.bytes(&quantity.nanos().to_le_bytes())
    }

    pub fn number(&mut self, number: u64) -> &mut Self {
        self.bytes(&number.to_le_bytes())
    }

    /// Adds a JSON object. Its names are sorted, and equal numbers count as equal in any spelling.
    pub fn map(&mut self, map: &Map<String, Value>) -> &mut Self {
        self.bytes(b"{").number(map.len() as u64);
        // the map is sorted by name
        for (name, value) in map {
            self.text(name).value(value);
        }
        self
    }

    fn value(&mut self, value: &Value) -> &mut Self {
        match value {
            Value::Null => self.bytes(b"n"),
            Value::Bool(truth) => self.bytes(if *truth { b"t" } else { b"f" }),
            // 1.50 and 1.5 are the same number
            Value::Number(number) => match Quantity::from_json_number(number.as_str()) {
                Ok(quantity) => self.bytes(b"#").text(&quantity.to_string()),
                Err(_) => self.bytes(b"#").text(number.as_str()),
            },
            Value::String(text) => self.bytes(b"\"").text(text),
            Value::Array(values) => {
                self.bytes(b"[").number(values.len() as u64);
                for value in values {
                    self.value(value);
                }
                self
            }
            Value::Object(map) => self.map(map),
        }
    }

    /// Returns the 16 bytes in the shape of a UUID.
    pub fn finish(&self) -> Uuid {
        let mut bytes = [0; 16];
        self.0.finalize_xof().fill(&mut bytes);
        Uuid::from_bytes(bytes)
    }
}
