//! Lanes: bounded queues in front of writers.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;

use super::health::LaneHealth;
use super::processor::{BatchProcessor, Weight};
use super::queue::{Job, Queue};
use super::writer::Writer;
use crate::engine::error::EngineError;
use crate::store::Database;
use metergate_domain::base::limits::{QUEUE_BYTES_MAX, QUEUE_ITEMS_MAX};

/// A queue of calls and its writers.
#[derive(Debug)]
pub(crate) struct Lane<T: BatchProcessor> {
    /// None after the lane is closed. The two semaphores below bound its items and bytes.
    queue: Mutex<Option<mpsc::UnboundedSender<Job<T>>>>,
    items: Arc<Semaphore>,
    kibibytes: Arc<Semaphore>,
}

const BYTES_PER_PERMIT: usize = 1024;

impl<T: BatchProcessor> Lane<T> {
    /// Starts one writer per processor.
    pub(crate) fn start(
        name: String,
        batch_items_max: usize,
        database: &Database,
        trades: Vec<T>,
        writer_tasks: &mut WriterTasks,
    ) -> Self {
        let (queue, jobs) = mpsc::unbounded_channel();
        let health = LaneHealth::new(name.clone());
        let shared = Arc::new(Queue::new(jobs, name, batch_items_max));
        for trade in trades {
            let writer = Writer::new(database.clone(), trade, Arc::clone(&shared));
            writer_tasks.writers.push(tokio::spawn(writer.run(health.enter())));
        }
        writer_tasks.lanes.push(health);
        Self {
            queue: Mutex::new(Some(queue)),
            items: Arc::new(Semaphore::new(QUEUE_ITEMS_MAX)),
            kibibytes: Arc::new(Semaphore::new(QUEUE_BYTES_MAX / BYTES_PER_PERMIT)),
        }
    }

    /// Queues work and waits for its reply. Fails with an internal error if the writer panics: the work
    /// may be committed, and a retry with the same ids is safe.
    pub(crate) async fn submit(&self, work: T::Work, wait_max: Duration) -> Result<T::Reply, EngineError> {
        let answered = self.enqueue(work, Instant::now() + wait_max)?;
        answered
            .await
            .unwrap_or_else(|_| Err(EngineError::Internal("the writer stopped without a reply".to_owned())))
    }

    fn enqueue(
        &self,
        work: T::Work,
        deadline: Instant,
    ) -> Result<oneshot::Receiver<Result<T::Reply, EngineError>>, EngineError> {
        let Weight { items, bytes } = T::weigh(&work);
        let room = |semaphore: &Arc<Semaphore>, wanted: usize, all: usize| {
            // A call larger than the whole queue passes when the queue is empty.
            let permits = u32::try_from(wanted.min(all)).unwrap_or(u32::MAX);
            Arc::clone(semaphore).try_acquire_many_owned(permits).map_err(|_| EngineError::overloaded())
        };
        let room = [
            room(&self.items, items, QUEUE_ITEMS_MAX)?,
            room(&self.kibibytes, bytes.div_ceil(BYTES_PER_PERMIT), QUEUE_BYTES_MAX / BYTES_PER_PERMIT)?,
        ];
        let (answer, answered) = oneshot::channel();
        let job = Job::new(work, deadline, answer, room);
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let closed = || EngineError::unavailable("the service is stopping");
        queue.as_ref().ok_or_else(closed)?.send(job).map_err(|_| closed())?;
        Ok(answered)
    }

    /// Closes the queue. Its writers stop after they have processed the queued work.
    pub(crate) fn close(&self) {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// The tasks of all writers, and the health of their lanes.
#[derive(Debug, Default)]
pub(crate) struct WriterTasks {
    writers: Vec<JoinHandle<()>>,
    lanes: Vec<Arc<LaneHealth>>,
}

/// The longest time that a stop waits for open batches.
const SETTLE_MAX: Duration = Duration::from_secs(10);

impl WriterTasks {
    /// Returns the names of the lanes without a running writer.
    pub(crate) fn dead_lanes(&self) -> Vec<String> {
        self.lanes.iter().filter(|lane| lane.is_dead()).map(|lane| lane.name().to_owned()).collect()
    }

    /// Waits a limited time until the writers of closed lanes have finished their batches. If the database
    /// is down, the commit result is unknown and callers get an error.
    pub(crate) async fn end(self) {
        let deadline = tokio::time::Instant::now() + SETTLE_MAX;
        for mut writer in self.writers {
            if tokio::time::timeout_at(deadline, &mut writer).await.is_err() {
                tracing::warn!("a writer did not finish its batch before the stop");
                writer.abort();
            }
        }
    }
}
