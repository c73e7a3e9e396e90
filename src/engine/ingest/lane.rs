//! Lanes: bounded queues in front of writers.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;

use super::writer::Writer;
use super::{Outcome, Prepared, Workplace};
use crate::domain::environment::Environment;
use crate::domain::limits::{QUEUE_BYTES_MAX, QUEUE_EVENTS_MAX, TRANSACTION_EVENTS_MAX};
use crate::engine::EngineError;

pub(super) type Answer = Result<Vec<Outcome>, EngineError>;

/// The events of one call, and where its answer goes.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) events: Vec<Prepared>,
    pub(super) backfill: bool,
    pub(super) deadline: Instant,
    answer: oneshot::Sender<Answer>,
    /// Its share of the queue, given back with the job.
    _room: [OwnedSemaphorePermit; 2],
}

impl Job {
    pub(super) fn answer(self, answer: Answer) {
        // the caller may have gone away: then nobody needs the answer
        self.answer.send(answer).ok();
    }
}

/// A queue that several writers take from, one batch at a time.
#[derive(Debug)]
pub(super) struct Queue {
    jobs: tokio::sync::Mutex<mpsc::UnboundedReceiver<Job>>,
    name: String,
}

impl Queue {
    /// What has gathered: at least one job, unless the lane is closed; no more than a transaction
    /// takes, but for a single job that is larger.
    pub(super) async fn take(&self) -> Option<Vec<Job>> {
        let mut jobs = self.jobs.lock().await;
        let first = jobs.recv().await?;
        let mut events = first.events.len();
        let mut batch = vec![first];
        while events < TRANSACTION_EVENTS_MAX {
            match jobs.try_recv() {
                Ok(job) => {
                    events += job.events.len();
                    batch.push(job);
                }
                Err(_) => break,
            }
        }
        metrics::gauge!("metergate_ingest_queue_jobs", "lane" => self.name.clone())
            .set(f64::from(u32::try_from(jobs.len()).unwrap_or(u32::MAX)));
        Some(batch)
    }
}

#[derive(Debug)]
struct Lane {
    /// Bounded by the two semaphores below, in what matters: events and bytes.
    queue: mpsc::UnboundedSender<Job>,
    events: Arc<Semaphore>,
    kibibytes: Arc<Semaphore>,
}

const BYTES_PER_PERMIT: usize = 1024;

impl Lane {
    fn start(
        environment: Environment,
        name: &str,
        writers: usize,
        workplace: &Workplace,
    ) -> (Self, Vec<JoinHandle<()>>) {
        let (queue, jobs) = mpsc::unbounded_channel();
        let shared =
            Arc::new(Queue { jobs: tokio::sync::Mutex::new(jobs), name: format!("{environment}_{name}") });
        let tasks = (0..writers)
            .map(|_| tokio::spawn(Writer::new(environment, workplace.clone(), Arc::clone(&shared)).run()))
            .collect();
        let lane = Self {
            queue,
            events: Arc::new(Semaphore::new(QUEUE_EVENTS_MAX)),
            kibibytes: Arc::new(Semaphore::new(QUEUE_BYTES_MAX / BYTES_PER_PERMIT)),
        };
        (lane, tasks)
    }

    fn submit(
        &self,
        events: Vec<Prepared>,
        backfill: bool,
        deadline: Instant,
    ) -> Result<oneshot::Receiver<Answer>, EngineError> {
        let bytes: usize = events.iter().map(Prepared::bytes).sum();
        let room = |semaphore: &Arc<Semaphore>, wanted: usize, all: usize| {
            // one call that is larger than the queue may still pass alone
            let permits = u32::try_from(wanted.min(all)).unwrap_or(u32::MAX);
            Arc::clone(semaphore).try_acquire_many_owned(permits).map_err(|_| EngineError::overloaded())
        };
        let room = [
            room(&self.events, events.len(), QUEUE_EVENTS_MAX)?,
            room(&self.kibibytes, bytes.div_ceil(BYTES_PER_PERMIT), QUEUE_BYTES_MAX / BYTES_PER_PERMIT)?,
        ];
        let (answer, answered) = oneshot::channel();
        let job = Job { events, backfill, deadline, answer, _room: room };
        self.queue.send(job).map_err(|_| EngineError::unavailable("the lane is closed"))?;
        Ok(answered)
    }
}

/// The lanes of an environment.
#[derive(Debug)]
struct LanePair {
    environment: Environment,
    single: Lane,
    bulk: Lane,
}

/// The lanes of both environments.
#[derive(Debug)]
pub(in crate::engine) struct Lanes {
    /// None once they are closed.
    open: Mutex<Option<[LanePair; 2]>>,
    writers: Mutex<Vec<JoinHandle<()>>>,
}

/// How long writers may take to settle what they took, at a stop.
const SETTLE_MAX: Duration = Duration::from_secs(10);
/// A second one only halves the batches: measured, it costs more than it gives.
const SINGLE_WRITERS: usize = 1;
/// While one waits for the disk, the other works.
const BULK_WRITERS: usize = 2;

impl Lanes {
    pub(in crate::engine) fn start(workplace: &Workplace) -> Self {
        let mut writers = Vec::new();
        let open = Environment::ALL.map(|environment| {
            let (single, single_writers) = Lane::start(environment, "single", SINGLE_WRITERS, workplace);
            let (bulk, bulk_writers) = Lane::start(environment, "bulk", BULK_WRITERS, workplace);
            writers.extend(single_writers);
            writers.extend(bulk_writers);
            LanePair { environment, single, bulk }
        });
        Self { open: Mutex::new(Some(open)), writers: Mutex::new(writers) }
    }

    pub(super) async fn submit(
        &self,
        environment: Environment,
        events: Vec<Prepared>,
        backfill: bool,
        wait_max: Duration,
    ) -> Answer {
        let deadline = Instant::now() + wait_max;
        let answered = {
            let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            let lanes =
                open.as_ref().and_then(|pairs| pairs.iter().find(|pair| pair.environment == environment));
            let Some(LanePair { single, bulk, .. }) = lanes else {
                return Err(EngineError::unavailable("the service is stopping"));
            };
            let lane = if events.len() == 1 { single } else { bulk };
            lane.submit(events, backfill, deadline)?
        };
        answered.await.unwrap_or_else(|_| Err(EngineError::Internal("a writer dropped a job".to_owned())))
    }

    /// Closes the lanes and waits until the writers have settled what they took; not for ever: where
    /// the database stays away, what became of a commit cannot be found out, and nobody is told it was.
    pub(in crate::engine) async fn stop(&self) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).take();
        let writers: Vec<JoinHandle<()>> =
            self.writers.lock().unwrap_or_else(PoisonError::into_inner).drain(..).collect();
        let deadline = tokio::time::Instant::now() + SETTLE_MAX;
        for mut writer in writers {
            if tokio::time::timeout_at(deadline, &mut writer).await.is_err() {
                tracing::warn!("a writer did not settle in time");
                writer.abort();
            }
        }
    }
}
