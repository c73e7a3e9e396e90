//! Reads invoices, and drafts those that are due: the use cases.

use super::drafting::InvoiceDraft;
use super::views::{InvoiceView, ProviderView, invoice_number, status};
use crate::engine::error::EngineError;
use crate::engine::invoicing::views::not_found;
use crate::engine::page::{Page, PageRequest};
use crate::engine::services::Engine;
use crate::store;
use crate::store::Scope;
use crate::store::invoicing::{InvoiceRow, Numbered};
use metergate_domain::base::{Environment, Timestamp};
use metergate_domain::invoicing::line::total;
use metergate_domain::invoicing::{InvoiceFilter, RatingTerms};
use uuid::Uuid;

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
    pub(super) async fn shown(
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

    pub(super) fn listed(&self, row: InvoiceRow) -> InvoiceView {
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
