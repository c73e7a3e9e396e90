//! Where those who are recorded stand: found, made at their first contact, and put on the default plan
//! where nobody on their path ever had a subscription.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use sqlx::{Connection, PgConnection};

use crate::engine::change::ChangeTransaction;
use crate::engine::clock::Clock;
use crate::engine::environment_cache::{CacheUpdates, EnvironmentCache};
use crate::store::subjects::subject::Which;
use crate::store::subjects::subscriptions::Newcomer;
use crate::store::{self, StoreError};
use metergate_domain::base::environment::Environment;
use metergate_domain::base::timestamp::Timestamp;
use metergate_domain::gate::path::Path;

/// Paths by the subject that stands there.
pub(crate) type SubjectPaths = HashMap<String, Arc<Path>>;

/// The paths of subjects that exist.
pub(crate) async fn find(
    connection: &mut PgConnection,
    environment: Environment,
    cache: &EnvironmentCache,
    names: &BTreeSet<&str>,
    fresh: &mut CacheUpdates,
) -> Result<SubjectPaths, StoreError> {
    let mut found = SubjectPaths::with_capacity(names.len());
    let mut unknown = Vec::new();
    for name in names {
        match cache.subject_paths.get(*name) {
            Some(path) => {
                found.insert((*name).to_owned(), path);
            }
            None => unknown.push((*name).to_owned()),
        }
    }
    if !unknown.is_empty() {
        read(connection, environment, &unknown, &mut found, fresh).await?;
    }
    Ok(found)
}

async fn read(
    connection: &mut PgConnection,
    environment: Environment,
    names: &[String],
    found: &mut SubjectPaths,
    fresh: &mut CacheUpdates,
) -> Result<(), StoreError> {
    for path in store::subjects::subject::paths(connection, environment, Which::Of(names)).await? {
        let path = Arc::new(path);
        fresh.subject_paths.push(Arc::clone(&path));
        fresh.paths.push(Arc::clone(&path));
        found.insert(path.subject().to_owned(), path);
    }
    Ok(())
}

/// Paths by their number.
pub(crate) async fn find_paths(
    connection: &mut PgConnection,
    environment: Environment,
    cache: &EnvironmentCache,
    ids: &BTreeSet<i64>,
    fresh: &mut CacheUpdates,
) -> Result<HashMap<i64, Arc<Path>>, StoreError> {
    let mut found = HashMap::with_capacity(ids.len());
    let mut unknown = Vec::new();
    for id in ids {
        match cache.paths.get(id) {
            Some(path) => {
                found.insert(*id, path);
            }
            None => unknown.push(*id),
        }
    }
    if !unknown.is_empty() {
        for path in store::subjects::subject::paths(connection, environment, Which::Ids(&unknown)).await? {
            let path = Arc::new(path);
            fresh.paths.push(Arc::clone(&path));
            found.insert(path.id, path);
        }
    }
    Ok(found)
}

/// Makes subjects at their first contact, each as a root; the ids of those that were made here.
/// `names` ascend.
pub(crate) async fn make(
    connection: &mut PgConnection,
    environment: Environment,
    names: &[String],
    found: &mut SubjectPaths,
    fresh: &mut CacheUpdates,
) -> Result<HashSet<i64>, StoreError> {
    if names.is_empty() {
        return Ok(HashSet::new());
    }
    let made = store::subjects::subject::insert_missing(connection, environment, names).await?;
    read(connection, environment, names, found, fresh).await?;
    Ok(made.into_iter().collect())
}

/// Puts the roots of paths without any subscription on the default plan, if there is one. `made`:
/// subjects for whom nothing can have been recorded before.
///
/// A root under which others stand cannot be subscribed beside those who record for them: they take
/// it that the root has no plan. Then nothing is done, and the roots are named for [`subscribe_alone`].
pub(crate) async fn subscribe(
    connection: &mut PgConnection,
    environment: Environment,
    cache: &EnvironmentCache,
    found: &mut SubjectPaths,
    made: &HashSet<i64>,
    now: Timestamp,
    fresh: &mut CacheUpdates,
) -> Result<Vec<i64>, StoreError> {
    let Some(plan) = &cache.terms.catalog.default_plan else { return Ok(Vec::new()) };
    let (mut roots, mut names) = (BTreeMap::new(), Vec::new());
    for (name, path) in found.iter().filter(|(_, path)| !path.has_subscription()) {
        let Some(root) = path.root() else { continue };
        roots.insert(root.subject_id, made.contains(&root.subject_id));
        names.push(name.clone());
    }
    if roots.is_empty() {
        return Ok(Vec::new());
    }
    let known: Vec<i64> = roots.iter().filter(|(_, made)| !**made).map(|(id, _)| *id).collect();
    if !known.is_empty() {
        let above_others = store::subjects::subscriptions::with_descendants(connection, &known).await?;
        if !above_others.is_empty() {
            return Ok(above_others);
        }
    }
    let version = cache.versions.config;
    let newcomer =
        |(subject_id, made): (i64, bool)| Newcomer { subject_id, pristine_version: made.then_some(version) };
    let newcomers: Vec<Newcomer> = roots.into_iter().map(newcomer).collect();
    store::subjects::subscriptions::insert_default(connection, environment, &newcomers, plan, now).await?;
    read(connection, environment, &names, found, fresh).await?;
    Ok(Vec::new())
}

/// Puts roots on the default plan while nobody records, in a transaction of its own.
pub(crate) async fn subscribe_alone(
    connection: &mut PgConnection,
    environment: Environment,
    roots: &[i64],
    clock: &Clock,
) -> Result<(), StoreError> {
    let mut roots = roots.to_vec();
    roots.sort_unstable();
    let mut change = ChangeTransaction::within(connection.begin().await?, environment, clock).await?;
    let (catalog, _) = change.catalog().await?;
    if let Some(plan) = &catalog.default_plan {
        let newcomer = |subject_id: i64| Newcomer { subject_id, pristine_version: None };
        let newcomers: Vec<Newcomer> = roots.into_iter().map(newcomer).collect();
        let (transaction, now) = (&mut change.transaction, change.now);
        store::subjects::subscriptions::insert_default(transaction, environment, &newcomers, plan, now)
            .await?;
    }
    change.commit().await
}
