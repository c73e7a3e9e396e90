//! All SQL, and only SQL. One file per table family. What is decided is decided by the callers;
//! what must hold under concurrency is held here by row locks and unique constraints.

pub mod api_keys;
pub mod at_once;
pub mod catalog;
pub mod configuration;
pub mod connect;
pub mod counters;
pub mod error;
pub mod event_fees;
pub mod event_list;
pub mod events;
pub mod exchange_rates;
pub mod export_levels;
pub mod export_sums;
pub mod exports;
pub mod fees;
pub mod fold;
pub mod gate_batches;
pub mod hold_lines;
pub mod measures;
pub mod partitions;
pub mod reconciliation;
pub mod reservations;
pub mod settlement;
pub mod spend_caps;
pub mod stripe_customers;
pub mod stripe_subscriptions;
pub mod subjects;
pub mod subscriptions;
mod types;
pub mod usage;
pub mod verify;
pub mod voids;
pub mod webhook_events;

pub use connect::Database;
pub use error::StoreError;
