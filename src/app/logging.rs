//! Logs go to stderr, as text on a terminal and as JSON elsewhere.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use super::settings::{Log, LogFormat};

/// Starts the log of this process.
pub fn start(log: &Log) -> anyhow::Result<()> {
    let filter = EnvFilter::builder().parse(&log.filter).map_err(|why| {
        anyhow::anyhow!(
            "log.filter must be a list of directives such as `info,sqlx=warn`; got `{}`: {why}",
            log.filter
        )
    })?;
    let json = match log.format {
        LogFormat::Json => true,
        LogFormat::Human => false,
        LogFormat::Auto => !std::io::stderr().is_terminal(),
    };
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    // fails at a second start in one process, as in tests, which keeps the first log
    let started = if json { builder.json().flatten_event(true).try_init() } else { builder.try_init() };
    started.ok();
    Ok(())
}
