//! `/v1/events`: recording usage, looking at it, taking it back.

use axum::Json;
use axum::body::Body;
use axum::extract::{Extension, Path, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Uri};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::{Value, json};

use super::body;
use super::problem::Problem;
use super::query;
use super::query::Parameters;
use super::{Api, subjects};
use crate::engine::EventOutcome;
use crate::engine::access::Principal;
use crate::store::usage::event_list::EventFilter;
use metergate_domain::base::fields::{Parsed, Violation};
use metergate_domain::base::limits::{BATCH_EVENTS_MAX, NDJSON_EVENTS_MAX};
use metergate_domain::base::names::{EventId, EventName, EventSource, SubjectId};
use metergate_domain::gate::decision::LimitState;
use metergate_domain::gate::request::Release;
use metergate_domain::usage::event::Event;

#[derive(Serialize)]
struct RecordResponse {
    accepted: usize,
    duplicates: usize,
    rejected: Vec<Rejection>,
    /// The limits that the events met: of a single event, and where they are asked for.
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

/// What a body holds.
enum Payload {
    One(Value),
    Many(Vec<Value>),
}

type ReadEvent = fn(Value) -> Parsed<Event>;

const MEDIA_TYPES: &str = "application/json, application/x-ndjson, application/cloudevents+json or \
                           application/cloudevents-batch+json";

pub(super) async fn record(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let mut parameters = Parameters::of(&uri);
    let backfill = parameters.flag("backfill");
    let with_limits = parameters.flag("limits");
    parameters.finish()?;
    let (payload, read) = payload(&headers, body).await?;
    match payload {
        Payload::One(value) => {
            let mut event = read(value).inspect_err(|_| count_unreadable(1))?;
            if event.id.is_none() {
                event.id = idempotency_key(&headers)?;
            }
            let recorded = api.engine.record(principal.environment, vec![event], backfill, true).await?;
            let (accepted, duplicates) = match recorded.outcomes.into_iter().next() {
                Some(EventOutcome::Rejected(violation)) => return Err(Problem::invalid(vec![violation])),
                Some(EventOutcome::Duplicate) => (0, 1),
                _ => (1, 0),
            };
            let limits = recorded.limits;
            Ok(Json(RecordResponse { accepted, duplicates, rejected: Vec::new(), limits }).into_response())
        }
        Payload::Many(values) => {
            let recorded = record_many(&api, &principal, values, read, (backfill, with_limits)).await?;
            Ok(Json(recorded).into_response())
        }
    }
}

/// Records what can be read of a batch; the rest is rejected, each event for itself.
async fn record_many(
    api: &Api,
    principal: &Principal,
    values: Vec<Value>,
    read: ReadEvent,
    (backfill, with_limits): (bool, bool),
) -> Result<RecordResponse, Problem> {
    let mut rejected = Vec::new();
    let (mut events, mut places) = (Vec::with_capacity(values.len()), Vec::with_capacity(values.len()));
    for (index, value) in values.into_iter().enumerate() {
        let id = value.get("id").and_then(Value::as_str).map(str::to_owned);
        match read(value) {
            Ok(event) => {
                events.push(event);
                places.push((index, id));
            }
            Err(violations) => rejected.push(Rejection::of(index, id, violations.into_iter().next())),
        }
    }
    count_unreadable(rejected.len());
    let (mut accepted, mut duplicates) = (0, 0);
    let mut limits = with_limits.then(Vec::new);
    if !events.is_empty() {
        let recorded = api.engine.record(principal.environment, events, backfill, with_limits).await?;
        limits = recorded.limits;
        for (outcome, (index, id)) in recorded.outcomes.into_iter().zip(places) {
            match outcome {
                EventOutcome::Accepted => accepted += 1,
                EventOutcome::Duplicate => duplicates += 1,
                EventOutcome::Rejected(violation) => rejected.push(Rejection::of(index, id, Some(violation))),
            }
        }
    }
    rejected.sort_by_key(|rejection| rejection.index);
    Ok(RecordResponse { accepted, duplicates, rejected, limits })
}

/// Events that never reach the engine are rejected all the same.
pub(super) fn count_unreadable(events: usize) {
    metrics::counter!("metergate_events_total", "outcome" => "rejected").increment(events as u64);
}

impl Rejection {
    fn of(index: usize, id: Option<String>, violation: Option<Violation>) -> Self {
        let violation = violation.unwrap_or_else(|| Violation::new("invalid", "is not acceptable"));
        let place =
            if violation.pointer.is_empty() { String::new() } else { format!("{}: ", violation.pointer) };
        Self { index, id, code: violation.code, detail: format!("{place}{}", violation.detail) }
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
    let payload = match (body::parse(&bytes)?, media_type.as_str()) {
        (Value::Array(_), "application/cloudevents+json") => {
            let detail = "must be one event; send several as application/cloudevents-batch+json";
            return Err(Problem::invalid(vec![Violation::new("invalid_type", detail)]));
        }
        (Value::Array(values), _) => Payload::Many(counted(values, BATCH_EVENTS_MAX)?),
        (_, "application/cloudevents-batch+json") => {
            return Err(Problem::invalid(vec![Violation::new("invalid_type", "must be an array of events")]));
        }
        (value, _) => Payload::One(value),
    };
    Ok((payload, read))
}

fn counted(values: Vec<Value>, max: usize) -> Result<Vec<Value>, Problem> {
    match values.len() {
        0 => Err(Problem::invalid(vec![Violation::new("empty", "must have at least one event")])),
        count if count > max => {
            let detail = format!("must have at most {max} events, not {count}");
            Err(Problem::invalid(vec![Violation::new("too_many_events", detail)]))
        }
        _ => Ok(values),
    }
}

/// One JSON document per line; blank lines are nothing.
fn lines(bytes: &[u8]) -> Result<Vec<Value>, Problem> {
    bytes
        .split(|byte| *byte == b'\n')
        .enumerate()
        .filter(|(_, line)| !line.iter().all(u8::is_ascii_whitespace))
        .map(|(number, line)| {
            serde_json::from_slice(line).map_err(|why| {
                Problem::bad_request("malformed_json", format!("line {} is no JSON: {why}", number + 1))
            })
        })
        .collect()
}

/// Tells a caller that an answer is one that was given before.
pub(super) fn with_replay_header(mut response: Response, replayed: bool) -> Response {
    if replayed {
        let name = HeaderName::from_static("idempotent-replayed");
        response.headers_mut().insert(name, HeaderValue::from_static("true"));
    }
    response
}

pub(super) fn idempotency_key(headers: &HeaderMap) -> Result<Option<EventId>, Problem> {
    let violation = |detail: String| {
        Problem::invalid(vec![Violation::new("invalid_idempotency_key", detail).under("id")])
    };
    headers
        .get(HeaderName::from_static("idempotency-key"))
        .map(|value| {
            let text = value
                .to_str()
                .map_err(|_| violation("the header Idempotency-Key is not ASCII".to_owned()))?;
            EventId::parse(text).map_err(|bad| violation(format!("the header Idempotency-Key {bad}")))
        })
        .transpose()
}

pub(super) async fn list(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    uri: Uri,
) -> Result<Response, Problem> {
    let mut parameters = Parameters::of(&uri);
    let filter = EventFilter {
        subject: parameters.optional("subject", subjects::parse).map(SubjectId::into_string),
        descendants: parameters.flag("descendants"),
        event_name: parameters
            .optional("event_name", |name| Ok(EventName::parse(name)?))
            .map(EventName::into_string),
        source: parameters.optional("source", query::text),
        from: parameters.optional("from", query::timestamp),
        to: parameters.optional("to", query::timestamp),
        voided: parameters
            .optional("voided", |value| query::word(value, &[("true", true), ("false", false)])),
    };
    if let (Some(from), Some(to)) = (filter.from, filter.to)
        && from > to
    {
        parameters.add_error(Violation::new("invalid_range", "must not be after `to`").under("from"));
    }
    let cursor = parameters.optional("cursor", query::text);
    let limit = parameters.limit();
    parameters.finish()?;
    let page = api.engine.list_events(principal.environment, &filter, cursor.as_deref(), limit).await?;
    Ok(Json(page).into_response())
}

/// The id in the path and the source in the query.
fn identity(uri: &Uri, id: String) -> Result<(EventId, EventSource), Problem> {
    let mut parameters = Parameters::of(uri);
    let source = parameters.optional("source", |value| Ok(EventSource::parse(value)?)).unwrap_or_default();
    let id = EventId::parse(id);
    if let Err(bad) = &id {
        parameters.add_error(Violation::new(bad.code, bad.detail.clone()).under("id"));
    }
    parameters.finish()?;
    let id = id.map_err(|bad| Problem::invalid(bad.into()))?;
    Ok((id, source))
}

pub(super) async fn trace(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    Path(id): Path<String>,
    uri: Uri,
) -> Result<Response, Problem> {
    let (id, source) = identity(&uri, id)?;
    Ok(Json(api.engine.trace_event(principal.environment, &id, &source).await?).into_response())
}

pub(super) async fn void(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    Path(id): Path<String>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let (id, source) = identity(&uri, id)?;
    let Release { reason } = Release::read(body::json_or_empty(&headers, body).await?)?;
    let voided = api.engine.void_event(principal.environment, id, source, reason).await?;
    let answer = json!({
        "id": voided.id,
        "source": voided.source,
        "status": "voided",
        "reason": voided.void.reason,
        "voided_at": voided.void.voided_at,
    });
    Ok(with_replay_header(Json(answer).into_response(), voided.replayed))
}
