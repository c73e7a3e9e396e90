//! Work that must be committed before a batch can be committed.

use uuid::Uuid;

use super::context::WriterContext;
use super::processor::Attempt;
use crate::engine::subjects::resolution;
use crate::engine::subjects::subscription_changes::carry_out_ends;
use crate::store::Scope;
use crate::store::{StoreError, transaction};
use metergate_domain::base::window::Span;

/// The reason for another attempt at a batch.
#[derive(Debug)]
pub(crate) enum Prerequisite {
    /// Unknown root subjects must be subscribed to the default plan while no other writer records.
    Subscribe(Vec<i64>),
    /// Subscriptions must be ended, since their end is due.
    EndSubscriptions,
    /// Partitions must be created for these months.
    Partitions(Vec<Span>),
    /// The next attempt must check an assumption of this one.
    Recheck(Recheck),
}

/// An assumption of an attempt that was wrong.
#[derive(Debug)]
pub(crate) enum Recheck {
    /// No period ended during the wait for locks.
    Time,
    /// The reservations to make do not exist yet.
    Reservations,
    /// No reservation with a charge at its expiry has expired, except those in the batch.
    Expired(Vec<Uuid>),
    /// The ids of the events to record are free.
    EventIds(Vec<Uuid>),
}

impl Prerequisite {
    /// Rolls back the open transaction, then does the work in separate transactions.
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

/// The reason to stop an attempt before its commit.
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
    /// Returns the result of the interrupted attempt.
    pub(crate) fn attempt<R>(self) -> Result<Attempt<R>, StoreError> {
        match self {
            Self::Prerequisite(prerequisite) => Ok(Attempt::Again(prerequisite)),
            Self::Failed(why) => Err(why),
        }
    }
}
