//! The unfolded backlog: events that are recorded but in no rollup yet. Reads add them one by one, so
//! the backlog must stay short. If it grows too long, writers wait for the fold.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

use metergate_domain::base::Environment;
use metergate_domain::base::limits::UNFOLDED_EVENTS_MAX;

/// The longest wait of a writer for the fold. The wait slows recording down but does not stop it.
const WAIT_MAX: Duration = Duration::from_secs(1);

/// The backlogs of both environments. Neither slows the other.
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

/// An estimate of the unfolded events of one environment.
#[derive(Debug, Default)]
pub struct UnfoldedBacklog {
    events: AtomicI64,
    shorter: Notify,
}

impl UnfoldedBacklog {
    /// Returns the last count of unfolded events, plus the events recorded here since.
    pub fn events(&self) -> i64 {
        self.events.load(Ordering::Relaxed)
    }

    /// Adds events that were recorded here.
    pub(crate) fn grow(&self, events: usize) {
        self.events.fetch_add(i64::try_from(events).unwrap_or(i64::MAX), Ordering::Relaxed);
    }

    /// Replaces the estimate with a full count.
    pub fn set(&self, events: i64) {
        self.events.store(events, Ordering::Relaxed);
        if events < UNFOLDED_EVENTS_MAX {
            self.shorter.notify_waiters();
        }
    }

    /// Waits while the backlog is too long.
    pub(crate) async fn wait_until_short(&self) {
        let shorter = self.shorter.notified();
        if self.events() >= UNFOLDED_EVENTS_MAX {
            metrics::counter!("metergate_ingest_pushed_back_total").increment(1);
            tokio::time::timeout(WAIT_MAX, shorter).await.ok();
        }
    }
}
