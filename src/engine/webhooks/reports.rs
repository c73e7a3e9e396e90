//! Reports of meter events that the biller took and did not count. They come without their contents,
//! which are fetched; only samples are given.

use super::news::is_plain;
use super::round::Outcome;
use super::{Engine, EngineError};
use crate::domain::environment::Environment;
use crate::providers::stripe::webhook;

impl Engine {
    pub(super) async fn heard_of_meter_errors(
        &self,
        environment: Environment,
        event_id: &str,
    ) -> Result<Outcome, EngineError> {
        let Some(stripe) = self.inner.webhooks.desk(environment).stripe.clone() else {
            return Ok(Outcome::Ignored("its contents cannot be fetched without an API key"));
        };
        if !is_plain(event_id) {
            return Ok(Outcome::malformed());
        }
        let event = match stripe.client().get(&format!("/v2/core/events/{event_id}"), &[]).await {
            Ok(event) => event,
            Err(fault) if fault.status == Some(404) => {
                return Ok(Outcome::Failed("the biller does not know the event".to_owned()));
            }
            Err(fault) => return Ok(Outcome::Later(fault)),
        };
        let found = webhook::uncounted(&event);
        let failures: Vec<(&str, &str, &str)> = found
            .iter()
            .map(|one| (one.identifier.as_str(), one.code.as_str(), one.message.as_str()))
            .collect();
        self.mark_exports_failed(environment, &failures);
        Ok(Outcome::Applied)
    }

    /// Identifier, code and message of meter events that were taken and not counted.
    #[expect(clippy::unused_self, reason = "it is a call of the engine wherever it stands")]
    fn mark_exports_failed(&self, environment: Environment, failures: &[(&str, &str, &str)]) {
        for (identifier, code, message) in failures {
            tracing::error!(%environment, identifier, code, message, "the biller did not count a meter event");
            metrics::counter!("metergate_uncounted_meter_events_total", "environment" => environment.as_str())
                .increment(1);
        }
    }
}
