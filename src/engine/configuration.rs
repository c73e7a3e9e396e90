//! What is known of an environment's catalog and tree under one version of its configuration. True
//! for as long as the configuration lock is held shared and the version is the same.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use moka::sync::Cache;
use sqlx::PgConnection;

use crate::domain::environment::Environment;
use crate::domain::meter::Meter;
use crate::store::subjects::Position;
use crate::store::{self, StoreError};

/// Subjects whose position is kept in memory.
const POSITIONS_MAX: u64 = 100_000;
/// Event names whose number is kept in memory.
const EVENT_NAMES_MAX: u64 = 10_000;

#[derive(Debug)]
pub(super) struct Configuration {
    version: i64,
    meters: HashMap<String, Vec<Meter>>,
    pub(super) positions: Cache<String, Position>,
    pub(super) event_names: Cache<String, i32>,
}

impl Configuration {
    /// The meters that look at events of a name.
    pub(super) fn meters(&self, event_name: &str) -> &[Meter] {
        self.meters.get(event_name).map_or(&[], Vec::as_slice)
    }
}

#[derive(Debug, Default)]
pub(super) struct Configurations {
    current: RwLock<HashMap<Environment, Arc<Configuration>>>,
}

impl Configurations {
    /// The configuration of a version, read anew where another one is known.
    pub(super) async fn at(
        &self,
        connection: &mut PgConnection,
        environment: Environment,
        version: i64,
    ) -> Result<Arc<Configuration>, StoreError> {
        let known = self.current.read().unwrap_or_else(PoisonError::into_inner).get(&environment).cloned();
        if let Some(known) = known.filter(|known| known.version == version) {
            return Ok(known);
        }
        let mut meters: HashMap<String, Vec<Meter>> = HashMap::new();
        for stored in store::catalog::meters(connection, environment).await? {
            meters.entry(stored.meter.event_name.to_string()).or_default().push(stored.meter);
        }
        let positions = Cache::new(POSITIONS_MAX);
        let event_names = Cache::new(EVENT_NAMES_MAX);
        let read = Arc::new(Configuration { version, meters, positions, event_names });
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        let newest = current.entry(environment).or_insert_with(|| Arc::clone(&read));
        if newest.version < version {
            *newest = Arc::clone(&read);
        }
        Ok(if newest.version == version { Arc::clone(newest) } else { read })
    }
}
