//! The choice of the writer for a call.
//!
//! All calls of a subject tree go to one writer, so they wait in its queue instead of for row locks. Trees
//! are distributed over the writers. Correctness does not depend on the choice: the locks ensure it, as
//! they do between replicas.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use quick_cache::sync::Cache;
use uuid::Uuid;

use super::calls::Call;
use super::processor::GateProcessor;
use crate::engine::environment_cache::EnvironmentCaches;
use crate::engine::writers::context::WriterContext;
use crate::engine::writers::lane::{Lane, WriterTasks};
use metergate_domain::base::Environment;
use metergate_domain::base::limits::{GATE_WRITERS, TRANSACTION_CALLS_MAX};

/// The most reservations with a remembered writer, for the calls that end them.
const REMEMBERED_MAX: usize = 50_000;

#[derive(Debug)]
pub(crate) struct Gate {
    environment: Environment,
    lanes: Vec<Lane<GateProcessor>>,
    caches: Arc<EnvironmentCaches>,
    made_by: Cache<Uuid, u64>,
    hashing: RandomState,
}

impl Gate {
    pub(crate) fn start(
        environment: Environment,
        writer_context: &WriterContext,
        writer_tasks: &mut WriterTasks,
    ) -> Self {
        let lane = |n: usize| {
            let name = format!("{environment}_gate_{n}");
            let trade = vec![GateProcessor::new(environment, writer_context)];
            Lane::start(name, TRANSACTION_CALLS_MAX, &writer_context.database, trade, writer_tasks)
        };
        Self {
            environment,
            lanes: (0..GATE_WRITERS).map(lane).collect(),
            caches: Arc::clone(&writer_context.caches),
            made_by: Cache::new(REMEMBERED_MAX),
            hashing: RandomState::new(),
        }
    }

    pub(super) fn lane_for(&self, call: &Call) -> &Lane<GateProcessor> {
        let tree = match call {
            Call::Reserve { key, request, .. } => {
                let tree = self.tree_of(request.subject.as_str());
                self.made_by.insert(*key, tree);
                tree
            }
            Call::Commit { key, .. } | Call::Release { key, .. } | Call::Extend { key, .. } => {
                self.made_by.get(key).unwrap_or_else(|| self.hashing.hash_one(key))
            }
            Call::Sweep => 0,
        };
        let lanes = self.lanes.len();
        // Each environment has at least one lane.
        &self.lanes[usize::try_from(tree).unwrap_or_default() % lanes.max(1)]
    }

    /// Returns a hash of a tree: of the root's id, or of the name of an unknown subject.
    fn tree_of(&self, subject: &str) -> u64 {
        let known = self.caches.known(self.environment);
        let path = known.and_then(|cache| cache.subject_paths.get(subject));
        match path.as_ref().and_then(|path| path.root()) {
            Some(root) => self.hashing.hash_one(root.subject_id),
            None => self.hashing.hash_one(subject),
        }
    }

    pub(crate) fn close(&self) {
        for lane in &self.lanes {
            lane.close();
        }
    }
}
