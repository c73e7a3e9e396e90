//! Errors of use cases, independent of HTTP. The text for the client is separate from the text for
//! the log.

use std::borrow::Cow;

use crate::store::StoreError;
use metergate_domain::base::{Violation, Violations};

/// An error of a use case.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// A request without proof of its sender, refused before it is parsed.
    #[error("{detail}")]
    Untrusted { code: &'static str, detail: &'static str },
    /// A request that was parsed but breaks rules, with all violations.
    #[error("the input is not valid: {0:?}")]
    Invalid(Violations),
    #[error("{detail}")]
    NotFound { code: &'static str, detail: String },
    #[error("{detail}")]
    Conflict { code: &'static str, detail: String },
    #[error("{detail}")]
    Unauthorized { detail: &'static str },
    /// A temporary failure. The same call may succeed later.
    #[error("{why}")]
    Unavailable { code: &'static str, detail: Cow<'static, str>, why: String },
    /// A defect of the program or its data. The text is for the log; the client gets a general
    /// message.
    #[error("{0}")]
    Internal(String),
}

impl EngineError {
    pub(crate) fn invalid(violation: Violation) -> Self {
        Self::Invalid(violation.into())
    }

    pub(crate) fn overloaded() -> Self {
        Self::Unavailable {
            code: "overloaded",
            detail: Cow::Borrowed("the server is overloaded; send the request again in a second"),
            why: "a queue is full".to_owned(),
        }
    }

    /// Returns the error for a provider that did not answer, or answered with an error.
    pub(crate) fn provider_unavailable(why: String) -> Self {
        Self::Unavailable {
            code: "provider_unavailable",
            detail: Cow::Owned(format!("the billing provider did not answer as expected: {why}")),
            why,
        }
    }

    pub(crate) fn exports_running() -> Self {
        Self::Unavailable {
            code: "exports_running",
            detail: Cow::Borrowed(
                "another export run is in progress; send the request again when it has ended",
            ),
            why: "another export run is in progress".to_owned(),
        }
    }

    pub(crate) fn unavailable(why: impl Into<String>) -> Self {
        Self::Unavailable {
            code: "unavailable",
            detail: Cow::Borrowed(
                "the database cannot answer at the moment; send the request again in a second",
            ),
            why: why.into(),
        }
    }
}

impl From<Violations> for EngineError {
    fn from(violations: Violations) -> Self {
        Self::Invalid(violations)
    }
}

impl From<StoreError> for EngineError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Unavailable(_) | StoreError::Conflict(_) | StoreError::TooSlow(_) => {
                Self::unavailable(error.to_string())
            }
            StoreError::Constraint { .. }
            | StoreError::Refused(_)
            | StoreError::Migration(_)
            | StoreError::IncompatibleSchema { .. }
            | StoreError::Url(_) => Self::Internal(error.to_string()),
        }
    }
}

impl From<sqlx::Error> for EngineError {
    fn from(error: sqlx::Error) -> Self {
        StoreError::from(error).into()
    }
}
