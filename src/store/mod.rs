//! All SQL, and nothing else: one file per group of tables. Callers decide; this layer enforces the
//! rules that must hold under concurrency, with row locks and unique constraints.

pub mod api_keys;
pub mod catalog;
pub mod configuration;
pub mod connect;
pub mod credits;
pub mod error;
pub mod exports;
pub mod gate;
pub mod invoicing;
pub mod partitions;
pub mod pricing;
pub mod scope;
pub mod subjects;
pub mod transaction;
pub mod usage;
pub mod webhook_events;

pub use connect::Database;
pub use error::StoreError;
pub use scope::Scope;
