//! What runs on an interval. Each job is a call of the engine that a test can make itself; here it
//! is only repeated, and what goes wrong is logged and tried again.

use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use crate::domain::environment::Environment;
use crate::domain::limits::FOLD_EVENTS_MAX;
use crate::engine::{Engine, EngineError};

/// How often dimension values are counted and partitions are made.
const UPKEEP_INTERVAL: Duration = Duration::from_mins(5);

/// The jobs of a service, until they are told to stop.
#[derive(Debug)]
pub struct Jobs {
    stop: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
}

impl Jobs {
    pub fn start(engine: &Engine, fold_interval: Duration) -> Self {
        let (stop, stopped) = watch::channel(false);
        let folding = engine.clone();
        let upkeep = engine.clone();
        let tasks = vec![
            repeat("fold", fold_interval, stopped.clone(), move || fold(folding.clone())),
            repeat("upkeep", UPKEEP_INTERVAL, stopped, move || keep_up(upkeep.clone())),
        ];
        Self { stop, tasks }
    }

    /// Lets the present round end, and no other begin.
    pub async fn stop(self) {
        self.stop.send(true).ok();
        for task in self.tasks {
            task.await.ok();
        }
    }
}

fn repeat<F>(
    name: &'static str,
    interval: Duration,
    mut stopped: watch::Receiver<bool>,
    job: impl Fn() -> F + Send + 'static,
) -> JoinHandle<()>
where
    F: Future<Output = Result<(), EngineError>> + Send,
{
    tokio::spawn(async move {
        let mut due = Instant::now();
        loop {
            tokio::select! {
                () = sleep_until(due) => {}
                _ = stopped.wait_for(|stop| *stop) => return,
            }
            if let Err(why) = job().await {
                tracing::warn!(job = name, %why, "a job failed; it will be tried again");
                metrics::counter!("metergate_job_failures_total", "job" => name).increment(1);
            }
            due = Instant::now() + interval;
        }
    })
}

/// Folds until only a little is left, then builds one piece of what has gaps.
async fn fold(engine: Engine) -> Result<(), EngineError> {
    for environment in Environment::ALL {
        while engine.fold_some(environment).await? >= FOLD_EVENTS_MAX / 2 {
            engine.count_tail().await?;
        }
        engine.build_some(environment).await?;
    }
    engine.count_tail().await?;
    Ok(())
}

async fn keep_up(engine: Engine) -> Result<(), EngineError> {
    engine.make_partitions().await?;
    for environment in Environment::ALL {
        engine.bound_dimensions(environment).await?;
    }
    Ok(())
}
