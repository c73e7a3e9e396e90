//! Limits calls to a provider's rate, without a burst at the start of each second.

use std::num::NonZeroU32;

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};

/// The number of bursts in a second; each has an equal part of the calls.
const BURSTS_PER_SECOND: u32 = 20;

/// A limiter of one provider's calls.
#[derive(Debug)]
pub(super) struct RateLimit(DefaultDirectRateLimiter);

impl RateLimit {
    pub(super) fn new(calls_per_second: u32) -> Self {
        let at_least_one = |n: u32| NonZeroU32::new(n).unwrap_or(NonZeroU32::MIN);
        let burst = at_least_one(calls_per_second / BURSTS_PER_SECOND);
        Self(RateLimiter::direct(Quota::per_second(at_least_one(calls_per_second)).allow_burst(burst)))
    }

    /// Waits until the next call is allowed.
    pub(super) async fn wait(&self) {
        self.0.until_ready().await;
    }
}
