//! Invoices: the billing periods of a subscription as it was at each time, and the lines that a period
//! comes to. Amounts are whole minor units; an invoice is the sum of its rounded lines.

pub mod line;
pub mod mapping;
pub mod timeline;
