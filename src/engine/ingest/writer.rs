//! A writer: takes what has gathered, settles it in one transaction, answers. Never gives up on a
//! transaction whose fate it does not know.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::PgConnection;

use super::batch::{self, Attempt};
use super::lane::{Answer, Job, Queue};
use super::{Outcome, Workplace};
use crate::domain::environment::Environment;
use crate::engine::EngineError;
use crate::store::{StoreError, partitions};

/// How often a deadlock or a slow lock is met with another attempt.
const CONFLICTS_MAX: u32 = 3;
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_millis(500);

pub(super) struct Writer {
    environment: Environment,
    workplace: Workplace,
    queue: Arc<Queue>,
    connection: Option<PgConnection>,
}

/// Grows with every failure.
struct Pause(Duration);

impl Pause {
    async fn rest(&mut self) {
        tokio::time::sleep(self.0).await;
        self.0 = (self.0 * 2).min(PAUSE_MAX);
    }
}

impl Writer {
    pub(super) fn new(environment: Environment, workplace: Workplace, queue: Arc<Queue>) -> Self {
        Self { environment, workplace, queue, connection: None }
    }

    pub(super) async fn run(mut self) {
        loop {
            self.workplace.tails.of(self.environment).wait_until_short().await;
            let Some(jobs) = self.queue.take().await else { break };
            self.settle(jobs).await;
        }
        if let Some(connection) = self.connection {
            sqlx::Connection::close(connection).await.ok();
        }
    }

    /// Settles jobs together; one whose data the database refuses is found by halving, and fails
    /// alone.
    async fn settle(&mut self, jobs: Vec<Job>) {
        let mut pending = vec![jobs];
        while let Some(mut jobs) = pending.pop() {
            match self.settle_together(&mut jobs).await {
                Ok(outcomes) => answer_all(jobs, outcomes),
                Err(why @ (StoreError::Refused(_) | StoreError::Constraint { .. })) if jobs.len() > 1 => {
                    tracing::warn!(jobs = jobs.len(), %why, "a batch was refused; halving it");
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

    /// Attempts until the jobs are committed, or the database refuses them for good. Jobs that
    /// waited too long, while nothing of them can have been recorded, are answered and dropped.
    async fn settle_together(&mut self, jobs: &mut Vec<Job>) -> Result<Vec<Outcome>, StoreError> {
        // batches of attempts that may have been committed, for all that is known
        let mut uncertain: Vec<i64> = Vec::new();
        let mut conflicts = 0;
        let mut pause = Pause(PAUSE_MIN);
        loop {
            if uncertain.is_empty() {
                drop_overdue(jobs);
                if jobs.is_empty() {
                    return Ok(Vec::new());
                }
            }
            let why = match self.attempt(jobs, &uncertain).await {
                Ok(Attempt::Committed(outcomes)) => return Ok(outcomes),
                Ok(Attempt::MissingMonths(months)) => match self.make_months(&months).await {
                    Ok(()) => continue,
                    Err(why) => why,
                },
                Ok(Attempt::Unanswered { batch_id }) => {
                    // The next attempt waits for this one's keys, where it is still at work, and
                    // finds them under its batch, where it was committed.
                    tracing::warn!(batch_id, "a commit was not answered; finding out what became of it");
                    self.connection = None;
                    uncertain.push(batch_id);
                    continue;
                }
                Err(why) => why,
            };
            // never go on after an error: the connection goes, and the transaction with it
            self.connection = None;
            match why {
                StoreError::Unavailable(_) => pause.rest().await,
                StoreError::Conflict(_) | StoreError::TooSlow(_) if conflicts < CONFLICTS_MAX => {
                    conflicts += 1;
                }
                _ => return Err(why),
            }
        }
    }

    async fn connected(&mut self) -> Result<&mut PgConnection, StoreError> {
        let connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.workplace.database.connect_writer().await?,
        };
        Ok(self.connection.insert(connection))
    }

    async fn attempt(&mut self, jobs: &[Job], uncertain: &[i64]) -> Result<Attempt, StoreError> {
        let (environment, workplace) = (self.environment, self.workplace.clone());
        let connection = self.connected().await?;
        batch::attempt(connection, environment, &workplace, jobs, uncertain).await
    }

    async fn make_months(&mut self, months: &[crate::domain::window::Span]) -> Result<(), StoreError> {
        let known = Arc::clone(&self.workplace.months);
        let connection = self.connected().await?;
        for month in months {
            partitions::ensure(connection, *month).await?;
            known.lock().unwrap_or_else(std::sync::PoisonError::into_inner).insert(month.from);
        }
        Ok(())
    }
}

/// A caller's deadline is looked at here, before the work enters a transaction, and never after.
fn drop_overdue(jobs: &mut Vec<Job>) {
    let now = Instant::now();
    for job in jobs.extract_if(.., |job| job.deadline < now) {
        job.answer(Err(EngineError::unavailable("no writer in time")));
    }
}

/// What one caller is told of an error that several may share.
fn failure(why: &StoreError) -> EngineError {
    match why {
        StoreError::Unavailable(_) | StoreError::Conflict(_) | StoreError::TooSlow(_) => {
            EngineError::unavailable(why.to_string())
        }
        _ => EngineError::Internal(why.to_string()),
    }
}

fn answer_all(jobs: Vec<Job>, outcomes: Vec<Outcome>) {
    let mut outcomes = outcomes.into_iter();
    for job in jobs {
        let answer: Answer = Ok(outcomes.by_ref().take(job.events.len()).collect());
        job.answer(answer);
    }
}
