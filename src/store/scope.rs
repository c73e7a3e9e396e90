//! A connection together with the environment that its statements read and write.

use metergate_domain::base::Environment;
use sqlx::PgConnection;

/// The environment and the connection of a query.
#[derive(Debug)]
pub struct Scope<'c> {
    pub connection: &'c mut PgConnection,
    pub environment: Environment,
}

impl<'c> Scope<'c> {
    pub fn new(connection: &'c mut PgConnection, environment: Environment) -> Self {
        Self { connection, environment }
    }
}
