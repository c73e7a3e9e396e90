//! API versions: they decide between the two forms of an answer.

use super::errors::ApiError;

/// The version that moved periods to the items of a subscription, and an invoice's link to its parent.
const BASIL: &str = "2025-03-31";

/// An API version, such as `2026-07-29.dahlia`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Version(String);

impl Version {
    pub(super) fn read(text: &str) -> Result<Self, ApiError> {
        let date = text.split_once('.').map_or(text, |(date, _)| date);
        if date.len() == 10 && date.parse::<jiff::civil::Date>().is_ok() {
            return Ok(Self(text.to_owned()));
        }
        Err(ApiError::invalid(format!("Invalid Stripe API version: {text}")))
    }

    pub(super) fn is_since_basil(&self) -> bool {
        self.0.as_str() >= BASIL
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}
