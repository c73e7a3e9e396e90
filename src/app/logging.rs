//! Logs go to stderr: lines for people on a terminal, JSON everywhere else.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use super::settings::{Log, LogFormat};

pub fn start(log: &Log) -> anyhow::Result<()> {
    let filter = EnvFilter::builder()
        .parse(&log.filter)
        .map_err(|why| anyhow::anyhow!("log.filter `{}` is malformed: {why}", log.filter))?;
    let json = match log.format {
        LogFormat::Json => true,
        LogFormat::Human => false,
        LogFormat::Auto => !std::io::stderr().is_terminal(),
    };
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    // a second start in one process, as tests do it, keeps the first
    let started = if json { builder.json().flatten_event(true).try_init() } else { builder.try_init() };
    started.ok();
    Ok(())
}
