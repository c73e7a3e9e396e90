//! What is known of an environment's catalog, tree and subscriptions under one version of its
//! configuration. True for as long as the configuration lock is held shared and the version is the
//! same.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use quick_cache::sync::Cache;
use sqlx::PgConnection;

use crate::domain::environment::Environment;
use crate::domain::gate::standing::{CounterKey, Path, Terms};
use crate::store::configuration::Versions;
use crate::store::{self, StoreError};

/// Subjects whose path is kept in memory, and paths by their number.
const PATHS_MAX: usize = 200_000;
/// Event names whose number is kept in memory.
const EVENT_NAMES_MAX: usize = 10_000;
/// Counters that are known to be there.
const COUNTERS_MAX: usize = 200_000;

#[derive(Debug)]
pub(super) struct Configuration {
    pub(super) versions: Versions,
    pub(super) terms: Arc<Terms>,
    /// Where subjects stand now.
    pub(super) standings: Cache<String, Arc<Path>>,
    pub(super) paths: Cache<i64, Arc<Path>>,
    pub(super) event_names: Cache<String, i32>,
    pub(super) counters: Cache<CounterKey, ()>,
}

impl Configuration {
    fn new(versions: Versions, terms: Arc<Terms>) -> Self {
        Self {
            versions,
            terms,
            standings: Cache::new(PATHS_MAX),
            paths: Cache::new(PATHS_MAX),
            event_names: Cache::new(EVENT_NAMES_MAX),
            counters: Cache::new(COUNTERS_MAX),
        }
    }
}

/// What was found and made in a transaction, to be remembered once it is committed.
#[derive(Debug, Default)]
pub(super) struct Fresh {
    pub(super) paths: Vec<Arc<Path>>,
    /// Subjects that stand there now, of the paths above.
    pub(super) standings: Vec<Arc<Path>>,
    pub(super) event_names: Vec<(String, i32)>,
    pub(super) counters: Vec<CounterKey>,
}

impl Fresh {
    pub(super) fn remember(self, configuration: &Configuration) {
        for path in self.paths {
            configuration.paths.insert(path.id, path);
        }
        for path in self.standings {
            configuration.standings.insert(path.subject().to_owned(), path);
        }
        for (name, id) in self.event_names {
            configuration.event_names.insert(name, id);
        }
        for key in self.counters {
            configuration.counters.insert(key, ());
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Configurations {
    current: RwLock<HashMap<Environment, Arc<Configuration>>>,
}

impl Configurations {
    /// What was read last, whether it is still true or not.
    pub(super) fn known(&self, environment: Environment) -> Option<Arc<Configuration>> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).get(&environment).cloned()
    }

    /// The configuration of a version, read anew where another one is known.
    pub(super) async fn at(
        &self,
        connection: &mut PgConnection,
        environment: Environment,
        versions: Versions,
    ) -> Result<Arc<Configuration>, StoreError> {
        let known = self.known(environment);
        if let Some(known) = &known
            && known.versions == versions
        {
            return Ok(Arc::clone(known));
        }
        let terms = match known.filter(|known| known.versions.catalog == versions.catalog) {
            Some(known) => Arc::clone(&known.terms),
            None => Arc::new(terms(connection, environment).await?),
        };
        let read = Arc::new(Configuration::new(versions, terms));
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        let newest = current.entry(environment).or_insert_with(|| Arc::clone(&read));
        if newest.versions.config < versions.config {
            *newest = Arc::clone(&read);
        }
        Ok(if newest.versions == versions { Arc::clone(newest) } else { read })
    }
}

/// The catalog in force, as it decides.
pub(super) async fn terms(
    connection: &mut PgConnection,
    environment: Environment,
) -> Result<Terms, StoreError> {
    let (catalog, _) = store::catalog::current(connection, environment).await?;
    let meters = store::catalog::meters(connection, environment).await?;
    let since = store::catalog::plan_limits(connection, environment).await?;
    let rates = store::exchange_rates::all(connection, environment).await?;
    let mut terms = Terms::new(catalog, meters, &since, rates);
    terms.caps_renamed_at = store::configuration::caps_renamed_at(connection, environment).await?;
    Ok(terms)
}
