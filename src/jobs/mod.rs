//! Background jobs that run on an interval. Each job is a call of the engine, which tests make directly. This
//! module repeats the calls, logs errors and retries.

mod schedule;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

pub use schedule::JobSchedule;

use crate::engine::{Engine, EngineError};
use metergate_domain::base::Environment;

/// Interval of the job that expires reservations and credits.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);
/// Interval of the search for webhook events that another replica received, or that failed before.
const WEBHOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Interval at which dimension values are counted, partitions created and old counters deleted.
const UPKEEP_INTERVAL: Duration = Duration::from_mins(5);
/// Interval at which invoices of ended periods are numbered.
const BILLING_INTERVAL: Duration = Duration::from_mins(1);
/// Interval at which some of yesterday's exports are compared with the provider.
const CHECK_INTERVAL: Duration = Duration::from_hours(1);

/// Shortest and longest pause of a job that keeps failing.
const FAILING_INTERVAL_MIN: Duration = Duration::from_millis(500);
const FAILING_INTERVAL_MAX: Duration = Duration::from_secs(10);
/// Transactions per round of each kind, before the next kind runs.
const FOLDS_PER_ROUND_MAX: usize = 20;
const BUILDS_PER_ROUND_MAX: usize = 20;
/// Days of rollups that one round computes from hours.
const DAYS_PER_ROUND_MAX: usize = 20;

/// The running jobs of a service.
#[derive(Debug)]
pub struct Jobs {
    stop: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
}

impl Jobs {
    /// Starts the jobs.
    pub fn start(engine: &Engine, fold_interval: Duration, export: &JobSchedule) -> Self {
        let (stop, stopped) = watch::channel(false);
        let mut tasks: Vec<JoinHandle<()>> = Vec::new();
        // one job per environment, so that neither waits for the other
        for environment in Environment::ALL {
            let folding = engine.clone();
            let job = move || fold(folding.clone(), environment);
            tasks.push(repeat("fold", JobSchedule::Every(fold_interval), stopped.clone(), job));
        }
        for environment in Environment::ALL {
            let sweeping = engine.clone();
            let job = move || sweep(sweeping.clone(), environment);
            tasks.push(repeat("sweep", JobSchedule::Every(SWEEP_INTERVAL), stopped.clone(), job));
        }
        for environment in Environment::ALL.into_iter().filter(|each| engine.exports_somewhere(*each)) {
            let exporting = engine.clone();
            let job = move || export_ended(exporting.clone(), environment);
            tasks.push(repeat("export", export.clone(), stopped.clone(), job));
            let checking = engine.clone();
            let job = move || check_exports(checking.clone(), environment);
            tasks.push(repeat("reconciliation", JobSchedule::Every(CHECK_INTERVAL), stopped.clone(), job));
        }
        for environment in Environment::ALL {
            let billing = engine.clone();
            let job = move || bill(billing.clone(), environment);
            tasks.push(repeat("billing", JobSchedule::Every(BILLING_INTERVAL), stopped.clone(), job));
        }
        for environment in Environment::ALL {
            let (applying, wake) = (engine.clone(), engine.webhook_wake(environment));
            let job = move || apply_webhooks(applying.clone(), environment);
            tasks.push(repeat_or_when(
                "webhooks",
                JobSchedule::Every(WEBHOOK_INTERVAL),
                wake,
                stopped.clone(),
                job,
            ));
        }
        let upkeep = engine.clone();
        tasks.push(repeat("upkeep", JobSchedule::Every(UPKEEP_INTERVAL), stopped, move || {
            run_upkeep(upkeep.clone())
        }));
        Self { stop, tasks }
    }

    /// Stops the jobs, and cancels the current rounds. Each step is one transaction, so nothing is left
    /// incomplete.
    pub async fn stop(self) {
        self.stop.send(true).ok();
        for task in self.tasks {
            task.await.ok();
        }
    }
}

fn repeat<F>(
    name: &'static str,
    schedule: JobSchedule,
    stopped: watch::Receiver<bool>,
    job: impl Fn() -> F + Send + 'static,
) -> JoinHandle<()>
where
    F: Future<Output = Result<(), EngineError>> + Send,
{
    repeat_or_when(name, schedule, Arc::default(), stopped, job)
}

/// Repeats a job, and runs it at once when notified.
fn repeat_or_when<F>(
    name: &'static str,
    schedule: JobSchedule,
    wake: Arc<Notify>,
    mut stopped: watch::Receiver<bool>,
    job: impl Fn() -> F + Send + 'static,
) -> JoinHandle<()>
where
    F: Future<Output = Result<(), EngineError>> + Send,
{
    tokio::spawn(async move {
        let mut due = Instant::now();
        let mut failing = FAILING_INTERVAL_MIN;
        loop {
            tokio::select! {
                () = sleep_until(due) => {}
                () = wake.notified() => {}
                _ = stopped.wait_for(|stop| *stop) => return,
            }
            let done = tokio::select! {
                done = job() => done,
                _ = stopped.wait_for(|stop| *stop) => return,
            };
            let pause = match done {
                Ok(()) => {
                    failing = FAILING_INTERVAL_MIN;
                    schedule.pause(now())
                }
                Err(why) => {
                    tracing::warn!(job = name, %why, "job failed; it will be retried");
                    metrics::counter!("metergate_job_failures_total", "job" => name).increment(1);
                    failing = (failing * 2).min(FAILING_INTERVAL_MAX);
                    failing.max(schedule.pause(now()).min(FAILING_INTERVAL_MAX))
                }
            };
            due = Instant::now() + pause;
        }
    })
}

#[expect(
    clippy::disallowed_methods,
    reason = "an interval depends on the time of the process, not of the domain"
)]
fn now() -> jiff::Timestamp {
    jiff::Timestamp::now()
}

/// Folds until the backlog is small, then builds rollups of some gaps and the daily rollups of ended days.
/// Each kind has a bounded share of the round.
async fn fold(engine: Engine, environment: Environment) -> Result<(), EngineError> {
    for _ in 0..FOLDS_PER_ROUND_MAX {
        let folded = engine.fold_some(environment).await?;
        engine.count_tail(environment).await?;
        if !folded.is_full {
            break;
        }
    }
    for _ in 0..BUILDS_PER_ROUND_MAX {
        if !engine.build_some(environment).await? {
            break;
        }
    }
    for _ in 0..DAYS_PER_ROUND_MAX {
        if !engine.sum_some_days(environment).await? {
            break;
        }
    }
    Ok(())
}

/// Expires reservations and credits and ends due subscriptions. Decisions do not depend on this job, because
/// each call applies due expiries first.
async fn sweep(engine: Engine, environment: Environment) -> Result<(), EngineError> {
    engine.end_due_subscriptions(environment).await?;
    while engine.sweep(environment).await? {}
    while engine.settle_due_wallets(environment).await? {}
    Ok(())
}

async fn apply_webhooks(engine: Engine, environment: Environment) -> Result<(), EngineError> {
    while engine.apply_webhooks(environment).await? > 0 {}
    Ok(())
}

async fn export_ended(engine: Engine, environment: Environment) -> Result<(), EngineError> {
    engine.export_ended(environment).await.map(drop)
}

async fn bill(engine: Engine, environment: Environment) -> Result<(), EngineError> {
    engine.bill(environment).await.map(drop)
}

async fn check_exports(engine: Engine, environment: Environment) -> Result<(), EngineError> {
    engine.check_exports(environment).await.map(drop)
}

async fn run_upkeep(engine: Engine) -> Result<(), EngineError> {
    engine.make_partitions().await?;
    for environment in Environment::ALL {
        engine.bound_dimensions(environment).await?;
        while engine.drop_old_counters(environment).await? {}
    }
    engine.forget_old_batches().await?;
    engine.forget_old_webhooks().await?;
    Ok(())
}
