//! Prepaid credits: grants of a subject that are spent in a fixed order. Every movement is a transfer between
//! two accounts. This module is independent of storage.

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
