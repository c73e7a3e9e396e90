//! The billing history of a customer: the nearest subscription with prices on the subject's path over time,
//! and the customers that the subject was mapped to.

use std::time::Duration;

use sqlx::PgConnection;

use super::plan_history::PlanHistory;
use crate::engine::error::EngineError;
use crate::store;
use crate::store::invoicing::Payer;
use crate::store::subjects::subscriptions::HistoryRow;
use metergate_domain::base::limits::INVOICE_TURNS_MAX;
use metergate_domain::base::names::PlanKey;
use metergate_domain::base::{Cycle, Span, Timestamp};
use metergate_domain::invoicing::{BillingPeriod, Mappings, OwnPricing, PlanChange, Timeline};
use metergate_domain::subjects::subscription::{read_commitments, read_prices};

fn unreadable(what: impl std::fmt::Debug) -> EngineError {
    EngineError::Internal(format!("a stored subscription cannot be read: {what:?}"))
}

fn plan_change(row: HistoryRow) -> Result<PlanChange, EngineError> {
    let billing = row.period_start.zip(row.period_end);
    Ok(PlanChange {
        at: row.at,
        plan: PlanKey::parse(row.plan).map_err(unreadable)?,
        own: OwnPricing {
            prices: read_prices(row.prices).map_err(unreadable)?,
            commitments: read_commitments(row.commitments).map_err(unreadable)?,
        },
        status: row.status,
        cycle: Cycle { anchor: row.cycle_anchor, billing: billing.map(|(from, to)| Span { from, to }) },
        closes: row.change.is_end(),
    })
}

#[derive(Debug)]
pub(super) struct BillingHistory {
    payer: Payer,
    pub(super) timeline: Timeline,
    /// The time from which the subject's own subscription is billed; none: an ancestor's subscription is
    /// billed.
    own_from: Option<Timestamp>,
    mappings: Mappings,
}

impl BillingHistory {
    pub(super) async fn read(
        connection: &mut PgConnection,
        plans: &mut PlanHistory,
        payer: Payer,
    ) -> Result<Self, EngineError> {
        let mut plan_changes: Vec<PlanChange> = Vec::new();
        let mut own_from = None;
        for subject_id in store::subjects::subject::ancestor_ids(connection, payer.subject_id).await? {
            let history =
                store::subjects::subscriptions::history(connection, subject_id, INVOICE_TURNS_MAX).await?;
            let mut earlier = history.into_iter().map(plan_change).collect::<Result<Vec<_>, _>>()?;
            if !plans.rate_any(connection, &earlier).await? {
                continue;
            }
            if let Some(first) = earlier.first_mut() {
                first.at = first.first_begins();
                own_from = Some(first.at).filter(|_| subject_id == payer.subject_id).or(own_from);
            }
            // an ancestor's subscription counts until there is a nearer one
            if let Some(nearer) = plan_changes.first() {
                earlier.retain(|plan_change| plan_change.at < nearer.at);
            }
            earlier.append(&mut plan_changes);
            plan_changes = earlier;
        }
        let mappings = store::subjects::customer_mappings::of_subject(connection, payer.subject_id).await?;
        Ok(Self { payer, timeline: Timeline::of(plan_changes), own_from, mappings })
    }

    /// Returns the periods that have begun and are not numbered yet.
    pub(super) async fn periods(
        &self,
        connection: &mut PgConnection,
        now: Timestamp,
    ) -> Result<Vec<BillingPeriod>, EngineError> {
        let until = store::invoicing::billed_until(connection, self.payer).await?;
        Ok(self.timeline.periods(until.map(|(until, _)| until), now))
    }

    /// Returns whether the customer owes the fixed fees of a period.
    pub(super) fn owes_fixed_fees(&self, span: Span) -> bool {
        self.own_from.is_some_and(|from| from < span.to)
            && self.mappings.last_in(span) == Some(self.payer.customer_id)
    }

    /// Returns whether usage may have been recorded for the customer in a period. Events have a maximum age
    /// and count only while the subject is mapped.
    pub(super) fn may_have_usage(&self, span: Span, age_max: Duration) -> bool {
        let Some((from, until)) = self.mappings.reach(self.payer.customer_id) else { return false };
        span.to > from.saturating_sub(age_max) && span.from <= until
    }
}
