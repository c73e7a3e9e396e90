//! What can go wrong with the database, sorted by what the caller can do about it.

use sqlx::error::ErrorKind;

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The server is away, starting, stopping, or has no connection free: later it may work.
    #[error("the database cannot be reached: {0}")]
    Unavailable(#[source] sqlx::Error),
    /// Deadlock or serialisation failure: the same again may work at once.
    #[error("the database asks for a retry: {0}")]
    Conflict(#[source] sqlx::Error),
    /// A statement took longer than is allowed.
    #[error("a statement took too long: {0}")]
    TooSlow(#[source] sqlx::Error),
    /// A named constraint refused a row.
    #[error("the constraint {constraint} refused a row")]
    Constraint { constraint: String },
    /// Anything else: a defect of ours or of the data.
    #[error("the database refused a statement: {0}")]
    Refused(#[source] sqlx::Error),
    #[error("the migrations do not fit the database: {0}")]
    Migration(#[source] sqlx::migrate::MigrateError),
    #[error("DATABASE_URL cannot be read: {0}")]
    Url(String),
}

impl StoreError {
    /// Returns the error for data that contradicts itself.
    pub fn defect(why: String) -> Self {
        Self::Refused(sqlx::Error::Decode(why.into()))
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
