//! The open transaction of a batch.

use super::reader::Reader;
use crate::engine::environment_cache::{CacheUpdates, EnvironmentCache};
use crate::store::Scope;
use metergate_domain::base::Timestamp;

/// The open transaction of a batch, with the data that is valid in it.
pub(crate) struct BatchTransaction<'a> {
    pub(crate) scope: Scope<'a>,
    /// Reads committed data outside of the transaction.
    pub(crate) reader: &'a mut Reader,
    pub(crate) cache: &'a EnvironmentCache,
    /// The time at the start of the transaction.
    pub(crate) now: Timestamp,
    /// Data for the cache, stored after the commit.
    pub(crate) fresh: CacheUpdates,
}
