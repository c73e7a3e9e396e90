//! Usage reports of a subject with much use: all meters, costs, and the forecast from daily use.

#![expect(clippy::print_stderr, reason = "progress")]

use std::time::{Duration, Instant};

use anyhow::ensure;
use metergate::embedded::Cluster;
use metergate::store::partitions;
use sqlx::{Connection as _, PgConnection};

use crate::events::{self, EVENT_NAME};
use crate::http::{self, Connection, Expected, Load};
use crate::report::{Table, milliseconds, thousands, whole};
use crate::service::{Service, command};
use crate::stage::{self, SINGLE_ACCEPTED, admin};
use crate::{Arguments, copy};

const DATABASE: &str = "reported";
const SUBJECT: &str = "reported";
const CALLS: usize = 300;
const WARM_UP: usize = 20;
/// The age of the subject's period and of its first usage.
const PERIOD: Duration = Duration::from_hours(27 * 24);
const USE: Duration = Duration::from_hours(30 * 24);
/// The longest wait for the daily rollups.
const SUM_MAX: Duration = Duration::from_mins(2);
const DONE: [Expected; 1] = [Expected { status: 200, text: "{" }];
/// Seven meters of the same events, five models, and prices by slice, tier and count.
const CATALOG: &str = r#"{
 "meters": [
  {"key": "tokens", "event_name": "ai_tokens", "aggregation": "sum", "dimensions": ["model"]},
  {"key": "calls", "event_name": "ai_tokens", "aggregation": "count"},
  {"key": "least", "event_name": "ai_tokens", "aggregation": "min"},
  {"key": "most", "event_name": "ai_tokens", "aggregation": "max"},
  {"key": "mean", "event_name": "ai_tokens", "aggregation": "avg"},
  {"key": "latest", "event_name": "ai_tokens", "aggregation": "last"},
  {"key": "models", "event_name": "ai_tokens", "aggregation": "unique_count", "value_property": "model"}],
 "plans": [{"key": "pro", "unmatched": "allow",
  "limits": [{"key": "tokens", "meter": "tokens", "quota": 1000000000000, "period": "month"}],
  "prices": [
   {"key": "base", "model": "flat", "currency": "usd", "amount": 2000},
   {"key": "tokens", "meter": "tokens", "model": "graduated", "currency": "usd",
    "tiers": [{"up_to": 1000000, "unit_amount": 0}, {"up_to": null, "unit_amount": "0.0001"}]},
   {"key": "large", "meter": "tokens", "filter": {"model": ["gpt-4o", "claude-sonnet"]}, "model": "per_unit", "currency": "usd",
    "unit_amount": "0.001"},
   {"key": "calls", "meter": "calls", "model": "package", "currency": "usd", "unit_amount": 5, "per_units": 1000}]}]
}"#;

pub(crate) async fn run(arguments: &Arguments, cluster: &Cluster) -> anyhow::Result<Table> {
    let count = if arguments.quick { 200_000 } else { 1_000_000 };
    admin(cluster, &format!("create database {DATABASE}")).await?;
    let url = cluster.url(DATABASE);
    let key = command(&url, &["keys", "create", "--environment", "test", "--kind", "secret"]).await?;
    let service = Service::start(&url).await?;
    let send = async |call: Vec<u8>| http::drive(service.address, Load::all([call], &DONE, 1)).await;
    send(http::put("/v1/catalog", &key, "application/json", CATALOG)).await?;
    let now = events::now();
    let since = now - PERIOD;
    let plan = format!(r#"{{"plan":"pro","cycle_start":"{since}"}}"#);
    let path = format!("/v1/subjects/{SUBJECT}/subscription");
    send(http::put(&path, &key, "application/json", &plan)).await?;
    let first = http::post("/v1/events", &key, "application/json", &events::body([SUBJECT.to_owned()]));
    http::drive(service.address, Load::all([first], &SINGLE_ACCEPTED, 1)).await?;
    fill(&url, count, now).await?;
    eprintln!("{count} events, folded");
    let mut table = Table::default();
    measure(&service, &key, &url, (since, count), &mut table).await?;
    service.stop().await?;
    let verdict = command(&url, &["verify", "--environment", "test"]).await?;
    table.add_alone("`metergate verify` afterwards", verdict, "0 differences");
    Ok(table)
}

/// Records usage at an even rate until the period has `count` events.
async fn fill(url: &str, count: usize, now: jiff::Timestamp) -> anyhow::Result<()> {
    let from = now - USE;
    let mut connection = PgConnection::connect(url).await?;
    for at in [from, now] {
        let at = metergate_domain::base::timestamp::Timestamp::parse(&at.to_string())?;
        if let Some(month) = partitions::month_of(at) {
            partitions::ensure(&mut connection, month).await?;
        }
    }
    let rows = whole(crate::report::float(count) * USE.as_secs_f64() / PERIOD.as_secs_f64());
    copy::fill(url, SUBJECT, rows, (from, now)).await?;
    stage::wait_until_folded(url).await?;
    wait_until_summed(&mut connection).await?;
    sqlx::raw_sql("vacuum (analyze)").execute(&mut connection).await?;
    Ok(connection.close().await?)
}

/// Waits until all past days have a daily rollup.
async fn wait_until_summed(connection: &mut PgConnection) -> anyhow::Result<()> {
    let started = Instant::now();
    loop {
        let behind: i64 = sqlx::query_scalar(
            "select count(*) from meters m left join summed_days s on s.meter_id = m.id
             where s.until is null or s.until < date_bin('1 day', now() - interval '1 hour', '2000-01-01T00:00:00Z')",
        )
        .fetch_one(&mut *connection)
        .await?;
        if behind == 0 {
            return Ok(());
        }
        ensure!(started.elapsed() < SUM_MAX, "{behind} meters have days without a daily rollup");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn measure(
    service: &Service,
    key: &str,
    url: &str,
    (since, count): (jiff::Timestamp, usize),
    table: &mut Table,
) -> anyhow::Result<()> {
    let mut database = PgConnection::connect(url).await?;
    // the correct total, from the events themselves
    let (sum, recorded): (i64, i64) = sqlx::query_as(
        "select sum(value)::bigint, count(*) from events e join event_names n on n.id = e.event_name_id
         where n.name = $1 and e.occurred_at >= $2::timestamptz",
    )
    .bind(EVENT_NAME)
    .bind(since.to_string())
    .fetch_one(&mut database)
    .await?;
    let request = http::get(&format!("/v1/subjects/{SUBJECT}/usage"), key);
    let mut connection = Connection::open(service.address).await?;
    let expected = format!(r#""meter":"tokens","unit":null,"value":{sum},"event_count":{recorded}"#);
    let mut took = Vec::new();
    for call in 0..WARM_UP + CALLS {
        let begun = Instant::now();
        let answer = connection.call(&request).await?;
        let elapsed = begun.elapsed();
        let text = answer.text();
        let is_whole = text.contains(&expected) && text.contains(r#""method":"weekday""#);
        ensure!(answer.status == 200 && is_whole, "expected {expected}, got {text}");
        if call >= WARM_UP {
            took.push(elapsed);
        }
    }
    took.sort_unstable();
    let [p50, p99] = [50, 99].map(|percent| milliseconds(http::percentile(&took, percent)));
    let what = format!(
        "usage report of a subject with {} events in its period, 7 meters, 4 prices: p50 / p99",
        thousands(crate::report::float(count))
    );
    table.add_alone(&what, format!("{p50} / {p99}"), "< 10 ms");
    Ok(())
}
