//! Rating of a customer's usage: the lines of a period, and the corrections of earlier periods.

use std::collections::BTreeMap;

use sqlx::PgConnection;

use super::views::invoice_number;
use crate::engine::error::EngineError;
use crate::engine::usage::reader::read_each;
use crate::store::invoicing::InvoiceRow;
use crate::store::usage::fees::{SliceFee, fees};
use crate::store::usage::{MeterQuery, RollupCoverage, UsageScope};
use metergate_domain::base::{Environment, Span};
use metergate_domain::catalog::StoredMeter;
use metergate_domain::invoicing::line::total;
use metergate_domain::invoicing::{BilledAmount, InvoiceLine, InvoiceLineKey, InvoiceLineKind, RatingTerms};
use metergate_domain::pricing::{Currency, Price, PriceBook, RatedQuantity};
use metergate_domain::usage::UsageQuery;

/// Rates the recorded usage of a customer.
#[derive(Debug, Clone, Copy)]
pub(super) struct InvoiceRater<'a> {
    pub(super) environment: Environment,
    pub(super) customer_id: i64,
    pub(super) meters: &'a [StoredMeter],
    pub(super) paths: &'a [i64],
}

impl InvoiceRater<'_> {
    /// Returns a line for each price in force, in the order of the plans, and a line for each bound of a
    /// commitment.
    pub(super) async fn lines(
        &self,
        snapshot: &mut PgConnection,
        terms: &[RatingTerms],
        currency: Currency,
    ) -> Result<Vec<InvoiceLine>, EngineError> {
        let mut lines = Vec::new();
        for terms in terms {
            let RatingTerms { plan, span, .. } = terms;
            let book = PriceBook::new(&terms.prices, currency);
            let used = self.used(snapshot, &book, *span).await?;
            let counts = |price: &&Price| {
                (terms.with_fees || price.meter.is_some())
                    && (!terms.only_used || used.contains_key(price.key.as_str()))
                    && price.is_in_force_within(*span)
            };
            for price in terms.prices.iter().filter(counts) {
                let used = used.get(price.key.as_str()).cloned().unwrap_or_default();
                let line = InvoiceLine::of(plan, *span, &price.rate(&used));
                lines.push(line.explained(price, terms.plan_name.clone(), self.meter_name(price)));
            }
        }
        if let (Some(first), Some(last)) = (terms.first(), terms.last()) {
            let whole = Span { from: first.span.from, to: last.span.to };
            let sum = total(&lines);
            for RatingTerms { plan, plan_name, commitment, .. } in terms {
                let bounds = commitment.iter().flat_map(|commitment| commitment.lines(&sum));
                let named = |line: InvoiceLine| InvoiceLine { plan_name: plan_name.clone(), ..line };
                lines.extend(bounds.map(|line| named(InvoiceLine::of(plan, whole, &line))));
            }
        }
        Ok(lines)
    }

    fn meter_name(&self, price: &Price) -> Option<String> {
        let meter = self.meters.iter().find(|stored| price.meter.as_ref() == Some(&stored.meter.key))?;
        meter.meter.display_name.clone()
    }

    /// Returns the usage by price key. Additive usage is rated by the first price that admits it; each price
    /// reads a gauge separately.
    async fn used(
        &self,
        snapshot: &mut PgConnection,
        book: &PriceBook,
        span: Span,
    ) -> Result<BTreeMap<String, RatedQuantity>, EngineError> {
        let mut asked: Vec<(&StoredMeter, Vec<&Price>, UsageQuery)> = Vec::new();
        let keys = book.meters();
        for stored in self.meters.iter().filter(|stored| keys.contains(&stored.meter.key)) {
            let prices: Vec<&Price> = book.of_meter(&stored.meter.key).collect();
            let together = if stored.meter.aggregation.is_reservable() { prices.len() } else { 1 };
            for prices in prices.chunks(together.max(1)) {
                let slices = prices.iter().map(|price| price.slice()).collect();
                let query = UsageQuery { slices, ..UsageQuery::internal(&stored.meter.key, span) };
                asked.push((stored, prices.to_vec(), query));
            }
        }
        let bounds = [span.from, span.to];
        let scope = UsageScope::Customer { customer_id: self.customer_id, paths: Some(self.paths) };
        let questions: Vec<MeterQuery<'_>> = asked
            .iter()
            .map(|(stored, _, query)| MeterQuery::new(self.environment, stored, query, scope, &bounds))
            .collect();
        let answers = read_each(snapshot, &RollupCoverage::default(), &questions).await?;
        let mut used = BTreeMap::new();
        for (((stored, prices, _), question), found) in asked.iter().zip(&questions).zip(answers) {
            let mut fees = fees(snapshot, question, &SliceFee::of_prices(prices)).await?;
            for (key, found) in found {
                let price = key.1.slice.and_then(|place| prices.get(place)).filter(|_| found.count != 0);
                let Some(price) = price else { continue };
                let value = found.value(stored.meter.aggregation).unwrap_or_default();
                let mut of_price = RatedQuantity::of_sum(price, value, found.count);
                of_price.event_fees = fees.remove(&key).unwrap_or(of_price.event_fees);
                used.insert(price.key.to_string(), of_price);
            }
        }
        Ok(used)
    }
}

/// Returns the corrections of numbered invoices that may differ from their present computation.
pub(super) async fn corrections(
    snapshot: &mut PgConnection,
    rater: &InvoiceRater<'_>,
    invoices: &[InvoiceRow],
    may_differ: impl Fn(&InvoiceRow) -> bool,
    currency: Currency,
) -> Result<Vec<InvoiceLine>, EngineError> {
    let numbered: Vec<_> = invoices.iter().filter_map(|row| row.numbered.as_ref()).collect();
    let mut corrections = Vec::new();
    for invoice in invoices.iter().filter(|row| may_differ(row)).filter_map(|row| row.numbered.as_ref()) {
        let label = invoice_number(invoice.number);
        let mut billed: BTreeMap<InvoiceLineKey, BilledAmount> = BTreeMap::new();
        let own = invoice.lines.iter().filter(|line| line.kind != InvoiceLineKind::Correction);
        let later = numbered.iter().flat_map(|other| &other.lines);
        let later = later.filter(|line| line.corrects.as_ref() == Some(&label));
        for line in own.chain(later) {
            let (so_far, more) = (billed.entry(line.key()).or_default(), line.billed());
            so_far.quantity = so_far.quantity + more.quantity;
            so_far.amount = so_far.amount.clone() + more.amount;
        }
        let mut lines = rater.lines(snapshot, &invoice.terms, currency).await?;
        // a usage line without a present counterpart may have been voided in full
        let gone = |line: &&InvoiceLine| {
            line.kind == InvoiceLineKind::Usage && lines.iter().all(|other| other.key() != line.key())
        };
        let gone: Vec<InvoiceLine> = invoice.lines.iter().filter(gone).map(InvoiceLine::unused).collect();
        lines.extend(gone);
        for line in lines {
            let so_far = billed.get(&line.key()).cloned().unwrap_or_default();
            corrections.extend(line.correction(&so_far, &label));
        }
    }
    Ok(corrections)
}
