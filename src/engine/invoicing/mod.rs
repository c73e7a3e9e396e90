//! Invoices: the cost of each customer's usage in a billing period. A draft is computed when it is read.
//! After the period and a grace it is numbered and never changes. Later usage is a line of the next invoice.

pub(crate) mod billing;
pub(crate) mod billing_history;
pub(crate) mod comparing;
pub(crate) mod drafting;
pub(crate) mod invoices;
pub(crate) mod plan_history;
pub(crate) mod rating;
pub(crate) mod upcoming;
pub(crate) mod views;
