//! `/v1/exports` and `/v1/reconciliation`: the outbox, and its comparison with the biller's summaries.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use uuid::Uuid;

use super::extract::{Caller, IdPath, NoQuery, QueryOf};
use super::problem::Problem;
use super::query;
use super::query::{FromQuery, Parameters};
use super::state::Api;
use crate::engine::{ExportRow, Page, PageRequest, Ran, ReconciliationQuestion};
use metergate_domain::base::Span;
use metergate_domain::exports::{ExportFilter, ExportStatus};

impl FromQuery for ExportFilter {
    fn parse(parameters: &mut Parameters) -> Option<Self> {
        Some(Self {
            status: parameters.word("status", &ExportStatus::WORDS),
            customer: parameters.optional("customer", query::text),
            meter: parameters.optional("meter", query::text),
        })
    }
}

pub(super) async fn list(
    State(api): State<Api>,
    caller: Caller,
    QueryOf((filter, page)): QueryOf<(ExportFilter, PageRequest)>,
) -> Result<Json<Page<ExportRow>>, Problem> {
    Ok(Json(api.engine.list_exports(caller.environment, &filter, &page).await?))
}

pub(super) async fn run(State(api): State<Api>, caller: Caller, _: NoQuery) -> Result<Json<Ran>, Problem> {
    Ok(Json(api.engine.run_exports(caller.environment).await?))
}

pub(super) async fn retry(
    State(api): State<Api>,
    caller: Caller,
    IdPath(id): IdPath<Uuid>,
    _: NoQuery,
) -> Result<Json<ExportRow>, Problem> {
    Ok(Json(api.engine.retry_export(caller.environment, id).await?))
}

impl FromQuery for ReconciliationQuestion {
    fn parse(parameters: &mut Parameters) -> Option<Self> {
        let customer = parameters.required("customer", query::text);
        let meter = parameters.required("meter", query::text);
        let (from, to) =
            (parameters.required("from", query::timestamp), parameters.required("to", query::timestamp));
        let by_day = parameters.word("window", &[("hour", false), ("day", true)]).unwrap_or(false);
        Some(Self { customer: customer?, meter: meter?, span: Span { from: from?, to: to? }, by_day })
    }
}

pub(super) async fn reconcile(
    State(api): State<Api>,
    caller: Caller,
    QueryOf(question): QueryOf<ReconciliationQuestion>,
) -> Result<Json<impl Serialize>, Problem> {
    Ok(Json(api.engine.reconcile(caller.environment, &question).await?))
}
