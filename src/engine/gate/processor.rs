//! The processor of the gate: settles batches of calls on reservations.

use super::counters::Reader;
use crate::engine::gate::calls::{Call, Reply};
use crate::engine::gate::fast_path;
use crate::engine::gate::locked;
use crate::engine::writers::context::WriterContext;
use crate::engine::writers::prerequisite::{Interrupt, Prerequisite, Recheck};
use crate::engine::writers::processor::{Attempt, BatchProcessor, Weight};
use crate::store::{self, StoreError};
use metergate_domain::base::environment::Environment;
use metergate_domain::gate::calls::CallOutcome;
use sqlx::PgConnection;
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

/// The findings of earlier attempts at a batch, for the next attempt.
#[derive(Debug, Default)]
pub(super) struct Findings {
    /// Reservations that must be expired before others can be decided.
    pub(super) expired_to_commit: Vec<Uuid>,
    /// True if reservations to make may exist already, so they are read first.
    pub(super) check_existing: bool,
    /// Derived ids of events that other events have taken.
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
    /// The replies of batches without an answer to their commit.
    pub(super) unconfirmed_replies: BTreeMap<i64, Vec<Reply>>,
    pub(super) fast_path: fast_path::FastPath,
}

impl GateProcessor {
    pub(crate) fn new(environment: Environment, writer_context: &WriterContext) -> Self {
        Self {
            environment,
            writer_context: writer_context.clone(),
            reader: Reader::new(writer_context.database.clone()),
            findings: Findings::default(),
            unconfirmed_replies: BTreeMap::new(),
            fast_path: fast_path::FastPath::default(),
        }
    }

    pub(super) async fn settle(
        &mut self,
        connection: &mut PgConnection,
        work: &[&Call],
        uncertain: &[i64],
    ) -> Result<Attempt<Reply>, Interrupt> {
        let mut was_held = false;
        for batch_id in uncertain {
            if store::gate::batches::was_committed(connection, *batch_id).await? {
                if let Some(replies) = self.unconfirmed_replies.remove(batch_id) {
                    return Ok(Attempt::Committed(replies));
                }
                was_held = true;
            }
        }
        if was_held {
            // The fast path committed without an answer. The locked path reads the reservations that it
            // made.
            self.findings.check_existing = true;
            return Ok(as_first_answers(locked::attempt(self, connection, work).await?));
        }
        let is_usual = uncertain.is_empty() && self.findings.is_empty();
        if is_usual && let Some(done) = fast_path::attempt(self, connection, work).await? {
            return Ok(done);
        }
        locked::attempt(self, connection, work).await
    }
}

impl BatchProcessor for GateProcessor {
    type Work = Call;
    type Reply = Reply;

    fn environment(&self) -> Environment {
        self.environment
    }

    fn writer_context(&self) -> &WriterContext {
        &self.writer_context
    }

    fn weigh(call: &Call) -> Weight {
        let bytes = match call {
            // Properties, stored as maps, take most of these bytes.
            Call::Reserve { request, .. } => 1_024 * (1 + request.asks.len()),
            Call::Commit { request, .. } => 1_024 * (1 + request.values.len()),
            Call::Release { .. } | Call::Extend { .. } | Call::Sweep => 1_024,
        };
        Weight { items: 1, bytes }
    }

    fn restarted(&self) -> Self {
        Self::new(self.environment, &self.writer_context)
    }

    async fn rest(&self) {}

    async fn attempt(
        &mut self,
        connection: &mut PgConnection,
        work: &[&Call],
        uncertain: &[i64],
    ) -> Result<Attempt<Reply>, StoreError> {
        let attempt = self.settle(connection, work, uncertain).await.or_else(Interrupt::attempt);
        match &attempt {
            Ok(Attempt::Again(Prerequisite::Recheck(recheck))) => self.findings.note(recheck),
            Ok(Attempt::Again(_) | Attempt::Unanswered { .. }) => {}
            Ok(Attempt::Committed(_)) => {
                self.findings = Findings::default();
                self.unconfirmed_replies.clear();
            }
            Err(_) => self.findings = Findings::default(),
        }
        attempt
    }
}

/// Clears the replay marks, since the callers have not had an answer for these reservations yet.
pub(super) fn as_first_answers(mut attempt: Attempt<Reply>) -> Attempt<Reply> {
    if let Attempt::Committed(replies) = &mut attempt {
        for reply in replies {
            if let Reply::Answer(answer) = reply
                && let CallOutcome::Held { replayed, .. } = &mut answer.outcome
            {
                *replayed = false;
            }
        }
    }
    attempt
}
