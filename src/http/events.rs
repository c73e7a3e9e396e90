//! `/v1/events`: records, lists, traces and voids events.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::{Value, json};

use super::extract::{Caller, IdPath, JsonOf, QueryOf, idempotency_key, with_replay_header};
use super::problem::Problem;
use super::query::{FromQuery, Parameters};
use super::state::Api;
use super::{body, query};
use crate::engine::{EventOutcome, EventTrace, EventView, Page, PageRequest};
use metergate_domain::base::limits::{BATCH_EVENTS_MAX, NDJSON_EVENTS_MAX};
use metergate_domain::base::names::{EventId, EventName};
use metergate_domain::base::{EventSource, Parsed, Violation};
use metergate_domain::gate::{LimitState, Release};
use metergate_domain::usage::{Event, EventFilter};

#[derive(Serialize)]
pub(super) struct RecordingAnswer {
    accepted: usize,
    duplicates: usize,
    rejected: Vec<Rejection>,
    /// The limits that the events match: always for a single event, otherwise only if the caller asks for
    /// them.
    #[serde(skip_serializing_if = "Option::is_none")]
    limits: Option<Vec<LimitState>>,
}

#[derive(Serialize)]
struct Rejection {
    index: usize,
    id: Option<String>,
    code: &'static str,
    detail: String,
}

/// The content of a body.
enum Payload {
    One(Value),
    Many(Vec<Value>),
}

type ReadEvent = fn(Value) -> Parsed<Event>;

const MEDIA_TYPES: &str = "application/json, application/x-ndjson, application/cloudevents+json or \
                           application/cloudevents-batch+json";

#[derive(Clone, Copy)]
pub(super) struct RecordingOptions {
    backfill: bool,
    with_limits: bool,
}

impl FromQuery for RecordingOptions {
    fn parse(parameters: &mut Parameters) -> Option<Self> {
        Some(Self { backfill: parameters.flag("backfill"), with_limits: parameters.flag("limits") })
    }
}

pub(super) async fn record(
    State(api): State<Api>,
    caller: Caller,
    QueryOf(options): QueryOf<RecordingOptions>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<RecordingAnswer>, Problem> {
    let (payload, read) = payload(&headers, body).await?;
    let value = match payload {
        Payload::One(value) => value,
        Payload::Many(values) => return Ok(Json(record_many(&api, &caller, values, read, options).await?)),
    };
    let mut event = read(value).inspect_err(|_| count_unreadable(1))?;
    if event.id.is_none() {
        event.id = idempotency_key(&headers)?;
    }
    let recorded = api.engine.record(caller.environment, vec![event], options.backfill, true).await?;
    let (accepted, duplicates) = match recorded.outcomes.into_iter().next() {
        Some(EventOutcome::Rejected(violation)) => return Err(violation.into()),
        Some(EventOutcome::Duplicate) => (0, 1),
        _ => (1, 0),
    };
    Ok(Json(RecordingAnswer { accepted, duplicates, rejected: Vec::new(), limits: recorded.limits }))
}

/// Records the valid events of a batch, and rejects the invalid ones.
async fn record_many(
    api: &Api,
    caller: &Caller,
    values: Vec<Value>,
    read: ReadEvent,
    options: RecordingOptions,
) -> Result<RecordingAnswer, Problem> {
    let mut rejected = Vec::new();
    let (mut events, mut places) = (Vec::with_capacity(values.len()), Vec::with_capacity(values.len()));
    for (index, value) in values.into_iter().enumerate() {
        let id = value.get("id").and_then(Value::as_str).map(str::to_owned);
        match read(value) {
            Ok(event) => {
                events.push(event);
                places.push((index, id));
            }
            Err(violations) => rejected.push(Rejection::new(index, id, violations.first().clone())),
        }
    }
    count_unreadable(rejected.len());
    let (mut accepted, mut duplicates) = (0, 0);
    let RecordingOptions { backfill, with_limits } = options;
    let mut limits = with_limits.then(Vec::new);
    if !events.is_empty() {
        let recorded = api.engine.record(caller.environment, events, backfill, with_limits).await?;
        limits = recorded.limits;
        for (outcome, (index, id)) in recorded.outcomes.into_iter().zip(places) {
            match outcome {
                EventOutcome::Accepted => accepted += 1,
                EventOutcome::Duplicate => duplicates += 1,
                EventOutcome::Rejected(violation) => rejected.push(Rejection::new(index, id, violation)),
            }
        }
    }
    rejected.sort_by_key(|rejection| rejection.index);
    Ok(RecordingAnswer { accepted, duplicates, rejected, limits })
}

/// Adds to the metrics events that are rejected before they reach the engine.
pub(super) fn count_unreadable(events: usize) {
    metrics::counter!("metergate_events_total", "outcome" => "rejected").increment(events as u64);
}

impl Rejection {
    fn new(index: usize, id: Option<String>, violation: Violation) -> Self {
        let Violation { pointer, code, detail } = violation;
        let detail = if pointer.is_empty() { detail } else { format!("{pointer}: {detail}") };
        Self { index, id, code, detail }
    }
}

async fn payload(headers: &HeaderMap, body: Body) -> Result<(Payload, ReadEvent), Problem> {
    let media_type = body::media_type(headers);
    let (read, is_lines): (ReadEvent, bool) = match media_type.as_str() {
        "application/json" => (Event::read, false),
        "application/x-ndjson" | "application/ndjson" => (Event::read, true),
        "application/cloudevents+json" | "application/cloudevents-batch+json" => {
            (Event::read_cloudevent, false)
        }
        other => return Err(body::unsupported(other, MEDIA_TYPES)),
    };
    let bytes = body::read(body).await?;
    if is_lines {
        let values = lines(&bytes)?;
        return Ok((Payload::Many(counted(values, NDJSON_EVENTS_MAX)?), read));
    }
    let refuse = |detail: &str| Problem::from(Violation::new("invalid_type", detail));
    let payload = match (body::parse(&bytes)?, media_type.as_str()) {
        (Value::Array(_), "application/cloudevents+json") => {
            return Err(refuse("must be one event; send several as application/cloudevents-batch+json"));
        }
        (Value::Array(values), _) => Payload::Many(counted(values, BATCH_EVENTS_MAX)?),
        (_, "application/cloudevents-batch+json") => {
            return Err(refuse("must be an array of events; send one as application/cloudevents+json"));
        }
        (value, _) => Payload::One(value),
    };
    Ok((payload, read))
}

/// Refuses a batch without events or with too many.
fn counted(values: Vec<Value>, max: usize) -> Result<Vec<Value>, Violation> {
    match values.len() {
        0 => Err(Violation::new("empty", "must have at least one event; got none")),
        count if count > max => {
            let detail =
                format!("must have at most {max} events; got {count}: send them in several requests");
            Err(Violation::new("too_many_events", detail))
        }
        _ => Ok(values),
    }
}

/// Parses one JSON document per line and skips blank lines.
fn lines(bytes: &[u8]) -> Result<Vec<Value>, Problem> {
    bytes
        .split(|byte| *byte == b'\n')
        .enumerate()
        .filter(|(_, line)| !line.iter().all(u8::is_ascii_whitespace))
        .map(|(number, line)| {
            serde_json::from_slice(line).map_err(|why| {
                let detail = format!("line {} of the request body is not valid JSON: {why}", number + 1);
                Problem::bad_request("malformed_json", detail)
            })
        })
        .collect()
}

impl FromQuery for EventFilter {
    fn parse(parameters: &mut Parameters) -> Option<Self> {
        let filter = Self {
            subject: parameters.subject("subject"),
            descendants: parameters.flag("descendants"),
            event_name: parameters.optional("event_name", |name| Ok(EventName::parse(name)?)),
            source: parameters.optional("source", query::text),
            from: parameters.optional("from", query::timestamp),
            to: parameters.optional("to", query::timestamp),
            voided: parameters.word("voided", &[("true", true), ("false", false)]),
        };
        parameters.check_order(filter.from, filter.to);
        Some(filter)
    }
}

pub(super) async fn list(
    State(api): State<Api>,
    caller: Caller,
    QueryOf((filter, page)): QueryOf<(EventFilter, PageRequest)>,
) -> Result<Json<Page<EventView>>, Problem> {
    Ok(Json(api.engine.list_events(caller.environment, &filter, &page).await?))
}

impl FromQuery for EventSource {
    fn parse(parameters: &mut Parameters) -> Option<Self> {
        Some(parameters.optional("source", |value| Ok(Self::parse(value)?)).unwrap_or_default())
    }
}

pub(super) async fn trace(
    State(api): State<Api>,
    caller: Caller,
    IdPath(id): IdPath<EventId>,
    QueryOf(source): QueryOf<EventSource>,
) -> Result<Json<EventTrace>, Problem> {
    Ok(Json(api.engine.trace_event(caller.environment, &id, &source).await?))
}

pub(super) async fn void(
    State(api): State<Api>,
    caller: Caller,
    IdPath(id): IdPath<EventId>,
    QueryOf(source): QueryOf<EventSource>,
    JsonOf(Release { reason }): JsonOf<Release>,
) -> Result<Response, Problem> {
    let voided = api.engine.void_event(caller.environment, id, source, reason).await?;
    let answer = json!({
        "id": voided.id,
        "source": voided.source,
        "status": "voided",
        "reason": voided.void.reason,
        "voided_at": voided.void.voided_at,
    });
    Ok(with_replay_header(Json(answer).into_response(), voided.replayed))
}
