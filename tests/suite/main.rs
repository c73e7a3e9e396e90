//! The tests from outside: one binary, so that a run starts one throwaway cluster.

#![expect(clippy::unwrap_used, reason = "a test ends where something is not as it should be")]

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
