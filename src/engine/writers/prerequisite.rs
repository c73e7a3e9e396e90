//! Work that has to be done before a batch can be settled, outside of the batch's transaction.

use uuid::Uuid;

use super::Attempt;
use crate::engine::subjects::resolution;
use crate::engine::subjects::subscriptions::carry_out_ends;
use crate::engine::usage::ingest::WriterContext;
use crate::store::Scope;
use crate::store::{StoreError, transaction};
use metergate_domain::base::window::Span;

/// The reason why a batch is attempted again.
#[derive(Debug)]
pub(crate) enum Prerequisite {
    /// These roots must be put on the default plan while nobody else records.
    Subscribe(Vec<i64>),
    /// Subscriptions whose end is due must be ended.
    EndSubscriptions,
    /// Partitions for these months must be made.
    Partitions(Vec<Span>),
    /// The next attempt must check something that this one assumed.
    Recheck(Recheck),
}

/// The assumption of an attempt that was wrong.
#[derive(Debug)]
pub(crate) enum Recheck {
    /// No period turned over while locks were awaited.
    Time,
    /// The reservations to make do not exist.
    Reservations,
    /// No others that are charged at their expiry have expired.
    Expired(Vec<Uuid>),
    /// The ids of events to record are free.
    EventIds(Vec<Uuid>),
}

impl Prerequisite {
    /// Rolls back the open transaction, then does the work in transactions of its own.
    pub(super) async fn carry_out(
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

/// The reason why an attempt stops before its commit.
#[derive(Debug)]
pub(crate) enum Interrupt {
    Prerequisite(Prerequisite),
    Failed(StoreError),
}

impl From<Prerequisite> for Interrupt {
    fn from(prerequisite: Prerequisite) -> Self {
        Self::Prerequisite(prerequisite)
    }
}

impl From<Recheck> for Interrupt {
    fn from(recheck: Recheck) -> Self {
        Self::Prerequisite(Prerequisite::Recheck(recheck))
    }
}

impl From<StoreError> for Interrupt {
    fn from(why: StoreError) -> Self {
        Self::Failed(why)
    }
}

impl Interrupt {
    /// Returns the attempt that it makes of the batch.
    pub(crate) fn attempt<R>(self) -> Result<Attempt<R>, StoreError> {
        match self {
            Self::Prerequisite(prerequisite) => Ok(Attempt::Again(prerequisite)),
            Self::Failed(why) => Err(why),
        }
    }
}
