//! The use cases, and the writers that share transactions. Knows the domain and the store; knows
//! nothing of HTTP.

pub mod access;
mod catalog;
pub mod clock;
mod configuration;
pub mod error;
mod events;
mod fold;
pub mod ingest;
mod subjects;
mod usage;
mod verify;

use std::sync::Arc;
use std::time::Duration;

pub use catalog::{Applied, CatalogView};
pub use clock::Clock;
pub use error::EngineError;
pub use events::{EventPage, EventView, Voided};
pub use fold::Folded;
pub use ingest::Outcome;
pub use subjects::{SubjectChange, SubjectPage, SubjectView};
pub use usage::{MeterUsage, Report};
pub use verify::Verdict;

use access::Gatekeeper;
use access::tokens::TokenSettings;
use configuration::Configurations;
use ingest::{Lanes, Tails};

use crate::domain::environment::Environment;
use crate::store::Database;

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
    lanes: Lanes,
    tails: Arc<Tails>,
}

impl Engine {
    /// Starts the writers. Must be called within the runtime they are to live in.
    pub fn start(database: Database, clock: Clock, settings: EngineSettings) -> Result<Self, EngineError> {
        let tails = Arc::new(Tails::default());
        let gatekeeper = Gatekeeper::new(database.clone(), &settings)?;
        let lanes = Lanes::start(&ingest::Workplace {
            database: database.clone(),
            clock: clock.clone(),
            configurations: Arc::new(Configurations::default()),
            tails: Arc::clone(&tails),
            age_max: settings.event_age_max,
            months: Arc::default(),
        });
        let inner = Inner { database, clock, settings, gatekeeper, lanes, tails };
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
        self.inner.lanes.stop().await;
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
