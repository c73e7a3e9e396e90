//! What is measured, in which order.

#![expect(clippy::print_stderr, reason = "progress")]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use jiff::Timestamp;
use metergate::embedded::Cluster;
use metergate::store::partitions;
use sqlx::{Connection as _, PgConnection};

use super::Arguments;
use super::baseline;
use super::events::{self, EVENT_NAME, SUBJECTS};
use super::http::{self, Connection, Measured};
use super::machine;
use super::report::{Table, float, median, median_ratio, milliseconds, rate, thousands};
use super::service::{Service, command};

/// What the answer to a batch, and to a single event, must say.
const BATCH_ACCEPTED: &str = r#""accepted":500"#;
const SINGLE_ACCEPTED: &str = r#""accepted":1"#;
const DATABASE: &str = "metered";
const BASELINE: &str = "baseline";
const BATCH_EVENTS: usize = 500;
const BATCH_CONNECTIONS: usize = 8;
const SINGLE_CONNECTIONS: usize = 64;
/// More calls a second than are made for a run by time.
const SINGLE_CALLS_PER_SECOND_MAX: usize = 40_000;
const LARGE_EVENTS: usize = 10_000_000;
const LARGE_SPAN: Duration = Duration::from_hours(30 * 24);
const MONTH_SUBJECT: &str = "month_long";
const MONTH_CALLS: usize = 200;
const IDLE: Duration = Duration::from_secs(5);
const FOLD_MAX: Duration = Duration::from_mins(6);
const LOAD_MAX: Duration = Duration::from_mins(1);
const STARTS: usize = 5;

/// How much is measured.
#[derive(Debug, Clone, Copy)]
struct Size {
    rounds: usize,
    batch_events: usize,
    single: Duration,
    month_events: usize,
    idle_calls: usize,
}

const QUICK: Size = Size {
    rounds: 1,
    batch_events: 300_000,
    single: Duration::from_secs(3),
    month_events: 200_000,
    idle_calls: 100,
};
const FULL: Size = Size {
    rounds: 3,
    batch_events: 600_000,
    single: Duration::from_secs(6),
    month_events: 1_000_000,
    idle_calls: 500,
};

/// Rates of the rounds with one amount of data.
#[derive(Debug, Default)]
struct Rates {
    batches: Vec<f64>,
    /// The same, the time until all was folded included.
    folded: Vec<f64>,
    copy: Vec<f64>,
    singles: Vec<f64>,
    pgbench: Vec<f64>,
    batch_latency: Vec<[f64; 2]>,
    single_latency: Vec<[f64; 2]>,
    refused: usize,
    /// What of the processors the service and the server used for an event, the fold included, and
    /// the server alone for a row of `COPY` or a transaction of `pgbench`; in microseconds.
    cpu: Cpu,
}

#[derive(Debug, Default)]
struct Cpu {
    batches: Vec<f64>,
    copy: Vec<f64>,
    singles: Vec<f64>,
    pgbench: Vec<f64>,
}

pub(crate) struct Bench<'a> {
    arguments: &'a Arguments,
    size: Size,
    cluster: &'a Cluster,
    folder: &'a Path,
    pgbench: Option<PathBuf>,
    /// None only while its database is copied.
    service: Option<Service>,
    /// The most memory of the processes of the service that have ended.
    peak_mib: f64,
    key: String,
    table: Table,
}

impl<'a> Bench<'a> {
    /// A database with a catalog, a key and subjects, another like it for comparison, and the service.
    pub(crate) async fn prepare(
        arguments: &'a Arguments,
        cluster: &'a Cluster,
        folder: &'a Path,
    ) -> anyhow::Result<Self> {
        let size = if arguments.quick { QUICK } else { FULL };
        let pgbench = baseline::find_pgbench();
        let (table, peak_mib) = (Table::default(), 0.0);
        admin(cluster, &format!("create database {DATABASE}")).await?;
        let url = cluster.url(DATABASE);
        let key = command(&url, &["keys", "create", "--environment", "test", "--kind", "secret"]).await?;
        let service = Some(Service::start(&url).await?);
        let mut bench = Self { arguments, size, cluster, folder, pgbench, service, peak_mib, key, table };
        bench.apply_catalog().await?;
        bench.know_subjects().await?;
        bench.wait_until_folded().await?;
        bench.copy_database().await?;
        Ok(bench)
    }

    pub(crate) async fn run(mut self) -> anyhow::Result<Table> {
        tokio::time::sleep(IDLE).await;
        let idle = self.service()?.memory_mib("VmRSS");
        self.measure_idle_latency().await?;
        let few = self.measure_rounds(self.size.rounds).await?;
        self.note_rates(&few);
        self.measure_month().await?;
        if self.arguments.large {
            self.fill().await?;
            let many = self.measure_rounds(self.size.rounds.min(2)).await?;
            self.note_large(&few, &many);
        }
        let peak = self.service()?.memory_mib("VmHWM").map(|peak| peak.max(self.peak_mib));
        tokio::time::sleep(IDLE).await;
        let settled = self.service()?.memory_mib("VmRSS");
        self.note_memory("memory, idle, 5 s after the start", idle, "< 64 MiB");
        self.note_memory("memory, the most in the benchmark", peak, "< 256 MiB");
        self.note_memory("memory, 5 s after the last load", settled, "");
        self.stop_service().await?;
        self.measure_starts().await?;
        eprintln!("verifying");
        let verdict = command(&self.cluster.url(DATABASE), &["verify", "--environment", "test"]).await?;
        self.table.add_alone("`metergate verify` afterwards", verdict, "0 differences");
        Ok(self.table)
    }

    fn service(&self) -> anyhow::Result<&Service> {
        self.service.as_ref().context("the service does not run")
    }

    async fn stop_service(&mut self) -> anyhow::Result<()> {
        let Some(service) = self.service.take() else { return Ok(()) };
        self.peak_mib = service.memory_mib("VmHWM").map_or(self.peak_mib, |peak| peak.max(self.peak_mib));
        service.stop().await
    }

    /// The database for comparison: what is in the service's own at this moment. The service stops
    /// for it, since only a database without connections can be copied.
    async fn copy_database(&mut self) -> anyhow::Result<()> {
        self.stop_service().await?;
        admin(self.cluster, &format!("drop database if exists {BASELINE}")).await?;
        admin(self.cluster, &format!("create database {BASELINE} template {DATABASE}")).await?;
        self.service = Some(Service::start(&self.cluster.url(DATABASE)).await?);
        Ok(())
    }

    async fn apply_catalog(&self) -> anyhow::Result<()> {
        let catalog = include_str!("../../config/catalog.yaml");
        let request = http::put("/v1/catalog", &self.key, "application/yaml", catalog);
        let mut connection = Connection::open(self.service()?.address).await?;
        let answer = connection.call(&request).await?;
        ensure!(answer.status == 200, "the catalog: {}", answer.text());
        Ok(())
    }

    /// Every subject's first contact.
    async fn know_subjects(&self) -> anyhow::Result<()> {
        let numbers: Vec<usize> = (0..SUBJECTS).collect();
        let requests: Vec<Vec<u8>> = numbers
            .chunks(BATCH_EVENTS)
            .map(|chunk| self.post(&events::body(chunk.iter().map(|number| events::subject(*number)))))
            .collect();
        self.drive(requests, BATCH_CONNECTIONS, BATCH_ACCEPTED).await?;
        Ok(())
    }

    fn post(&self, body: &str) -> Vec<u8> {
        http::post("/v1/events", &self.key, "application/json", body)
    }

    async fn drive(
        &self,
        requests: Vec<Vec<u8>>,
        connections: usize,
        expected: &'static str,
    ) -> anyhow::Result<Measured> {
        http::drive(self.service()?.address, requests, connections, LOAD_MAX, expected).await
    }

    async fn wait_until_folded(&self) -> anyhow::Result<()> {
        let mut connection = PgConnection::connect(&self.cluster.url(DATABASE)).await?;
        let started = Instant::now();
        loop {
            let left: i64 =
                sqlx::query_scalar("select count(*) from unfolded").fetch_one(&mut connection).await?;
            if left == 0 {
                return Ok(());
            }
            ensure!(started.elapsed() < FOLD_MAX, "{left} batches are not folded");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn measure_idle_latency(&mut self) -> anyhow::Result<()> {
        let requests = events::random_subjects(self.size.idle_calls)
            .map(|subject| self.post(&events::body([subject])))
            .collect();
        let measured = self.drive(requests, 1, SINGLE_ACCEPTED).await?;
        let what = format!("single event, nothing else going on, {} calls: p50 / p99", measured.calls);
        let [p50, p99] = [50, 99].map(|percent| milliseconds(measured.percentile(percent)));
        self.table.add_alone(&what, format!("{p50} / {p99}"), "");
        Ok(())
    }

    async fn measure_rounds(&mut self, rounds: usize) -> anyhow::Result<Rates> {
        let mut rates = Rates::default();
        for round in 1..=rounds {
            self.measure_batches(&mut rates).await?;
            self.checkpoint().await?;
            let before = self.cpu_seconds(None);
            let copied = baseline::copy_rate(&self.cluster.url(BASELINE), self.size.batch_events).await?;
            rates.cpu.copy.extend(micros_each(before, self.cpu_seconds(None), float(self.size.batch_events)));
            rates.copy.push(copied);
            self.measure_singles(&mut rates).await?;
            let socket = socket(self.cluster)?;
            if let Some(pgbench) = &self.pgbench {
                self.checkpoint().await?;
                let before = self.cpu_seconds(None);
                let done = baseline::pgbench_rate(pgbench, &socket, BASELINE, self.folder, self.size.single);
                let tps = done.await?;
                let transactions = tps * self.size.single.as_secs_f64();
                rates.cpu.pgbench.extend(micros_each(before, self.cpu_seconds(None), transactions));
                rates.pgbench.push(tps);
            }
            eprintln!(
                "round {round} of {rounds}: batches {} events/s ({} until folded), COPY {} rows/s, singles {} calls/s, pgbench {}",
                thousands(rates.batches[round - 1]),
                thousands(rates.folded[round - 1]),
                thousands(copied),
                thousands(rates.singles[round - 1]),
                rates.pgbench.last().map_or("not found".to_owned(), |rate| thousands(*rate)),
            );
        }
        Ok(rates)
    }

    /// The processors' time of the server, and of the service where it is named.
    fn cpu_seconds(&self, service: Option<&Service>) -> Option<f64> {
        machine::cpu_seconds(&self.folder.join("data"), service.and_then(Service::pid))
    }

    async fn checkpoint(&self) -> anyhow::Result<()> {
        admin(self.cluster, "checkpoint").await
    }

    async fn measure_batches(&self, rates: &mut Rates) -> anyhow::Result<()> {
        let count = self.size.batch_events / BATCH_EVENTS;
        let requests: Vec<Vec<u8>> =
            (0..count).map(|_| self.post(&events::body(events::random_subjects(BATCH_EVENTS)))).collect();
        self.checkpoint().await?;
        let before = self.cpu_seconds(Some(self.service()?));
        let started = Instant::now();
        let measured = self.drive(requests, BATCH_CONNECTIONS, BATCH_ACCEPTED).await?;
        self.wait_until_folded().await?;
        let events = float(measured.calls * BATCH_EVENTS);
        rates.folded.push(events / started.elapsed().as_secs_f64());
        rates.cpu.batches.extend(micros_each(before, self.cpu_seconds(Some(self.service()?)), events));
        rates.batches.push(measured.calls_per_second() * float(BATCH_EVENTS));
        rates.batch_latency.push([50, 99].map(|percent| measured.percentile(percent).as_secs_f64()));
        rates.refused += measured.refused;
        Ok(())
    }

    async fn measure_singles(&self, rates: &mut Rates) -> anyhow::Result<()> {
        let count = SINGLE_CALLS_PER_SECOND_MAX * usize::try_from(self.size.single.as_secs())?;
        let requests: Vec<Vec<u8>> =
            events::random_subjects(count).map(|subject| self.post(&events::body([subject]))).collect();
        self.checkpoint().await?;
        let service = self.service()?;
        let before = self.cpu_seconds(Some(service));
        let measured =
            http::drive(service.address, requests, SINGLE_CONNECTIONS, self.size.single, SINGLE_ACCEPTED)
                .await?;
        self.wait_until_folded().await?;
        let after = self.cpu_seconds(Some(service));
        rates.cpu.singles.extend(micros_each(before, after, float(measured.calls)));
        rates.singles.push(measured.calls_per_second());
        rates.single_latency.push([50, 99].map(|percent| measured.percentile(percent).as_secs_f64()));
        rates.refused += measured.refused;
        Ok(())
    }

    fn note_rates(&mut self, few: &Rates) {
        self.table.add(
            "batches of 500, 8 connections",
            rate(&few.batches, "events/s"),
            format!("2 × `COPY`: {}", rate(&few.copy, "rows/s")),
            Some(median_ratio(&few.batches, &few.copy)),
            "0.5",
        );
        self.table.add(
            "the same, until all is in the rollups",
            rate(&few.folded, "events/s"),
            String::new(),
            Some(median_ratio(&few.folded, &few.copy)),
            "",
        );
        let pgbench = if few.pgbench.is_empty() {
            ("pgbench is not installed".to_owned(), None)
        } else {
            let ratio = median_ratio(&few.singles, &few.pgbench);
            (format!("`pgbench -c 64 -j 2 -M prepared`: {}", rate(&few.pgbench, "tps")), Some(ratio))
        };
        self.table.add(
            "single events, 64 connections",
            rate(&few.singles, "calls/s"),
            pgbench.0,
            pgbench.1,
            "1.5",
        );
        self.note_cpu("processor time per event, in batches", "`COPY`", &few.cpu.batches, &few.cpu.copy);
        self.note_cpu("processor time per event, single", "`pgbench`", &few.cpu.singles, &few.cpu.pgbench);
        self.table.add_alone("a batch's answer: p50 / p99", latency(&few.batch_latency), "");
        self.table.add_alone(
            "a single event's answer at 64 connections: p50 / p99",
            latency(&few.single_latency),
            "",
        );
        self.table.add_alone("calls told to come back (503)", few.refused.to_string(), "0");
    }

    /// The ratio is turned round, so that here too more is better.
    fn note_cpu(&mut self, what: &str, against: &str, measured: &[f64], compared: &[f64]) {
        if measured.is_empty() || compared.is_empty() {
            return;
        }
        let ratio = median_ratio(compared, measured);
        let (measured, compared) = (median(measured), median(compared));
        let against = format!("{against}, the server alone: {compared:.1} µs");
        self.table.add(what, format!("{measured:.1} µs"), against, Some(ratio), "");
    }

    fn note_large(&mut self, few: &Rates, many: &Rates) {
        let empty = |rates: &[f64], unit: &str| format!("before: {}", rate(rates, unit));
        self.table.add(
            "batches, with 10 million events more",
            rate(&many.batches, "events/s"),
            empty(&few.batches, "events/s"),
            Some(median(&many.batches) / median(&few.batches)),
            "0.8",
        );
        self.table.add(
            "`COPY`, with 10 million events more",
            String::new(),
            format!("{}; before: {}", rate(&many.copy, "rows/s"), rate(&few.copy, "rows/s")),
            Some(median(&many.copy) / median(&few.copy)),
            "",
        );
        self.table.add(
            "single events, with 10 million events more",
            rate(&many.singles, "calls/s"),
            empty(&few.singles, "calls/s"),
            Some(median(&many.singles) / median(&few.singles)),
            "0.8",
        );
    }

    /// A subject with a million events in this month, and what the month's total takes.
    async fn measure_month(&mut self) -> anyhow::Result<()> {
        let first = self.post(&events::body([MONTH_SUBJECT.to_owned()]));
        self.drive(vec![first], 1, SINGLE_ACCEPTED).await?;
        let (month, now) = this_month()?;
        let url = self.cluster.url(DATABASE);
        baseline::fill(&url, MONTH_SUBJECT, self.size.month_events, (month.0, now)).await?;
        self.wait_until_folded().await?;
        let mut connection = PgConnection::connect(&url).await?;
        // the truth, from the events themselves
        let (sum, count): (i64, i64) = sqlx::query_as(
            "select sum(value)::bigint, count(*) from events
             where path_id = (select path_id from subjects where environment = 0 and subject = $1)",
        )
        .bind(MONTH_SUBJECT)
        .fetch_one(&mut connection)
        .await?;
        let path =
            format!("/v1/usage?meter={EVENT_NAME}&subject={MONTH_SUBJECT}&from={}&to={}", month.0, month.1);
        let request = http::get(&path, &self.key);
        let mut connection = Connection::open(self.service()?.address).await?;
        let expected = format!(r#""value":{sum},"event_count":{count}"#);
        let mut took = Vec::new();
        for _ in 0..MONTH_CALLS {
            let begun = Instant::now();
            let answer = connection.call(&request).await?;
            took.push(begun.elapsed());
            let text = answer.text();
            ensure!(answer.status == 200 && text.contains(&expected), "expected {expected}, got {text}");
        }
        took.sort_unstable();
        let [p50, p99] = [50, 99].map(|percent| milliseconds(http::percentile(&took, percent)));
        let what = format!(
            "a month's total of a subject with {} events in it: p50 / p99",
            thousands(float(usize::try_from(count)?))
        );
        self.table.add_alone(&what, format!("{p50} / {p99}"), "< 10 ms");
        Ok(())
    }

    /// Ten million events of the last 30 days, in both databases.
    async fn fill(&mut self) -> anyhow::Result<()> {
        let started = Instant::now();
        let url = self.cluster.url(DATABASE);
        let to = events::now();
        let from = to - LARGE_SPAN;
        let mut connection = PgConnection::connect(&url).await?;
        for at in [from, to] {
            let at = metergate::domain::timestamp::Timestamp::parse(&at.to_string())?;
            if let Some(month) = partitions::month_of(at) {
                partitions::ensure(&mut connection, month).await?;
            }
        }
        baseline::fill(&url, "user_%", LARGE_EVENTS, (from, to)).await?;
        eprintln!("10 million events more after {} s", started.elapsed().as_secs());
        self.wait_until_folded().await?;
        eprintln!("folded after {} s", started.elapsed().as_secs());
        sqlx::raw_sql("vacuum (analyze)").execute(&mut connection).await?;
        connection.close().await?;
        self.copy_database().await?;
        eprintln!("vacuumed and copied for comparison after {} s", started.elapsed().as_secs());
        Ok(())
    }

    fn note_memory(&mut self, what: &str, mib: Option<f64>, aim: &str) {
        let measured = mib.map_or("not measured here".to_owned(), |mib| format!("{mib:.0} MiB"));
        self.table.add_alone(what, measured, aim);
    }

    async fn measure_starts(&mut self) -> anyhow::Result<()> {
        let mut took = Vec::new();
        for _ in 0..STARTS {
            let service = Service::start(&self.cluster.url(DATABASE)).await?;
            took.push(service.ready_after);
            service.stop().await?;
        }
        took.sort_unstable();
        let measured =
            format!("{} (at most {})", milliseconds(took[STARTS / 2]), milliseconds(took[STARTS - 1]));
        self.table.add_alone("start to ready, on an existing database", measured, "< 500 ms");
        Ok(())
    }
}

/// Microseconds per event, where the kernel tells.
fn micros_each(before: Option<f64>, after: Option<f64>, count: f64) -> Option<f64> {
    Some((after? - before?) * 1e6 / count)
}

/// Median over the rounds of the median and of the 99th percentile.
fn latency(rounds: &[[f64; 2]]) -> String {
    let of = |index: usize| median(&rounds.iter().map(|round| round[index]).collect::<Vec<_>>());
    format!("{:.1} / {:.1} ms", of(0) * 1_000.0, of(1) * 1_000.0)
}

async fn admin(cluster: &Cluster, sql: &str) -> anyhow::Result<()> {
    let mut connection = PgConnection::connect(&cluster.url("postgres")).await?;
    // made of names that are written here
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut connection).await?;
    connection.close().await?;
    Ok(())
}

/// The folder of the server's socket.
fn socket(cluster: &Cluster) -> anyhow::Result<String> {
    let url = cluster.url(BASELINE);
    let Some((_, query)) = url.split_once('?') else { bail!("no socket in the URL of the server") };
    let host = form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == "host");
    Ok(host.context("no socket in the URL of the server")?.1.into_owned())
}

/// The UTC month of now, from its start to its end, and now.
fn this_month() -> anyhow::Result<((Timestamp, Timestamp), Timestamp)> {
    let now = events::now();
    let first = now.to_zoned(jiff::tz::TimeZone::UTC).first_of_month()?.start_of_day()?;
    let next = first.checked_add(jiff::Span::new().months(1))?;
    Ok(((first.timestamp(), next.timestamp()), now))
}
