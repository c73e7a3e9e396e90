//! Drafts: the drafts that each customer needs, and their lines.

use std::collections::BTreeSet;
use std::time::Duration;

use sqlx::{Connection, PgConnection};

use super::billing_history::BillingHistory;
use super::plan_history::PlanHistory;
use super::rating::{InvoiceRater, corrections};
use crate::engine::error::EngineError;
use crate::engine::services::Engine;
use crate::store;
use crate::store::Scope;
use crate::store::invoicing::{DraftOpening, InvoiceRow, Payer};
use crate::store::usage::customer_usage::CustomerScope;
use metergate_domain::base::{Environment, Span, Timestamp};
use metergate_domain::invoicing::{BillingPeriod, InvoiceLine, RatingTerms};
use metergate_domain::pricing::Currency;

/// The longest time that a voiding transaction may run after it read the clock.
const VOIDS_MARGIN: Duration = Duration::from_hours(1);

/// The contents of a draft if it were numbered now.
#[derive(Debug)]
pub(super) struct InvoiceDraft {
    pub(super) period: Span,
    pub(super) terms: Vec<RatingTerms>,
    pub(super) lines: Vec<InvoiceLine>,
    /// The currencies in which the period is billed.
    pub(super) currencies: BTreeSet<Currency>,
}

impl InvoiceDraft {
    /// Returns whether there is nothing to bill.
    pub(super) fn is_empty(&self) -> bool {
        self.lines.is_empty() && self.terms.iter().all(|terms| terms.prices.is_empty() || terms.only_used)
    }
}

impl Engine {
    /// Opens the missing drafts for the customers of a subject.
    pub(super) async fn open_drafts_of(
        &self,
        environment: Environment,
        subject: &str,
    ) -> Result<(), EngineError> {
        let mut connection = self.database().pool().acquire().await?;
        let scope = &mut Scope::new(&mut connection, environment);
        let now = self.inner.clock.now(environment, store::usage::now(scope.connection).await?);
        let Some(row) = store::subjects::subject::find(scope, subject).await? else {
            return Ok(());
        };
        let mappings = store::subjects::customer_mappings::of_subject(scope.connection, row.id).await?;
        let mut plans = PlanHistory::read(scope).await?;
        for customer_id in mappings.customers() {
            let payer = Payer { customer_id, subject_id: row.id };
            self.open_drafts(scope.connection, &mut plans, payer, now).await?;
        }
        Ok(())
    }

    /// Updates the drafts of a customer to match its subscription; returns the number of new ones.
    pub(super) async fn open_drafts(
        &self,
        connection: &mut PgConnection,
        plans: &mut PlanHistory,
        payer: Payer,
        now: Timestamp,
    ) -> Result<u64, EngineError> {
        let environment = plans.environment;
        let mut transaction = connection.begin().await?;
        let mut openings = Vec::new();
        let age_max = self.inner.settings.event_age_max;
        let recent = self.corrected_since(Timestamp::MIN.max(now.saturating_sub(age_max)));
        let numbered = store::invoicing::of_payer(&mut transaction, payer, recent).await?;
        let book = BillingHistory::read(&mut transaction, plans, payer).await?;
        for period in book.periods(&mut transaction, now).await? {
            let span = period.span;
            let mut currencies = if book.owes_fixed_fees(span) {
                plans.currencies(&mut transaction, &period.intervals).await?
            } else if book.may_have_usage(span, age_max) {
                used_in(&mut transaction, plans, payer, &period).await?
            } else {
                BTreeSet::new()
            };
            // a draft also takes the corrections of earlier invoices in its currency
            let since = self.corrected_since(span.from);
            currencies.extend(
                numbered
                    .iter()
                    .filter(|row| row.numbered.is_some() && row.period.to > since)
                    .map(|row| row.currency),
            );
            openings.extend(DraftOpening::each(&currencies, span));
        }
        let opened = store::invoicing::set_drafts(
            &mut Scope::new(&mut transaction, environment),
            payer,
            &openings,
            now,
        )
        .await?;
        transaction.commit().await?;
        Ok(opened)
    }

    /// Returns the earliest time that a draft corrects: events in its period may be up to the maximum age
    /// older.
    fn corrected_since(&self, from: Timestamp) -> Timestamp {
        from.saturating_sub(self.inner.settings.event_age_max)
    }

    /// Returns the times of voided usage that no invoice of a customer includes yet.
    async fn taken_back(&self, scope: &mut Scope<'_>, payer: Payer) -> Result<Vec<Timestamp>, EngineError> {
        let Some((_, numbered_at)) = store::invoicing::billed_until(scope.connection, payer).await? else {
            return Ok(Vec::new());
        };
        // reading some voids twice is harmless, because a correction is a difference
        let since = numbered_at.saturating_sub(VOIDS_MARGIN);
        Ok(store::usage::customer_usage::taken_back_since(scope, payer.customer_id, since).await?)
    }

    /// Computes the present contents of a draft.
    pub(super) async fn draft(
        &self,
        scope: &mut Scope<'_>,
        row: &InvoiceRow,
    ) -> Result<InvoiceDraft, EngineError> {
        let now = self.inner.clock.now(scope.environment, store::usage::now(scope.connection).await?);
        let mut plans = PlanHistory::read(scope).await?;
        let payer = Payer { customer_id: row.customer_id, subject_id: row.subject_id };
        let book = BillingHistory::read(scope.connection, &mut plans, payer).await?;
        let times = self.taken_back(scope, payer).await?;
        let since = self.corrected_since(row.period.from);
        let oldest = times.iter().copied().min().unwrap_or(since);
        // the invoices that it may correct, with the invoices that hold their earlier corrections
        let mut others = store::invoicing::of_payer(scope.connection, payer, since.min(oldest)).await?;
        others.retain(|other| other.id != row.id);
        let found = book.periods(scope.connection, now).await?;
        let found = found.into_iter().find(|period| period.span.from == row.period.from);
        let BillingPeriod { span: period, intervals } =
            found.unwrap_or_else(|| begun(&book, row.period, &others));
        let currencies = plans.currencies(scope.connection, &intervals).await?;
        let terms =
            plans.terms(scope.connection, &intervals, row.currency, book.owes_fixed_fees(period)).await?;
        let meters = store::catalog::meters(scope).await?;
        let paths =
            store::usage::customer_usage::paths(scope.connection, row.customer_id, row.subject_id).await?;
        let rater = InvoiceRater {
            environment: scope.environment,
            customer_id: row.customer_id,
            meters: &meters,
            paths: &paths,
        };
        let mut lines = rater.lines(scope.connection, &terms, row.currency).await?;
        lines.retain(|line| !line.is_kept_to());
        others.retain(|other| other.currency == row.currency);
        // an older draft takes the corrections first
        if !others.iter().any(|other| other.numbered.is_none() && other.period.from < period.from) {
            let may_differ = |other: &InvoiceRow| {
                other.period.to > since || times.iter().any(|at| other.period.contains(*at))
            };
            lines.extend(corrections(scope.connection, &rater, &others, may_differ, row.currency).await?);
        }
        Ok(InvoiceDraft { period, terms, lines, currencies })
    }
}

/// Returns the currencies in which a customer has priced usage in a period.
async fn used_in(
    connection: &mut PgConnection,
    plans: &mut PlanHistory,
    payer: Payer,
    period: &BillingPeriod,
) -> Result<BTreeSet<Currency>, EngineError> {
    let mut used = BTreeSet::new();
    let paths = store::usage::customer_usage::paths(connection, payer.customer_id, payer.subject_id).await?;
    let (environment, customer_id) = (plans.environment, payer.customer_id);
    let whose = CustomerScope { environment, customer_id, paths: &paths, span: period.span };
    if !store::usage::customer_usage::is_any(connection, whose).await? {
        return Ok(used);
    }
    let meters = store::catalog::meters(&mut Scope::new(connection, environment)).await?;
    let rater = InvoiceRater { environment, customer_id, meters: &meters, paths: &paths };
    for currency in plans.currencies(connection, &period.intervals).await? {
        let terms = plans.terms(connection, &period.intervals, currency, false).await?;
        if !rater.lines(connection, &terms, currency).await?.is_empty() {
            used.insert(currency);
        }
    }
    Ok(used)
}

/// Returns the rest of a period if its invoice in another currency is numbered: the same span, without the
/// intervals that are billed there.
fn begun(book: &BillingHistory, drafted: Span, others: &[InvoiceRow]) -> BillingPeriod {
    let numbered: Vec<&InvoiceRow> =
        others.iter().filter(|it| it.numbered.is_some() && it.period.from == drafted.from).collect();
    let Some(first) = numbered.first() else { return BillingPeriod { span: drafted, intervals: Vec::new() } };
    let mut period = book.timeline.within(first.period);
    let billed = |span: Span| {
        let terms = numbered.iter().filter_map(|row| row.numbered.as_ref()).flat_map(|it| &it.terms);
        terms.into_iter().any(|terms| !terms.prices.is_empty() && !terms.span.intersect(span).is_empty())
    };
    for interval in &mut period.intervals {
        interval.is_billed &= !billed(interval.span);
    }
    period
}
