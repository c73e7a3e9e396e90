//! Events, usage queries and how they are read.

pub mod event;
pub mod query;
pub mod ranking;
pub mod read_plan;
pub mod stripe_compat;
