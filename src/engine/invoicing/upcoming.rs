//! The draft of the running period, or the reason for its absence.

use uuid::Uuid;

use super::billing_history::BillingHistory;
use super::plan_history::PlanHistory;
use super::views::{InvoiceView, payer_of};
use crate::engine::error::EngineError;
use crate::engine::services::Engine;
use crate::store;
use crate::store::Scope;
use crate::store::invoicing::Payer;
use metergate_domain::base::names::SubjectId;
use metergate_domain::base::{Environment, Timestamp};

impl Engine {
    /// Returns the draft of the running period for a subject's customer.
    pub async fn upcoming_invoice(
        &self,
        environment: Environment,
        subject: &SubjectId,
    ) -> Result<InvoiceView, EngineError> {
        let id = self.upcoming_id(environment, subject).await?;
        self.get_invoice(environment, id).await
    }

    pub(super) async fn upcoming_id(
        &self,
        environment: Environment,
        subject: &SubjectId,
    ) -> Result<Uuid, EngineError> {
        self.open_drafts_of(environment, subject.as_str()).await?;
        let mut connection = self.database().pool().acquire().await?;
        let scope = &mut Scope::new(&mut connection, environment);
        let now = self.inner.clock.now(environment, store::usage::now(scope.connection).await?);
        let payer = payer_of(scope, subject.as_str()).await?;
        if let Some(payer) = payer
            && let Some(id) = self.first(scope, payer, now).await?
        {
            return Ok(id);
        }
        let detail = why_none(scope, subject, payer, now).await?;
        Err(EngineError::NotFound { code: "no_upcoming_invoice", detail })
    }

    /// Returns the draft to show. A period has one draft per currency: the currency of the prices in
    /// force wins, then the first draft with lines.
    async fn first(
        &self,
        scope: &mut Scope<'_>,
        payer: Payer,
        now: Timestamp,
    ) -> Result<Option<Uuid>, EngineError> {
        let mut present = store::invoicing::of_payer(scope.connection, payer, now).await?;
        present.retain(|row| row.numbered.is_none() && row.period.contains(now));
        let mut plans = PlanHistory::read(scope).await?;
        let book = BillingHistory::read(scope.connection, &mut plans, payer).await?;
        if let Some(plan_change) = book.timeline.at(now).filter(|plan_change| plan_change.is_billed()) {
            let currency = plans.currency_of(scope.connection, &plan_change.plan, &plan_change.own).await?;
            if let Some(row) = present.iter().find(|row| Some(row.currency) == currency) {
                return Ok(Some(row.id));
            }
        }
        for row in &present {
            if !self.draft(scope, row).await?.is_empty() {
                return Ok(Some(row.id));
            }
        }
        Ok(None)
    }
}

async fn why_none(
    scope: &mut Scope<'_>,
    subject: &SubjectId,
    payer: Option<Payer>,
    now: Timestamp,
) -> Result<String, EngineError> {
    let Some(payer) = payer else {
        return Ok(format!("`{subject}` has no customer: set its `stripe_customer_id`"));
    };
    let mut plans = PlanHistory::read(scope).await?;
    let book = BillingHistory::read(scope.connection, &mut plans, payer).await?;
    let Some(plan_change) = book.timeline.at(now) else {
        return Ok(format!(
            "neither `{subject}` nor an ancestor is on a plan with prices: subscribe it to one"
        ));
    };
    if !plans.rate_any(scope.connection, std::slice::from_ref(plan_change)).await? {
        return Ok(format!(
            "the plan `{}` has no prices: subscribe `{subject}` to a plan with prices",
            plan_change.plan
        ));
    }
    if !plan_change.is_billed() {
        let status = plan_change.status.as_str();
        return Ok(format!(
            "the subscription of `{subject}` is `{status}`, and nothing is billed in this status"
        ));
    }
    Ok(format!("the customer of `{subject}` has no usage in this period, and another customer owes the fees"))
}
