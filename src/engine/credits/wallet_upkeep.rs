//! Keeping wallets up to date: the job.

use super::wallets::{HolderSubscriptions, WalletLoader, add_holder};
use crate::engine::error::EngineError;
use crate::engine::services::{Engine, detached};
use crate::engine::subjects::subscription_changes::carry_out_ends;
use crate::store::credits::wallets::{self, Changes};
use crate::store::subjects::subject::Which;
use crate::store::{self, Scope};
use metergate_domain::base::Environment;
use metergate_domain::base::limits::CREDIT_SWEEP_WALLETS_MAX;
use sqlx::Connection;

impl Engine {
    /// Applies the due changes of the wallets of some subjects. Plans grant only to subjects with their own
    /// subscription.
    pub(crate) async fn settle_wallets(
        &self,
        environment: Environment,
        subject_ids: Vec<i64>,
    ) -> Result<(), EngineError> {
        let engine = self.clone();
        detached(async move {
            let mut connection = engine.database().pool().acquire().await?;
            loop {
                let mut transaction = connection.begin().await?;
                let scope = &mut Scope::new(&mut transaction, environment);
                let opening = store::configuration::open_recording(scope).await?;
                let clock = &engine.inner.clock;
                let began = clock.now(environment, opening.now);
                let caches = &engine.inner.caches;
                let cache = caches.at(scope, opening.versions).await?;
                let terms = &cache.terms;
                // the first path of a subject is the present one
                let paths = store::subjects::subject::paths(scope, Which::Ids(&subject_ids)).await?;
                if paths.iter().any(|path| path.has_due_end(began, terms)) {
                    transaction.rollback().await?;
                    carry_out_ends(&mut Scope::new(&mut connection, environment), clock).await?;
                    continue;
                }
                let mut holders = HolderSubscriptions::new();
                for member in paths.iter().filter_map(|path| path.members.first()) {
                    add_holder(&mut holders, member);
                }
                let wallet_loader = WalletLoader { environment, terms, clock, began };
                let locked_wallets = wallet_loader.open(scope.connection, &holders, &[]).await?;
                if locked_wallets.is_changed() {
                    locked_wallets
                        .write(scope.connection, wallet_loader, &holders, Changes::default())
                        .await?;
                }
                transaction.commit().await?;
                return Ok(());
            }
        })
        .await
    }

    /// Applies the due changes of one batch of wallets; returns whether more may be due.
    pub async fn settle_due_wallets(&self, environment: Environment) -> Result<bool, EngineError> {
        let mut connection = self.database().pool().acquire().await?;
        let now = self.inner.clock.now(environment, store::usage::now(&mut connection).await?);
        let due = wallets::due(&mut Scope::new(&mut connection, environment), now, CREDIT_SWEEP_WALLETS_MAX)
            .await?;
        drop(connection);
        if due.is_empty() {
            return Ok(false);
        }
        let more = i64::try_from(due.len()).is_ok_and(|count| count >= CREDIT_SWEEP_WALLETS_MAX);
        self.settle_wallets(environment, due).await?;
        Ok(more)
    }
}
