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

#[expect(clippy::print_stderr, reason = "the error of a command goes to stderr")]
fn fail(why: &anyhow::Error) -> ExitCode {
    // skips causes that the text of the error already contains
    let mut text = why.to_string();
    for cause in why.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    eprintln!("metergate: {text}");
    ExitCode::FAILURE
}
