//! Resolution of subjects to paths. Creates unknown subjects, and puts roots on the default plan if no
//! subject on their path ever had a subscription.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use sqlx::Connection;
use uuid::Uuid;

use crate::engine::change::ChangeTransaction;
use crate::engine::clock::Clock;
use crate::engine::writers::prerequisite::Prerequisite;
use crate::engine::writers::transaction::BatchTransaction;
use crate::store::subjects::subject::Which;
use crate::store::subjects::subscriptions::Newcomer;
use crate::store::usage::events::KeyRow;
use crate::store::{self, Scope, StoreError};
use metergate_domain::gate::Path;

/// Paths by subject.
pub(crate) type SubjectPaths = HashMap<String, Arc<Path>>;

/// Resolves the subjects of a batch.
pub(crate) struct Arrivals<'t, 'a> {
    transaction: &'t mut BatchTransaction<'a>,
    pub(crate) found: SubjectPaths,
    /// Subjects that this batch created, so nothing can have been recorded for them before.
    made: HashSet<i64>,
}

impl<'t, 'a> Arrivals<'t, 'a> {
    /// Finds the paths of the subjects that exist.
    pub(crate) async fn find(
        transaction: &'t mut BatchTransaction<'a>,
        names: &BTreeSet<&str>,
    ) -> Result<Self, StoreError> {
        let mut found = SubjectPaths::with_capacity(names.len());
        let mut unknown = Vec::new();
        for name in names {
            match transaction.cache.subject_paths.get(*name) {
                Some(path) => {
                    found.insert((*name).to_owned(), path);
                }
                None => unknown.push((*name).to_owned()),
            }
        }
        let mut arrivals = Self { transaction, found, made: HashSet::new() };
        if !unknown.is_empty() {
            arrivals.read(&unknown).await?;
        }
        Ok(arrivals)
    }

    async fn read(&mut self, names: &[String]) -> Result<(), StoreError> {
        let BatchTransaction { scope, fresh, .. } = &mut *self.transaction;
        for path in store::subjects::subject::paths(scope, Which::Of(names)).await? {
            let path = Arc::new(path);
            fresh.subject_paths.push(Arc::clone(&path));
            fresh.paths.push(Arc::clone(&path));
            self.found.insert(path.subject().to_owned(), path);
        }
        Ok(())
    }

    /// Finds the keys of events that were recorded before.
    pub(crate) async fn find_keys(&mut self, keys: &[Uuid]) -> Result<Vec<KeyRow>, StoreError> {
        store::usage::events::find_keys(&mut self.transaction.scope, keys).await
    }

    /// Creates unknown subjects as roots. `names` must ascend.
    pub(crate) async fn make(&mut self, names: &[String]) -> Result<(), StoreError> {
        if names.is_empty() {
            return Ok(());
        }
        let made = store::subjects::subject::insert_missing(&mut self.transaction.scope, names).await?;
        self.made.extend(made);
        self.read(names).await
    }

    /// Puts the roots of paths without any subscription on the default plan, if there is one.
    ///
    /// A root with descendants needs [`subscribe_alone`] first: concurrent recordings below it rely on
    /// a root without a plan. In this case the function changes nothing and returns this prerequisite.
    pub(crate) async fn subscribe(&mut self) -> Result<Option<Prerequisite>, StoreError> {
        let cache = self.transaction.cache;
        let Some(plan) = &cache.terms.catalog.default_plan else { return Ok(None) };
        let (mut roots, mut names) = (BTreeMap::new(), Vec::new());
        for (name, path) in self.found.iter().filter(|(_, path)| !path.has_subscription()) {
            let Some(root) = path.root() else { continue };
            roots.insert(root.subject_id, self.made.contains(&root.subject_id));
            names.push(name.clone());
        }
        if roots.is_empty() {
            return Ok(None);
        }
        let BatchTransaction { scope, now, .. } = &mut *self.transaction;
        let known: Vec<i64> = roots.iter().filter(|(_, made)| !**made).map(|(id, _)| *id).collect();
        if !known.is_empty() {
            let above_others =
                store::subjects::subscriptions::with_descendants(scope.connection, &known).await?;
            if !above_others.is_empty() {
                return Ok(Some(Prerequisite::Subscribe(above_others)));
            }
        }
        let version = cache.versions.config;
        let newcomer = |(subject_id, made): (i64, bool)| Newcomer {
            subject_id,
            pristine_version: made.then_some(version),
        };
        let newcomers: Vec<Newcomer> = roots.into_iter().map(newcomer).collect();
        store::subjects::subscriptions::insert_default(scope, &newcomers, plan, *now).await?;
        self.read(&names).await?;
        Ok(None)
    }
}

/// Finds paths by number.
pub(crate) async fn find_paths(
    transaction: &mut BatchTransaction<'_>,
    ids: &BTreeSet<i64>,
) -> Result<HashMap<i64, Arc<Path>>, StoreError> {
    let BatchTransaction { scope, cache, fresh, .. } = transaction;
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
        for path in store::subjects::subject::paths(scope, Which::Ids(&unknown)).await? {
            let path = Arc::new(path);
            fresh.paths.push(Arc::clone(&path));
            found.insert(path.id, path);
        }
    }
    Ok(found)
}

/// Puts roots on the default plan in its own transaction, while no other transaction records.
pub(crate) async fn subscribe_alone(
    scope: &mut Scope<'_>,
    roots: &[i64],
    clock: &Clock,
) -> Result<(), StoreError> {
    let mut roots = roots.to_vec();
    roots.sort_unstable();
    let mut change =
        ChangeTransaction::within(scope.connection.begin().await?, scope.environment, clock).await?;
    let (catalog, _) = change.catalog().await?;
    if let Some(plan) = &catalog.default_plan {
        let newcomer = |subject_id: i64| Newcomer { subject_id, pristine_version: None };
        let newcomers: Vec<Newcomer> = roots.into_iter().map(newcomer).collect();
        let now = change.now;
        store::subjects::subscriptions::insert_default(&mut change.scope(), &newcomers, plan, now).await?;
    }
    change.commit().await
}
