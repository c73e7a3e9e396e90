//! `/v1/exports` and `/v1/reconciliation`: the outbox to the biller, and what the biller has.

use axum::Json;
use axum::extract::{Extension, Path, State};
use axum::http::Uri;
use axum::response::{IntoResponse, Response};
use uuid::Uuid;

use super::Api;
use super::problem::Problem;
use super::query;
use super::query::Parameters;
use crate::engine::ReconciliationQuestion;
use crate::engine::access::Principal;
use crate::store::exports::ExportFilter;
use metergate_domain::base::fields::Violation;
use metergate_domain::base::window::Span;
use metergate_domain::exports::ExportStatus;

pub(super) async fn list(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    uri: Uri,
) -> Result<Response, Problem> {
    let mut parameters = Parameters::of(&uri);
    let filter = ExportFilter {
        status: parameters.optional("status", |value| query::word(value, &ExportStatus::WORDS)),
        customer: parameters.optional("customer", query::text),
        meter: parameters.optional("meter", query::text),
    };
    let cursor = parameters.optional("cursor", query::text);
    let limit = parameters.limit();
    parameters.finish()?;
    let page = api.engine.list_exports(principal.environment, &filter, cursor.as_deref(), limit).await?;
    Ok(Json(page).into_response())
}

pub(super) async fn run(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    uri: Uri,
) -> Result<Response, Problem> {
    Parameters::of(&uri).finish()?;
    Ok(Json(api.engine.run_exports(principal.environment).await?).into_response())
}

pub(super) async fn retry(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    Path(id): Path<String>,
    uri: Uri,
) -> Result<Response, Problem> {
    let mut parameters = Parameters::of(&uri);
    let id = Uuid::try_parse(&id).ok();
    if id.is_none() {
        parameters.add_error(Violation::new("invalid_id", "is no id of an export").under("id"));
    }
    parameters.finish()?;
    let export = api.engine.retry_export(principal.environment, id.unwrap_or_default()).await?;
    Ok(Json(export).into_response())
}

pub(super) async fn reconcile(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    uri: Uri,
) -> Result<Response, Problem> {
    let mut parameters = Parameters::of(&uri);
    let customer = parameters.required("customer", query::text);
    let meter = parameters.required("meter", query::text);
    let from = parameters.required("from", query::timestamp);
    let to = parameters.required("to", query::timestamp);
    let by_day = parameters.optional("window", |value| query::word(value, &[("hour", false), ("day", true)]));
    parameters.finish()?;
    let (Some(customer), Some(meter), Some(from), Some(to)) = (customer, meter, from, to) else {
        return Err(Problem::invalid(Vec::new()));
    };
    let question =
        ReconciliationQuestion { customer, meter, span: Span { from, to }, by_day: by_day.unwrap_or(false) };
    Ok(Json(api.engine.reconcile(principal.environment, &question).await?).into_response())
}
