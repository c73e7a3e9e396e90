//! The state that all writers share.

use super::months::Months;
use crate::engine::clock::Clock;
use crate::engine::environment_cache::EnvironmentCaches;
use crate::engine::usage::ingest::unfolded_backlog::UnfoldedBacklogs;
use crate::store::Database;
use std::sync::Arc;
use std::time::Duration;

/// The services that all batch processors share.
#[derive(Debug, Clone)]
pub(crate) struct WriterContext {
    pub(crate) database: Database,
    pub(crate) clock: Clock,
    pub(crate) caches: Arc<EnvironmentCaches>,
    pub(crate) tails: Arc<UnfoldedBacklogs>,
    pub(crate) age_max: Duration,
    pub(crate) months: Months,
}
