//! The tests from outside: one binary, so that a run starts one throwaway cluster.

#![expect(clippy::unwrap_used, reason = "a test ends where something is not as it should be")]

mod support;

mod access;
mod aggregations;
mod bad_input;
mod catalog;
mod credits;
mod drop_in;
mod drop_in_sdk;
mod embedded;
mod events;
mod exports;
mod folding;
mod gate;
mod gate_model;
mod gate_outages;
mod gate_races;
mod gateways;
mod house;
mod interface;
mod interleavings;
mod invoices;
mod outages;
mod plans;
mod prices;
mod reports;
mod spend_caps;
mod stripe_fake;
mod subjects;
mod trace;
mod webhooks;
mod windows;
