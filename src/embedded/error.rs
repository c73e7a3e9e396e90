//! Errors of the embedded PostgreSQL, with what the user can do about them.

use std::path::Path;

/// An error of the embedded PostgreSQL.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddedError {
    /// No server programs were found or downloaded.
    #[error(
        "no PostgreSQL was found: set DATABASE_URL; or, for the embedded one, install the server programs (Debian: `apt-get install postgresql`, macOS: `brew install postgresql`) or set METERGATE__POSTGRES__BIN to their folder ({0})"
    )]
    NoBinaries(String),
    /// The data needs server programs of another major version.
    #[error(
        "PostgreSQL {made_by} made the data in {folder}, and no server programs of that version were found; install them, or set METERGATE__POSTGRES__BIN to their folder"
    )]
    OtherVersion { folder: String, made_by: String },
    /// Another process holds the lock of the folder.
    #[error(
        "another metergate (process {pid}) is using {folder}; stop it, or set DATABASE_URL or METERGATE__POSTGRES__FOLDER for this one"
    )]
    InUse { folder: String, pid: String },
    /// A file or folder cannot be read or written.
    #[error("cannot use {path}: {why}")]
    Folder { path: String, why: std::io::Error },
    /// A program cannot be run, or failed.
    #[error("cannot run {program}: {why}")]
    Program { program: String, why: String },
    /// The server did not accept connections in time.
    #[error("PostgreSQL did not start; the end of its log:\n{0}")]
    NotStarted(String),
}

/// Adds the path to an error of the file system.
pub(super) fn at(path: &Path) -> impl FnOnce(std::io::Error) -> EmbeddedError + '_ {
    move |why| EmbeddedError::Folder { path: path.display().to_string(), why }
}
