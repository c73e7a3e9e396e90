//! The benchmark: the service's rates, compared with those of `PostgreSQL` itself on the same machine
//! in the same minutes.
//!
//! ```text
//! cargo run --release --example bench [-- --quick|--large] [--only events|gate|exports|reports]
//! ```
//!
//! Starts all it needs: a private `PostgreSQL` with fsync on in a temporary folder, and the service as
//! a separate process, so that its memory can be measured separately. All requests are built before the
//! clock runs. The service and its baseline are measured in turns. The results are the medians of the
//! rounds and of their ratios. Prints one table; `docs/benchmarks.md` explains its rows.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the table goes to stdout, progress to stderr"
)]

mod copy;
mod events;
mod exports;
mod gate;
mod holds;
mod http;
mod ingest;
mod large;
mod machine;
mod pgbench;
mod report;
mod reports;
mod rounds;
mod service;
mod stage;

#[expect(dead_code, unused_imports, reason = "only the tests use the other items")]
#[path = "../../tests/suite/support/stripe_fake/mod.rs"]
mod stripe_fake;

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Parser, ValueEnum};
use metergate::embedded::{Cluster, ServerPurpose};
use sqlx::{Connection as _, PgConnection};

/// The longest time of a run.
const RUN_MAX: Duration = Duration::from_mins(40);

/// Measure the service against `PostgreSQL` itself, and print one table
#[derive(Debug, Clone, Parser)]
pub(crate) struct Arguments {
    /// Run for about a minute, with less data
    #[arg(long)]
    quick: bool,
    /// Measure again with 10 million events and a million counters in the database
    #[arg(long)]
    large: bool,
    /// Measure only this part; exports and reports are measured only on request
    #[arg(long, value_enum)]
    only: Option<Part>,
    /// The parent of the temporary data folder; it must be on a disk, or fsync means nothing
    #[arg(long)]
    folder: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    Events,
    Gate,
    Exports,
    Reports,
}

impl Arguments {
    fn measures(&self, part: Part) -> bool {
        self.only.is_none_or(|only| only == part)
    }
}

fn main() -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let mut given = std::env::args().skip(1).peekable();
    if given.peek().is_some_and(|first| first == service::AS_METERGATE) {
        return runtime.block_on(service::be_metergate(given));
    }
    runtime.block_on(measure(Arguments::parse()))?;
    Ok(ExitCode::SUCCESS)
}

async fn measure(arguments: Arguments) -> anyhow::Result<()> {
    let parent = arguments.folder.clone().unwrap_or_else(std::env::temp_dir);
    // run as root, the server uses another account, which must be able to reach its data
    let open_to_read = std::fs::Permissions::from_mode(0o755);
    let folder =
        tempfile::Builder::new().prefix("metergate-bench-").permissions(open_to_read).tempdir_in(parent)?;
    eprintln!("starting PostgreSQL in {}", folder.path().display());
    let cluster = Cluster::start(folder.path(), None, ServerPurpose::Service).await?;
    let done = tokio::select! {
        done = tokio::time::timeout(RUN_MAX, run(&arguments, &cluster, folder.path())) => done,
        _ = tokio::signal::ctrl_c() => Ok(Err(anyhow::anyhow!("interrupted"))),
    };
    cluster.stop().await;
    done.context("the benchmark took longer than 40 minutes")?
}

async fn run(arguments: &Arguments, cluster: &Cluster, folder: &std::path::Path) -> anyhow::Result<()> {
    let mut connection = PgConnection::connect(&cluster.url("postgres")).await?;
    let postgres: String = sqlx::query_scalar("show server_version").fetch_one(&mut connection).await?;
    let fsync: String = sqlx::query_scalar("show fsync").fetch_one(&mut connection).await?;
    if fsync != "on" {
        bail!("fsync must be on; got {fsync}");
    }
    let machine = machine::describe(folder, &postgres);
    eprintln!("{machine}");
    let table = match arguments.only {
        Some(Part::Exports) => Box::pin(exports::run(arguments, cluster)).await?,
        Some(Part::Reports) => Box::pin(reports::run(arguments, cluster)).await?,
        None | Some(Part::Events | Part::Gate) => Box::pin(rounds::run(arguments, cluster, folder)).await?,
    };
    println!("{machine}\n\n{}", table.markdown());
    Ok(())
}
