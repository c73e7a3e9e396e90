//! The queues of events: a lane for single events, and one for bulk.

use super::prepared_event::{PreparedEvent, RecordResult};
use crate::engine::usage::ingest::batch;
use crate::engine::usage::ingest::processor::{IngestProcessor, IngestRequest};
use crate::engine::writers::context::WriterContext;
use crate::engine::writers::interrupt::Interrupt;
use crate::engine::writers::lane::{Lane, WriterTasks};
use crate::engine::writers::processor::{Attempt, BatchProcessor, Weight};
use crate::engine::writers::reader::Reader;
use crate::store::StoreError;
use metergate_domain::base::Environment;
use metergate_domain::base::limits::TRANSACTION_EVENTS_MAX;
use sqlx::PgConnection;

impl BatchProcessor for IngestProcessor {
    type Work = IngestRequest;
    type Reply = RecordResult;

    fn environment(&self) -> Environment {
        self.environment
    }

    fn writer_context(&self) -> &WriterContext {
        &self.writer_context
    }

    fn weigh(delivery: &IngestRequest) -> Weight {
        let bytes = delivery.events.iter().map(PreparedEvent::bytes).sum();
        Weight { items: delivery.events.len(), bytes }
    }

    fn restarted(&self) -> Self {
        let reader = Reader::new(self.writer_context.database.clone());
        Self { environment: self.environment, writer_context: self.writer_context.clone(), reader }
    }

    async fn rest(&self) {
        self.writer_context.tails.of(self.environment).wait_until_short().await;
    }

    async fn attempt(
        &mut self,
        connection: &mut PgConnection,
        work: &[&IngestRequest],
        uncertain: &[i64],
    ) -> Result<Attempt<RecordResult>, StoreError> {
        batch::attempt(self, connection, work, uncertain).await.or_else(Interrupt::attempt)
    }
}

/// A second writer would halve the batches; it was measured to be slower.
pub(super) const SINGLE_WRITERS: usize = 1;

/// One writer works while the other waits for the disk.
pub(super) const BULK_WRITERS: usize = 2;

/// The ingest lanes of an environment.
#[derive(Debug)]
pub(crate) struct IngestQueues {
    pub(super) single: Lane<IngestProcessor>,
    pub(super) bulk: Lane<IngestProcessor>,
}

impl IngestQueues {
    pub(crate) fn start(
        environment: Environment,
        writer_context: &WriterContext,
        writer_tasks: &mut WriterTasks,
    ) -> Self {
        let mut lane = |name: &str, writers: usize| {
            let trade = |_| IngestProcessor {
                environment,
                writer_context: writer_context.clone(),
                reader: Reader::new(writer_context.database.clone()),
            };
            let trades = (0..writers).map(trade).collect();
            let name = format!("{environment}_{name}");
            Lane::start(name, TRANSACTION_EVENTS_MAX, &writer_context.database, trades, writer_tasks)
        };
        Self { single: lane("single", SINGLE_WRITERS), bulk: lane("bulk", BULK_WRITERS) }
    }

    pub(crate) fn close(&self) {
        self.single.close();
        self.bulk.close();
    }
}
