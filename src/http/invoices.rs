//! `/v1/invoices`: invoices as JSON, CSV or a printable page, and their comparison with the biller's
//! invoices.

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use uuid::Uuid;

use super::extract::{Caller, IdPath, QueryOf, SubjectPath};
use super::problem::Problem;
use super::query::{FromQuery, Parameters};
use super::state::Api;
use super::{accept, csv, invoice_page};
use crate::engine::{InvoiceView, Page, PageRequest};
use metergate_domain::base::names::StripeCustomerId;
use metergate_domain::invoicing::InvoiceFilter;

const STATUSES: [&str; 6] = ["draft", "final", "open", "paid", "void", "uncollectible"];

impl FromQuery for InvoiceFilter {
    fn parse(parameters: &mut Parameters) -> Option<Self> {
        Some(Self {
            subject: parameters.subject("subject"),
            customer: parameters.optional("customer", |value| Ok(StripeCustomerId::parse(value)?)),
            status: parameters.word("status", &STATUSES.map(|word| (word, word))),
        })
    }
}

pub(super) async fn list(
    State(api): State<Api>,
    caller: Caller,
    QueryOf((filter, page)): QueryOf<(InvoiceFilter, PageRequest)>,
) -> Result<Json<Page<InvoiceView>>, Problem> {
    Ok(Json(api.engine.list_invoices(caller.environment, &filter, &page).await?))
}

/// The request to compare with the biller's invoice.
pub(super) struct ComparisonFlag(bool);

impl FromQuery for ComparisonFlag {
    fn parse(parameters: &mut Parameters) -> Option<Self> {
        Some(Self(parameters.word("compare", &[("provider", ())]).is_some()))
    }
}

pub(super) async fn get(
    State(api): State<Api>,
    caller: Caller,
    IdPath(id): IdPath<Uuid>,
    QueryOf(ComparisonFlag(compare)): QueryOf<ComparisonFlag>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    if compare {
        return Ok(Json(api.engine.compare_invoice(caller.environment, id).await?).into_response());
    }
    shown(&api.engine.get_invoice(caller.environment, id).await?, &headers)
}

pub(super) async fn upcoming(
    State(api): State<Api>,
    caller: Caller,
    QueryOf(ComparisonFlag(compare)): QueryOf<ComparisonFlag>,
    SubjectPath(subject): SubjectPath,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    if compare {
        let compared = api.engine.compare_upcoming_invoice(caller.environment, &subject).await?;
        return Ok(Json(compared).into_response());
    }
    shown(&api.engine.upcoming_invoice(caller.environment, &subject).await?, &headers)
}

/// Returns an invoice in the media type that the caller prefers.
fn shown(invoice: &InvoiceView, headers: &HeaderMap) -> Result<Response, Problem> {
    match accept::preferred(headers, &["application/json", "text/csv", "text/html"]) {
        "text/csv" => csv::invoice(invoice),
        "text/html" => Ok(invoice_page::page(invoice)),
        _ => Ok(Json(invoice).into_response()),
    }
}
