//! Invoices: the cost of each customer's usage in a billing period. A draft is computed when it is read.
//! After the period and a grace it is numbered and never changes. Later usage is a line of the next invoice.

mod billing;
mod billing_history;
mod comparing;
mod drafting;
mod plan_history;
mod rating;
mod upcoming;

use serde::Serialize;
use uuid::Uuid;

pub use billing::BillingRun;
pub use comparing::{ComparedInvoice, ComparedLine, ComparedTotal};

use super::{Engine, EngineError, Page, PageRequest};
use crate::store;
use crate::store::Scope;
use crate::store::invoicing::{InvoiceRow, Numbered, Payer};
use drafting::InvoiceDraft;
use metergate_domain::base::environment::Environment;
use metergate_domain::base::timestamp::Timestamp;
use metergate_domain::base::window::Span;
use metergate_domain::invoicing::InvoiceFilter;
use metergate_domain::invoicing::line::{InvoiceLine, RatingTerms, total};
use metergate_domain::pricing::amount::MinorUnits;
use metergate_domain::pricing::currency::Currency;

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
fn invoice_number(number: i64) -> String {
    format!("MG-{number:06}")
}

/// Returns the status: the biller's once an invoice is numbered. The list filter in SQL must agree.
fn status(row: &InvoiceRow) -> String {
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

fn not_found(id: Uuid) -> EngineError {
    EngineError::NotFound {
        code: "invoice_not_found",
        detail: format!("no invoice has the id `{id}`; list the invoices to see their ids"),
    }
}

impl Engine {
    /// Returns a page of invoices, the latest first. Missing drafts of the filter's subject are opened
    /// before.
    pub async fn list_invoices(
        &self,
        environment: Environment,
        filter: &InvoiceFilter,
        page: &PageRequest,
    ) -> Result<Page<InvoiceView>, EngineError> {
        let before = page.place()?.unwrap_or((Timestamp::MAX, Uuid::max()));
        if let Some(subject) = filter.subject.as_ref().filter(|_| page.cursor.is_none()) {
            self.open_drafts_of(environment, subject.as_str()).await?;
        }
        let mut connection = self.database().pool().acquire().await?;
        let rows = store::invoicing::list(
            &mut Scope::new(&mut connection, environment),
            filter,
            before,
            page.rows_max(),
        )
        .await?;
        Ok(Page::from_rows(rows, page.limit, |row| (row.created_at, row.id)).map(|row| self.listed(row)))
    }

    pub async fn get_invoice(&self, environment: Environment, id: Uuid) -> Result<InvoiceView, EngineError> {
        let mut snapshot = self.settled_snapshot(environment).await?;
        let scope = &mut Scope::new(&mut snapshot, environment);
        let row = store::invoicing::find(scope, id).await?;
        let row = row.ok_or_else(|| not_found(id))?;
        let (shown, _) = self.shown(scope, row).await?;
        Ok(shown)
    }

    /// Returns an invoice with its lines and rating terms.
    async fn shown(
        &self,
        scope: &mut Scope<'_>,
        row: InvoiceRow,
    ) -> Result<(InvoiceView, Vec<RatingTerms>), EngineError> {
        let (period, terms, lines) = if let Some(Numbered { terms, lines, .. }) = &row.numbered {
            (row.period, terms.clone(), lines.clone())
        } else {
            let InvoiceDraft { period, terms, lines, .. } = self.draft(scope, &row).await?;
            (period, terms, lines)
        };
        let total = total(&lines);
        let row = InvoiceRow { period, ..row };
        Ok((InvoiceView { lines: Some(lines), total: Some(total), ..self.listed(row) }, terms))
    }

    fn listed(&self, row: InvoiceRow) -> InvoiceView {
        let is_draft = row.numbered.is_none();
        let grace = self.inner.settings.late_grace;
        InvoiceView {
            id: row.id,
            status: status(&row),
            number: row.numbered.as_ref().map(|numbered| invoice_number(numbered.number)),
            subject: row.subject,
            customer: row.stripe_customer_id,
            currency: row.currency,
            period: row.period,
            finalizes_at: is_draft.then(|| row.period.to.saturating_add(grace)),
            finalized_at: row.numbered.as_ref().map(|numbered| numbered.finalized_at),
            created_at: row.created_at,
            lines: None,
            total: row.numbered.map(|numbered| numbered.total),
            provider: row.provider.map(|provider| ProviderView {
                name: "stripe",
                invoice: provider.id,
                status: provider.status,
                total: provider.total,
            }),
        }
    }
}

async fn payer_of(scope: &mut Scope<'_>, subject: &str) -> Result<Option<Payer>, EngineError> {
    let Some(row) = store::subjects::subject::find(scope, subject).await? else {
        return Ok(None);
    };
    Ok(store::invoicing::payer(scope.connection, row.id).await?)
}
