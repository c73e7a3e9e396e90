//! Transactions that change an environment's configuration. They wait until no transaction records,
//! raise the version, and then read the clock.

use sqlx::{PgPool, Postgres, Transaction};

use crate::engine::clock::Clock;
use crate::store::{self, Scope, StoreError, configuration};
use metergate_domain::base::{Environment, Timestamp};
use metergate_domain::catalog::Catalog;

/// A transaction that holds the configuration lock.
#[derive(Debug)]
pub(crate) struct ChangeTransaction<'c> {
    pub(crate) transaction: Transaction<'c, Postgres>,
    pub(crate) environment: Environment,
    /// The environment's time, read under the lock.
    pub(crate) now: Timestamp,
}

impl<'c> ChangeTransaction<'c> {
    /// Returns the environment on the connection of this transaction.
    pub(crate) fn scope(&mut self) -> Scope<'_> {
        Scope::new(&mut self.transaction, self.environment)
    }

    /// Begins a transaction and locks the configuration.
    pub(crate) async fn begin(
        pool: &PgPool,
        environment: Environment,
        clock: &Clock,
    ) -> Result<ChangeTransaction<'static>, StoreError> {
        ChangeTransaction::within(pool.begin().await?, environment, clock).await
    }

    /// Locks the configuration in a transaction that has begun.
    pub(crate) async fn within(
        mut transaction: Transaction<'c, Postgres>,
        environment: Environment,
        clock: &Clock,
    ) -> Result<Self, StoreError> {
        configuration::lock_for_change(&mut Scope::new(&mut transaction, environment)).await?;
        let now = clock.now(environment, store::usage::now(&mut transaction).await?);
        Ok(Self { transaction, environment, now })
    }

    /// Returns the catalog in force and its version.
    pub(crate) async fn catalog(&mut self) -> Result<(Catalog, i64), StoreError> {
        store::catalog::current(&mut self.scope()).await
    }

    /// Returns a time for the change. It differs from that of every other change and is not before
    /// any recorded event, even if the clock went back.
    pub(crate) async fn time_of_change(&mut self) -> Result<Timestamp, StoreError> {
        let latest = store::usage::events::latest(&mut self.scope()).await?;
        let at = latest.map_or(self.now, |latest| latest.max(self.now));
        configuration::time_of_change(&mut self.scope(), at).await
    }

    pub(crate) async fn commit(self) -> Result<(), StoreError> {
        Ok(self.transaction.commit().await?)
    }
}
