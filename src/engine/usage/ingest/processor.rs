//! The processor of events, and the work that it settles.

use super::prepared_event::PreparedEvent;
use super::prepared_event::RecordResult;
use crate::engine::usage::ingest::batch;
use crate::engine::writers::context::WriterContext;
use crate::engine::writers::interrupt::Interrupt;
use crate::engine::writers::lane::{Lane, WriterTasks};
use crate::engine::writers::processor::{Attempt, BatchProcessor, Weight};
use crate::engine::writers::reader::Reader;
use crate::store::StoreError;
use metergate_domain::base::environment::Environment;
use metergate_domain::base::limits::TRANSACTION_EVENTS_MAX;
use sqlx::PgConnection;

/// The events of one call.
#[derive(Debug)]
pub(crate) struct IngestRequest {
    pub(crate) events: Vec<PreparedEvent>,
    pub(crate) backfill: bool,
    /// Whether the call asks for the limits that apply to its event.
    pub(crate) with_limits: bool,
}

/// The processor that records the calls of a batch.
#[derive(Debug)]
pub(crate) struct IngestProcessor {
    pub(crate) environment: Environment,
    pub(crate) writer_context: WriterContext,
    pub(crate) reader: Reader,
}
