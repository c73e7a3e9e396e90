//! Records events. Single events and bulk calls have separate lanes, so that neither waits for the
//! other.

mod batch;
mod unfolded_backlog;

use std::sync::Arc;
use std::time::Duration;

use sqlx::PgConnection;
use uuid::Uuid;

use crate::engine::clock::Clock;
use crate::engine::environment_cache::EnvironmentCaches;
use crate::engine::gate::counters::Reader;
use crate::engine::snapshot::TrackedUse;
use crate::engine::writers::Interrupt;
use crate::engine::writers::lane::{Lane, WriterTasks};
use crate::engine::writers::months::Months;
use crate::engine::writers::{Attempt, BatchProcessor, Weight};
use crate::engine::{Engine, EngineError};
use crate::store::{Database, StoreError};
use metergate_domain::base::environment::Environment;
use metergate_domain::base::fields::Violation;
use metergate_domain::base::limits::TRANSACTION_EVENTS_MAX;
use metergate_domain::base::names::EventId;
use metergate_domain::base::quantity::Quantity;
use metergate_domain::base::timestamp::Timestamp;
use metergate_domain::gate::decision::LimitState;
use metergate_domain::usage::event::{Event, Properties, event_key, key_is_id};

pub use unfolded_backlog::UnfoldedBacklog;
pub(crate) use unfolded_backlog::UnfoldedBacklogs;

/// The outcome of one event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EventOutcome {
    /// Recorded, durable and counted.
    Accepted,
    /// Recorded by an earlier event with the same id and content.
    Duplicate,
    Rejected(Violation),
}

/// The outcomes of the events of a call.
#[derive(Debug, Clone)]
pub struct RecordResult {
    pub outcomes: Vec<EventOutcome>,
    /// The limits that apply to the events, if the call asked for them.
    pub limits: Option<Vec<LimitState>>,
    /// The times of a single event, new or repeated.
    pub times: Option<Times>,
}

/// The times of a recorded event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    /// The time of the event as first recorded.
    pub occurred_at: Timestamp,
    /// The time of the answer.
    pub answered_at: Timestamp,
}

/// The services that all batch processors share.
#[derive(Debug, Clone)]
pub(crate) struct WriterContext {
    pub(crate) database: Database,
    pub(crate) clock: Clock,
    pub(crate) caches: Arc<EnvironmentCaches>,
    pub(crate) tails: Arc<UnfoldedBacklogs>,
    pub(crate) age_max: Duration,
    pub(crate) months: Months,
}

/// An event with its fingerprints, ready to record.
#[derive(Debug)]
pub(crate) struct PreparedEvent {
    key: Uuid,
    content: Uuid,
    event_name: String,
    subject: String,
    value: Quantity,
    properties: Properties,
    properties_json: Option<String>,
    timestamp: Option<Timestamp>,
    /// None if the key is the id.
    id: Option<String>,
    source: Option<String>,
}

impl PreparedEvent {
    fn of(event: Event) -> Self {
        let content = event.content();
        let id = event.id.unwrap_or_else(new_id);
        let key = event_key(&event.source, &id);
        let stored_id = (!key_is_id(&event.source, &id)).then(|| id.into_string());
        Self {
            key,
            content,
            event_name: event.event_name.into_string(),
            subject: event.subject.into_string(),
            value: event.value,
            properties_json: event.properties.to_json(),
            properties: event.properties,
            timestamp: event.timestamp,
            id: stored_id,
            source: (!event.source.is_empty()).then(|| event.source.as_str().to_owned()),
        }
    }

    /// Returns the memory that the event takes while it waits.
    fn bytes(&self) -> usize {
        size_of::<Self>()
            + self.event_name.len()
            + self.subject.len()
            // counted as text, and as a map with as much again for its structure
            + self.properties_json.as_ref().map_or(0, |json| json.len() * 4)
    }
}

/// Creates the id of an event without one.
pub(crate) fn new_id() -> EventId {
    match EventId::parse(Uuid::now_v7().to_string()) {
        Ok(id) => id,
        Err(_) => unreachable!("a UUID is a valid id"),
    }
}

/// The events of one call.
#[derive(Debug)]
pub(crate) struct IngestRequest {
    events: Vec<PreparedEvent>,
    backfill: bool,
    /// Whether the call asks for the limits that apply to its event.
    with_limits: bool,
}

/// The processor that records the calls of a batch.
#[derive(Debug)]
pub(crate) struct IngestProcessor {
    environment: Environment,
    writer_context: WriterContext,
    reader: Reader,
}

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

/// The longest wait for limits that need a look-up after recording.
const LIMITS_MAX: Duration = Duration::from_secs(2);
/// A second writer would halve the batches; it was measured to be slower.
const SINGLE_WRITERS: usize = 1;
/// One writer works while the other waits for the disk.
const BULK_WRITERS: usize = 2;

/// The ingest lanes of an environment.
#[derive(Debug)]
pub(crate) struct IngestQueues {
    single: Lane<IngestProcessor>,
    bulk: Lane<IngestProcessor>,
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

impl Engine {
    /// Records events, and returns the outcomes when all accepted events are durable. `backfill`
    /// accepts any past time. `with_limits` also returns the limits that apply to the events.
    pub async fn record(
        &self,
        environment: Environment,
        events: Vec<Event>,
        backfill: bool,
        with_limits: bool,
    ) -> Result<RecordResult, EngineError> {
        let uses: Vec<TrackedUse> = events.iter().filter(|_| with_limits).map(TrackedUse::of).collect();
        let delivery = IngestRequest {
            events: events.into_iter().map(PreparedEvent::of).collect(),
            backfill,
            with_limits,
        };
        let ingest_queues = &self.inner.services(environment).ingest_queues;
        let lane = if delivery.events.len() == 1 { &ingest_queues.single } else { &ingest_queues.bulk };
        let mut recorded = lane.submit(delivery, self.inner.settings.wait_max).await?;
        if with_limits && recorded.limits.is_none() {
            let met = uses.into_iter().zip(&recorded.outcomes);
            let met = met.filter(|(_, outcome)| !matches!(outcome, EventOutcome::Rejected(_)));
            let met = met.map(|(event, _)| event).collect();
            // the events are already recorded, so the call succeeds even if the look-up of limits
            // fails
            let told = tokio::time::timeout(LIMITS_MAX, self.limits_met(environment, met)).await;
            recorded.limits = told.ok().and_then(|told| {
                told.inspect_err(
                    |why| tracing::warn!(%why, "the limits of a recorded event could not be read"),
                )
                .ok()
            });
        }
        Ok(recorded)
    }

    /// Returns the unfolded backlog.
    pub fn tail(&self, environment: Environment) -> &UnfoldedBacklog {
        self.inner.tails.of(environment)
    }
}
