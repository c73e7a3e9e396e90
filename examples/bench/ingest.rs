//! Events: the rate and the cost of recording, compared with `COPY` and `pgbench`.

use std::time::Instant;

use anyhow::ensure;
use jiff::Timestamp;
use sqlx::{Connection as _, PgConnection};

use crate::events::{self, EVENT_NAME};
use crate::http::Load;
use crate::report::{Series, Table, float, median_ratio, milliseconds, rate, thousands};
use crate::rounds::Size;
use crate::stage::{BATCH_ACCEPTED, BATCH_CONNECTIONS, BATCH_EVENTS, CONNECTIONS, SINGLE_ACCEPTED, Stage};
use crate::{copy, http, large, pgbench};

const MONTH_SUBJECT: &str = "month_long";
const MONTH_CALLS: usize = 200;

#[derive(Debug, Default)]
pub(crate) struct Ingest {
    invalid_batches_are_rejected: Series,
    /// Rates of batches, measured until all events were folded.
    folded: Vec<f64>,
    copy: Series,
    singles: Series,
    pgbench: Series,
}

impl Ingest {
    /// Measures a round, and returns a line about it.
    pub(crate) async fn round(&mut self, stage: &Stage<'_>, size: Size) -> anyhow::Result<String> {
        let count = size.batch_events / BATCH_EVENTS;
        let invalid_batches_are_rejected =
            (0..count).map(|_| stage.post_events(events::random_subjects(BATCH_EVENTS)));
        let whole = stage
            .measure(Load::all(invalid_batches_are_rejected, &BATCH_ACCEPTED, BATCH_CONNECTIONS))
            .await?;
        whole.note(&mut self.invalid_batches_are_rejected, BATCH_EVENTS);
        self.folded.push(float(whole.measured.turns * BATCH_EVENTS) / whole.until_folded.as_secs_f64());

        let work = async {
            let rate = copy::rate(&stage.baseline_url(), size.batch_events).await?;
            Ok((rate, float(size.batch_events)))
        };
        stage.measure_alone(work, &mut self.copy).await?;

        let single = || [stage.post_events(events::random_subjects(1))];
        let load = Load::for_time(size.duration, single, &SINGLE_ACCEPTED, CONNECTIONS);
        stage.measure(load).await?.note(&mut self.singles, 1);

        stage.pgbench(pgbench::INSERT_AND_COUNT, size.duration, &mut self.pgbench).await?;
        Ok(format!(
            "batches {} events/s ({} until folded), COPY {} rows/s, singles {} calls/s, pgbench {}",
            self.invalid_batches_are_rejected.last(),
            self.folded.last().map(|rate| thousands(*rate)).unwrap_or_default(),
            self.copy.last(),
            self.singles.last(),
            self.pgbench.last(),
        ))
    }

    pub(crate) fn report(&self, table: &mut Table) {
        table.add_rates(
            "batches of 500, 8 connections",
            (&self.invalid_batches_are_rejected, "events/s"),
            "2 × `COPY`",
            (&self.copy, "rows/s"),
            "0.5",
        );
        table.add(
            "the same, until all is in the rollups",
            rate(&self.folded, "events/s"),
            String::new(),
            Some(median_ratio(&self.folded, &self.copy.rates)),
            "",
        );
        table.add_rates(
            "single events, 64 connections",
            (&self.singles, "calls/s"),
            pgbench::NAME,
            (&self.pgbench, "tps"),
            "1.5",
        );
        table.add_micros(
            "processor time per event, in batches",
            &self.invalid_batches_are_rejected,
            "`COPY`",
            &self.copy,
        );
        table.add_micros("processor time per event, single", &self.singles, "`pgbench`", &self.pgbench);
        table.add_latency("a batch's answer", &self.invalid_batches_are_rejected);
        table.add_latency("a single event's answer at 64 connections", &self.singles);
        table.add_refused("events", [&self.invalid_batches_are_rejected, &self.singles]);
    }

    pub(crate) fn report_large(&self, few: &Self, table: &mut Table) {
        let large = |what: &str| format!("{what}, {}", large::WHAT);
        table.add_large(
            &large("batches"),
            &self.invalid_batches_are_rejected,
            &few.invalid_batches_are_rejected,
            "events/s",
            "0.8",
        );
        table.add_large(&large("`COPY`"), &self.copy, &few.copy, "rows/s", "");
        table.add_large(&large("single events"), &self.singles, &few.singles, "calls/s", "0.8");
    }
}

/// Measures one call after the other on an otherwise idle machine.
pub(crate) async fn idle_latency(stage: &Stage<'_>, size: Size, table: &mut Table) -> anyhow::Result<()> {
    let calls = events::random_subjects(size.idle_calls).map(|subject| stage.post_events([subject]));
    let mut series = Series::default();
    series.note(&stage.drive(Load::all(calls, &SINGLE_ACCEPTED, 1)).await?, 1);
    let what = format!("single event, nothing else going on, {} calls", size.idle_calls);
    table.add_latency(&what, &series);
    Ok(())
}

/// Records a million events of a subject in this month, and measures the month's total.
pub(crate) async fn month(stage: &Stage<'_>, size: Size, table: &mut Table) -> anyhow::Result<()> {
    stage.know_one(MONTH_SUBJECT).await?;
    let (month, now) = this_month()?;
    let url = stage.url();
    copy::fill(&url, MONTH_SUBJECT, size.month_events, (month.0, now)).await?;
    stage.wait_until_folded().await?;
    let mut connection = PgConnection::connect(&url).await?;
    // the correct total, from the events themselves
    let (sum, count): (i64, i64) = sqlx::query_as(
        "select sum(value)::bigint, count(*) from events
         where path_id = (select path_id from subjects where environment = 0 and subject = $1)",
    )
    .bind(MONTH_SUBJECT)
    .fetch_one(&mut connection)
    .await?;
    let path =
        format!("/v1/usage?meter={EVENT_NAME}&subject={MONTH_SUBJECT}&from={}&to={}", month.0, month.1);
    let request = http::get(&path, &stage.key);
    let mut connection = stage.connect().await?;
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
    table.add_alone(&what, format!("{p50} / {p99}"), "< 10 ms");
    Ok(())
}

/// Returns the present UTC month, from start to end, and the present time.
fn this_month() -> anyhow::Result<((Timestamp, Timestamp), Timestamp)> {
    let now = events::now();
    let first = now.to_zoned(jiff::tz::TimeZone::UTC).first_of_month()?.start_of_day()?;
    let next = first.checked_add(jiff::Span::new().months(1))?;
    Ok(((first.timestamp(), next.timestamp()), now))
}
