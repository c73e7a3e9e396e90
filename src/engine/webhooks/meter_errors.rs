//! Reports of meter events that the provider took but did not count. A webhook lacks the report, so it
//! is fetched; it contains samples only.

use super::fetch::is_plain;
use super::worker::WebhookOutcome;
use crate::engine::error::EngineError;
use crate::engine::services::Engine;
use crate::providers::stripe::webhook;
use metergate_domain::base::Environment;

impl Engine {
    /// Fetches a report, and marks its exports as dead.
    pub(super) async fn on_meter_errors(
        &self,
        environment: Environment,
        event_id: &str,
    ) -> Result<WebhookOutcome, EngineError> {
        let Some(stripe) = self.stripe(environment) else {
            return Ok(WebhookOutcome::Ignored("the report cannot be fetched without an API key; set one"));
        };
        if !is_plain(event_id) {
            return Ok(WebhookOutcome::malformed());
        }
        let event = match stripe.client().get(&format!("/v2/core/events/{event_id}"), &[]).await {
            Ok(event) => event,
            Err(fault) if fault.status == Some(404) => {
                return Ok(WebhookOutcome::Failed("the provider does not know the event".to_owned()));
            }
            Err(fault) => return Ok(WebhookOutcome::Later(fault)),
        };
        self.mark_exports_failed(environment, &webhook::uncounted(&event)).await?;
        Ok(WebhookOutcome::Applied)
    }
}
