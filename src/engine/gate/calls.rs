//! Calls on reservations, and the replies of writers.

use metergate_domain::gate::{Commit, Extend, GateAnswer, Release, Reserve};
use uuid::Uuid;

/// A call of the gate.
#[derive(Debug)]
pub(crate) enum Call {
    Reserve {
        key: Uuid,
        id: String,
        request: Reserve,
    },
    Commit {
        key: Uuid,
        request: Commit,
    },
    Release {
        key: Uuid,
        request: Release,
    },
    Extend {
        key: Uuid,
        request: Extend,
    },
    /// Expires due reservations.
    Sweep,
}

impl Call {
    /// Returns the key of the call's reservation.
    pub(super) fn key(&self) -> Option<Uuid> {
        match self {
            Self::Reserve { key, .. }
            | Self::Commit { key, .. }
            | Self::Release { key, .. }
            | Self::Extend { key, .. } => Some(*key),
            Self::Sweep => None,
        }
    }

    /// Returns the request of a reserve call.
    pub(super) fn reserve(&self) -> Option<&Reserve> {
        match self {
            Self::Reserve { request, .. } => Some(request),
            _ => None,
        }
    }
}

#[derive(Debug)]
pub(crate) enum Reply {
    Answer(Box<GateAnswer>),
    /// The number of expired reservations.
    Swept(usize),
}
