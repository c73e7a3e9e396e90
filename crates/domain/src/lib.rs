//! The rules of metering, free of I/O, async and clocks: what may be said, what it means, what
//! counts where. Everything that enters is parsed here into types that cannot be wrong.

pub mod base;
pub mod catalog;
pub mod credits;
pub mod exports;
pub mod gate;
pub mod invoicing;
#[cfg(feature = "sqlx")]
pub mod postgres;
pub mod pricing;
pub mod received;
pub mod subjects;
pub mod usage;
pub mod webhook;
