//! Events and usage reads: ingest, folding, queries, rankings, reports.

pub(crate) mod aggregate;
pub(crate) mod events;
pub(crate) mod fold;
pub mod ingest;
pub(crate) mod ranking;
pub(crate) mod reader;
pub(crate) mod report;
pub(crate) mod stripe_compat;
pub(crate) mod verify;
