//! The settings of the engine.

use std::time::Duration;

use crate::engine::access::tokens::TokenSettings;
use crate::providers::stripe::StripeSettings;
use metergate_domain::base::Environment;

/// The settings of the engine, equal for both environments.
#[derive(Debug, Clone)]
pub struct EngineSettings {
    /// The greatest age of an event.
    pub event_age_max: Duration,
    /// The longest wait of a call for a writer. After it, the caller must retry.
    pub wait_max: Duration,
    /// The time for which a verified credential is not looked up again.
    pub credential_life: Duration,
    pub tokens: [(Environment, TokenSettings); 2],
    pub stripe: StripeSettings,
    /// The time after the end of a billing period during which usage still goes into it.
    pub late_grace: Duration,
}
