//! What a use case can answer instead of its result, free of HTTP. What the caller may know is apart
//! from what the log needs.

use std::borrow::Cow;

use crate::store::StoreError;
use metergate_domain::base::fields::{Violation, Violations};

#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// Not what it should be, before anything of it is believed.
    #[error("{detail}")]
    Untrusted { code: &'static str, detail: &'static str },
    /// Parsed, but unacceptable: every flaw.
    #[error("the input is not acceptable: {0:?}")]
    Invalid(Violations),
    #[error("{detail}")]
    NotFound { code: &'static str, detail: String },
    #[error("{detail}")]
    Conflict { code: &'static str, detail: String },
    #[error("{detail}")]
    Unauthorized { detail: &'static str },
    /// Not now; later the same call may work.
    #[error("{why}")]
    Unavailable { code: &'static str, detail: Cow<'static, str>, why: String },
    /// A defect; the log says more than the caller is told.
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

    /// The billing provider did not answer, or not well.
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
            why: "another run of exports is at work".to_owned(),
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
