//! Reads usage: rollups for whole days and hours; events for partial hours, unfolded batches and
//! gaps. All statements of an answer share one snapshot.
//!
//! [`query`] defines the range and scope of a read, [`reader`] reads values, and [`fees`] reads fees
//! of single events. [`measures`] defines the quantities that meters count from events.

pub mod customer_usage;
pub mod daily_rollups;
pub mod event_list;
pub mod events;
pub mod fees;
pub mod fold;
pub mod measures;
mod members;
mod partial_hours;
pub(super) mod query;
mod reader;
pub(super) mod rollup_resolution;
mod rollups;
pub mod verify;
pub mod voids;

pub use members::has_member;
pub use query::{HolderColumns, MeterQuery, RollupCoverage, UsageScope, rollup_coverage, with_rollups};
pub use reader::{AggregatesByGroup, find, keep_plans, now, snapshot, top};
