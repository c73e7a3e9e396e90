//! Invoices as they are shown.

use crate::engine::error::EngineError;
use crate::store;
use crate::store::Scope;
use crate::store::invoicing::{InvoiceRow, Payer};
use metergate_domain::base::{Span, Timestamp};
use metergate_domain::invoicing::InvoiceLine;
use metergate_domain::pricing::{Currency, MinorUnits};
use serde::Serialize;
use uuid::Uuid;

#[derive(Debug, Clone, Serialize)]
pub struct InvoiceView {
    pub id: Uuid,
    /// The number; none for a draft.
    pub number: Option<String>,
    pub status: String,
    pub subject: String,
    pub customer: String,
    pub currency: Currency,
    pub period: Span,
    /// The earliest time at which a draft may be numbered.
    pub finalizes_at: Option<Timestamp>,
    pub finalized_at: Option<Timestamp>,
    pub created_at: Timestamp,
    /// The lines; lists leave them out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lines: Option<Vec<InvoiceLine>>,
    /// The sum of the rounded lines. Lists leave it out of drafts, which are computed only when they are
    /// read.
    pub total: Option<MinorUnits>,
    pub provider: Option<ProviderView>,
}

/// The invoice of the biller for the same customer and period.
#[derive(Debug, Clone, Serialize)]
pub struct ProviderView {
    pub name: &'static str,
    pub invoice: String,
    pub status: String,
    pub total: Option<i64>,
}

/// Returns the number in its written form.
pub(super) fn invoice_number(number: i64) -> String {
    format!("MG-{number:06}")
}

/// Returns the status: the biller's once an invoice is numbered. The list filter in SQL must agree.
pub(super) fn status(row: &InvoiceRow) -> String {
    match (&row.numbered, &row.provider) {
        (None, _) => "draft".to_owned(),
        (Some(_), Some(provider))
            if ["open", "paid", "void", "uncollectible"].contains(&provider.status.as_str()) =>
        {
            provider.status.clone()
        }
        (Some(_), _) => "final".to_owned(),
    }
}

pub(super) fn not_found(id: Uuid) -> EngineError {
    EngineError::NotFound {
        code: "invoice_not_found",
        detail: format!("no invoice has the id `{id}`; list the invoices to see their ids"),
    }
}

pub(super) async fn payer_of(scope: &mut Scope<'_>, subject: &str) -> Result<Option<Payer>, EngineError> {
    let Some(row) = store::subjects::subject::find(scope, subject).await? else {
        return Ok(None);
    };
    Ok(store::invoicing::payer(scope.connection, row.id).await?)
}
