//! Reads usage: rollups for whole days and hours, events for parts of hours, for what is not folded, and
//! for hours whose rollups differ from the events. All statements of an answer share one snapshot.
//!
//! [`query`] says what is read and of whom, [`reader`] reads values, [`fees`] reads what events cost one by
//! one. [`measures`] is the one description of what a meter takes from events.

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
