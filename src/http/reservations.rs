//! `/v1/reservations` and `/v1/check`: checks, and reservations from hold to commit or release.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::{Map, Value};

use super::extract::{Caller, IdPath, IdentifiedJson, JsonOf, NoQuery, QueryOf, with_replay_header};
use super::problem::Problem;
use super::query::{FromQuery, Parameters};
use super::state::Api;
use crate::engine::{Page, PageRequest, ReservationView};
use metergate_domain::base::names::{EventId, MeterKey};
use metergate_domain::base::{Quantity, Timestamp};
use metergate_domain::gate::{
    CallOutcome, Commit, Denier, Extend, GateAnswer, Hold, LimitState, Reason, Release, Reservation,
    ReservationFilter, ReservationStatus, Reserve,
};

#[derive(Serialize)]
struct HeldHold<'a> {
    meter: &'a MeterKey,
    value: Quantity,
    properties: &'a Map<String, Value>,
}

#[derive(Serialize)]
struct Committed<'a> {
    meter: &'a MeterKey,
    value: Quantity,
}

fn held(holds: &[Hold]) -> Vec<HeldHold<'_>> {
    holds
        .iter()
        .map(|hold| HeldHold { meter: &hold.meter, value: hold.value, properties: hold.properties.as_map() })
        .collect()
}

fn committed(holds: &[Hold]) -> Vec<Committed<'_>> {
    holds.iter().map(|hold| Committed { meter: &hold.meter, value: hold.committed }).collect()
}

/// The JSON of every gate answer; fields that do not apply are left out.
#[derive(Serialize, Default)]
struct ReservationDocument<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    allowed: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<Reason>,
    #[serde(skip_serializing_if = "Option::is_none")]
    denied_by: Option<&'a [Denier]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<ReservationStatus>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    holds: Option<Vec<HeldHold<'a>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    committed: Option<Vec<Committed<'a>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    over_hold: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    late: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    events: Option<Vec<String>>,
    limits: &'a [LimitState],
}

/// Describes an allowed reservation and its holds.
fn held_document<'a>(reservation: &'a Reservation, limits: &'a [LimitState]) -> ReservationDocument<'a> {
    ReservationDocument {
        id: Some(&reservation.id),
        allowed: Some(true),
        status: Some(reservation.status),
        expires_at: Some(reservation.expires_at),
        holds: Some(held(&reservation.holds)),
        limits,
        ..ReservationDocument::default()
    }
}

fn respond(answer: &GateAnswer) -> Result<Response, Problem> {
    let limits = &answer.limits;
    let document = ReservationDocument { limits, ..ReservationDocument::default() };
    let (document, is_replay) = match &answer.outcome {
        CallOutcome::Held { reservation, replayed } => {
            let created = (StatusCode::CREATED, Json(held_document(reservation, limits)));
            return Ok(with_replay_header(created.into_response(), *replayed));
        }
        CallOutcome::Extended { reservation } => (held_document(reservation, limits), false),
        CallOutcome::Allowed { holds } => {
            (ReservationDocument { allowed: Some(true), holds: Some(held(holds)), ..document }, false)
        }
        CallOutcome::Denied(denial) => {
            let (reason, denied_by) = (Some(denial.reason), Some(&denial.denied_by[..]));
            (ReservationDocument { allowed: Some(false), reason, denied_by, ..document }, false)
        }
        CallOutcome::Committed { reservation, events, replayed } => {
            let document = ReservationDocument {
                id: Some(&reservation.id),
                status: Some(reservation.status),
                committed: Some(committed(&reservation.holds)),
                over_hold: Some(reservation.over_hold),
                late: Some(reservation.late),
                events: Some(events.iter().map(ToString::to_string).collect()),
                ..document
            };
            (document, *replayed)
        }
        CallOutcome::Released { reservation, replayed } => {
            let (id, status) = (Some(reservation.id.as_str()), Some(reservation.status));
            (ReservationDocument { id, status, ..document }, *replayed)
        }
        CallOutcome::Refused(refusal) => return Err(Problem::refused(*refusal)),
        CallOutcome::Invalid(violations) => return Err(violations.clone().into()),
    };
    Ok(with_replay_header(Json(document).into_response(), is_replay))
}

pub(super) async fn reserve(
    State(api): State<Api>,
    caller: Caller,
    _: NoQuery,
    IdentifiedJson(request): IdentifiedJson<Reserve>,
) -> Result<Response, Problem> {
    respond(&api.engine.reserve(caller.environment, request).await?)
}

pub(super) async fn check(
    State(api): State<Api>,
    caller: Caller,
    _: NoQuery,
    JsonOf(request): JsonOf<Reserve>,
) -> Result<Response, Problem> {
    respond(&api.engine.check(caller.environment, &request, false).await?)
}

pub(super) async fn commit(
    State(api): State<Api>,
    caller: Caller,
    IdPath(id): IdPath<EventId>,
    _: NoQuery,
    JsonOf(request): JsonOf<Commit>,
) -> Result<Response, Problem> {
    respond(&api.engine.commit(caller.environment, &id, request).await?)
}

pub(super) async fn release(
    State(api): State<Api>,
    caller: Caller,
    IdPath(id): IdPath<EventId>,
    _: NoQuery,
    JsonOf(request): JsonOf<Release>,
) -> Result<Response, Problem> {
    respond(&api.engine.release(caller.environment, &id, request).await?)
}

pub(super) async fn extend(
    State(api): State<Api>,
    caller: Caller,
    IdPath(id): IdPath<EventId>,
    _: NoQuery,
    JsonOf(request): JsonOf<Extend>,
) -> Result<Response, Problem> {
    respond(&api.engine.extend(caller.environment, &id, request).await?)
}

pub(super) async fn get(
    State(api): State<Api>,
    caller: Caller,
    IdPath(id): IdPath<EventId>,
    _: NoQuery,
) -> Result<Json<ReservationView>, Problem> {
    Ok(Json(api.engine.get_reservation(caller.environment, &id).await?))
}

impl FromQuery for ReservationFilter {
    fn parse(parameters: &mut Parameters) -> Option<Self> {
        let subject = parameters.subject("subject");
        Some(Self { subject, status: parameters.word("status", &ReservationStatus::WORDS) })
    }
}

pub(super) async fn list(
    State(api): State<Api>,
    caller: Caller,
    QueryOf((filter, page)): QueryOf<(ReservationFilter, PageRequest)>,
) -> Result<Json<Page<ReservationView>>, Problem> {
    Ok(Json(api.engine.list_reservations(caller.environment, &filter, &page).await?))
}
