//! Comparison of an invoice with the biller's, line by line. A price matches the biller's price that it
//! names, otherwise the price that bills its exported meter.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::Serialize;
use uuid::Uuid;

use super::views::{InvoiceView, not_found};
use crate::engine::error::EngineError;
use crate::engine::services::Engine;
use crate::providers::{Bill, BillLine, Failure, Provider};
use crate::store;
use crate::store::Scope;
use crate::store::invoicing::InvoiceRow;
use metergate_domain::base::Environment;
use metergate_domain::base::names::SubjectId;
use metergate_domain::catalog::StoredMeter;
use metergate_domain::invoicing::{InvoiceLine, RatingTerms};
use metergate_domain::pricing::{Currency, MinorUnits};

#[derive(Debug, Clone, Serialize)]
pub struct ComparedInvoice {
    pub id: Uuid,
    pub number: Option<String>,
    pub status: String,
    pub subject: String,
    pub customer: String,
    pub currency: Currency,
    pub period: metergate_domain::base::window::Span,
    pub provider: ComparedProvider,
    pub lines: Vec<ComparedLine>,
    pub total: ComparedTotal,
}

#[derive(Debug, Clone, Serialize)]
pub struct ComparedProvider {
    pub name: &'static str,
    /// The id of the provider's invoice. None means a preview of its next invoice.
    pub invoice: Option<String>,
    pub status: String,
    pub currency: String,
}

/// The amounts of prices that are one price at the biller, in minor units.
#[derive(Debug, Clone, Serialize)]
pub struct ComparedLine {
    /// The keys of our prices; none if only the biller has the line.
    pub prices: Vec<String>,
    pub meter: Option<String>,
    /// The commitment, for a line without a price.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub commitment: Option<String>,
    /// The id of the biller's price.
    pub provider_price: Option<String>,
    #[serde(flatten)]
    pub amounts: ComparedTotal,
}

#[derive(Debug, Clone, Default, Serialize)]
pub struct ComparedTotal {
    pub ours: MinorUnits,
    pub theirs: MinorUnits,
    /// Our amount minus the amount of the biller.
    pub difference: MinorUnits,
}

impl ComparedTotal {
    fn new(ours: MinorUnits, theirs: MinorUnits) -> Self {
        Self { difference: ours.clone() - theirs.clone(), ours, theirs }
    }
}

fn conflict(code: &'static str, detail: impl Into<String>) -> EngineError {
    EngineError::Conflict { code, detail: detail.into() }
}

fn unanswered(failure: Failure) -> EngineError {
    EngineError::provider_unavailable(format!("{}: {}", failure.code, failure.message))
}

impl Engine {
    pub async fn compare_upcoming_invoice(
        &self,
        environment: Environment,
        subject: &SubjectId,
    ) -> Result<ComparedInvoice, EngineError> {
        let id = self.upcoming_id(environment, subject).await?;
        self.compare_invoice(environment, id).await
    }

    /// Compares an invoice with the biller's for the same customer and period. A running period is compared
    /// with the biller's preview.
    pub async fn compare_invoice(
        &self,
        environment: Environment,
        id: Uuid,
    ) -> Result<ComparedInvoice, EngineError> {
        let Some(provider) = self.provider(environment) else {
            return Err(conflict(
                "no_provider",
                "this environment has no billing provider to compare with; set its Stripe key",
            ));
        };
        let mut snapshot = self.settled_snapshot(environment).await?;
        let scope = &mut Scope::new(&mut snapshot, environment);
        let row = store::invoicing::find(scope, id).await?.ok_or_else(|| not_found(id))?;
        let meters = store::catalog::meters(scope).await?;
        let now = self.inner.clock.now(environment, store::usage::now(scope.connection).await?);
        let followed =
            store::subjects::stripe_subscriptions::of_subject(scope.connection, row.subject_id).await?;
        let followed = followed.into_iter().find(|followed| followed.governs);
        let is_under_way = row.numbered.is_none() && row.period.contains(now);
        let (shown, terms) = self.shown(scope, row.clone()).await?;
        // release the connection before the slow request to the biller
        snapshot.commit().await?;
        let source = match (&row.provider, followed) {
            (Some(invoice), _) => ComparedSource::Invoice(invoice.id.clone()),
            (None, Some(followed)) if is_under_way => ComparedSource::Preview(followed.billed.id),
            (None, None) if is_under_way => {
                let detail = "the subject must have a subscription at the billing provider to compare with; create one there first";
                return Err(conflict("no_provider_subscription", detail));
            }
            (None, _) => {
                let detail = "no invoice of the billing provider is known for this customer and period; compare again after it has sent one";
                return Err(conflict("provider_invoice_not_found", detail));
            }
        };
        let bill = fetch(&provider, &row, &source).await?;
        let places = LinePlaces::of(environment, &terms, &meters);
        Ok(compared(provider.name(), shown, &places, bill))
    }
}

/// The provider's invoice or preview to compare with.
enum ComparedSource {
    Invoice(String),
    Preview(String),
}

async fn fetch(
    provider: &Arc<dyn Provider>,
    row: &InvoiceRow,
    source: &ComparedSource,
) -> Result<Bill, EngineError> {
    let asked = match source {
        ComparedSource::Invoice(id) => provider.invoice(id).await,
        ComparedSource::Preview(subscription) => {
            provider.preview(&row.stripe_customer_id, subscription).await
        }
    };
    asked.map_err(unanswered)?.ok_or_else(|| {
        conflict("provider_invoice_not_found", "the billing provider has neither this invoice nor an upcoming one; compare again after it has sent one")
    })
}

/// The key that groups lines: a price of the biller, a meter of the biller, or neither.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum LinePlace {
    Price(String),
    Meter(String),
    Own(String, String),
    /// A commitment of a plan, by plan and kind; the biller has no such line.
    Commitment(String, String),
    Unknown,
}

#[derive(Debug, Default)]
struct Pair {
    prices: BTreeSet<String>,
    meter: Option<String>,
    commitment: Option<String>,
    provider_price: Option<String>,
    ours: Vec<MinorUnits>,
    theirs: Vec<MinorUnits>,
}

/// The biller's prices and meters that ours correspond to.
struct LinePlaces {
    /// The biller's price by plan and price key.
    prices: BTreeMap<(String, String), String>,
    /// The biller's meter by meter key.
    meters: BTreeMap<String, String>,
}

impl LinePlaces {
    fn of(environment: Environment, terms: &[RatingTerms], meters: &[StoredMeter]) -> Self {
        let prices = terms.iter().flat_map(|terms| {
            terms.prices.iter().filter_map(move |price| {
                let id = price.stripe_price_id.as_ref()?.in_environment(environment)?;
                Some(((terms.plan.to_string(), price.key.to_string()), id.to_owned()))
            })
        });
        let meters = meters.iter().filter_map(|stored| {
            Some((stored.meter.key.to_string(), stored.meter.stripe.as_ref()?.event_name.clone()))
        });
        Self { prices: prices.collect(), meters: meters.collect() }
    }

    fn of_ours(&self, line: &InvoiceLine) -> LinePlace {
        let Some(price) = line.price.clone() else {
            return LinePlace::Commitment(line.plan.clone(), line.model.clone());
        };
        let key = (line.plan.clone(), price);
        if let Some(id) = self.prices.get(&key) {
            return LinePlace::Price(id.clone());
        }
        match line.meter.as_ref().and_then(|meter| self.meters.get(meter)) {
            Some(event_name) => LinePlace::Meter(event_name.clone()),
            None => LinePlace::Own(key.0, key.1),
        }
    }

    fn of_theirs(&self, line: &BillLine) -> LinePlace {
        match (&line.price, &line.event_name) {
            (Some(id), _) if self.prices.values().any(|known| known == id) => LinePlace::Price(id.clone()),
            (_, Some(event_name)) => LinePlace::Meter(event_name.clone()),
            (Some(id), None) => LinePlace::Price(id.clone()),
            (None, None) => LinePlace::Unknown,
        }
    }
}

fn compared(provider: &'static str, shown: InvoiceView, places: &LinePlaces, bill: Bill) -> ComparedInvoice {
    let mut pairs: BTreeMap<LinePlace, Pair> = BTreeMap::new();
    for line in shown.lines.iter().flatten() {
        let place = places.of_ours(line);
        let pair = pairs.entry(place).or_default();
        pair.prices.extend(line.price.clone());
        if line.price.is_none() {
            pair.commitment = Some(line.model.clone());
        }
        pair.meter = pair.meter.take().or_else(|| line.meter.clone());
        pair.ours.push(line.rounded());
    }
    for line in &bill.lines {
        let pair = pairs.entry(places.of_theirs(line)).or_default();
        pair.provider_price = pair.provider_price.take().or_else(|| line.price.clone());
        pair.theirs.push(line.amount.into());
    }
    let sum = |amounts: Vec<MinorUnits>| amounts.into_iter().sum::<MinorUnits>();
    let lines: Vec<ComparedLine> = pairs
        .into_values()
        .map(|pair| ComparedLine {
            prices: pair.prices.into_iter().collect(),
            meter: pair.meter,
            commitment: pair.commitment,
            provider_price: pair.provider_price,
            amounts: ComparedTotal::new(sum(pair.ours), sum(pair.theirs)),
        })
        .collect();
    let ours = lines.iter().map(|line| line.amounts.ours.clone()).sum();
    let theirs = lines.iter().map(|line| line.amounts.theirs.clone()).sum();
    ComparedInvoice {
        id: shown.id,
        number: shown.number,
        status: shown.status,
        subject: shown.subject,
        customer: shown.customer,
        currency: shown.currency,
        period: shown.period,
        provider: ComparedProvider {
            name: provider,
            invoice: bill.invoice,
            status: bill.status,
            currency: bill.currency,
        },
        lines,
        total: ComparedTotal::new(ours, theirs),
    }
}
