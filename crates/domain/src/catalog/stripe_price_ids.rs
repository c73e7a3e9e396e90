//! The Stripe prices of a plan or a credit pack.

use serde::Serialize;
use serde_json::Value;

use crate::base::environment::Environment;
use crate::base::fields::{self, ObjectParser, Parsed};
use crate::base::limits::CATALOG_ITEMS_MAX;

/// Price ids as `["price_…"]` for every environment, or as `{"test": […], "live": […]}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum StripePriceIds {
    All(Vec<String>),
    PerEnvironment { live: Vec<String>, test: Vec<String> },
}

impl Default for StripePriceIds {
    fn default() -> Self {
        Self::All(Vec::new())
    }
}

impl StripePriceIds {
    /// Reads either form.
    pub fn read(value: Value) -> Parsed<Self> {
        if value.is_array() {
            return Ok(Self::All(fields::items(value, CATALOG_ITEMS_MAX, fields::text)?));
        }
        let mut fields = ObjectParser::new(value)?;
        let live = fields.list("live", CATALOG_ITEMS_MAX, fields::text);
        let test = fields.list("test", CATALOG_ITEMS_MAX, fields::text);
        fields.finish()?;
        Ok(Self::PerEnvironment { live, test })
    }

    /// Returns the price ids of an environment.
    pub fn of(&self, environment: Environment) -> &[String] {
        match (self, environment) {
            (Self::All(ids), _)
            | (Self::PerEnvironment { live: ids, .. }, Environment::Live)
            | (Self::PerEnvironment { test: ids, .. }, Environment::Test) => ids,
        }
    }

    pub fn contains(&self, environment: Environment, id: &str) -> bool {
        self.of(environment).iter().any(|known| known == id)
    }
}
