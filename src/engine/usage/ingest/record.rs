//! Recording events: the use case.

use crate::engine::error::EngineError;
use crate::engine::services::Engine;
use crate::engine::snapshot::TrackedUse;
use crate::engine::usage::ingest::prepared_event::EventOutcome;
use crate::engine::usage::ingest::prepared_event::PreparedEvent;
use crate::engine::usage::ingest::prepared_event::Times;
use crate::engine::usage::ingest::queues::IngestRequest;
use crate::engine::usage::ingest::unfolded_backlog::UnfoldedBacklog;
use metergate_domain::base::environment::Environment;
use metergate_domain::gate::decision::LimitState;
use metergate_domain::usage::event::Event;
use std::time::Duration;

/// The outcomes of the events of a call.
#[derive(Debug, Clone)]
pub struct RecordResult {
    pub outcomes: Vec<EventOutcome>,
    /// The limits that apply to the events, if the call asked for them.
    pub limits: Option<Vec<LimitState>>,
    /// The times of a single event, new or repeated.
    pub times: Option<Times>,
}

/// The longest wait for limits that need a look-up after recording.
pub(super) const LIMITS_MAX: Duration = Duration::from_secs(2);

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
