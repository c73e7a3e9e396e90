//! Writers that share transactions. Calls hand their work to a lane and wait; a writer takes whatever
//! has gathered since its last commit, settles it as one transaction, then answers all. No timer is
//! involved: an idle writer starts at once.
//!
//! What is settled, and how, is a [`BatchProcessor`]; queues, bounds, retries and answers are the same for all.

mod lane;
mod months;
mod prerequisite;
mod queue;
mod transaction;
mod writer;

use sqlx::PgConnection;

pub(crate) use lane::{Lane, WriterTasks};
pub(crate) use months::Months;
pub(crate) use prerequisite::{Interrupt, Prerequisite, Recheck};
pub(crate) use transaction::BatchTransaction;

use super::usage::ingest::WriterContext;
use crate::store::StoreError;
use metergate_domain::base::environment::Environment;

/// The room that waiting work takes of its queue.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Weight {
    pub(crate) items: usize,
    pub(crate) bytes: usize,
}

/// The end of an attempt that the database did not refuse.
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
pub(crate) trait BatchProcessor: Send + 'static {
    type Work: Send + Sync + 'static;
    type Reply: Send + 'static;

    fn weigh(work: &Self::Work) -> Weight;

    fn environment(&self) -> Environment;

    fn writer_context(&self) -> &WriterContext;

    /// Waits where it is better not to take more work yet.
    fn rest(&self) -> impl Future<Output = ()> + Send;

    /// Settles work as one transaction. `uncertain`: batches of earlier attempts at the same work that
    /// may have been committed, for all that is known.
    fn attempt(
        &mut self,
        connection: &mut PgConnection,
        work: &[&Self::Work],
        uncertain: &[i64],
    ) -> impl Future<Output = Result<Attempt<Self::Reply>, StoreError>> + Send;
}
