//! Caches of an environment's catalog, subject tree and subscriptions, one per version of its
//! configuration. A cache is valid while the caller holds the configuration lock shared and the
//! version is the same.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use quick_cache::sync::Cache;

use crate::store::configuration::Versions;
use crate::store::{self, Scope, StoreError};
use metergate_domain::base::Environment;
use metergate_domain::gate::{CatalogIndex, CounterKey, Path};

/// The most subjects, and the most paths, in a cache.
const PATHS_MAX: usize = 200_000;
/// The most event names in a cache.
const EVENT_NAMES_MAX: usize = 10_000;
/// The most keys of existing counters in a cache.
const COUNTERS_MAX: usize = 200_000;

/// A cache of one version of the configuration.
#[derive(Debug)]
pub(crate) struct EnvironmentCache {
    pub(crate) versions: Versions,
    pub(crate) terms: Arc<CatalogIndex>,
    /// Current paths by subject.
    pub(crate) subject_paths: Cache<String, Arc<Path>>,
    pub(crate) paths: Cache<i64, Arc<Path>>,
    pub(crate) event_names: Cache<String, i32>,
    pub(crate) counters: Cache<CounterKey, ()>,
}

impl EnvironmentCache {
    fn new(versions: Versions, terms: Arc<CatalogIndex>) -> Self {
        Self {
            versions,
            terms,
            subject_paths: Cache::new(PATHS_MAX),
            paths: Cache::new(PATHS_MAX),
            event_names: Cache::new(EVENT_NAMES_MAX),
            counters: Cache::new(COUNTERS_MAX),
        }
    }
}

/// Rows that a transaction found or created, to be cached after its commit.
#[derive(Debug, Default)]
pub(crate) struct CacheUpdates {
    pub(crate) paths: Vec<Arc<Path>>,
    /// The current paths among `paths`.
    pub(crate) subject_paths: Vec<Arc<Path>>,
    pub(crate) event_names: Vec<(String, i32)>,
    pub(crate) counters: Vec<CounterKey>,
}

impl CacheUpdates {
    /// Adds the rows to a cache.
    pub(crate) fn remember(self, cache: &EnvironmentCache) {
        for path in self.paths {
            cache.paths.insert(path.id, path);
        }
        for path in self.subject_paths {
            cache.subject_paths.insert(path.subject().to_owned(), path);
        }
        for (name, id) in self.event_names {
            cache.event_names.insert(name, id);
        }
        for key in self.counters {
            cache.counters.insert(key, ());
        }
    }
}

/// The newest cache of each environment.
#[derive(Debug, Default)]
pub(crate) struct EnvironmentCaches {
    current: RwLock<HashMap<Environment, Arc<EnvironmentCache>>>,
}

impl EnvironmentCaches {
    /// Returns the newest cache, which may be out of date.
    pub(crate) fn known(&self, environment: Environment) -> Option<Arc<EnvironmentCache>> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).get(&environment).cloned()
    }

    /// Returns the cache of a version, and creates it if another version is cached.
    pub(crate) async fn at(
        &self,
        scope: &mut Scope<'_>,
        versions: Versions,
    ) -> Result<Arc<EnvironmentCache>, StoreError> {
        let known = self.known(scope.environment);
        if let Some(known) = &known
            && known.versions == versions
        {
            return Ok(Arc::clone(known));
        }
        let terms = match known
            .filter(|known| known.versions.catalog == versions.catalog && !known.terms.is_full())
        {
            Some(known) => Arc::clone(&known.terms),
            None => Arc::new(catalog_index(scope).await?),
        };
        let read = Arc::new(EnvironmentCache::new(versions, terms));
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        let newest = current.entry(scope.environment).or_insert_with(|| Arc::clone(&read));
        if newest.versions.config < versions.config {
            *newest = Arc::clone(&read);
        }
        Ok(if newest.versions == versions { Arc::clone(newest) } else { read })
    }
}

/// Reads the current catalog with its meters, start times of limits, and exchange rates.
pub(crate) async fn catalog_index(scope: &mut Scope<'_>) -> Result<CatalogIndex, StoreError> {
    let (catalog, _) = store::catalog::current(scope).await?;
    let meters = store::catalog::meters(scope).await?;
    let since = store::catalog::plan_limits(scope).await?;
    let rates = store::pricing::exchange_rates::all(scope).await?;
    Ok(CatalogIndex::new(catalog, meters, &since, rates))
}
