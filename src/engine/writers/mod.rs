//! Writers that share transactions.
//!
//! Calls put their work into the queue of a lane and wait. A writer takes all work queued since its last
//! commit, commits it in one transaction, and answers the calls. No timer is involved: an idle writer
//! starts at once.
//!
//! A [`processor::BatchProcessor`] defines the work of a lane. Queues, bounds, retries and answers are the same for
//! all lanes. A panic fails only the calls of its batch; the writer restarts with a new connection and a
//! new processor. A lane without a running writer is dead, and `/readyz` names it.

pub(crate) mod carry_out;
pub(crate) mod context;
pub(crate) mod health;
pub(crate) mod interrupt;
pub(crate) mod lane;
pub(crate) mod months;
pub(crate) mod prerequisite;
pub(crate) mod processor;
pub(crate) mod queue;
pub(crate) mod reader;
#[cfg(test)]
mod tests;
pub(crate) mod transaction;
pub(crate) mod writer;
