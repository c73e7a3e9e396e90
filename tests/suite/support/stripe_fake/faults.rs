//! Faults on demand: each with a chance, or for the next calls.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// Kinds of calls, for faults and for counting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Endpoint {
    /// All of the others, for faults.
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
    /// The connection is reset before anything is done.
    ResetBefore,
    /// The answer is lost: the connection is reset after all was done.
    ResetAfter,
    /// 500 with nothing done and nothing kept.
    ErrorBefore,
    /// 500 with nothing done, kept under the idempotency key.
    ErrorBeforeKept,
    /// 500 after all was done, kept under the idempotency key.
    ErrorAfter,
    /// 429 with this reason.
    RateLimited(&'static str),
    /// 429 without a reason.
    LockTimeout,
    /// 401, as for a revoked key.
    Unauthorized,
    /// The answer comes this long after all was done.
    Slow(Duration),
}

/// What goes wrong, and how often.
#[derive(Debug)]
pub(crate) struct Plan {
    rng: StdRng,
    chances: Vec<(Endpoint, Fault, f64)>,
    next: Vec<(Endpoint, Fault, u32)>,
}

impl Plan {
    /// Nothing goes wrong yet; the same seed lets the same calls fail.
    pub(crate) fn seeded(seed: u64) -> Self {
        Self { rng: StdRng::seed_from_u64(seed), chances: Vec::new(), next: Vec::new() }
    }

    /// A call to the endpoint has the fault with this chance.
    #[must_use]
    pub(crate) fn chance(mut self, endpoint: Endpoint, fault: Fault, chance: f64) -> Self {
        self.chances.push((endpoint, fault, chance));
        self
    }

    /// The next calls to the endpoint have the fault, before any chance is asked.
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
