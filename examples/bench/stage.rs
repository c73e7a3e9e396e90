//! The environment of the measurements: the server, its databases, and the service on one of them.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use metergate::embedded::Cluster;
use sqlx::{Connection as _, PgConnection};

use crate::http::{self, Connection, Expected, Load, Measured};
use crate::pgbench::{Pgbench, RESERVE_SCHEMA, Script};
use crate::report::{Series, float};
use crate::service::{Service, command};
use crate::{events, machine};

const DATABASE: &str = "metered";
const BASELINE: &str = "baseline";
/// One meter, and plans with quotas that the benchmark never reaches.
const CATALOG: &str = include_str!("catalog.yaml");
const APPLIED: [Expected; 1] = [Expected { status: 200, text: "{" }];
pub(crate) const BATCH_EVENTS: usize = 500;
pub(crate) const BATCH_CONNECTIONS: usize = 8;
pub(crate) const CONNECTIONS: usize = 64;
pub(crate) const BATCH_ACCEPTED: [Expected; 1] = [Expected { status: 200, text: r#""accepted":500"# }];
pub(crate) const SINGLE_ACCEPTED: [Expected; 1] = [Expected { status: 200, text: r#""accepted":1"# }];
const FOLD_MAX: Duration = Duration::from_mins(6);

pub(crate) struct Stage<'a> {
    cluster: &'a Cluster,
    folder: &'a Path,
    pgbench: Option<Pgbench>,
    /// The running service; none only while its database is copied.
    service: Option<Service>,
    /// The most memory of ended service processes.
    peak_mib: f64,
    pub(crate) key: String,
}

/// The results of a load, including its later work.
#[derive(Debug)]
pub(crate) struct Whole {
    pub(crate) measured: Measured,
    /// The time until all recorded usage was in the rollups.
    pub(crate) until_folded: Duration,
    /// The processor time of the service and the server until then, in seconds.
    cpu: Option<f64>,
}

impl Whole {
    /// Adds this round, in which a turn has `of_a_turn` items.
    pub(crate) fn note(&self, series: &mut Series, of_a_turn: usize) {
        series.note(&self.measured, of_a_turn);
        series.micros.extend(self.cpu.map(|cpu| cpu * 1e6 / float(self.measured.turns * of_a_turn)));
    }
}

impl<'a> Stage<'a> {
    /// Creates a database with a catalog and a key, and starts the service.
    pub(crate) async fn set(cluster: &'a Cluster, folder: &'a Path) -> anyhow::Result<Self> {
        admin(cluster, &format!("create database {DATABASE}")).await?;
        let url = cluster.url(DATABASE);
        let key = command(&url, &["keys", "create", "--environment", "test", "--kind", "secret"]).await?;
        let service = Some(Service::start(&url).await?);
        let pgbench = Pgbench::find(cluster, folder)?;
        let stage = Self { cluster, folder, pgbench, service, peak_mib: 0.0, key };
        let catalog = http::put("/v1/catalog", &stage.key, "application/yaml", CATALOG);
        stage.drive(Load::all([catalog], &APPLIED, 1)).await?;
        Ok(stage)
    }

    pub(crate) fn url(&self) -> String {
        self.cluster.url(DATABASE)
    }

    pub(crate) fn baseline_url(&self) -> String {
        self.cluster.url(BASELINE)
    }

    pub(crate) async fn connect(&self) -> anyhow::Result<Connection> {
        Connection::open(self.service()?.address).await
    }

    /// Reads the kernel's present figure of the service's memory, in MiB.
    pub(crate) fn memory_mib(&self, line: &str) -> Option<f64> {
        self.service.as_ref()?.memory_mib(line)
    }

    /// Returns the most memory of any service process.
    pub(crate) fn peak_mib(&self) -> Option<f64> {
        self.memory_mib("VmHWM").map(|peak| peak.max(self.peak_mib))
    }

    fn service(&self) -> anyhow::Result<&Service> {
        self.service.as_ref().context("the service must be running")
    }

    pub(crate) async fn stop_service(&mut self) -> anyhow::Result<()> {
        self.peak_mib = self.peak_mib().unwrap_or(self.peak_mib);
        match self.service.take() {
            Some(service) => service.stop().await,
            None => Ok(()),
        }
    }

    /// Copies the service's database for comparison, and adds as many counters for `pgbench`. The
    /// service stops meanwhile, because only a database without connections can be copied.
    pub(crate) async fn copy_database(&mut self, counters: usize) -> anyhow::Result<()> {
        self.stop_service().await?;
        admin(self.cluster, &format!("drop database if exists {BASELINE}")).await?;
        admin(self.cluster, &format!("create database {BASELINE} template {DATABASE}")).await?;
        run(&self.baseline_url(), &RESERVE_SCHEMA.replace("COUNTERS", &counters.to_string())).await?;
        self.service = Some(Service::start(&self.url()).await?);
        Ok(())
    }

    /// Records an event of each subject, in batches of some hundreds.
    pub(crate) async fn know(&self, subjects: impl Iterator<Item = String>) -> anyhow::Result<()> {
        let subjects: Vec<String> = subjects.collect();
        let invalid_batches_are_rejected =
            subjects.chunks(BATCH_EVENTS).map(|chunk| self.post_events(chunk.iter().cloned()));
        self.drive(Load::all(invalid_batches_are_rejected, &BATCH_ACCEPTED, BATCH_CONNECTIONS)).await?;
        Ok(())
    }

    pub(crate) async fn know_one(&self, subject: &str) -> anyhow::Result<()> {
        let call = self.post_events([subject.to_owned()]);
        self.drive(Load::all([call], &SINGLE_ACCEPTED, 1)).await?;
        Ok(())
    }

    /// Builds a call with an event of each subject.
    pub(crate) fn post_events(&self, subjects: impl IntoIterator<Item = String>) -> Vec<u8> {
        http::post("/v1/events", &self.key, "application/json", &events::body(subjects))
    }

    pub(crate) async fn drive(&self, load: Load) -> anyhow::Result<Measured> {
        http::drive(self.service()?.address, load).await
    }

    /// Runs a load on an otherwise idle server, until all recorded usage is in the rollups.
    pub(crate) async fn measure(&self, load: Load) -> anyhow::Result<Whole> {
        self.checkpoint().await?;
        let before = self.cpu_seconds(Some(self.service()?));
        let started = Instant::now();
        let measured = self.drive(load).await?;
        self.wait_until_folded().await?;
        let until_folded = started.elapsed();
        let after = self.cpu_seconds(Some(self.service()?));
        let cpu = before.zip(after).map(|(before, after)| after - before);
        Ok(Whole { measured, until_folded, cpu })
    }

    /// Measures a round of work on the server alone, in the database for comparison. `work` returns its
    /// rate and its number of items.
    pub(crate) async fn measure_alone(
        &self,
        work: impl Future<Output = anyhow::Result<(f64, f64)>>,
        series: &mut Series,
    ) -> anyhow::Result<()> {
        self.checkpoint().await?;
        let before = self.cpu_seconds(None);
        let (rate, count) = work.await?;
        let after = self.cpu_seconds(None);
        series.rates.push(rate);
        series.micros.extend(before.zip(after).map(|(before, after)| (after - before) * 1e6 / count));
        Ok(())
    }

    /// Measures a `pgbench` script; does nothing if `pgbench` is not installed.
    pub(crate) async fn pgbench(
        &self,
        script: Script,
        duration: Duration,
        series: &mut Series,
    ) -> anyhow::Result<()> {
        let Some(pgbench) = &self.pgbench else { return Ok(()) };
        let work = async {
            let rate = pgbench.rate(BASELINE, script, duration).await?;
            Ok((rate, rate * duration.as_secs_f64()))
        };
        self.measure_alone(work, series).await
    }

    pub(crate) async fn wait_until_folded(&self) -> anyhow::Result<()> {
        wait_until_folded(&self.url()).await
    }

    /// Returns the processor time of the server, and of the service if given.
    fn cpu_seconds(&self, service: Option<&Service>) -> Option<f64> {
        machine::cpu_seconds(&self.folder.join("data"), service.and_then(Service::pid))
    }

    async fn checkpoint(&self) -> anyhow::Result<()> {
        admin(self.cluster, "checkpoint").await
    }
}

/// Waits until all recorded usage of a database is in the rollups.
pub(crate) async fn wait_until_folded(url: &str) -> anyhow::Result<()> {
    let mut connection = PgConnection::connect(url).await?;
    let started = Instant::now();
    loop {
        let left: i64 =
            sqlx::query_scalar("select count(*) from unfolded").fetch_one(&mut connection).await?;
        if left == 0 {
            return Ok(());
        }
        ensure!(started.elapsed() < FOLD_MAX, "{left} batches are not folded in time");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

pub(crate) async fn admin(cluster: &Cluster, sql: &str) -> anyhow::Result<()> {
    run(&cluster.url("postgres"), sql).await
}

async fn run(url: &str, sql: &str) -> anyhow::Result<()> {
    let mut connection = PgConnection::connect(url).await?;
    // built from names in this file only
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut connection).await?;
    connection.close().await?;
    Ok(())
}
