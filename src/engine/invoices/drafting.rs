//! What a draft says: the periods of a customer as its subscription's history tells them, the plans in
//! force in each, and what was recorded for the customer, rated by their prices.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use sqlx::{Connection, PgConnection};

use super::books::Book;
use super::{Engine, EngineError, label};
use crate::domain::catalog::Catalog;
use crate::domain::environment::Environment;
use crate::domain::invoice::line::{Billed, InvoiceLine, Kind, LineKey, Terms, total};
use crate::domain::invoice::timeline::{BillingPeriod, Stretch, Turn};
use crate::domain::meter::StoredMeter;
use crate::domain::names::PlanKey;
use crate::domain::plan::Plan;
use crate::domain::pricing::commitment::Commitment;
use crate::domain::pricing::currency::Currency;
use crate::domain::pricing::list::PriceList;
use crate::domain::pricing::price::Price;
use crate::domain::pricing::rating::Used;
use crate::domain::subscription::{commitment_of, prices_of};
use crate::domain::timestamp::Timestamp;
use crate::domain::window::Span;
use crate::store;
use crate::store::customer_usage::{CustomerUsage, Whose};
use crate::store::invoices::{InvoiceRow, Opening, Payer};

/// How long a transaction that takes something back may run after it looked at the clock.
const VOIDS_MARGIN: Duration = Duration::from_hours(1);

/// What a draft would say if it were numbered now.
#[derive(Debug)]
pub(super) struct Draft {
    pub(super) period: Span,
    pub(super) terms: Vec<Terms>,
    pub(super) lines: Vec<InvoiceLine>,
    /// In which the period is billed.
    pub(super) currencies: BTreeSet<Currency>,
}

impl Draft {
    /// Whether there is nothing to bill.
    pub(super) fn is_empty(&self) -> bool {
        self.lines.is_empty() && self.terms.iter().all(|terms| terms.prices.is_empty() || terms.only_used)
    }
}

/// The plans of an environment, those too that are in the catalog no more.
#[derive(Debug)]
pub(super) struct Plans {
    environment: Environment,
    catalog: Catalog,
    gone: BTreeMap<PlanKey, Option<Plan>>,
}

/// What a stretch of a period is rated by, in the currency of its first price.
#[derive(Debug)]
struct Tariff {
    currency: Currency,
    prices: Vec<Price>,
    commitment: Option<Commitment>,
}

impl Plans {
    pub(super) async fn read(
        connection: &mut PgConnection,
        environment: Environment,
    ) -> Result<Self, EngineError> {
        let (catalog, _) = store::catalog::current(connection, environment).await?;
        Ok(Self { environment, catalog, gone: BTreeMap::new() })
    }

    /// The keys of those that have prices.
    pub(super) fn priced(&self) -> Vec<String> {
        self.catalog
            .plans
            .iter()
            .filter(|plan| !plan.prices.is_empty())
            .map(|plan| plan.key.to_string())
            .collect()
    }

    /// A plan as it is, or as it was last.
    async fn plan(
        &mut self,
        connection: &mut PgConnection,
        key: &PlanKey,
    ) -> Result<Option<&Plan>, EngineError> {
        if self.catalog.plan(key).is_none() && !self.gone.contains_key(key) {
            let last = store::catalog::last_with_plan(connection, self.environment, key.as_str()).await?;
            self.gone.insert(key.clone(), last.and_then(|catalog| catalog.plan(key).cloned()));
        }
        Ok(self.catalog.plan(key).or_else(|| self.gone.get(key)?.as_ref()))
    }

    /// Whether any of the turns of a subscription has prices.
    pub(super) async fn rate_any(
        &mut self,
        connection: &mut PgConnection,
        turns: &[Turn],
    ) -> Result<bool, EngineError> {
        for turn in turns {
            let plan = self.plan(connection, &turn.plan).await?;
            if !prices_of(plan, &turn.own.prices).is_empty() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// None where nothing has a price.
    async fn tariff(
        &mut self,
        connection: &mut PgConnection,
        stretch: &Stretch,
    ) -> Result<Option<Tariff>, EngineError> {
        let plan = self.plan(connection, &stretch.plan).await?;
        let prices = prices_of(plan, &stretch.own.prices);
        let Some(currency) = prices.first().map(|price| price.currency) else { return Ok(None) };
        Ok(Some(Tariff {
            currency,
            prices: prices.iter().filter(|price| price.currency == currency).cloned().collect(),
            commitment: commitment_of(plan, &stretch.own.commitments, currency).cloned(),
        }))
    }

    /// By what the stretches of a period are rated in a currency, for a customer that owes what they cost
    /// without anything being used, or for one that does not.
    async fn terms(
        &mut self,
        connection: &mut PgConnection,
        stretches: &[Stretch],
        currency: Currency,
        owes: bool,
    ) -> Result<Vec<Terms>, EngineError> {
        let mut terms = Vec::new();
        for stretch in stretches {
            let tariff = self.tariff(connection, stretch).await?;
            let named = self.plan(connection, &stretch.plan).await?.map(|plan| plan.name.clone());
            let plan_name = named.filter(|name| *name != stretch.plan.as_str());
            let billed = tariff.filter(|tariff| stretch.is_billed && tariff.currency == currency);
            let (prices, commitment) =
                billed.map(|tariff| (tariff.prices, tariff.commitment)).unwrap_or_default();
            let Stretch { plan, span, is_billed, .. } = stretch.clone();
            terms.push(Terms { plan, plan_name, span, is_billed, prices, commitment, with_fees: false, only_used: !owes });
        }
        if let Some(last) = terms.iter_mut().rfind(|terms| !terms.prices.is_empty() && owes) {
            last.with_fees = true;
        }
        terms.iter_mut().filter(|terms| !terms.with_fees).for_each(|terms| terms.commitment = None);
        Ok(terms)
    }

    /// The currencies in which something may be billed in some stretches.
    async fn currencies(
        &mut self,
        connection: &mut PgConnection,
        stretches: &[Stretch],
    ) -> Result<BTreeSet<Currency>, EngineError> {
        let mut currencies = BTreeSet::new();
        for stretch in stretches.iter().filter(|stretch| stretch.is_billed) {
            currencies.extend(self.tariff(connection, stretch).await?.map(|tariff| tariff.currency));
        }
        Ok(currencies)
    }
}

impl Engine {
    /// Opens what drafts the customers of a subject should have.
    pub(super) async fn open_drafts_of(
        &self,
        environment: Environment,
        subject: &str,
    ) -> Result<(), EngineError> {
        let mut connection = self.database().pool().acquire().await?;
        let now = self.inner.clock.now(environment, store::usage::now(&mut connection).await?);
        let Some(row) = store::subjects::find(&mut connection, environment, subject).await? else {
            return Ok(());
        };
        let mappings = store::customer_mappings::of_subject(&mut connection, row.id).await?;
        let mut plans = Plans::read(&mut connection, environment).await?;
        for customer_id in mappings.customers() {
            let payer = Payer { customer_id, subject_id: row.id };
            self.open_drafts(&mut connection, environment, &mut plans, payer, now).await?;
        }
        Ok(())
    }

    /// Has the drafts of a customer be what its subscription says. How many are new.
    pub(super) async fn open_drafts(
        &self,
        connection: &mut PgConnection,
        environment: Environment,
        plans: &mut Plans,
        payer: Payer,
        now: Timestamp,
    ) -> Result<u64, EngineError> {
        let mut transaction = connection.begin().await?;
        let mut openings = Vec::new();
        let age_max = self.inner.settings.event_age_max;
        let recent = self.corrected_since(Timestamp::MIN.max(now.saturating_sub(age_max)));
        let numbered = store::invoices::of_payer(&mut transaction, payer, recent).await?;
        let book = Book::read(&mut transaction, plans, payer).await?;
        for BillingPeriod { span, stretches } in book.periods(&mut transaction, now).await? {
            let mut currencies = if book.owes(span) {
                plans.currencies(&mut transaction, &stretches).await?
            } else if book.reaches(span, now, age_max) {
                self.used_in(&mut transaction, plans, payer, span, &stretches).await?
            } else {
                BTreeSet::new()
            };
            // what comes late for an earlier one has to go somewhere
            let since = self.corrected_since(span.from);
            currencies.extend(
                numbered
                    .iter()
                    .filter(|row| row.numbered.is_some() && row.period.to > since)
                    .map(|row| row.currency),
            );
            openings.extend(Opening::each(&currencies, span));
        }
        let opened =
            store::invoices::set_drafts(&mut transaction, environment, payer, &openings, now).await?;
        transaction.commit().await?;
        Ok(opened)
    }

    /// The currencies in which a customer used something in a period.
    async fn used_in(
        &self,
        connection: &mut PgConnection,
        plans: &mut Plans,
        payer: Payer,
        span: Span,
        stretches: &[Stretch],
    ) -> Result<BTreeSet<Currency>, EngineError> {
        let mut used = BTreeSet::new();
        let paths = store::customer_usage::paths(connection, payer.customer_id, payer.subject_id).await?;
        let (environment, customer_id) = (plans.environment, payer.customer_id);
        let whose = Whose { environment, customer_id, paths: &paths, span };
        if !store::customer_usage::is_any(connection, whose).await? {
            return Ok(used);
        }
        let meters = store::catalog::meters(connection, environment).await?;
        let rater = Rater { environment, customer_id, meters: &meters, paths: &paths };
        for currency in plans.currencies(connection, stretches).await? {
            let terms = plans.terms(connection, stretches, currency, false).await?;
            if !rater.lines(connection, &terms, currency).await?.is_empty() {
                used.insert(currency);
            }
        }
        Ok(used)
    }

    /// Up to where a period that begins at a time corrects those before it: what is recorded in it may be
    /// so old.
    fn corrected_since(&self, from: Timestamp) -> Timestamp {
        from.saturating_sub(self.inner.settings.event_age_max)
    }

    /// When what was taken back happened that no invoice of a customer knows of yet.
    async fn taken_back(
        &self,
        snapshot: &mut PgConnection,
        environment: Environment,
        payer: Payer,
    ) -> Result<Vec<Timestamp>, EngineError> {
        let Some((_, numbered_at)) = store::invoices::billed_until(snapshot, payer).await? else {
            return Ok(Vec::new());
        };
        // looking at some twice does no harm: a correction is a difference
        let since = numbered_at.saturating_sub(VOIDS_MARGIN);
        Ok(store::customer_usage::taken_back_since(snapshot, environment, payer.customer_id, since).await?)
    }

    /// What a draft comes to now.
    pub(super) async fn draft(
        &self,
        snapshot: &mut PgConnection,
        environment: Environment,
        row: &InvoiceRow,
    ) -> Result<Draft, EngineError> {
        let now = self.inner.clock.now(environment, store::usage::now(snapshot).await?);
        let mut plans = Plans::read(snapshot, environment).await?;
        let payer = Payer { customer_id: row.customer_id, subject_id: row.subject_id };
        let book = Book::read(snapshot, &mut plans, payer).await?;
        let times = self.taken_back(snapshot, environment, payer).await?;
        let since = self.corrected_since(row.period.from);
        let oldest = times.iter().copied().min().unwrap_or(since);
        // all that it may correct, and all that have corrected those
        let mut others = store::invoices::of_payer(snapshot, payer, since.min(oldest)).await?;
        others.retain(|other| other.id != row.id);
        let found = book.periods(snapshot, now).await?;
        let found = found.into_iter().find(|period| period.span.from == row.period.from);
        let BillingPeriod { span: period, stretches } =
            found.unwrap_or_else(|| begun(&book, row.period, &others));
        let currencies = plans.currencies(snapshot, &stretches).await?;
        let terms = plans.terms(snapshot, &stretches, row.currency, book.owes(period)).await?;
        let meters = store::catalog::meters(snapshot, environment).await?;
        let paths = store::customer_usage::paths(snapshot, row.customer_id, row.subject_id).await?;
        let rater = Rater { environment, customer_id: row.customer_id, meters: &meters, paths: &paths };
        let mut lines = rater.lines(snapshot, &terms, row.currency).await?;
        lines.retain(|line| !line.is_kept_to());
        others.retain(|other| other.currency == row.currency);
        // an older draft has what is to be corrected
        if !others.iter().any(|other| other.numbered.is_none() && other.period.from < period.from) {
            let may_differ = |other: &InvoiceRow| {
                other.period.to > since || times.iter().any(|at| other.period.contains(*at))
            };
            lines.extend(corrections(snapshot, &rater, &others, may_differ, row.currency).await?);
        }
        Ok(Draft { period, terms, lines, currencies })
    }
}

/// A period of which the invoice in another currency is numbered: as long as that one's, and without what it
/// has billed.
fn begun(book: &Book, drafted: Span, others: &[InvoiceRow]) -> BillingPeriod {
    let numbered: Vec<&InvoiceRow> =
        others.iter().filter(|it| it.numbered.is_some() && it.period.from == drafted.from).collect();
    let Some(first) = numbered.first() else { return BillingPeriod { span: drafted, stretches: Vec::new() } };
    let mut period = book.timeline.within(first.period);
    let billed = |span: Span| {
        let terms = numbered.iter().filter_map(|row| row.numbered.as_ref()).flat_map(|it| &it.terms);
        terms.into_iter().any(|terms| !terms.prices.is_empty() && !terms.span.intersect(span).is_empty())
    };
    for stretch in &mut period.stretches {
        stretch.is_billed &= !billed(stretch.span);
    }
    period
}

/// What invoices that were numbered would say differently now, of those that may.
async fn corrections(
    snapshot: &mut PgConnection,
    rater: &Rater<'_>,
    invoices: &[InvoiceRow],
    may_differ: impl Fn(&InvoiceRow) -> bool,
    currency: Currency,
) -> Result<Vec<InvoiceLine>, EngineError> {
    let numbered: Vec<_> = invoices.iter().filter_map(|row| row.numbered.as_ref()).collect();
    let mut corrections = Vec::new();
    for invoice in invoices.iter().filter(|row| may_differ(row)).filter_map(|row| row.numbered.as_ref()) {
        let label = label(invoice.number);
        let mut billed: BTreeMap<LineKey, Billed> = BTreeMap::new();
        let own = invoice.lines.iter().filter(|line| line.kind != Kind::Correction);
        let later = numbered.iter().flat_map(|other| &other.lines);
        let later = later.filter(|line| line.corrects.as_ref() == Some(&label));
        for line in own.chain(later) {
            let (so_far, more) = (billed.entry(line.key()).or_default(), line.billed());
            so_far.quantity = so_far.quantity + more.quantity;
            so_far.amount = so_far.amount.clone() + more.amount;
        }
        let mut lines = rater.lines(snapshot, &invoice.terms, currency).await?;
        // of what was billed for its use alone, all may have been taken back
        let gone = |line: &&InvoiceLine| {
            line.kind == Kind::Usage && lines.iter().all(|other| other.key() != line.key())
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

/// Rates what was recorded for a customer.
#[derive(Debug, Clone, Copy)]
struct Rater<'a> {
    environment: Environment,
    customer_id: i64,
    meters: &'a [StoredMeter],
    paths: &'a [i64],
}

impl Rater<'_> {
    /// A line for each price that has something to say, in the order of the plans, and for what bounds them
    /// together.
    async fn lines(
        &self,
        snapshot: &mut PgConnection,
        terms: &[Terms],
        currency: Currency,
    ) -> Result<Vec<InvoiceLine>, EngineError> {
        let mut lines = Vec::new();
        for terms in terms {
            let Terms { plan, span, .. } = terms;
            let list = PriceList::of(&terms.prices, currency);
            let used = self.used(snapshot, &list, *span).await?;
            let counts = |price: &&Price| {
                (terms.with_fees || price.meter.is_some())
                    && (!terms.only_used || used.contains_key(price.key.as_str()))
                    && price.effective_from.is_none_or(|from| from < span.to)
                    && price.effective_to.is_none_or(|to| span.from < to)
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
            for Terms { plan, commitment, .. } in terms {
                let bounds = commitment.iter().flat_map(|commitment| commitment.lines(&sum));
                lines.extend(bounds.map(|line| InvoiceLine::of(plan, whole, &line)));
            }
        }
        Ok(lines)
    }

    fn meter_name(&self, price: &Price) -> Option<String> {
        let meter = self.meters.iter().find(|stored| price.meter.as_ref() == Some(&stored.meter.key))?;
        meter.meter.display_name.clone()
    }

    /// What was used of what each price rates, by its key. What adds up is rated by the first price that
    /// admits it; a level is looked at for each price by itself.
    async fn used(
        &self,
        snapshot: &mut PgConnection,
        list: &PriceList<'_>,
        span: Span,
    ) -> Result<BTreeMap<String, Used>, EngineError> {
        let whose =
            Whose { environment: self.environment, customer_id: self.customer_id, paths: self.paths, span };
        let mut used = BTreeMap::new();
        let keys = list.meters();
        for stored in self.meters.iter().filter(|stored| keys.contains(&stored.meter.key)) {
            let prices: Vec<&Price> = list.of_meter(&stored.meter.key).collect();
            let adds_up = stored.meter.aggregation.is_reservable();
            let questions: Vec<&[&Price]> =
                if adds_up { vec![&prices[..]] } else { prices.chunks(1).collect() };
            for prices in questions {
                let found = store::customer_usage::find(snapshot, whose, stored, prices).await?;
                for (place, usage) in found {
                    let CustomerUsage { count, value, event_fees } = usage;
                    let Some(price) = prices.get(place).filter(|_| count != 0) else { continue };
                    let mut of_price = Used::of_sum(price, value, count);
                    of_price.event_fees = event_fees.unwrap_or(of_price.event_fees);
                    used.insert(price.key.to_string(), of_price);
                }
            }
        }
        Ok(used)
    }
}
