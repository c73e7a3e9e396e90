//! State and settings of the handlers and of the service around them.

use std::sync::Arc;
use std::time::Duration;

use axum::http::HeaderValue;
use metrics_exporter_prometheus::PrometheusHandle;

use crate::engine::Engine;

/// The state that every handler can reach.
#[derive(Debug, Clone)]
pub struct Api {
    pub engine: Engine,
    pub metrics: Arc<Option<PrometheusHandle>>,
}

#[derive(Debug, Clone)]
pub struct HttpSettings {
    /// Origins of pages that may call the routes of publishable keys and end-user tokens.
    pub cors_origins: Vec<HeaderValue>,
    /// Time limit of a request, including the time to read its body.
    pub request_max: Duration,
}

/// The route that sends exports. A run takes as long as the biller's rate limit requires: thousands of
/// exports at 24 per second.
pub(super) const EXPORTS_RUN: &str = "/v1/exports/run";

/// Routes without a time limit.
pub(super) const ROUTES_WITHOUT_TIMEOUT: [&str; 1] = [EXPORTS_RUN];
