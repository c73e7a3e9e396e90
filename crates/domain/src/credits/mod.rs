//! Prepaid credits: grants of a subject, burnt in an order, with every movement written down as a transfer
//! between two accounts. Nothing here knows where any of it is kept.

pub mod accounts;
pub mod catalog;
pub mod cost;
pub mod coverage;
pub mod grant;
pub mod grant_lifecycle;
pub mod notice;
pub mod offers;
pub mod recurrence;
pub mod unit;
pub mod wallet;
