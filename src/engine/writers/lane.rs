//! Lanes: bounded queues in front of writers.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;

use super::queue::{Job, Queue};
use super::writer::Writer;
use super::{BatchProcessor, Weight};
use crate::engine::EngineError;
use crate::store::Database;
use metergate_domain::base::limits::{QUEUE_BYTES_MAX, QUEUE_ITEMS_MAX};

#[derive(Debug)]
pub(crate) struct Lane<T: BatchProcessor> {
    /// None once it is closed. Bounded by the two semaphores below, in what matters: items and bytes.
    queue: Mutex<Option<mpsc::UnboundedSender<Job<T>>>>,
    items: Arc<Semaphore>,
    kibibytes: Arc<Semaphore>,
}

const BYTES_PER_PERMIT: usize = 1024;

impl<T: BatchProcessor> Lane<T> {
    /// A lane with a writer for each of the trades.
    pub(crate) fn start(
        name: String,
        batch_items_max: usize,
        database: &Database,
        trades: Vec<T>,
        writer_tasks: &mut WriterTasks,
    ) -> Self {
        let (queue, jobs) = mpsc::unbounded_channel();
        let shared = Arc::new(Queue::new(jobs, name, batch_items_max));
        for trade in trades {
            let writer = Writer::new(database.clone(), trade, Arc::clone(&shared));
            writer_tasks.0.push(tokio::spawn(writer.run()));
        }
        Self {
            queue: Mutex::new(Some(queue)),
            items: Arc::new(Semaphore::new(QUEUE_ITEMS_MAX)),
            kibibytes: Arc::new(Semaphore::new(QUEUE_BYTES_MAX / BYTES_PER_PERMIT)),
        }
    }

    /// Hands over work and waits for what comes of it.
    pub(crate) async fn submit(&self, work: T::Work, wait_max: Duration) -> Result<T::Reply, EngineError> {
        let answered = self.enqueue(work, Instant::now() + wait_max)?;
        answered.await.unwrap_or_else(|_| Err(EngineError::Internal("a writer dropped a job".to_owned())))
    }

    fn enqueue(
        &self,
        work: T::Work,
        deadline: Instant,
    ) -> Result<oneshot::Receiver<Result<T::Reply, EngineError>>, EngineError> {
        let Weight { items, bytes } = T::weigh(&work);
        let room = |semaphore: &Arc<Semaphore>, wanted: usize, all: usize| {
            // one call that is larger than the queue may still pass alone
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

    /// Takes no more work.
    pub(crate) fn close(&self) {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// The writers that are at work.
#[derive(Debug, Default)]
pub(crate) struct WriterTasks(Vec<JoinHandle<()>>);

/// How long writers may take to settle what they took, at a stop.
const SETTLE_MAX: Duration = Duration::from_secs(10);

impl WriterTasks {
    /// Waits until the writers of closed lanes have settled what they took; not for ever: where the
    /// database stays away, what became of a commit cannot be found out, and nobody is told it was.
    pub(crate) async fn end(self) {
        let deadline = tokio::time::Instant::now() + SETTLE_MAX;
        for mut writer in self.0 {
            if tokio::time::timeout_at(deadline, &mut writer).await.is_err() {
                tracing::warn!("a writer did not settle in time");
                writer.abort();
            }
        }
    }
}
