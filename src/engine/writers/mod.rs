//! Writers that share transactions.
//!
//! Calls put their work into the queue of a lane and wait. A writer takes all work queued since its last
//! commit, commits it in one transaction, and answers the calls. No timer is involved: an idle writer
//! starts at once.
//!
//! A [`BatchProcessor`] defines the work of a lane. Queues, bounds, retries and answers are the same for
//! all lanes. A panic fails only the calls of its batch; the writer restarts with a new connection and a
//! new processor. A lane without a running writer is dead, and `/readyz` names it.

mod health;
pub(crate) mod lane;
pub(crate) mod months;
mod prerequisite;
mod queue;
#[cfg(test)]
mod tests;
mod transaction;
mod writer;

use sqlx::PgConnection;

pub(crate) use prerequisite::{Interrupt, Prerequisite, Recheck};
pub(crate) use transaction::BatchTransaction;

use super::usage::ingest::WriterContext;
use crate::store::StoreError;
use metergate_domain::base::environment::Environment;

/// The share of a queue that a piece of work takes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Weight {
    pub(crate) items: usize,
    pub(crate) bytes: usize,
}

/// The result of an attempt that the database did not refuse.
#[derive(Debug)]
pub(crate) enum Attempt<R> {
    /// A reply for each piece of work, in order.
    Committed(Vec<R>),
    /// The commit was sent, but no answer arrived.
    Unanswered { batch_id: i64 },
    /// Nothing was committed. The batch is attempted again after this prerequisite.
    Again(Prerequisite),
}

/// The logic of a lane.
pub(crate) trait BatchProcessor: Sized + Send + 'static {
    type Work: Send + Sync + 'static;
    type Reply: Send + 'static;

    fn weigh(work: &Self::Work) -> Weight;

    /// Returns a processor in its initial state, which replaces this one after a panic.
    fn restarted(&self) -> Self;

    fn environment(&self) -> Environment;

    fn writer_context(&self) -> &WriterContext;

    /// Waits until the processor should take more work.
    fn rest(&self) -> impl Future<Output = ()> + Send;

    /// Attempts to commit work in one transaction. `uncertain` lists the earlier attempts at the same work
    /// without an answer to their commit.
    fn attempt(
        &mut self,
        connection: &mut PgConnection,
        work: &[&Self::Work],
        uncertain: &[i64],
    ) -> impl Future<Output = Result<Attempt<Self::Reply>, StoreError>> + Send;
}
