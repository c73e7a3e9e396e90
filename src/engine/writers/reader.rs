//! A second connection of a writer: it reads committed data while the transaction of the writer is open.

use crate::store::{Database, StoreError};
use sqlx::PgConnection;

/// A connection that reads committed data during a transaction of another connection.
#[derive(Debug)]
pub(crate) struct Reader {
    pub(crate) database: Database,
    pub(crate) connection: Option<PgConnection>,
}

impl Reader {
    pub(crate) fn new(database: Database) -> Self {
        Self { database, connection: None }
    }

    pub(crate) async fn connected(&mut self) -> Result<PgConnection, StoreError> {
        match self.connection.take() {
            Some(connection) => Ok(connection),
            None => self.database.connect_writer().await,
        }
    }
}
