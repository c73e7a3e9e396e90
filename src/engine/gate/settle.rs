//! Settles batches of calls: by the fast path, otherwise by the locked path.

use super::calls::{Call, Reply};
use super::next_batch::FastPath;
use super::processor::{Findings, GateProcessor};
use crate::engine::gate::{fast_path, locked};
use crate::engine::writers::context::WriterContext;
use crate::engine::writers::interrupt::Interrupt;
use crate::engine::writers::prerequisite::Prerequisite;
use crate::engine::writers::processor::{Attempt, BatchProcessor, Weight};
use crate::engine::writers::reader::Reader;
use crate::store::{self, StoreError};
use metergate_domain::base::Environment;
use metergate_domain::gate::CallOutcome;
use sqlx::PgConnection;
use std::collections::BTreeMap;

impl GateProcessor {
    pub(crate) fn new(environment: Environment, writer_context: &WriterContext) -> Self {
        Self {
            environment,
            writer_context: writer_context.clone(),
            reader: Reader::new(writer_context.database.clone()),
            findings: Findings::default(),
            unconfirmed_replies: BTreeMap::new(),
            fast_path: FastPath::default(),
        }
    }

    pub(crate) async fn settle(
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
pub(crate) fn as_first_answers(mut attempt: Attempt<Reply>) -> Attempt<Reply> {
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
