//! Events, usage queries and reports.

mod aggregations;
mod events;
mod folding;
mod reports;
pub(crate) mod trace;
mod windows;
