//! The processor of the gate: settles batches of calls on reservations.

use super::calls::Reply;
use super::next_batch::FastPath;
use crate::engine::writers::context::WriterContext;
use crate::engine::writers::prerequisite::Recheck;
use crate::engine::writers::reader::Reader;
use metergate_domain::base::Environment;
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

/// The findings of earlier attempts at a batch, for the next attempt.
#[derive(Debug, Default)]
pub(super) struct Findings {
    /// Reservations that must be expired before others can be decided.
    pub(super) expired_to_commit: Vec<Uuid>,
    /// True if new reservations may exist already, so the next attempt reads them first.
    pub(super) check_existing: bool,
    /// Ids that commits derived for their events, but that other events have taken.
    pub(super) conflicting_event_ids: BTreeSet<Uuid>,
}

impl Findings {
    pub(super) fn is_empty(&self) -> bool {
        self.expired_to_commit.is_empty() && !self.check_existing && self.conflicting_event_ids.is_empty()
    }

    pub(super) fn note(&mut self, recheck: &Recheck) {
        match recheck {
            Recheck::Time => {}
            Recheck::Reservations => self.check_existing = true,
            Recheck::Expired(keys) => self.expired_to_commit.extend(keys),
            Recheck::EventIds(ids) => self.conflicting_event_ids.extend(ids),
        }
    }
}

/// The batch processor of reservation calls.
#[derive(Debug)]
pub(crate) struct GateProcessor {
    pub(super) environment: Environment,
    pub(super) writer_context: WriterContext,
    pub(super) reader: Reader,
    pub(super) findings: Findings,
    /// The replies of batches that got no answer to their commit.
    pub(super) unconfirmed_replies: BTreeMap<i64, Vec<Reply>>,
    pub(super) fast_path: FastPath,
}
