//! A stateful, strict fake of Stripe. It listens on a port of its own and keeps everything in
//! memory: tests start one and ask it afterwards what was billed; `cargo run --example stripe_fake`
//! serves the same to whoever has no account.
//!
//! Times are unix seconds by the fake's own clock, which a test sets.

mod adjustments;
mod catalog;
mod checkout;
mod clock;
mod control;
mod customers;
mod delivery;
mod errors;
mod events;
mod faults;
mod forms;
mod http;
mod idempotency;
mod invoices;
mod ledger;
mod meter_events;
mod meters;
mod outbox;
mod periods;
mod rating;
mod renewals;
mod reports;
mod routes;
mod server;
mod setup;
mod signatures;
mod state;
mod subscription_calls;
mod subscriptions;
mod summaries;
mod traffic;
mod version;

use std::time::Duration;

pub(crate) use clock::{Clock, unix};
pub(crate) use customers::Payments;
pub(crate) use faults::{Endpoint, Fault, Plan};
pub(crate) use outbox::{Webhook, shuffled};
pub(crate) use server::StripeFake;
pub(crate) use signatures::sign;

/// What the fake is told when it starts.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) api_key: String,
    pub(crate) livemode: bool,
    pub(crate) clock: Clock,
    /// The account's version, for requests that name none.
    pub(crate) api_version: String,
    /// The version that the endpoint of the webhooks is pinned to.
    pub(crate) webhook_version: String,
    pub(crate) webhook_secrets: Vec<String>,
    /// Where the fake sends its webhooks by itself; without one they wait to be taken.
    pub(crate) webhook_url: Option<String>,
    /// How long every call takes; calls that come at once overlap for as long.
    pub(crate) latency: Duration,
    /// Calls a second on meter events; none: as many as come.
    pub(crate) calls_per_second: Option<u32>,
    /// The answer to overlapping calls for one customer and meter.
    pub(crate) overlap: Overlap,
    /// Take events of negative value, as Stripe's first version may.
    pub(crate) negative_values: bool,
    /// Events of customers that do not exist are answered, not counted, and reported later.
    pub(crate) unknown_customers_reported: bool,
    /// How long an event is missing from the summaries.
    pub(crate) summary_lag: Duration,
    pub(crate) tiers: TierLines,
}

/// The lines that a graduated price makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TierLines {
    Together,
    /// Each tier is a line of its own, and rounds by itself.
    Apart,
}

/// The answer to overlapping calls for one customer and meter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Overlap {
    LockTimeout,
    Conflict,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            api_key: "sk_test_fake".to_owned(),
            livemode: false,
            clock: Clock::fixed("2026-11-20T12:00:00Z"),
            api_version: "2026-07-29.dahlia".to_owned(),
            webhook_version: "2026-07-29.dahlia".to_owned(),
            webhook_secrets: vec!["whsec_fake".to_owned()],
            webhook_url: None,
            latency: Duration::from_millis(1),
            calls_per_second: None,
            overlap: Overlap::LockTimeout,
            negative_values: false,
            unknown_customers_reported: false,
            summary_lag: Duration::ZERO,
            tiers: TierLines::Together,
        }
    }
}
