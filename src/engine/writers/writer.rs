//! A writer: it takes queued jobs, commits them in one transaction, and answers. It never gives up a
//! transaction with an unknown result, except by a panic.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use sqlx::PgConnection;

use super::health::RunningWriter;
use super::processor::{Attempt, BatchProcessor};
use super::queue::{Job, Queue};
use crate::engine::error::EngineError;
use crate::store::{Database, Scope, StoreError};

/// The most attempts after a deadlock or a lock timeout.
const CONFLICTS_MAX: u32 = 3;
/// The most prerequisites of one batch.
const PREPARATIONS_MAX: u32 = 100;
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_millis(500);

pub(super) struct Writer<T: BatchProcessor> {
    database: Database,
    trade: T,
    queue: Arc<Queue<T>>,
    connection: Option<PgConnection>,
    restart_pause: Pause,
}

/// A pause that grows with every failure.
struct Pause(Duration);

impl Pause {
    async fn rest(&mut self) {
        tokio::time::sleep(self.0).await;
        self.0 = (self.0 * 2).min(PAUSE_MAX);
    }
}

impl<T: BatchProcessor> Writer<T> {
    pub(super) fn new(database: Database, trade: T, queue: Arc<Queue<T>>) -> Self {
        Self { database, trade, queue, connection: None, restart_pause: Pause(PAUSE_MIN) }
    }

    /// Processes jobs until the lane is closed. After a panic, continues with a new connection and a new
    /// processor. The jobs of that batch are dropped, so [`super::lane::Lane::submit`] fails for their
    /// callers.
    pub(super) async fn run(mut self, mut running: RunningWriter) {
        while let Err(panic) = AssertUnwindSafe(self.settle_all()).catch_unwind().await {
            // The server rolls back the open transaction.
            self.connection = None;
            let health = running.stop_after_panic(&*panic);
            self.trade = self.trade.restarted();
            self.restart_pause.rest().await;
            running = health.enter();
        }
        if let Some(connection) = self.connection {
            sqlx::Connection::close(connection).await.ok();
        }
    }

    async fn settle_all(&mut self) {
        loop {
            self.trade.rest().await;
            let Some(jobs) = self.queue.take().await else { break };
            self.settle(jobs).await;
            self.restart_pause = Pause(PAUSE_MIN);
        }
    }

    /// Commits jobs together. If the database refuses the data of a job, halving isolates it, and it fails
    /// alone.
    async fn settle(&mut self, jobs: Vec<Job<T>>) {
        let mut pending = vec![jobs];
        while let Some(mut jobs) = pending.pop() {
            match self.settle_together(&mut jobs).await {
                Ok(replies) => {
                    for (job, reply) in jobs.into_iter().zip(replies) {
                        job.answer(Ok(reply));
                    }
                }
                Err(why @ (StoreError::Refused(_) | StoreError::Constraint { .. })) if jobs.len() > 1 => {
                    tracing::warn!(jobs = jobs.len(), %why, "the database refused a batch; halving it");
                    let second = jobs.split_off(jobs.len() / 2);
                    pending.push(second);
                    pending.push(jobs);
                }
                Err(why) => {
                    for job in jobs {
                        job.answer(Err(failure(&why)));
                    }
                }
            }
        }
    }

    /// Attempts a batch until it is committed or refused. Jobs that waited too long are answered and
    /// dropped, as long as none of them can be committed.
    async fn settle_together(&mut self, jobs: &mut Vec<Job<T>>) -> Result<Vec<T::Reply>, StoreError> {
        // Attempts that may have been committed.
        let mut uncertain: Vec<i64> = Vec::new();
        let (mut conflicts, mut preparations) = (0, 0);
        let mut pause = Pause(PAUSE_MIN);
        loop {
            if uncertain.is_empty() {
                drop_overdue(jobs);
                if jobs.is_empty() {
                    return Ok(Vec::new());
                }
            }
            let why = match self.attempt(jobs, &uncertain).await {
                Ok(Attempt::Committed(replies)) => return Ok(replies),
                Ok(Attempt::Again(_)) if preparations < PREPARATIONS_MAX => {
                    preparations += 1;
                    continue;
                }
                Ok(Attempt::Again(_)) => {
                    StoreError::Conflict(sqlx::Error::Protocol("too many prerequisites in a row".to_owned()))
                }
                Ok(Attempt::Unanswered { batch_id }) => {
                    // If this attempt is still running, the next one waits for its keys. If it was
                    // committed, the next one finds the keys under its batch.
                    tracing::warn!(batch_id, "a commit was not answered; looking up its result");
                    self.connection = None;
                    uncertain.push(batch_id);
                    continue;
                }
                Err(why) => why,
            };
            // After an error the connection is dropped, which rolls back its transaction.
            self.connection = None;
            match why {
                StoreError::Unavailable(_) => pause.rest().await,
                StoreError::Conflict(_) | StoreError::TooSlow(_) if conflicts < CONFLICTS_MAX => {
                    conflicts += 1;
                }
                // An attempt that may have been committed is never given up.
                StoreError::Conflict(_) | StoreError::TooSlow(_) if !uncertain.is_empty() => {
                    pause.rest().await;
                }
                _ => return Err(why),
            }
        }
    }

    async fn attempt(&mut self, jobs: &[Job<T>], uncertain: &[i64]) -> Result<Attempt<T::Reply>, StoreError> {
        let connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.database.connect_writer().await?,
        };
        let connection = self.connection.insert(connection);
        let work: Vec<&T::Work> = jobs.iter().map(|job| &job.work).collect();
        let attempt = self.trade.attempt(connection, &work, uncertain).await?;
        if let Attempt::Again(prerequisite) = &attempt {
            let (environment, writer_context) = (self.trade.environment(), self.trade.writer_context());
            prerequisite.carry_out(&mut Scope::new(connection, environment), writer_context).await?;
        }
        Ok(attempt)
    }
}

/// Answers and drops the jobs past their deadlines. Deadlines are checked only here, before the work enters
/// a transaction.
fn drop_overdue<T: BatchProcessor>(jobs: &mut Vec<Job<T>>) {
    let now = Instant::now();
    for job in jobs.extract_if(.., |job| job.deadline < now) {
        job.answer(Err(EngineError::unavailable("no writer was free before the deadline")));
    }
}

/// Returns the error for one caller of a batch that failed.
fn failure(why: &StoreError) -> EngineError {
    match why {
        StoreError::Unavailable(_) | StoreError::Conflict(_) | StoreError::TooSlow(_) => {
            EngineError::unavailable(why.to_string())
        }
        _ => EngineError::Internal(why.to_string()),
    }
}
