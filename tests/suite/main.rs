//! Tests of the public interfaces, in one binary, so that a run starts one throwaway cluster.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod architecture;
mod catalog;
mod credits;
mod exports;
mod gate;
mod http;
mod invoicing;
mod operations;
mod pricing;
mod stripe_compat;
mod subjects;
mod support;
mod tidy;
mod usage;
mod webhooks;
