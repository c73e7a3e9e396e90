//! Work that writers settle: the trait of a kind of work, and the end of an attempt.

use super::context::WriterContext;
use super::prerequisite::Prerequisite;
use crate::store::StoreError;
use metergate_domain::base::Environment;
use sqlx::PgConnection;

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

    /// Attempts to commit work in one transaction. `uncertain` lists earlier attempts at the same work
    /// that got no answer to their commit.
    fn attempt(
        &mut self,
        connection: &mut PgConnection,
        work: &[&Self::Work],
        uncertain: &[i64],
    ) -> impl Future<Output = Result<Attempt<Self::Reply>, StoreError>> + Send;
}
