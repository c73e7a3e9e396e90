//! A stateful, strict fake of Stripe. It listens on its own port and keeps everything in memory. Tests start
//! one and ask it afterwards what was billed. `cargo run --example stripe_fake` serves it to developers
//! without a Stripe account.
//!
//! Times are Unix seconds by the fake's own clock, which a test sets.

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

/// Settings of the fake.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) api_key: String,
    pub(crate) livemode: bool,
    pub(crate) clock: Clock,
    /// The account's version, for requests without a version.
    pub(crate) api_version: String,
    /// The version to which the webhook endpoint is pinned.
    pub(crate) webhook_version: String,
    pub(crate) webhook_secrets: Vec<String>,
    /// The address to which the fake sends its webhooks. Without one, webhooks wait until a test takes them.
    pub(crate) webhook_url: Option<String>,
    /// The duration of every call, and so the time in which calls overlap.
    pub(crate) latency: Duration,
    /// Limit of meter event calls per second; without one, calls are unlimited.
    pub(crate) calls_per_second: Option<u32>,
    /// The answer to overlapping calls for one customer and meter.
    pub(crate) overlap: Overlap,
    /// Accepts events of negative value, as the first version of Stripe's meters may.
    pub(crate) negative_values: bool,
    /// Answers events of customers that do not exist with 200, does not count them, and reports them later.
    pub(crate) unknown_customers_reported: bool,
    /// Delay until an event is in the summaries.
    pub(crate) summary_lag: Duration,
    pub(crate) tiers: TierLines,
}

/// The lines that a graduated price makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TierLines {
    Together,
    /// One line per tier, each rounded separately.
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
