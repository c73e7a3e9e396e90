//! State of a data folder: its version, and the server that runs in it.

use std::fs;
use std::path::{Path, PathBuf};

/// Returns the major version that made the data; none for an empty folder.
pub(super) fn version_of(data: &Path) -> Option<String> {
    fs::read_to_string(data.join("PG_VERSION")).ok().map(|text| text.trim().to_owned())
}

/// The content of `postmaster.pid`, line by line (PostgreSQL's `miscadmin.h`): 1 the process id,
/// 5 the socket folder, 8 the state.
#[derive(Debug)]
pub(super) struct Postmaster {
    pub(super) pid: u32,
    pub(super) socket: PathBuf,
    pub(super) ready: bool,
}

impl Postmaster {
    pub(super) fn of(data: &Path) -> Option<Self> {
        let text = fs::read_to_string(data.join("postmaster.pid")).ok()?;
        let line = |number: usize| text.lines().nth(number - 1).unwrap_or_default().trim();
        Some(Self { pid: line(1).parse().ok()?, socket: PathBuf::from(line(5)), ready: line(8) == "ready" })
    }

    /// Returns whether the process is the server of this data folder, and not another process that later
    /// got the same number. The working directory of a server is its data folder. Without /proc, returns
    /// true.
    pub(super) fn is_alive(&self, data: &Path) -> bool {
        if !Path::new("/proc/self").exists() {
            return true;
        }
        fs::read_link(format!("/proc/{}/cwd", self.pid)).is_ok_and(|folder| folder == data)
    }
}

/// Removes the files of a first start that was interrupted.
pub(super) fn empty(data: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(data)? {
        let path = entry?.path();
        if path.is_dir() { fs::remove_dir_all(path)? } else { fs::remove_file(path)? }
    }
    Ok(())
}

/// Returns the last lines of a log.
pub(super) fn tail(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(10)..].join("\n")
}
