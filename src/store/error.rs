//! Errors of the database, sorted by what the caller can do about them.

use sqlx::error::ErrorKind;

/// An error of the database.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The server is unreachable, starting, stopping, or has no free connection. A later attempt may
    /// succeed.
    #[error("the database cannot be reached: {0}")]
    Unavailable(#[source] sqlx::Error),
    /// A deadlock or a serialisation failure. An immediate retry may succeed.
    #[error("the database asks for a retry: {0}")]
    Conflict(#[source] sqlx::Error),
    /// A statement exceeded its time limit.
    #[error("a statement took too long: {0}")]
    TooSlow(#[source] sqlx::Error),
    /// A named constraint refused a row.
    #[error("the constraint {constraint} refused a row")]
    Constraint { constraint: String },
    /// Any other error: a defect of the program or of the data.
    #[error("the database refused a statement: {0}")]
    Refused(#[source] sqlx::Error),
    /// A migration failed, or a migration that was applied has changed.
    #[error("the migrations do not match the database: {0}")]
    Migration(#[source] sqlx::migrate::MigrateError),
    /// The schema comes from a build that this build cannot continue.
    #[error(
        "the database has schema version {version}: {reason}; set DATABASE_URL to a new, empty database \
         or, for the embedded PostgreSQL, METERGATE__POSTGRES__FOLDER to a new folder, or run the build \
         that made this schema"
    )]
    IncompatibleSchema { version: i64, reason: &'static str },
    /// `DATABASE_URL`, or the direct URL of the writers, is malformed.
    #[error("DATABASE_URL must be a PostgreSQL URL such as postgres://user:password@host/database: {0}")]
    Url(String),
}

impl StoreError {
    /// Creates the error for a defect: a value that breaks an assumption of the code.
    pub fn internal(why: impl Into<String>) -> Self {
        Self::Refused(sqlx::Error::Decode(why.into().into()))
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        match &error {
            sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed
            // the connection broke in the middle of a message
            | sqlx::Error::Protocol(_) => Self::Unavailable(error),
            sqlx::Error::Database(refused) => {
                let code = refused.code().unwrap_or_default().into_owned();
                match code.as_str() {
                    "40001" | "40P01" => Self::Conflict(error),
                    "57014" | "55P03" => Self::TooSlow(error),
                    // shutting down, crashed, starting, too many connections, idle session ended
                    "57P01" | "57P02" | "57P03" | "53300" | "57P05" | "25P03" => Self::Unavailable(error),
                    _ if code.starts_with("08") => Self::Unavailable(error),
                    _ if refused.kind() == ErrorKind::Other => Self::Refused(error),
                    _ => match refused.constraint() {
                        Some(constraint) => Self::Constraint { constraint: constraint.to_owned() },
                        None => Self::Refused(error),
                    },
                }
            }
            _ => Self::Refused(error),
        }
    }
}

impl From<sqlx::migrate::MigrateError> for StoreError {
    fn from(error: sqlx::migrate::MigrateError) -> Self {
        match error {
            sqlx::migrate::MigrateError::Execute(why) => Self::from(why),
            other => Self::Migration(other),
        }
    }
}
