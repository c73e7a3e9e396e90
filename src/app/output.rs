//! Text that commands print.

use std::fmt::Display;
use std::io::{ErrorKind, Write};

use serde::Serialize;

use metergate_domain::base::Violation;

/// Prints a value as indented JSON.
pub(super) fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    print_line(serde_json::to_string_pretty(value)?)
}

/// Prints a line to stdout. A closed pipe is not an error: a reader such as `head` may have read enough.
pub(super) fn print_line(line: impl Display) -> anyhow::Result<()> {
    match writeln!(std::io::stdout().lock(), "{line}") {
        Err(why) if why.kind() == ErrorKind::BrokenPipe => Ok(()),
        done => Ok(done?),
    }
}

/// Formats the errors of a catalog, one per line.
pub(super) fn format_errors(errors: &[Violation]) -> String {
    let line = |error: &Violation| format!("{} {} ({})", error.pointer, error.detail, error.code);
    let lines: Vec<String> = errors.iter().map(line).collect();
    format!("the catalog is not valid:\n  {}", lines.join("\n  "))
}
