//! The work of prerequisites, outside of the transaction of a batch.

use super::context::WriterContext;
use super::prerequisite::Prerequisite;
use crate::engine::subjects::resolution;
use crate::engine::subjects::subscription_changes::carry_out_ends;
use crate::store::{Scope, StoreError, transaction};

impl Prerequisite {
    /// Rolls back the open transaction, then does the work in separate transactions.
    pub(crate) async fn carry_out(
        &self,
        scope: &mut Scope<'_>,
        writer_context: &WriterContext,
    ) -> Result<(), StoreError> {
        transaction::roll_back(scope.connection).await?;
        match self {
            Self::Subscribe(roots) => resolution::subscribe_alone(scope, roots, &writer_context.clock).await,
            Self::EndSubscriptions => carry_out_ends(scope, &writer_context.clock).await,
            Self::Partitions(months) => writer_context.months.make(scope.connection, months).await,
            Self::Recheck(_) => Ok(()),
        }
    }
}
