//! Invoices: the billing periods of a subscription from its history, and the lines of a period. Amounts are
//! whole minor units; an invoice is the sum of its rounded lines.

pub mod line;
pub mod mapping;
pub mod timeline;

pub use line::{
    BilledAmount, InvoiceLine, InvoiceLineKey, InvoiceLineKind, LinePeriod, LineTier, RatingTerms,
};
pub use mapping::{Mapping, Mappings};
pub use timeline::{BillingPeriod, OwnPricing, PlanChange, PlanInterval, Timeline};

use crate::base::names::{StripeCustomerId, SubjectId};

/// The filter of a list of invoices.
#[derive(Debug, Clone, Default)]
pub struct InvoiceFilter {
    pub subject: Option<SubjectId>,
    pub customer: Option<StripeCustomerId>,
    pub status: Option<&'static str>,
}
