//! A description of the machine, and its processor time.

use std::path::Path;
use std::process::Command;

fn said(program: &str, arguments: &[&str], folder: &Path) -> Option<String> {
    let output = Command::new(program).args(arguments).current_dir(folder).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !text.is_empty()).then_some(text)
}

/// Describes the machine in one line: cores, processor, kernel, file system, commit.
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

/// Reads the fields of `/proc/PID/stat` from the third on.
fn stat(pid: u32) -> Option<Vec<u64>> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // the process name may contain any character; its closing parenthesis is the last one
    let (_, rest) = text.rsplit_once(')')?;
    Some(rest.split_whitespace().map(|field| field.parse().unwrap_or(0)).collect())
}

const PARENT: usize = 1;
const USER: usize = 11;
const CHILDREN: usize = 13;
const TICKS_PER_SECOND: f64 = 100.0;

/// Returns the processor time of a server, including its ended processes, and of an optional other
/// process, in seconds. Returns none if the kernel does not provide it.
pub(crate) fn cpu_seconds(data: &Path, other: Option<u32>) -> Option<f64> {
    let pid_file = std::fs::read_to_string(data.join("postmaster.pid")).ok()?;
    let postmaster: u32 = pid_file.lines().next()?.trim().parse().ok()?;
    let own = |fields: &[u64]| fields.get(USER..CHILDREN).map_or(0, |both| both.iter().sum::<u64>());
    let server = stat(postmaster)?;
    let mut ticks = own(&server) + server.get(CHILDREN..CHILDREN + 2)?.iter().sum::<u64>();
    let processes = std::fs::read_dir("/proc").ok()?.flatten();
    for pid in processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()) {
        if let Some(fields) = stat(pid)
            && (fields.get(PARENT) == Some(&u64::from(postmaster)) || Some(pid) == other)
        {
            ticks += own(&fields);
        }
    }
    Some(f64::from(u32::try_from(ticks).ok()?) / TICKS_PER_SECOND)
}
