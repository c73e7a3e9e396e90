//! The `metergate` binary: see [`metergate::app`].

use std::process::ExitCode;

use clap::Parser;
use metergate::app::cli::{Cli, Command};
use metergate::app::settings::Settings;

#[tokio::main]
async fn main() -> ExitCode {
    let done = match Settings::load() {
        Ok(settings) => Cli::parse().command.unwrap_or(Command::Serve).run(settings).await,
        Err(why) => Err(why.into()),
    };
    match done {
        Ok(code) => code,
        Err(why) => fail(&why),
    }
}

#[expect(clippy::print_stderr, reason = "the last word of a program that could not do its work")]
fn fail(why: &anyhow::Error) -> ExitCode {
    // a cause whose words an error already says is not said again
    let mut said = why.to_string();
    for cause in why.chain().skip(1).map(ToString::to_string) {
        if !said.contains(&cause) {
            said = format!("{said}: {cause}");
        }
    }
    eprintln!("metergate: {said}");
    ExitCode::FAILURE
}
