//! The two environments of a deployment.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// `live` or `test`: two isolated environments in one deployment, which share no data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Environment {
    Test,
    Live,
}

impl Environment {
    pub const ALL: [Self; 2] = [Self::Test, Self::Live];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Test => "test",
            Self::Live => "live",
        }
    }

    /// Returns the number of the environment in all tables.
    pub fn code(self) -> i16 {
        match self {
            Self::Test => 0,
            Self::Live => 1,
        }
    }
}

impl fmt::Display for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The error for a text that is neither `live` nor `test`.
#[derive(Debug, thiserror::Error)]
#[error("an environment must be `test` or `live`")]
pub struct NoEnvironment;

impl FromStr for Environment {
    type Err = NoEnvironment;

    fn from_str(text: &str) -> Result<Self, NoEnvironment> {
        Self::ALL.into_iter().find(|e| e.as_str() == text).ok_or(NoEnvironment)
    }
}
