//! The memory of the fast path: the next batch, and the batches that take the locked path first.

use super::cap_headroom::{KnownCaps, LastSeenCounters};
use crate::engine::writers::context::WriterContext;
use crate::store::gate::fast_path::{self, Done, FastBatch, StatementClock};
use crate::store::{Scope, StoreError};
use metergate_domain::base::{Timestamp, Total};
use metergate_domain::gate::{Counter, CounterKey};
use std::time::Instant;

/// The most batches that take the locked path after a batch that did not fit.
pub(super) const DOUBTED_MAX: u32 = 64;

/// The id and the time of the next batch.
#[derive(Debug, Clone, Copy)]
pub(super) struct NextBatch {
    pub(super) batch_id: i64,
    /// The time by the server's clock; `read_at` is the local instant of that reading.
    pub(super) now: Timestamp,
    pub(super) read_at: Instant,
}

impl NextBatch {
    pub(super) fn reckoned(&self, clock: StatementClock) -> Timestamp {
        clock.fixed.unwrap_or_else(|| self.now.saturating_add(self.read_at.elapsed()))
    }
}

/// The memory of a writer for the fast path.
#[derive(Debug, Default)]
pub(crate) struct FastPath {
    pub(super) next: Option<NextBatch>,
    pub(super) seen: LastSeenCounters,
    pub(super) caps: KnownCaps,
    /// The number of batches that still take the locked path; `doubts` is the number after the last
    /// failure.
    pub(super) doubted: u32,
    pub(super) doubts: u32,
}

impl FastPath {
    /// Notes the counters of caps after a batch on the locked path.
    pub(crate) fn note<'k>(&self, counters: impl Iterator<Item = (&'k CounterKey, &'k Counter)>) {
        for (key, counter) in counters {
            self.seen.note(*key, counter.level, Total::default());
        }
    }

    pub(super) async fn next(
        &mut self,
        scope: &mut Scope<'_>,
        writer_context: &WriterContext,
    ) -> Result<NextBatch, StoreError> {
        if let Some(next) = self.next {
            return Ok(next);
        }
        let (batch_id, now) = fast_path::next_batch(scope.connection).await?;
        let now = writer_context.clock.now(scope.environment, now);
        Ok(*self.next.insert(NextBatch { batch_id, now, read_at: Instant::now() }))
    }

    /// Returns whether a batch takes the locked path because an earlier batch did not fit.
    pub(super) fn is_doubted(&mut self) -> bool {
        let is_doubted = self.doubted > 0;
        self.doubted = self.doubted.saturating_sub(1);
        is_doubted
    }

    pub(super) fn doubt(&mut self) {
        self.doubts = (self.doubts * 2 + 1).min(DOUBTED_MAX);
        self.doubted = self.doubts;
    }

    pub(super) fn succeed(&mut self, batch: &FastBatch<'_>, done: &Done) {
        self.next = Some(NextBatch { batch_id: done.next_batch_id, now: done.at, read_at: Instant::now() });
        (self.doubted, self.doubts) = (0, 0);
        for ((key, addition), level) in batch.counters.iter().zip(&done.levels) {
            if addition.of_price {
                self.seen.note(*key, *level, addition.added);
            }
        }
    }
}
