//! Recording events. Calls hand their events to a lane and wait; a writer takes whatever has
//! gathered since its last commit, settles it as one transaction, then answers all. No timer is
//! involved: an idle writer starts at once.
//!
//! Single events and bulk have lanes of their own, so that neither waits behind the other.

mod batch;
mod lane;
mod tail;
mod writer;

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use uuid::Uuid;

use super::{Engine, EngineError};
use crate::domain::environment::Environment;
use crate::domain::event::Properties;
use crate::domain::event::{Event, event_key, key_is_id};
use crate::domain::fields::Violation;
use crate::domain::names::EventId;
use crate::domain::quantity::Quantity;
use crate::domain::timestamp::Timestamp;
use crate::store::Database;

pub(super) use lane::Lanes;
pub use tail::Tail;
pub(super) use tail::Tails;

use super::clock::Clock;
use super::configuration::Configurations;

/// What became of one event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Recorded, durable and counted.
    Accepted,
    /// It had been recorded before.
    Duplicate,
    Rejected(Violation),
}

/// What the writers share.
#[derive(Debug, Clone)]
pub(super) struct Workplace {
    pub(super) database: Database,
    pub(super) clock: Clock,
    pub(super) configurations: Arc<Configurations>,
    pub(super) tails: Arc<Tails>,
    pub(super) age_max: Duration,
    /// Months whose partition is known to be there.
    pub(super) months: Arc<Mutex<HashSet<Timestamp>>>,
}

/// An event with its fingerprints, ready to be recorded.
#[derive(Debug)]
struct Prepared {
    key: Uuid,
    content: Uuid,
    event_name: String,
    subject: String,
    value: Quantity,
    properties: Properties,
    properties_json: Option<String>,
    timestamp: Option<Timestamp>,
    /// None where the key is the id.
    id: Option<String>,
    source: Option<String>,
}

impl Prepared {
    fn of(event: Event) -> Self {
        let content = event.content();
        let id = event.id.unwrap_or_else(new_id);
        let key = event_key(&event.source, &id);
        let stored_id = (!key_is_id(&event.source, &id)).then(|| id.into_string());
        Self {
            key,
            content,
            event_name: event.event_name.into_string(),
            subject: event.subject.into_string(),
            value: event.value,
            properties_json: event.properties.to_json(),
            properties: event.properties,
            timestamp: event.timestamp,
            id: stored_id,
            source: (!event.source.is_empty()).then(|| event.source.as_str().to_owned()),
        }
    }

    /// What it takes of the memory that waiting work may take.
    fn bytes(&self) -> usize {
        size_of::<Self>()
            + self.event_name.len()
            + self.subject.len()
            // as text and, with as much again for its structure, as a map
            + self.properties_json.as_ref().map_or(0, |json| json.len() * 4)
    }
}

/// The id of an event that came without one.
fn new_id() -> EventId {
    match EventId::parse(Uuid::now_v7().to_string()) {
        Ok(id) => id,
        Err(_) => unreachable!("a UUID is a good id"),
    }
}

impl Engine {
    /// Records events; answers what became of each when all that was accepted is durable. With
    /// `backfill` any past time is taken.
    pub async fn record(
        &self,
        environment: Environment,
        events: Vec<Event>,
        backfill: bool,
    ) -> Result<Vec<Outcome>, EngineError> {
        let prepared: Vec<Prepared> = events.into_iter().map(Prepared::of).collect();
        self.inner.lanes.submit(environment, prepared, backfill, self.inner.settings.wait_max).await
    }

    /// The events that are recorded and not folded yet, as last counted.
    pub fn tail(&self, environment: Environment) -> &Tail {
        self.inner.tails.of(environment)
    }
}
