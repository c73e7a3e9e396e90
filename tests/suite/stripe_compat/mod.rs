//! The interface for Stripe's SDKs, and the fake of Stripe that tests use.

mod fake;
mod meter_events;
mod sdk;
