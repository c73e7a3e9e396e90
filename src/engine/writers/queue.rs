//! The queue of a lane.

use std::time::Instant;

use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use super::processor::BatchProcessor;
use crate::engine::error::EngineError;

/// The work of a call, and the channel for its answer.
#[derive(Debug)]
pub(super) struct Job<T: BatchProcessor> {
    pub(super) work: T::Work,
    pub(super) deadline: Instant,
    answer: oneshot::Sender<Result<T::Reply, EngineError>>,
    /// The job's share of the queue, freed when the job is dropped.
    _room: [OwnedSemaphorePermit; 2],
}

impl<T: BatchProcessor> Job<T> {
    pub(super) fn new(
        work: T::Work,
        deadline: Instant,
        answer: oneshot::Sender<Result<T::Reply, EngineError>>,
        room: [OwnedSemaphorePermit; 2],
    ) -> Self {
        Self { work, deadline, answer, _room: room }
    }

    pub(super) fn answer(self, answer: Result<T::Reply, EngineError>) {
        // Fails if the caller has gone away; then no answer is needed.
        self.answer.send(answer).ok();
    }
}

/// A queue that several writers share. One writer takes a batch at a time.
#[derive(Debug)]
pub(super) struct Queue<T: BatchProcessor> {
    jobs: tokio::sync::Mutex<mpsc::UnboundedReceiver<Job<T>>>,
    name: String,
    batch_items_max: usize,
}

impl<T: BatchProcessor> Queue<T> {
    pub(super) fn new(jobs: mpsc::UnboundedReceiver<Job<T>>, name: String, batch_items_max: usize) -> Self {
        Self { jobs: tokio::sync::Mutex::new(jobs), name, batch_items_max }
    }

    /// Waits for a job and returns it with the jobs queued after it, or none if the lane is closed. A batch
    /// stays within the item limit of a transaction, unless a single job is larger.
    pub(super) async fn take(&self) -> Option<Vec<Job<T>>> {
        let mut jobs = self.jobs.lock().await;
        let first = jobs.recv().await?;
        let mut items = T::weigh(&first.work).items;
        let mut batch = vec![first];
        while items < self.batch_items_max {
            match jobs.try_recv() {
                Ok(job) => {
                    items += T::weigh(&job.work).items;
                    batch.push(job);
                }
                Err(_) => break,
            }
        }
        metrics::gauge!("metergate_queue_jobs", "lane" => self.name.clone())
            .set(f64::from(u32::try_from(jobs.len()).unwrap_or(u32::MAX)));
        Some(batch)
    }
}
