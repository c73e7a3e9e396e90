//! The unfolded tail: what is recorded but not in the rollups yet. Reads add it up event by event,
//! so it must stay short: where it grows too long, writers wait for the fold.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

use metergate_domain::base::environment::Environment;
use metergate_domain::base::limits::UNFOLDED_EVENTS_MAX;

/// How long a writer waits for the fold before it goes on all the same: pushed back, not stopped.
const WAIT_MAX: Duration = Duration::from_secs(1);

/// The tails of both environments: neither slows the other.
#[derive(Debug, Default)]
pub(crate) struct UnfoldedBacklogs([UnfoldedBacklog; 2]);

impl UnfoldedBacklogs {
    pub(crate) fn of(&self, environment: Environment) -> &UnfoldedBacklog {
        match environment {
            Environment::Test => &self.0[0],
            Environment::Live => &self.0[1],
        }
    }
}

#[derive(Debug, Default)]
pub struct UnfoldedBacklog {
    events: AtomicI64,
    shorter: Notify,
}

impl UnfoldedBacklog {
    /// What is recorded but not folded, as last counted, and what was recorded here since.
    pub fn events(&self) -> i64 {
        self.events.load(Ordering::Relaxed)
    }

    /// Something was recorded here.
    pub(crate) fn grow(&self, events: usize) {
        self.events.fetch_add(i64::try_from(events).unwrap_or(i64::MAX), Ordering::Relaxed);
    }

    /// All of it was counted.
    pub fn set(&self, events: i64) {
        self.events.store(events, Ordering::Relaxed);
        if events < UNFOLDED_EVENTS_MAX {
            self.shorter.notify_waiters();
        }
    }

    /// Waits while the tail is too long.
    pub(crate) async fn wait_until_short(&self) {
        let shorter = self.shorter.notified();
        if self.events() >= UNFOLDED_EVENTS_MAX {
            metrics::counter!("metergate_ingest_pushed_back_total").increment(1);
            tokio::time::timeout(WAIT_MAX, shorter).await.ok();
        }
    }
}
