//! Faults on demand, with a probability or for the next calls.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// Kinds of calls, for faults and for counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Endpoint {
    /// All endpoints, for faults.
    Any,
    MeterEvents,
    Adjustments,
    Summaries,
    OtherReads,
    OtherWrites,
}

impl Endpoint {
    pub(super) fn includes(self, other: Self) -> bool {
        self == Self::Any || self == other
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The connection is reset before the call is executed.
    ResetBefore,
    /// The answer is lost: the connection is reset after the call was executed.
    ResetAfter,
    /// 500 without effect; the idempotency key keeps nothing.
    ErrorBefore,
    /// 500 without effect, kept under the idempotency key.
    ErrorBeforeKept,
    /// 500 after the call was executed, kept under the idempotency key.
    ErrorAfter,
    /// 429 with this reason.
    RateLimited(&'static str),
    /// 429 without a reason.
    LockTimeout,
    /// 401, as for a revoked key.
    Unauthorized,
    /// The answer is delayed by this time after the call was executed.
    Slow(Duration),
}

/// The faults and their frequency.
#[derive(Debug)]
pub(crate) struct Plan {
    rng: StdRng,
    chances: Vec<(Endpoint, Fault, f64)>,
    next: Vec<(Endpoint, Fault, u32)>,
}

impl Plan {
    /// Returns a plan without faults; the same seed makes the same calls fail.
    pub(crate) fn seeded(seed: u64) -> Self {
        Self { rng: StdRng::seed_from_u64(seed), chances: Vec::new(), next: Vec::new() }
    }

    /// Adds a fault with a probability.
    #[must_use]
    pub(crate) fn chance(mut self, endpoint: Endpoint, fault: Fault, chance: f64) -> Self {
        self.chances.push((endpoint, fault, chance));
        self
    }

    /// Adds a fault for the next calls to the endpoint, before random faults apply.
    #[must_use]
    pub(crate) fn next(mut self, endpoint: Endpoint, fault: Fault, count: u32) -> Self {
        self.push_next(endpoint, fault, count);
        self
    }

    pub(super) fn push_next(&mut self, endpoint: Endpoint, fault: Fault, count: u32) {
        self.next.push((endpoint, fault, count));
    }

    pub(super) fn draw(&mut self, endpoint: Endpoint) -> Option<Fault> {
        let mut next = self.next.iter_mut();
        if let Some((_, fault, left)) = next.find(|(of, _, left)| of.includes(endpoint) && *left > 0) {
            *left -= 1;
            return Some(*fault);
        }
        let Self { rng, chances, .. } = self;
        let mut concerning = chances.iter().filter(|(of, ..)| of.includes(endpoint));
        concerning.find(|(_, _, chance)| rng.random_bool(*chance)).map(|(_, fault, _)| *fault)
    }
}
