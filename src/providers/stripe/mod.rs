//! Stripe: one meter event per call over its v1 API
//! (<https://docs.stripe.com/billing/subscriptions/usage-based/recording-usage-api>).

mod client;
mod invoices;
mod meter_events;
pub mod order;
pub mod signature;
mod summaries;
pub mod webhook;

use std::time::Duration;

use async_trait::async_trait;
use secrecy::{ExposeSecret, SecretString};

pub use client::{API_VERSION, Client, Fault};

use super::{Bill, DeliveryResult, Failure, OutgoingMeterEvent, Provider, Summary, SummaryQuery};
use metergate_domain::base::Environment;

/// Stripe's own limits for meter events: a thousand per second on a live account, and the basic limit in
/// a sandbox (<https://docs.stripe.com/rate-limits>). The constants are slightly lower, because clocks
/// differ.
const CALLS_PER_SECOND_LIVE: u32 = 960;
const CALLS_PER_SECOND_TEST: u32 = 24;

/// The credentials of an environment's account.
#[derive(Debug, Clone, Default)]
pub struct StripeAccount {
    pub api_key: Option<SecretString>,
    /// The secrets of webhook endpoints, each of which may sign a webhook.
    pub webhook_secrets: Vec<SecretString>,
}

/// The accounts at Stripe, with the address of its API.
#[derive(Debug, Clone)]
pub struct StripeSettings {
    pub api_base: String,
    /// The rate that replaces Stripe's own limits.
    pub calls_per_second: Option<u32>,
    pub accounts: [(Environment, StripeAccount); 2],
}

impl StripeSettings {
    pub const API_BASE: &str = "https://api.stripe.com";

    pub fn account(&self, environment: Environment) -> Option<&StripeAccount> {
        self.accounts.iter().find(|(of, _)| *of == environment).map(|(_, account)| account)
    }
}

impl Default for StripeSettings {
    fn default() -> Self {
        Self {
            api_base: Self::API_BASE.to_owned(),
            calls_per_second: None,
            accounts: [
                (Environment::Test, StripeAccount::default()),
                (Environment::Live, StripeAccount::default()),
            ],
        }
    }
}

/// Returns the environment of an API key, according to its prefix.
pub fn environment_of(key: &SecretString) -> Option<Environment> {
    let key = key.expose_secret();
    let begins = |prefixes: [&str; 2]| prefixes.iter().any(|prefix| key.starts_with(prefix));
    if begins(["sk_test_", "rk_test_"]) {
        Some(Environment::Test)
    } else if begins(["sk_live_", "rk_live_"]) {
        Some(Environment::Live)
    } else {
        None
    }
}

/// An account at Stripe.
#[derive(Debug)]
pub struct Stripe {
    client: Client,
    calls_per_second: u32,
    meters: summaries::MeterIds,
    meter_names: invoices::MeterNames,
}

impl Stripe {
    /// Connects to the account of an environment. Returns none if the environment has no key.
    pub fn of(settings: &StripeSettings, environment: Environment) -> Result<Option<Self>, reqwest::Error> {
        let Some(key) = settings.account(environment).and_then(|account| account.api_key.clone()) else {
            return Ok(None);
        };
        let own = match environment {
            Environment::Live => CALLS_PER_SECOND_LIVE,
            Environment::Test => CALLS_PER_SECOND_TEST,
        };
        let client = Client::new(&settings.api_base, key)?;
        let calls_per_second = settings.calls_per_second.unwrap_or(own).max(1);
        Ok(Some(Self {
            client,
            calls_per_second,
            meters: summaries::MeterIds::default(),
            meter_names: invoices::MeterNames::default(),
        }))
    }

    pub fn client(&self) -> &Client {
        &self.client
    }
}

#[async_trait]
impl Provider for Stripe {
    fn name(&self) -> &'static str {
        "stripe"
    }

    fn calls_per_second(&self) -> u32 {
        self.calls_per_second
    }

    fn remembers_for(&self) -> Duration {
        // Stripe remembers a day at least; one hour is reserved for slow calls and different clocks
        Duration::from_hours(23)
    }

    fn cancels_for(&self) -> Duration {
        Duration::from_hours(23)
    }

    async fn deliver(&self, event: &OutgoingMeterEvent) -> DeliveryResult {
        meter_events::deliver(&self.client, event).await
    }

    async fn cancel(&self, event: &OutgoingMeterEvent) -> DeliveryResult {
        meter_events::cancel(&self.client, event).await
    }

    async fn summaries(&self, query: SummaryQuery<'_>) -> Result<Option<Vec<Summary>>, Failure> {
        summaries::read(&self.client, &self.meters, query).await
    }

    async fn invoice(&self, id: &str) -> Result<Option<Bill>, Failure> {
        invoices::read(&self.client, &self.meter_names, id).await
    }

    async fn preview(&self, customer: &str, subscription: &str) -> Result<Option<Bill>, Failure> {
        invoices::preview(&self.client, &self.meter_names, customer, subscription).await
    }
}
