//! Keeps to a provider's rate, without the bursts that a whole second's worth at once would be.

use std::num::NonZeroU32;

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};

/// A burst is what this part of a second is worth.
const BURSTS_PER_SECOND: u32 = 20;

#[derive(Debug)]
pub(super) struct RateLimit(DefaultDirectRateLimiter);

impl RateLimit {
    pub(super) fn new(calls_per_second: u32) -> Self {
        let at_least_one = |n: u32| NonZeroU32::new(n).unwrap_or(NonZeroU32::MIN);
        let burst = at_least_one(calls_per_second / BURSTS_PER_SECOND);
        Self(RateLimiter::direct(Quota::per_second(at_least_one(calls_per_second)).allow_burst(burst)))
    }

    pub(super) async fn wait(&self) {
        self.0.until_ready().await;
    }
}
