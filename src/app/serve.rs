//! Start and stop of the service. It starts the database, the writers, the jobs and HTTP, and stops them in
//! reverse, so that every accepted call is answered.

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
use super::first_run::first_run;
use super::logging;
use super::settings::Settings;
use crate::engine::{Clock, Engine};
use crate::http::{self, Api};
use crate::jobs::Jobs;
use crate::store::{Database, StoreError};

/// Longest time that a stop waits for open connections.
const DRAIN_MAX: Duration = Duration::from_secs(25);
/// Longest time that a start waits for the database.
const DATABASE_WAIT_MAX: Duration = Duration::from_mins(1);
/// Interval between checks of the embedded server.
const SERVER_WATCH: Duration = Duration::from_secs(1);
/// Interval at which metrics are compacted, which keeps memory bounded if no scraper reads them.
const METRICS_UPKEEP: Duration = Duration::from_secs(5);

/// A running service.
#[derive(Debug)]
pub struct Service {
    pub address: SocketAddr,
    pub engine: Engine,
    jobs: Jobs,
    stop: oneshot::Sender<()>,
    server: JoinHandle<std::io::Result<()>>,
}

impl Service {
    /// Starts the writers, the jobs and HTTP on a migrated database.
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
        // small answers leave without delay (no Nagle algorithm)
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

    /// Accepts no more connections, answers the accepted calls, then ends the writers and the jobs.
    pub async fn stop(self) {
        self.stop.send(()).ok();
        if tokio::time::timeout(DRAIN_MAX, self.server).await.is_err() {
            tracing::warn!("some connections did not finish before the stop");
        }
        self.engine.stop().await;
        self.jobs.stop().await;
    }
}

/// Runs the service until a signal stops it (`metergate` or `metergate serve`).
pub async fn serve(mut settings: Settings) -> anyhow::Result<()> {
    logging::start(&settings.log)?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut handle = DatabaseHandle::open(&mut settings).await?;
    let told_to_stop = async {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    };
    let ended = run(&settings, &mut handle, told_to_stop).await;
    handle.close().await;
    if ended.is_ok() {
        tracing::info!("service stopped");
    }
    ended
}

async fn run(
    settings: &Settings,
    handle: &mut DatabaseHandle,
    told_to_stop: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    tokio::pin!(told_to_stop);
    tokio::select! {
        migrated = migrate(&handle.database, DATABASE_WAIT_MAX) => migrated?,
        () = &mut told_to_stop => return Ok(()),
    }
    let service = Service::start(settings, handle.database.clone()).await?;
    tracing::info!(address = %service.address, embedded = handle.embedded, "service is listening");
    if handle.embedded {
        first_run(&service.engine, service.address).await?;
    }
    loop {
        tokio::select! {
            () = &mut told_to_stop => break,
            () = tokio::time::sleep(SERVER_WATCH) => handle.restart_if_down().await,
        }
    }
    tracing::info!("service is stopping");
    service.stop().await;
    Ok(())
}

/// Waits for the database, which may start after the service, and applies the migrations.
pub(super) async fn migrate(database: &Database, wait_max: Duration) -> anyhow::Result<()> {
    let deadline = tokio::time::Instant::now() + wait_max;
    loop {
        match database.migrate().await {
            Err(StoreError::Unavailable(why)) if tokio::time::Instant::now() < deadline => {
                tracing::info!(%why, "waiting for the database");
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
            other => return other.context("cannot migrate the database"),
        }
    }
}

/// Returns the metrics recorder of this process, which the first call installs.
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
