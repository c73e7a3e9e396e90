//! The open transaction of a batch.

use crate::engine::environment_cache::{CacheUpdates, EnvironmentCache};
use crate::engine::gate::counters::Reader;
use crate::store::Scope;
use metergate_domain::base::timestamp::Timestamp;

/// The open transaction of a batch, with what holds in it.
pub(crate) struct BatchTransaction<'a> {
    pub(crate) scope: Scope<'a>,
    /// Reads what is committed, beside the transaction.
    pub(crate) reader: &'a mut Reader,
    pub(crate) cache: &'a EnvironmentCache,
    /// The time when it began.
    pub(crate) now: Timestamp,
    /// To be remembered once it is committed.
    pub(crate) fresh: CacheUpdates,
}
