//! The engine's state: the services of each environment, and the parts that all use cases share. Use
//! cases import this file; `mod.rs` lists the public names.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

use crate::engine::access::gatekeeper::Gatekeeper;
use crate::engine::clock::Clock;
use crate::engine::environment_cache::EnvironmentCaches;
use crate::engine::error::EngineError;
use crate::engine::gate::routing::Gate;
use crate::engine::settings::EngineSettings;
use crate::engine::usage::ingest::queues::IngestQueues;
use crate::engine::usage::ingest::unfolded_backlog::UnfoldedBacklogs;
use crate::engine::writers::context::WriterContext;
use crate::engine::writers::lane::WriterTasks;
use crate::engine::writers::months::Months;
use crate::providers::Provider;
use crate::providers::stripe::Stripe;
use crate::store::Database;
use metergate_domain::base::Environment;

/// The application layer with all use cases. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Engine {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) database: Database,
    pub(crate) clock: Clock,
    pub(crate) settings: EngineSettings,
    pub(crate) caches: Arc<EnvironmentCaches>,
    pub(crate) tails: Arc<UnfoldedBacklogs>,
    gatekeeper: Gatekeeper,
    environments: [EnvironmentServices; 2],
    writer_tasks: Mutex<WriterTasks>,
}

/// The writers and clients of one environment.
#[derive(Debug)]
pub(crate) struct EnvironmentServices {
    pub(crate) ingest_queues: IngestQueues,
    pub(crate) gate: Gate,
    /// The client of the biller; none without an API key.
    stripe: Option<Arc<Stripe>>,
    /// Wakes the worker that applies webhooks.
    webhook_wake: Arc<Notify>,
}

impl EnvironmentServices {
    fn start(
        environment: Environment,
        writer_context: &WriterContext,
        settings: &EngineSettings,
        writer_tasks: &mut WriterTasks,
    ) -> Result<Self, EngineError> {
        let stripe = Stripe::of(&settings.stripe, environment)
            .map_err(|why| EngineError::Internal(why.to_string()))?
            .map(Arc::new);
        let ingest_queues = IngestQueues::start(environment, writer_context, writer_tasks);
        let gate = Gate::start(environment, writer_context, writer_tasks);
        Ok(Self { ingest_queues, gate, stripe, webhook_wake: Arc::default() })
    }
}

impl Inner {
    pub(crate) fn services(&self, environment: Environment) -> &EnvironmentServices {
        match environment {
            Environment::Test => &self.environments[0],
            Environment::Live => &self.environments[1],
        }
    }
}

impl Engine {
    /// Starts the writers. The caller must be inside the runtime in which they will run.
    pub fn start(database: Database, clock: Clock, settings: EngineSettings) -> Result<Self, EngineError> {
        let tails = Arc::new(UnfoldedBacklogs::default());
        let gatekeeper = Gatekeeper::new(database.clone(), &settings)?;
        let caches = Arc::new(EnvironmentCaches::default());
        let writer_context = WriterContext {
            database: database.clone(),
            clock: clock.clone(),
            caches: Arc::clone(&caches),
            tails: Arc::clone(&tails),
            age_max: settings.event_age_max,
            months: Months::default(),
        };
        let mut writer_tasks = WriterTasks::default();
        let mut start = |environment| {
            EnvironmentServices::start(environment, &writer_context, &settings, &mut writer_tasks)
        };
        let environments = [start(Environment::Test)?, start(Environment::Live)?];
        let writer_tasks = Mutex::new(writer_tasks);
        let inner =
            Inner { database, clock, settings, caches, tails, gatekeeper, environments, writer_tasks };
        Ok(Self { inner: Arc::new(inner) })
    }

    pub fn database(&self) -> &Database {
        &self.inner.database
    }

    pub fn gatekeeper(&self) -> &Gatekeeper {
        &self.inner.gatekeeper
    }

    /// Returns the signal that wakes the webhook worker.
    pub fn webhook_wake(&self, environment: Environment) -> Arc<Notify> {
        Arc::clone(&self.inner.services(environment).webhook_wake)
    }

    /// Returns the biller that usage is exported to, if an account is configured.
    pub(crate) fn provider(&self, environment: Environment) -> Option<Arc<dyn Provider>> {
        self.stripe(environment).map(|stripe| stripe as Arc<dyn Provider>)
    }

    pub(crate) fn stripe(&self, environment: Environment) -> Option<Arc<Stripe>> {
        self.inner.services(environment).stripe.clone()
    }

    /// Returns the names of the lanes without a running writer, which cannot answer calls.
    pub fn dead_lanes(&self) -> Vec<String> {
        self.inner.writer_tasks.lock().unwrap_or_else(PoisonError::into_inner).dead_lanes()
    }

    /// Refuses new work, and waits until the accepted work is committed and answered.
    pub async fn stop(&self) {
        for services in &self.inner.environments {
            services.ingest_queues.close();
            services.gate.close();
        }
        let writer_tasks =
            std::mem::take(&mut *self.inner.writer_tasks.lock().unwrap_or_else(PoisonError::into_inner));
        writer_tasks.end().await;
    }

    /// Returns whether the database answers and its schema is up to date.
    pub async fn is_ready(&self) -> Result<bool, EngineError> {
        Ok(self.inner.database.is_ready().await?)
    }
}

/// Runs a transaction to its end, even if the caller disconnects.
pub(crate) async fn detached<T: Send + 'static>(
    work: impl Future<Output = Result<T, EngineError>> + Send + 'static,
) -> Result<T, EngineError> {
    match tokio::spawn(work).await {
        Ok(done) => done,
        Err(why) => Err(EngineError::Internal(format!("a task ended early: {why}"))),
    }
}
