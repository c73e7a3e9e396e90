//! Invoices: the billing periods of a subscription as it was at each time, and the lines that a period
//! comes to. Amounts are whole minor units; an invoice is the sum of its rounded lines.

pub mod line;
pub mod mapping;
pub mod timeline;

use crate::base::names::{StripeCustomerId, SubjectId};

/// The invoices that a list shows.
#[derive(Debug, Clone, Default)]
pub struct InvoiceFilter {
    pub subject: Option<SubjectId>,
    pub customer: Option<StripeCustomerId>,
    pub status: Option<&'static str>,
}
