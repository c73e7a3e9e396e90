//! Billing providers behind one small trait: what is handed over, what came of it, and what they say
//! they have. Whoever is added here (one that takes batches, one that only charges) has the same
//! promise to keep: a meter event handed over twice counts once, or the answer says that nobody knows.

pub mod stripe;

use std::fmt::Debug;
use std::time::Duration;

use async_trait::async_trait;

use metergate_domain::base::timestamp::Timestamp;
use metergate_domain::base::window::Span;

/// A quantity on its way to a provider. Its content never changes once it was handed over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutgoingMeterEvent {
    /// The provider's name of the meter, and of the payload's keys.
    pub event_name: String,
    pub customer_key: String,
    pub value_key: String,
    /// The provider's id of the customer.
    pub customer: String,
    /// Whole units, never negative.
    pub value: i64,
    pub timestamp: Timestamp,
    /// Counts once at the provider, for as long as it remembers it.
    pub identifier: String,
    /// The number of the attempt; a new one forces a new idempotency key.
    pub attempt: u32,
}

/// The outcome of handing a meter event over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeliveryResult {
    Delivered,
    /// It was there before.
    Duplicate,
    /// It never will be taken as it is.
    Dead(Failure),
    Retryable(Retryable),
    /// Nothing will be taken from us until somebody mends the account's credentials.
    Unauthorized(Failure),
}

impl DeliveryResult {
    /// The name under which deliveries are counted.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Duplicate => "duplicate",
            Self::Dead(_) => "dead",
            Self::Retryable(_) => "later",
            Self::Unauthorized(_) => "stopped",
        }
    }
}

/// A failure after which the same call may succeed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retryable {
    pub failure: Failure,
    /// Whether it may have been taken all the same.
    pub may_be_taken: bool,
    /// When the provider wants to be asked again.
    pub after: Option<Duration>,
}

/// Why, with the provider's own code where it gave one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub code: String,
    pub message: String,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.code, self.message)
    }
}

/// The usage of a customer that a provider has recorded in a window.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    pub window: Span,
    /// A decimal, as the provider spells it.
    pub value: String,
}

/// An invoice of the provider's, or what it would bill next; amounts in minor units.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bill {
    /// None: there is none yet.
    pub invoice: Option<String>,
    pub status: String,
    pub currency: String,
    pub lines: Vec<BillLine>,
}

/// A line before taxes and discounts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BillLine {
    /// The provider's price.
    pub price: Option<String>,
    /// Of the provider's meter behind it.
    pub event_name: Option<String>,
    pub amount: i64,
}

/// The length of the windows of summaries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SummaryWindow {
    Whole,
    Hour,
    Day,
}

/// A question for what a provider has recorded of a customer on a meter.
#[derive(Debug, Clone, Copy)]
pub struct SummaryQuery<'a> {
    pub event_name: &'a str,
    pub customer: &'a str,
    pub span: Span,
    pub grain: SummaryWindow,
}

/// A biller that usage is handed to.
#[async_trait]
pub trait Provider: Debug + Send + Sync {
    fn name(&self) -> &'static str;

    /// Returns how many calls a second it takes from us.
    fn calls_per_second(&self) -> u32;

    /// Returns for how long it surely remembers an identifier.
    fn remembers_for(&self) -> Duration;

    /// Returns for how long after its delivery a meter event can be taken back.
    fn cancels_for(&self) -> Duration;

    async fn deliver(&self, event: &OutgoingMeterEvent) -> DeliveryResult;

    /// Takes a delivered meter event back.
    async fn cancel(&self, event: &OutgoingMeterEvent) -> DeliveryResult;

    /// Reads the usage of a customer on a meter, by the meter events' timestamps. None: it knows no
    /// such meter.
    async fn summaries(&self, query: SummaryQuery<'_>) -> Result<Option<Vec<Summary>>, Failure>;

    /// Reads one of its invoices. None: it has no such invoice.
    async fn invoice(&self, id: &str) -> Result<Option<Bill>, Failure>;

    /// Previews the invoice of the present period of a subscription. None: there will be none.
    async fn preview(&self, customer: &str, subscription: &str) -> Result<Option<Bill>, Failure>;
}
