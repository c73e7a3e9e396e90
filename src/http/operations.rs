//! Routes for operators and tools: health, metrics, and the `OpenAPI` document.

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use serde_json::json;
use utoipa_swagger_ui::{Config, SwaggerUi};

use super::problem::Problem;
use super::state::Api;
use crate::engine::EngineError;

/// The `OpenAPI` document, compiled in.
pub(super) const OPENAPI: &str = include_str!("../../openapi.yaml");

/// Answers 200 while the process runs.
pub(super) async fn healthz() -> Response {
    Json(json!({"status": "ok"})).into_response()
}

/// Answers 200 if the database is reachable and fully migrated, and every lane has a running writer.
pub(super) async fn readyz(State(api): State<Api>) -> Result<Response, Problem> {
    if !api.engine.is_ready().await? {
        return Err(Problem::from(EngineError::Unavailable {
            code: "not_migrated",
            detail: "the database lacks migrations of this version; restart the service to apply them".into(),
            why: "migrations are missing".to_owned(),
        }));
    }
    let dead = api.engine.dead_lanes();
    if !dead.is_empty() {
        let detail =
            format!("no writer is running in: {}; restart the service if this persists", dead.join(", "));
        return Err(Problem::from(EngineError::Unavailable {
            code: "writers_stopped",
            detail: detail.clone().into(),
            why: detail,
        }));
    }
    Ok(Json(json!({"status": "ready"})).into_response())
}

/// Answers with the metrics in Prometheus's text format.
pub(super) async fn metrics(State(api): State<Api>) -> Response {
    let pool = api.engine.database().pool();
    metrics::gauge!("metergate_pool_connections").set(f64::from(pool.size()));
    let idle = u32::try_from(pool.num_idle()).unwrap_or(u32::MAX);
    metrics::gauge!("metergate_pool_idle_connections").set(f64::from(idle));
    let text = api.metrics.as_ref().as_ref().map(metrics_exporter_prometheus::PrometheusHandle::render);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text.unwrap_or_default())
        .into_response()
}

pub(super) async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/yaml; charset=utf-8")], OPENAPI).into_response()
}

/// Serves a page that shows the `OpenAPI` document, with all assets from this binary.
pub(super) fn docs() -> Router<Api> {
    SwaggerUi::new("/docs").config(Config::from("/openapi.yaml").validator_url("none")).into()
}
