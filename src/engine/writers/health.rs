//! The health of a lane: the number of its running writers.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// The number of running writers of a lane. A lane without a running writer cannot answer calls.
#[derive(Debug)]
pub(super) struct LaneHealth {
    name: String,
    running: AtomicU32,
}

impl LaneHealth {
    pub(super) fn new(name: String) -> Arc<Self> {
        Arc::new(Self { name, running: AtomicU32::new(0) })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn is_dead(&self) -> bool {
        self.running.load(Ordering::SeqCst) == 0
    }

    /// Counts one more running writer, for as long as the returned guard lives.
    pub(super) fn enter(self: &Arc<Self>) -> RunningWriter {
        let before = self.running.fetch_add(1, Ordering::SeqCst);
        self.show(before + 1);
        RunningWriter(Arc::clone(self))
    }

    fn show(&self, running: u32) {
        metrics::gauge!("metergate_writers_running", "lane" => self.name.clone()).set(f64::from(running));
    }
}

/// A guard that counts its writer as running until it is dropped.
#[derive(Debug)]
pub(super) struct RunningWriter(Arc<LaneHealth>);

impl RunningWriter {
    /// Reports a panic and counts the writer as stopped.
    pub(super) fn stop_after_panic(self, panic: &(dyn Any + Send)) -> Arc<LaneHealth> {
        let health = Arc::clone(&self.0);
        let text = panic.downcast_ref::<&str>().copied();
        let panic = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("unknown");
        tracing::error!(lane = %health.name, panic, "a writer panicked, failed its calls and restarts");
        metrics::counter!("metergate_writer_panics_total", "lane" => health.name.clone()).increment(1);
        health
    }
}

impl Drop for RunningWriter {
    fn drop(&mut self) {
        let before = self.0.running.fetch_sub(1, Ordering::SeqCst);
        self.0.show(before.saturating_sub(1));
    }
}
