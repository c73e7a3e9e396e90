//! The order of the measurements.

#![expect(clippy::print_stderr, reason = "progress")]

use std::path::Path;
use std::time::Duration;

use metergate::embedded::Cluster;

use crate::gate::{self, Gate};
use crate::ingest::{self, Ingest};
use crate::report::{Table, milliseconds};
use crate::service::{Service, command};
use crate::stage::Stage;
use crate::{Arguments, Part, events, holds, large};

const IDLE: Duration = Duration::from_secs(5);
const STARTS: usize = 5;
/// The most rounds with much data, which takes long to create.
const LARGE_ROUNDS_MAX: usize = 2;

/// The size of the measurements.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    rounds: usize,
    pub(crate) batch_events: usize,
    /// The duration of loads by time.
    pub(crate) duration: Duration,
    pub(crate) month_events: usize,
    pub(crate) idle_calls: usize,
}

const QUICK: Size = Size {
    rounds: 1,
    batch_events: 300_000,
    duration: Duration::from_secs(3),
    month_events: 200_000,
    idle_calls: 100,
};
const FULL: Size = Size {
    rounds: 3,
    batch_events: 600_000,
    duration: Duration::from_secs(6),
    month_events: 1_000_000,
    idle_calls: 500,
};

/// The rounds with one amount of data.
#[derive(Debug, Default)]
struct Rounds {
    ingest: Ingest,
    gate: Gate,
}

pub(crate) async fn run(arguments: &Arguments, cluster: &Cluster, folder: &Path) -> anyhow::Result<Table> {
    let size = if arguments.quick { QUICK } else { FULL };
    let (events, gate) = (arguments.measures(Part::Events), arguments.measures(Part::Gate));
    let mut table = Table::default();
    let mut stage = Stage::set(cluster, folder).await?;
    stage.know((0..events::SUBJECTS).map(events::subject)).await?;
    if gate {
        gate::prepare(&stage).await?;
    }
    stage.wait_until_folded().await?;
    stage.copy_database(holds::CALLERS).await?;
    tokio::time::sleep(IDLE).await;
    let idle = stage.memory_mib("VmRSS");
    if events {
        ingest::idle_latency(&stage, size, &mut table).await?;
    }
    if gate {
        gate::idle_latency(&stage, size, &mut table).await?;
    }
    let few = measure(&stage, size, arguments, size.rounds).await?;
    if events {
        few.ingest.report(&mut table);
        ingest::month(&stage, size, &mut table).await?;
    }
    if gate {
        few.gate.report(&mut table);
    }
    if arguments.large {
        large::fill(&mut stage).await?;
        let many = measure(&stage, size, arguments, size.rounds.min(LARGE_ROUNDS_MAX)).await?;
        many.ingest.report_large(&few.ingest, &mut table);
        many.gate.report_large(&few.gate, &mut table);
    }
    let peak = stage.peak_mib();
    tokio::time::sleep(IDLE).await;
    let settled = stage.memory_mib("VmRSS");
    note_memory(&mut table, "memory, idle, 5 s after the start", idle, "< 64 MiB");
    note_memory(&mut table, "memory, the most in the benchmark", peak, "< 256 MiB");
    note_memory(&mut table, "memory, 5 s after the last load", settled, "");
    stage.stop_service().await?;
    measure_starts(&stage, &mut table).await?;
    eprintln!("verifying");
    let verdict = command(&stage.url(), &["verify", "--environment", "test"]).await?;
    table.add_alone("`metergate verify` afterwards", verdict, "0 differences");
    Ok(table)
}

/// Measures the rounds on a service that knows its subjects, as after some time of operation.
async fn measure(
    stage: &Stage<'_>,
    size: Size,
    arguments: &Arguments,
    rounds: usize,
) -> anyhow::Result<Rounds> {
    let mut done = Rounds::default();
    stage.know((0..events::SUBJECTS).map(events::subject)).await?;
    if arguments.measures(Part::Gate) {
        gate::know(stage).await?;
    }
    stage.wait_until_folded().await?;
    for round in 1..=rounds {
        if arguments.measures(Part::Events) {
            eprintln!("round {round} of {rounds}: {}", done.ingest.round(stage, size).await?);
        }
        if arguments.measures(Part::Gate) {
            eprintln!("round {round} of {rounds}: {}", done.gate.round(stage, size, round).await?);
        }
    }
    Ok(done)
}

fn note_memory(table: &mut Table, what: &str, mib: Option<f64>, aim: &str) {
    let measured = mib.map_or("not measured here".to_owned(), |mib| format!("{mib:.0} MiB"));
    table.add_alone(what, measured, aim);
}

async fn measure_starts(stage: &Stage<'_>, table: &mut Table) -> anyhow::Result<()> {
    let mut took = Vec::new();
    for _ in 0..STARTS {
        let service = Service::start(&stage.url()).await?;
        took.push(service.ready_after);
        service.stop().await?;
    }
    took.sort_unstable();
    let measured = format!("{} (at most {})", milliseconds(took[STARTS / 2]), milliseconds(took[STARTS - 1]));
    table.add_alone("start to ready, on an existing database", measured, "< 500 ms");
    Ok(())
}
