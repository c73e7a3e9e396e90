//! The rules of metering, free of I/O, async and clocks. All input is parsed here into types that
//! cannot hold invalid values.

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
