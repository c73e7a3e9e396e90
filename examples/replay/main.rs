//! Loads the Azure LLM inference trace into a running Metergate as events, then shows its usage by
//! minute and by subject.
//!
//! ```text
//! cargo run --example replay -- examples/data/azure_llm_code_2023_sample.csv --key mg_sk_test_…
//! ```
//!
//! Sends one event `llm_request` per row, with the properties `context_tokens`, `generated_tokens` and
//! `model`. The rows name no user, so the BLAKE3 hash of the row selects one of 40 subjects, `dev_01`
//! to `dev_40`. The model follows from the context length. `trace.rs` has the rules, and the program
//! prints them.
//!
//! Ids depend on the rows only, so a second load changes no total. The trace is of 2023: events are
//! sent with `?backfill=true`, unless `--shift-to-now` moves them to end now.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command-line program prints its results")]

mod client;
mod trace;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant, UNIX_EPOCH};

use anyhow::{Context, bail, ensure};
use clap::Parser;
use futures::StreamExt;
use jiff::{SignedDuration, Timestamp};

use crate::client::{Client, Sent, UsageRow};
use crate::trace::TraceEvent;

const METERS: [&str; 3] = ["llm_context_tokens", "llm_generated_tokens", "llm_requests"];
const TITLES: [&str; 3] = ["context tokens", "generated tokens", "requests"];
const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);

/// Load the Azure LLM inference trace as events, then show its usage
#[derive(Debug, Parser)]
struct Arguments {
    /// CSV file with the columns TIMESTAMP,ContextTokens,GeneratedTokens
    file: PathBuf,
    #[arg(long, default_value = "http://127.0.0.1:8080")]
    url: String,
    /// Secret key; by default, `METERGATE_KEY` or `KEY` of the environment
    #[arg(long, env = "METERGATE_KEY", hide_env_values = true)]
    key: Option<String>,
    /// Events per call
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u16).range(1..=1000))]
    batch: u16,
    /// Number of parallel calls
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    connections: u16,
    /// Move the trace by whole minutes so that it ends now. A load in another minute creates other
    /// events, which add to the totals
    #[arg(long)]
    shift_to_now: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    match replay().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("replay: {why:#}");
            ExitCode::FAILURE
        }
    }
}

async fn replay() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let key = arguments.key.clone().or_else(|| std::env::var("KEY").ok());
    let key = key.context("a key is required; pass --key, or set METERGATE_KEY or KEY")?;
    let client = Client::new(&arguments.url, key)?;

    let file =
        File::open(&arguments.file).with_context(|| format!("cannot read {}", arguments.file.display()))?;
    let mut events = trace::read(file)?;
    ensure!(!events.is_empty(), "{} must have at least one row", arguments.file.display());
    if arguments.shift_to_now {
        events = moved_to_now(events)?;
    }
    let sums = [
        events.iter().map(|event| event.context_tokens).sum(),
        events.iter().map(|event| event.generated_tokens).sum(),
        events.len() as u64,
    ];
    require_meters(&client).await?;
    println!("{}\n", trace::RULE);

    let sent = load(&client, &events, &arguments).await?;
    let (from, to) = minutes_around(&events)?;
    print_by_minute(&client, from, to).await?;
    print_by_subject(&client, from, to).await?;
    print_totals(&client, from, to, sums).await?;
    ensure!(sent.rejected == 0, "{} events were rejected", sent.rejected);
    Ok(())
}

fn moved_to_now(events: Vec<TraceEvent>) -> anyhow::Result<Vec<TraceEvent>> {
    let last = events.iter().map(|event| event.at).max().context("the trace must have at least one row")?;
    let now = i64::try_from(UNIX_EPOCH.elapsed()?.as_secs())?;
    let by = SignedDuration::from_secs((now - last.as_second()).div_euclid(60) * 60);
    Ok(events.into_iter().map(|event| event.moved(by)).collect())
}

async fn require_meters(client: &Client) -> anyhow::Result<()> {
    let known = client.meters().await?;
    let missing: Vec<&str> =
        METERS.into_iter().filter(|key| !known.iter().any(|known| known == key)).collect();
    if !missing.is_empty() {
        bail!(
            "the catalog must have the meters {}; apply one that has them:\n  metergate catalog apply config/catalog.yaml",
            missing.join(", ")
        );
    }
    Ok(())
}

async fn load(client: &Client, events: &[TraceEvent], arguments: &Arguments) -> anyhow::Result<Sent> {
    let started = Instant::now();
    let backfill = !arguments.shift_to_now;
    let invalid_bodies_are_rejected = events.chunks(usize::from(arguments.batch)).map(|chunk| {
        let body: Vec<_> = chunk.iter().map(TraceEvent::to_json).collect();
        client.send(body, backfill)
    });
    let mut answers = futures::stream::iter(invalid_bodies_are_rejected)
        .buffer_unordered(usize::from(arguments.connections));
    let mut all = Sent::default();
    let mut shown = Instant::now();
    while let Some(sent) = answers.next().await {
        all.add(sent?);
        if shown.elapsed() >= PROGRESS_INTERVAL {
            shown = Instant::now();
            println!("{:>7} of {} events", all.count(), events.len());
        }
    }
    println!(
        "{} events in {:.2} s: {} accepted, {} duplicates, {} rejected, {} retries\n",
        all.count(),
        started.elapsed().as_secs_f64(),
        all.accepted,
        all.duplicates,
        all.rejected,
        client.retries()
    );
    Ok(all)
}

/// Returns the whole minutes that contain all events.
fn minutes_around(events: &[TraceEvent]) -> anyhow::Result<(Timestamp, Timestamp)> {
    let seconds = events.iter().map(|event| event.at.as_second());
    let first = seconds.clone().min().context("the trace must have at least one row")?;
    let last = seconds.max().context("the trace must have at least one row")?;
    let minute = |second: i64| second.div_euclid(60) * 60;
    Ok((Timestamp::from_second(minute(first))?, Timestamp::from_second(minute(last) + 60)?))
}

/// Reads the three meters by the key of a row.
async fn side_by_side(
    client: &Client,
    (from, to): (Timestamp, Timestamp),
    asked: &str,
    name: impl Fn(&UsageRow) -> String,
) -> anyhow::Result<BTreeMap<String, [String; 3]>> {
    let mut table: BTreeMap<String, [String; 3]> = BTreeMap::new();
    for (column, meter) in METERS.into_iter().enumerate() {
        for row in client.usage(meter, from, to, asked).await? {
            let cells = table.entry(name(&row)).or_insert_with(|| std::array::from_fn(|_| "0".to_owned()));
            cells[column] = row.value();
        }
    }
    Ok(table)
}

fn print_table(title: &str, table: &BTreeMap<String, [String; 3]>) {
    println!("{title:<22}{:>16}{:>18}{:>12}", TITLES[0], TITLES[1], TITLES[2]);
    for (name, [context, generated, requests]) in table {
        println!("{name:<22}{context:>16}{generated:>18}{requests:>12}");
    }
    println!();
}

async fn print_by_minute(client: &Client, from: Timestamp, to: Timestamp) -> anyhow::Result<()> {
    let table = side_by_side(client, (from, to), "&window=minute", |row| row.window_start.clone()).await?;
    print_table("minute", &table);
    Ok(())
}

async fn print_by_subject(client: &Client, from: Timestamp, to: Timestamp) -> anyhow::Result<()> {
    let name = |row: &UsageRow| row.subject.clone().unwrap_or_default();
    let table = side_by_side(client, (from, to), "&group_by=subject", name).await?;
    print_table("subject", &table);
    Ok(())
}

async fn print_totals(client: &Client, from: Timestamp, to: Timestamp, sums: [u64; 3]) -> anyhow::Result<()> {
    let metered = side_by_side(client, (from, to), "", |_| "metered in these minutes".to_owned()).await?;
    let mut table = metered;
    table.insert("in the file".to_owned(), sums.map(|sum| sum.to_string()));
    print_table("total", &table);
    Ok(())
}
