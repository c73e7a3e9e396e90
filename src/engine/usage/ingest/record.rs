//! Recording events: the use case.

use super::prepared_event::{EventOutcome, PreparedEvent, RecordResult};
use super::processor::IngestRequest;
use super::unfolded_backlog::UnfoldedBacklog;
use crate::engine::error::EngineError;
use crate::engine::services::Engine;
use crate::engine::snapshot::TrackedUse;
use metergate_domain::base::Environment;
use metergate_domain::usage::Event;
use std::time::Duration;

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
