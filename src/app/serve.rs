//! Starting the service and stopping it: database, writers, jobs, HTTP; and back in reverse, so that
//! whatever was taken is answered.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::Context;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tower::make::Shared;

use super::database::DatabaseHandle;
use super::settings::Settings;
use super::{commands, logging};
use crate::engine::{Clock, Engine};
use crate::http::{self, Api};
use crate::jobs::Jobs;
use crate::store::{Database, StoreError};

/// How long open connections may take to finish at a stop.
const DRAIN_MAX: Duration = Duration::from_secs(25);
/// How long the service waits at its start for a database that is not there yet.
const DATABASE_WAIT_MAX: Duration = Duration::from_mins(1);
/// How often the embedded server is looked at.
const SERVER_WATCH: Duration = Duration::from_secs(1);
/// How often metrics are tidied, so that what nobody scrapes does not pile up.
const METRICS_UPKEEP: Duration = Duration::from_secs(5);

/// A service that listens.
#[derive(Debug)]
pub struct Service {
    pub address: SocketAddr,
    pub engine: Engine,
    jobs: Jobs,
    stop: oneshot::Sender<()>,
    server: JoinHandle<std::io::Result<()>>,
}

impl Service {
    /// Starts on a database that is migrated.
    pub async fn start(settings: &Settings, database: Database) -> anyhow::Result<Self> {
        let clock = Clock::postgres(settings.clock.offset);
        let engine = Engine::start(database, clock, settings.engine())?;
        engine.make_partitions().await?;
        let jobs = Jobs::start(&engine, settings.fold.interval, &settings.stripe.export_interval);
        let listener = TcpListener::bind(settings.http.bind)
            .await
            .with_context(|| format!("cannot listen on {}", settings.http.bind))?;
        let address = listener.local_addr()?;
        let front =
            http::service(Api { engine: engine.clone(), metrics: Arc::new(metrics()) }, &settings.http());
        let (stop, stopped) = oneshot::channel::<()>();
        // answers are small: they leave at once
        let listener = axum::serve::ListenerExt::tap_io(listener, |stream| {
            stream.set_nodelay(true).ok();
        });
        let server = tokio::spawn(async move {
            let stopped = async move {
                stopped.await.ok();
            };
            axum::serve(listener, Shared::new(front)).with_graceful_shutdown(stopped).await
        });
        Ok(Self { address, engine, jobs, stop, server })
    }

    /// Takes no more connections, answers what was taken, and ends the writers and jobs.
    pub async fn stop(self) {
        self.stop.send(()).ok();
        if tokio::time::timeout(DRAIN_MAX, self.server).await.is_err() {
            tracing::warn!("some connections did not finish in time");
        }
        self.engine.stop().await;
        self.jobs.stop().await;
    }
}

/// `metergate` or `metergate serve`: runs until it is told to stop.
pub async fn serve(mut settings: Settings) -> anyhow::Result<()> {
    logging::start(&settings.log)?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut database_handle = DatabaseHandle::open(&mut settings).await?;
    let told_to_stop = async {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    };
    let ended = run(&settings, &mut database_handle, told_to_stop).await;
    database_handle.close().await;
    if ended.is_ok() {
        tracing::info!("stopped");
    }
    ended
}

async fn run(
    settings: &Settings,
    database_handle: &mut DatabaseHandle,
    told_to_stop: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    tokio::pin!(told_to_stop);
    tokio::select! {
        migrated = migrate(&database_handle.database, DATABASE_WAIT_MAX) => migrated?,
        () = &mut told_to_stop => return Ok(()),
    }
    let service = Service::start(settings, database_handle.database.clone()).await?;
    tracing::info!(address = %service.address, embedded = database_handle.embedded, "listening");
    if database_handle.embedded {
        commands::first_run(&service.engine, service.address).await?;
    }
    loop {
        tokio::select! {
            () = &mut told_to_stop => break,
            () = tokio::time::sleep(SERVER_WATCH) => database_handle.restart_if_down().await,
        }
    }
    tracing::info!("stopping");
    service.stop().await;
    Ok(())
}

/// Migrates, once the database is there: beside a service, a database may start later.
pub(super) async fn migrate(database: &Database, wait_max: Duration) -> anyhow::Result<()> {
    let deadline = tokio::time::Instant::now() + wait_max;
    loop {
        match database.migrate().await {
            Err(StoreError::Unavailable(why)) if tokio::time::Instant::now() < deadline => {
                tracing::info!(%why, "waiting for the database");
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
            other => return other.context("cannot bring the database up to date"),
        }
    }
}

/// The recorder of this process; made once.
fn metrics() -> Option<PrometheusHandle> {
    static RECORDER: OnceLock<Option<PrometheusHandle>> = OnceLock::new();
    RECORDER
        .get_or_init(|| {
            let seconds =
                [0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
            let events =
                [1.0, 2.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1_000.0, 2_000.0, 4_000.0, 10_000.0];
            let handle = PrometheusBuilder::new()
                .set_buckets_for_metric(
                    metrics_exporter_prometheus::Matcher::Suffix("_seconds".to_owned()),
                    &seconds,
                )
                .and_then(|builder| {
                    let matcher = metrics_exporter_prometheus::Matcher::Suffix("_batch_events".to_owned());
                    builder.set_buckets_for_metric(matcher, &events)
                })
                .ok()?
                .install_recorder()
                .ok()?;
            let upkeep = handle.clone();
            tokio::spawn(async move {
                loop {
                    tokio::time::sleep(METRICS_UPKEEP).await;
                    upkeep.run_upkeep();
                }
            });
            Some(handle)
        })
        .clone()
}
