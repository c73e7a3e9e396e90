//! Numbering: drafts past their grace receive the next numbers of their environment, in order. One replica
//! does this at a time. Each draft has its own transaction, so a crash leaves nothing half done.

use std::collections::BTreeSet;

use serde::Serialize;
use uuid::Uuid;

use super::drafting::InvoiceDraft;
use super::plan_history::PlanHistory;
use crate::engine::error::EngineError;
use crate::engine::services::{Engine, detached};
use crate::store::invoicing::{DraftOpening, FinalInvoice, Payer};
use crate::store::{self, Scope, StoreError};
use metergate_domain::base::Environment;
use metergate_domain::base::limits::INVOICES_PER_LOOK_MAX;
use metergate_domain::invoicing::line::total;
use metergate_domain::pricing::Currency;

/// The counts of a billing round.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct BillingRun {
    pub opened: u64,
    pub finalized: u64,
}

impl Engine {
    /// Opens the drafts of periods that have begun, and numbers drafts after their grace. Does nothing while
    /// another replica does this.
    pub async fn bill(&self, environment: Environment) -> Result<BillingRun, EngineError> {
        let engine = self.clone();
        detached(async move {
            let mut lock = engine.database().connect_writer().await?;
            let scope = &mut Scope::new(&mut lock, environment);
            if !store::invoicing::try_lock(scope).await? {
                sqlx::Connection::close(lock).await.map_err(StoreError::from)?;
                return Ok(BillingRun::default());
            }
            let billed = engine.bill_locked(environment).await;
            // if this fails, the lock ends with the connection
            if store::invoicing::unlock(scope).await.is_ok() {
                sqlx::Connection::close(lock).await.ok();
            }
            billed
        })
        .await
    }

    async fn bill_locked(&self, environment: Environment) -> Result<BillingRun, EngineError> {
        // due ends of subscriptions are applied first, because they end billing periods
        self.end_due_subscriptions(environment).await?;
        let mut billed = BillingRun::default();
        let mut connection = self.database().pool().acquire().await?;
        let now = self.inner.clock.now(environment, store::usage::now(&mut connection).await?);
        let scope = &mut Scope::new(&mut connection, environment);
        let mut plans = PlanHistory::read(scope).await?;
        let payers = store::invoicing::payers(scope, &plans.priced(), now).await?;
        for payer in payers {
            billed.opened += self.open_drafts(scope.connection, &mut plans, payer, now).await?;
        }
        let ended_by = now.saturating_sub(self.inner.settings.late_grace);
        loop {
            let limit = INVOICES_PER_LOOK_MAX;
            let due = store::invoicing::due(scope, ended_by, limit).await?;
            let mut settled = 0;
            for id in &due {
                settled += usize::from(self.finalize(environment, *id, &mut billed).await?);
            }
            if due.is_empty() || settled == 0 {
                return Ok(billed);
            }
        }
    }

    /// Numbers one draft, or drops it if there is nothing to bill. Returns false if it remains a draft.
    async fn finalize(
        &self,
        environment: Environment,
        id: Uuid,
        billed: &mut BillingRun,
    ) -> Result<bool, EngineError> {
        while self.sweep(environment).await? {}
        let begin = "begin isolation level repeatable read";
        let mut transaction = self.database().pool().begin_with(begin).await?;
        let scope = &mut Scope::new(&mut transaction, environment);
        let Some(row) = store::invoicing::find(scope, id).await? else { return Ok(true) };
        if row.numbered.is_some() {
            return Ok(true);
        }
        let now = self.inner.clock.now(environment, store::usage::now(scope.connection).await?);
        let draft = self.draft(scope, &row).await?;
        let is_empty = draft.is_empty();
        let InvoiceDraft { period, terms, lines, currencies } = draft;
        if period.to.saturating_add(self.inner.settings.late_grace) > now {
            // the period has become longer; the next round updates the draft
            return Ok(false);
        }
        if is_empty {
            store::invoicing::drop_draft(scope.connection, id).await?;
        } else {
            let (period_to, total) = (period.to, &total(&lines));
            let invoice = FinalInvoice { id, period_to, terms: &terms, lines: &lines, total, at: now };
            let number = store::invoicing::finalize(scope, invoice).await?;
            billed.finalized += u64::from(number.is_some());
            // the first numbered invoice settles the period: drafts in other currencies exist by then
            let payer = Payer { customer_id: row.customer_id, subject_id: row.subject_id };
            let others: BTreeSet<Currency> =
                currencies.into_iter().filter(|currency| *currency != row.currency).collect();
            let openings: Vec<DraftOpening> = DraftOpening::each(&others, period).collect();
            billed.opened += store::invoicing::open_drafts(scope, payer, &openings, now).await?;
        }
        transaction.commit().await?;
        Ok(true)
    }
}
