//! The draft of the period that is under way; where there is none, why.

use uuid::Uuid;

use super::billing_history::BillingHistory;
use super::plan_history::PlanHistory;
use super::{Engine, EngineError, InvoiceView, payer_of};
use crate::store;
use crate::store::Scope;
use crate::store::invoicing::Payer;
use metergate_domain::base::environment::Environment;
use metergate_domain::base::names::SubjectId;
use metergate_domain::base::timestamp::Timestamp;

impl Engine {
    /// The draft of the period that is under way for a subject's customer.
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

    /// Of the drafts of a period, one for each currency that it has or may have to correct: that of the prices in
    /// force, else the first that has something to say.
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
        return Ok(format!("`{subject}` is mapped to no customer: give it a `stripe_customer_id`"));
    };
    let mut plans = PlanHistory::read(scope).await?;
    let book = BillingHistory::read(scope.connection, &mut plans, payer).await?;
    let Some(plan_change) = book.timeline.at(now) else {
        return Ok(format!(
            "neither `{subject}` nor a subject above it is on a plan with prices: put it on one"
        ));
    };
    if !plans.rate_any(scope.connection, std::slice::from_ref(plan_change)).await? {
        return Ok(format!("the plan `{}` has no prices: put `{subject}` on one that has", plan_change.plan));
    }
    if !plan_change.is_billed() {
        let status = plan_change.status.as_str();
        return Ok(format!("the subscription of `{subject}` is `{status}`: nothing is billed meanwhile"));
    }
    Ok(format!(
        "nothing was used for the customer of `{subject}` in this period, and another one owes the fees"
    ))
}
