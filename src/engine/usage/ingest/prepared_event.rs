//! Events with their fingerprints, ready to be recorded, and the outcomes of recording them.

use metergate_domain::base::names::EventId;
use metergate_domain::base::{Quantity, Timestamp, Violation};
use metergate_domain::gate::LimitState;
use metergate_domain::usage::event::{event_key, key_is_id};
use metergate_domain::usage::{Event, Properties};
use uuid::Uuid;

/// The outcome of one event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EventOutcome {
    /// Recorded, durable and counted.
    Accepted,
    /// Recorded by an earlier event with the same id and content.
    Duplicate,
    Rejected(Violation),
}

/// The times of a recorded event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    /// The time of the event as first recorded.
    pub occurred_at: Timestamp,
    /// The time of the answer.
    pub answered_at: Timestamp,
}

/// An event with its fingerprints, ready to record.
#[derive(Debug)]
pub(crate) struct PreparedEvent {
    pub(super) key: Uuid,
    pub(super) content: Uuid,
    pub(super) event_name: String,
    pub(super) subject: String,
    pub(super) value: Quantity,
    pub(super) properties: Properties,
    pub(super) properties_json: Option<String>,
    pub(super) timestamp: Option<Timestamp>,
    /// None if the key is the id.
    pub(super) id: Option<String>,
    pub(super) source: Option<String>,
}

impl PreparedEvent {
    pub(super) fn of(event: Event) -> Self {
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

    /// Returns the memory that the event takes while it waits.
    pub(super) fn bytes(&self) -> usize {
        size_of::<Self>()
            + self.event_name.len()
            + self.subject.len()
            // counted as text, and as a map with as much again for its structure
            + self.properties_json.as_ref().map_or(0, |json| json.len() * 4)
    }
}

/// Creates the id of an event without one.
pub(crate) fn new_id() -> EventId {
    match EventId::parse(Uuid::now_v7().to_string()) {
        Ok(id) => id,
        Err(_) => unreachable!("a UUID is a valid id"),
    }
}

/// The outcomes of the events of a call.
#[derive(Debug, Clone)]
pub struct RecordResult {
    pub outcomes: Vec<EventOutcome>,
    /// The limits that apply to the events, if the call asked for them.
    pub limits: Option<Vec<LimitState>>,
    /// The times of a single event, new or repeated.
    pub times: Option<Times>,
}
