//! Reasons that stop an attempt before its commit.

use super::prerequisite::{Prerequisite, Recheck};
use super::processor::Attempt;
use crate::store::StoreError;

/// The reason to stop an attempt before its commit.
#[derive(Debug)]
pub(crate) enum Interrupt {
    Prerequisite(Prerequisite),
    Failed(StoreError),
}

impl From<Prerequisite> for Interrupt {
    fn from(prerequisite: Prerequisite) -> Self {
        Self::Prerequisite(prerequisite)
    }
}

impl From<Recheck> for Interrupt {
    fn from(recheck: Recheck) -> Self {
        Self::Prerequisite(Prerequisite::Recheck(recheck))
    }
}

impl From<StoreError> for Interrupt {
    fn from(why: StoreError) -> Self {
        Self::Failed(why)
    }
}

impl Interrupt {
    /// Returns the result of the interrupted attempt.
    pub(crate) fn attempt<R>(self) -> Result<Attempt<R>, StoreError> {
        match self {
            Self::Prerequisite(prerequisite) => Ok(Attempt::Again(prerequisite)),
            Self::Failed(why) => Err(why),
        }
    }
}
