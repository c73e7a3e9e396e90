//! `/v1/invoices`: as JSON, as CSV, as a page to print, and against the biller's.

use axum::Json;
use axum::extract::{Extension, Path, State};
use axum::http::{HeaderMap, Uri};
use axum::response::{IntoResponse, Response};
use uuid::Uuid;

use super::problem::Problem;
use super::query;
use super::query::Parameters;
use super::{Api, accept, csv, invoice_page, subjects};
use crate::engine::InvoiceView;
use crate::engine::access::Principal;
use crate::store::invoicing::InvoiceFilter;
use metergate_domain::base::fields::{Parsed, Violation};
use metergate_domain::base::names::StripeCustomerId;

const STATUSES: [&str; 6] = ["draft", "final", "open", "paid", "void", "uncollectible"];

pub(super) async fn list(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    uri: Uri,
) -> Result<Response, Problem> {
    let mut parameters = Parameters::of(&uri);
    let subject = parameters.optional("subject", subjects::parse);
    let customer = parameters.optional("customer", |value| Ok(StripeCustomerId::parse(value)?));
    let words = STATUSES.map(|word| (word, word));
    let status = parameters.optional("status", |value| query::word(value, &words));
    let cursor = parameters.optional("cursor", query::text);
    let limit = parameters.limit();
    parameters.finish()?;
    let filter = InvoiceFilter {
        subject: subject.map(|subject| subject.to_string()),
        customer: customer.map(StripeCustomerId::into_string),
        status: status.map(str::to_owned),
    };
    let page = api.engine.list_invoices(principal.environment, &filter, cursor.as_deref(), limit).await?;
    Ok(Json(page).into_response())
}

pub(super) async fn get(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    Path(id): Path<String>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let mut parameters = Parameters::of(&uri);
    let id = Uuid::try_parse(&id).ok();
    if id.is_none() {
        parameters.add_error(Violation::new("invalid_id", "is no id of an invoice").under("id"));
    }
    let compare = parameters.optional("compare", against).is_some();
    parameters.finish()?;
    let id = id.unwrap_or_default();
    if compare {
        return Ok(Json(api.engine.compare_invoice(principal.environment, id).await?).into_response());
    }
    shown(&api.engine.get_invoice(principal.environment, id).await?, &headers)
}

pub(super) async fn upcoming(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    Path(subject): Path<String>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let mut parameters = Parameters::of(&uri);
    let compare = parameters.optional("compare", against).is_some();
    parameters.finish()?;
    let subject = subjects::in_path(subject)?;
    if compare {
        let compared = api.engine.compare_upcoming_invoice(principal.environment, &subject).await?;
        return Ok(Json(compared).into_response());
    }
    shown(&api.engine.upcoming_invoice(principal.environment, &subject).await?, &headers)
}

/// What an invoice is set against.
fn against(value: String) -> Parsed<()> {
    query::word(value, &[("provider", ())])
}

/// In the form that is asked for.
fn shown(invoice: &InvoiceView, headers: &HeaderMap) -> Result<Response, Problem> {
    match accept::preferred(headers, &["application/json", "text/csv", "text/html"]) {
        "text/csv" => csv::invoice(invoice),
        "text/html" => Ok(invoice_page::page(invoice)),
        _ => Ok(Json(invoice).into_response()),
    }
}
