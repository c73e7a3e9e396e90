//! Billing providers behind one trait: deliveries, their results, and the provider's own sums. Every
//! provider must keep one promise: a meter event sent twice counts once, or the result says that the
//! outcome is unknown.

pub mod stripe;

use std::fmt::Debug;
use std::time::Duration;

use async_trait::async_trait;

use metergate_domain::base::{Span, Timestamp};

/// A quantity on its way to a provider. Its content never changes after the first delivery attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutgoingMeterEvent {
    /// The provider's names of the meter and of the payload's keys.
    pub event_name: String,
    pub customer_key: String,
    pub value_key: String,
    /// The provider's id of the customer.
    pub customer: String,
    /// The value in whole units, never negative.
    pub value: i64,
    pub timestamp: Timestamp,
    /// The identifier, under which the provider counts the meter event once, as long as it remembers
    /// it.
    pub identifier: String,
    /// The number of the attempt; a new one forces a new idempotency key.
    pub attempt: u32,
}

/// The result of a delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeliveryResult {
    Delivered,
    /// An earlier delivery had succeeded.
    Duplicate,
    /// The provider will never take this meter event.
    Dead(Failure),
    Retryable(Retryable),
    /// The provider takes nothing until the account's credentials are corrected.
    Unauthorized(Failure),
}

impl DeliveryResult {
    /// Returns the label of the result in metrics.
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
    /// True if the provider may have taken the delivery.
    pub may_be_taken: bool,
    /// The pause that the provider asks for.
    pub after: Option<Duration>,
}

/// The reason of a failure, with the provider's own code if it gave one.
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

/// The provider's recorded usage of a customer in a window.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    pub window: Span,
    /// The sum as a decimal, in the provider's spelling.
    pub value: String,
}

/// An invoice of the provider, or a preview of the next one. Amounts are in minor units.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bill {
    /// The id; none for a preview.
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
    /// The event name of the meter behind the price.
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

/// A query for the provider's recorded usage of a customer on a meter.
#[derive(Debug, Clone, Copy)]
pub struct SummaryQuery<'a> {
    pub event_name: &'a str,
    pub customer: &'a str,
    pub span: Span,
    pub grain: SummaryWindow,
}

/// A provider that receives usage.
#[async_trait]
pub trait Provider: Debug + Send + Sync {
    fn name(&self) -> &'static str;

    /// Returns the most calls per second that the provider allows.
    fn calls_per_second(&self) -> u32;

    /// Returns the time for which the provider certainly remembers an identifier.
    fn remembers_for(&self) -> Duration;

    /// Returns the time after a delivery in which the provider can cancel the meter event.
    fn cancels_for(&self) -> Duration;

    async fn deliver(&self, event: &OutgoingMeterEvent) -> DeliveryResult;

    /// Cancels a delivered meter event.
    async fn cancel(&self, event: &OutgoingMeterEvent) -> DeliveryResult;

    /// Reads the usage of a customer on a meter, by the timestamps of the meter events. Returns none if
    /// the provider does not know the meter.
    async fn summaries(&self, query: SummaryQuery<'_>) -> Result<Option<Vec<Summary>>, Failure>;

    /// Reads an invoice. Returns none if the provider does not know it.
    async fn invoice(&self, id: &str) -> Result<Option<Bill>, Failure>;

    /// Previews the next invoice of a subscription. Returns none if no invoice will follow.
    async fn preview(&self, customer: &str, subscription: &str) -> Result<Option<Bill>, Failure>;
}
