//! The use cases, and the writers that share transactions. Knows the domain and the store; knows
//! nothing of HTTP.

pub mod access;
mod catalog;
pub mod clock;
mod credits;
pub mod cursor;
mod environment_cache;
pub mod error;
mod exports;
mod gate;
mod invoicing;
mod page;
pub(crate) mod pricing;
mod snapshot;
pub(crate) mod subjects;
pub mod usage;
mod webhooks;
mod writers;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

pub use catalog::{Applied, CatalogView};
pub use clock::Clock;
pub use credits::{CreditsView, GrantPage, GrantView, LedgerPage, NoticePage, NoticeView};
pub use error::EngineError;
pub use exports::{
    Drift, Due, ExportPage, ExportView, Ran, Reconciled, ReconciledRow,
    ReconciliationQuery as ReconciliationQuestion,
};
pub use gate::{ReservationPage, ReservationView};
pub use invoicing::{BillingRun, ComparedInvoice, ComparedLine, ComparedTotal, InvoicePage, InvoiceView};
pub use pricing::costs::CostView;
pub use pricing::prices::RatePage;
pub use subjects::subject::{SubjectChange, SubjectPage, SubjectView};
pub use subjects::subscriptions::SubscriptionView;
pub use usage::events::{EventPage, EventView, Voided};
pub use usage::fold::Folded;
pub use usage::ingest::{EventOutcome, RecordResult};
pub use usage::ranking::TopPage;
pub use usage::report::{MeterUsage, Report, Viewer};
pub use usage::stripe_compat::RecordedMeterEvent;
pub use usage::verify::Verdict;
pub use webhooks::{WebhookEventPage, WebhookEventView};

use access::Gatekeeper;
use access::tokens::TokenSettings;
use environment_cache::EnvironmentCaches;
use gate::Gate;
use usage::ingest::{IngestQueues, UnfoldedBacklogs, WriterContext};
use webhooks::Webhooks;
use writers::{Months, WriterTasks};

use crate::providers::Provider;
use crate::providers::stripe::{Stripe, StripeSettings};
use crate::store::Database;
use metergate_domain::base::environment::Environment;

/// What can be set about the engine.
#[derive(Debug, Clone)]
pub struct EngineSettings {
    /// How far back an event may lie.
    pub event_age_max: Duration,
    /// How long a call may wait for a writer before it is told to come back.
    pub wait_max: Duration,
    /// How long a credential is trusted without looking again.
    pub credential_life: Duration,
    pub tokens: [(Environment, TokenSettings); 2],
    pub stripe: StripeSettings,
    /// How long after the end of a billing period its usage still goes into it.
    pub late_grace: Duration,
}

/// Everything the service can do. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    database: Database,
    clock: Clock,
    settings: EngineSettings,
    gatekeeper: Gatekeeper,
    caches: Arc<EnvironmentCaches>,
    services: [EnvironmentServices; 2],
    tails: Arc<UnfoldedBacklogs>,
    writer_tasks: Mutex<WriterTasks>,
    webhooks: Webhooks,
}

/// Where the calls of an environment are taken.
#[derive(Debug)]
struct EnvironmentServices {
    ingest_queues: IngestQueues,
    gate: Gate,
    /// The biller that usage is handed to; none where no account is set up.
    provider: Option<Arc<dyn Provider>>,
}

impl EnvironmentServices {
    fn open(
        environment: Environment,
        writer_context: &WriterContext,
        provider: Option<Arc<dyn Provider>>,
        writer_tasks: &mut WriterTasks,
    ) -> Self {
        let ingest_queues = IngestQueues::start(environment, writer_context, writer_tasks);
        let gate = Gate::start(environment, writer_context, writer_tasks);
        Self { ingest_queues, gate, provider }
    }
}

impl Inner {
    fn services(&self, environment: Environment) -> &EnvironmentServices {
        match environment {
            Environment::Test => &self.services[0],
            Environment::Live => &self.services[1],
        }
    }
}

impl Engine {
    /// Starts the writers. Must be called within the runtime they are to live in.
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
        let provider = |environment| -> Result<Option<Arc<dyn Provider>>, EngineError> {
            let stripe = Stripe::of(&settings.stripe, environment);
            let stripe = stripe.map_err(|why| EngineError::Internal(why.to_string()))?;
            Ok(stripe.map(|stripe| Arc::new(stripe) as Arc<dyn Provider>))
        };
        let (test, live) = (provider(Environment::Test)?, provider(Environment::Live)?);
        let services = [
            EnvironmentServices::open(Environment::Test, &writer_context, test, &mut writer_tasks),
            EnvironmentServices::open(Environment::Live, &writer_context, live, &mut writer_tasks),
        ];
        let writer_tasks = Mutex::new(writer_tasks);
        let webhooks = Webhooks::new(&settings.stripe)?;
        let inner =
            Inner { database, clock, settings, gatekeeper, caches, services, tails, writer_tasks, webhooks };
        Ok(Self { inner: Arc::new(inner) })
    }

    pub fn database(&self) -> &Database {
        &self.inner.database
    }

    pub fn gatekeeper(&self) -> &Gatekeeper {
        &self.inner.gatekeeper
    }

    /// Takes no more work, and waits until what was taken is committed and answered.
    pub async fn stop(&self) {
        for services in &self.inner.services {
            services.ingest_queues.close();
            services.gate.close();
        }
        let writer_tasks =
            std::mem::take(&mut *self.inner.writer_tasks.lock().unwrap_or_else(PoisonError::into_inner));
        writer_tasks.end().await;
    }

    /// Whether calls that need the database can be answered.
    pub async fn is_ready(&self) -> Result<bool, EngineError> {
        Ok(self.inner.database.is_ready().await?)
    }
}

/// Runs a transaction to its end even where the caller goes away in the middle.
async fn detached<T: Send + 'static>(
    work: impl Future<Output = Result<T, EngineError>> + Send + 'static,
) -> Result<T, EngineError> {
    match tokio::spawn(work).await {
        Ok(done) => done,
        Err(why) => Err(EngineError::Internal(format!("a task ended early: {why}"))),
    }
}
