//! On what it was measured.

use std::path::Path;
use std::process::Command;

fn said(program: &str, arguments: &[&str], folder: &Path) -> Option<String> {
    let output = Command::new(program).args(arguments).current_dir(folder).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !text.is_empty()).then_some(text)
}

/// One line: cores, processor, kernel, file system, commit.
pub(crate) fn describe(data: &Path, postgres: &str) -> String {
    let source = Path::new(env!("CARGO_MANIFEST_DIR"));
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let cpu = std::fs::read_to_string("/proc/cpuinfo").ok().and_then(|info| {
        let line = info.lines().find(|line| line.starts_with("model name"))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    });
    let unknown = || "unknown".to_owned();
    let kernel = said("uname", &["-sr"], data).unwrap_or_else(unknown);
    let files = said("stat", &["-f", "-c", "%T", "."], data).unwrap_or_else(unknown);
    let commit = said("git", &["rev-parse", "--short", "HEAD"], source).unwrap_or_else(unknown);
    let changed = said("git", &["status", "--porcelain", "--", "src", "migrations", "Cargo.lock"], source);
    let changed = if changed.is_some() { " with uncommitted changes" } else { "" };
    let load = std::fs::read_to_string("/proc/loadavg")
        .ok()
        .and_then(|load| Some(load.split_once(' ')?.0.to_owned()));
    format!(
        "{cores} cores ({}), {kernel}, data on {files}, PostgreSQL {postgres}, commit {commit}{changed}, load before {}",
        cpu.unwrap_or_else(unknown),
        load.unwrap_or_else(unknown)
    )
}
