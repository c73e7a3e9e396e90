//! Records events. Single events and bulk calls have separate lanes, so that neither waits for the
//! other.

pub(crate) mod batch;
pub(crate) mod prepared_event;
pub(crate) mod processor;
pub(crate) mod queues;
pub(crate) mod record;
pub(crate) mod unfolded_backlog;

pub use unfolded_backlog::UnfoldedBacklog;
