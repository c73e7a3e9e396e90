//! Writers that share transactions. Calls put their work into the queue of a lane and wait. A writer takes
//! everything that has gathered since its last commit, settles it as one transaction, then answers all
//! calls. No timer is involved: an idle writer starts at once.
//!
//! A [`BatchProcessor`] defines what is settled, and how. Queues, bounds, retries and answers are the same for all.
//! A panic fails the calls of its batch alone: the writer starts again with a new connection and a new
//! processor. A lane without a running writer is dead, and `/readyz` names it.

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

/// The share of a queue that waiting work takes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Weight {
    pub(crate) items: usize,
    pub(crate) bytes: usize,
}

/// Result of an attempt that the database did not refuse.
#[derive(Debug)]
pub(crate) enum Attempt<R> {
    /// A reply for each piece of work, in the order of arrival.
    Committed(Vec<R>),
    /// The commit was sent and not answered.
    Unanswered { batch_id: i64 },
    /// Nothing was done; the batch is attempted again once this is carried out.
    Again(Prerequisite),
}

/// A kind of work that writers settle.
pub(crate) trait BatchProcessor: Sized + Send + 'static {
    type Work: Send + Sync + 'static;
    type Reply: Send + 'static;

    fn weigh(work: &Self::Work) -> Weight;

    /// Returns a processor in its initial state, to replace this one after a panic.
    fn restarted(&self) -> Self;

    fn environment(&self) -> Environment;

    fn writer_context(&self) -> &WriterContext;

    /// Waits until it is sensible to take more work.
    fn rest(&self) -> impl Future<Output = ()> + Send;

    /// Settles work as one transaction. `uncertain` lists the batches of earlier attempts at the same work
    /// whose commits got no answer.
    fn attempt(
        &mut self,
        connection: &mut PgConnection,
        work: &[&Self::Work],
        uncertain: &[i64],
    ) -> impl Future<Output = Result<Attempt<Self::Reply>, StoreError>> + Send;
}
