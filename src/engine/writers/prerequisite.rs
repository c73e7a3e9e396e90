//! Work that must be committed before a batch can be committed.

use uuid::Uuid;

use metergate_domain::base::Span;

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
    /// The ids of the new reservations are free.
    Reservations,
    /// No reservation with a charge at its expiry has expired, except those in the batch.
    Expired(Vec<Uuid>),
    /// The ids of the events that a commit records are free.
    EventIds(Vec<Uuid>),
}
