//! The service as a separate process: this program again, as the `metergate` command.

use std::net::{SocketAddr, TcpListener};
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Parser;
use metergate::app::cli::{Cli, Command};
use metergate::app::settings::Settings;
use tokio::process::{Child, Command as Process};

use crate::http::{Connection, get};

/// The first argument of a process that runs as the service.
pub(crate) const AS_METERGATE: &str = "as-metergate";
const READY_MAX: Duration = Duration::from_mins(2);
const STOP_MAX: Duration = Duration::from_secs(40);

/// Runs this program as the `metergate` command, which ends with the benchmark that started it, also
/// after a crash.
pub(crate) async fn be_metergate(arguments: impl Iterator<Item = String>) -> anyhow::Result<ExitCode> {
    std::thread::spawn(|| {
        std::io::copy(&mut std::io::stdin(), &mut std::io::sink()).ok();
        std::process::exit(2);
    });
    let cli = Cli::parse_from(arguments);
    cli.command.unwrap_or(Command::Serve).run(Settings::load()?).await
}

fn process(database_url: &str, arguments: &[&str]) -> anyhow::Result<Process> {
    let mut process = Process::new(std::env::current_exe()?);
    process.arg(AS_METERGATE).args(arguments).env_clear().env("DATABASE_URL", database_url);
    process.envs(std::env::vars_os().filter(|(name, _)| name == "PATH"));
    process.env("METERGATE__LOG__FILTER", "warn,sqlx=error");
    process.stdin(Stdio::piped()).stdout(Stdio::null()).kill_on_drop(true);
    Ok(process)
}

/// Runs a command to its end, and returns its output.
pub(crate) async fn command(database_url: &str, arguments: &[&str]) -> anyhow::Result<String> {
    let mut command = process(database_url, arguments)?;
    let child = command.stdout(Stdio::piped()).spawn()?;
    // keeps its input open until it has ended
    let mut child = child;
    let _input = child.stdin.take();
    let output = child.wait_with_output().await?;
    ensure!(output.status.success(), "metergate {} failed", arguments.join(" "));
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) address: SocketAddr,
    /// The time from the start of the process to the first 200 of `/readyz`.
    pub(crate) ready_after: Duration,
    child: Child,
}

impl Service {
    pub(crate) async fn start(database_url: &str) -> anyhow::Result<Self> {
        Self::start_with(database_url, &[]).await
    }

    /// Starts the service with additional settings.
    pub(crate) async fn start_with(database_url: &str, variables: &[(&str, &str)]) -> anyhow::Result<Self> {
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let mut process = process(database_url, &["serve"])?;
        process.env("METERGATE__HTTP__BIND", address.to_string()).envs(variables.iter().copied());
        let started = Instant::now();
        let child = process.spawn()?;
        while !is_ready(address).await {
            ensure!(started.elapsed() < READY_MAX, "the service must become ready in time");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(Self { address, ready_after: started.elapsed(), child })
    }

    /// Reads the kernel's figure of its memory, in MiB: `VmRSS` or `VmHWM`.
    pub(crate) fn memory_mib(&self, line: &str) -> Option<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()?)).ok()?;
        let rest = status.lines().find_map(|given| given.strip_prefix(line)?.strip_prefix(':'))?;
        let kibibytes: f64 = rest.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(kibibytes / 1024.0)
    }

    pub(crate) fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    pub(crate) async fn stop(mut self) -> anyhow::Result<()> {
        let pid = self.child.id().context("the service has ended")?;
        // waiting would close its input, which ends the process at once
        let _input = self.child.stdin.take();
        Process::new("kill").args(["-TERM", &pid.to_string()]).status().await?;
        let ended = tokio::time::timeout(STOP_MAX, self.child.wait()).await;
        let status = ended.context("the service must stop in time")??;
        ensure!(status.success(), "the service ended with {status}");
        Ok(())
    }
}

async fn is_ready(address: SocketAddr) -> bool {
    let asked = async {
        Ok::<_, anyhow::Error>(Connection::open(address).await?.call(&get("/readyz", "")).await?.status)
    };
    asked.await.is_ok_and(|status| status == 200)
}
