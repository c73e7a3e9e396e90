//! The processor of events, and the work that it settles.

use super::prepared_event::PreparedEvent;
use crate::engine::writers::context::WriterContext;
use crate::engine::writers::reader::Reader;
use metergate_domain::base::Environment;

/// The events of one call.
#[derive(Debug)]
pub(crate) struct IngestRequest {
    pub(crate) events: Vec<PreparedEvent>,
    pub(crate) backfill: bool,
    /// True if the call asks for the limits that apply to its event.
    pub(crate) with_limits: bool,
}

/// The processor that records the calls of a batch.
#[derive(Debug)]
pub(crate) struct IngestProcessor {
    pub(crate) environment: Environment,
    pub(crate) writer_context: WriterContext,
    pub(crate) reader: Reader,
}
