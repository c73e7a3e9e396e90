//! `/v1/reservations` and `/v1/check`: may this run, and what became of it.

use axum::Json;
use axum::body::Body;
use axum::extract::{Extension, Path, State};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::{Map, Value};

use super::events::{idempotency_key, with_replay_header};
use super::problem::Problem;
use super::query;
use super::query::Parameters;
use super::{Api, body, subjects};
use crate::engine::access::Principal;
use metergate_domain::base::fields::Violation;
use metergate_domain::base::names::{EventId, MeterKey, SubjectId};
use metergate_domain::base::quantity::Quantity;
use metergate_domain::base::timestamp::Timestamp;
use metergate_domain::gate::calls::{CallOutcome, GateAnswer};
use metergate_domain::gate::decision::{Denier, LimitState, Reason};
use metergate_domain::gate::request::{Commit, Extend, Release, Reserve};
use metergate_domain::gate::reservation::{Hold, ReservationStatus};

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

/// Every answer of the gate; what does not belong to it is left out.
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

fn respond(answer: &GateAnswer) -> Result<Response, Problem> {
    let document = ReservationDocument { limits: &answer.limits, ..ReservationDocument::default() };
    match &answer.outcome {
        CallOutcome::Held { reservation, replayed } => {
            let document = ReservationDocument {
                id: Some(&reservation.id),
                allowed: Some(true),
                status: Some(reservation.status),
                expires_at: Some(reservation.expires_at),
                holds: Some(held(&reservation.holds)),
                ..document
            };
            Ok(with_replay_header((StatusCode::CREATED, Json(document)).into_response(), *replayed))
        }
        CallOutcome::Extended { reservation } => {
            let document = ReservationDocument {
                id: Some(&reservation.id),
                allowed: Some(true),
                status: Some(reservation.status),
                expires_at: Some(reservation.expires_at),
                holds: Some(held(&reservation.holds)),
                ..document
            };
            Ok(Json(document).into_response())
        }
        CallOutcome::Allowed { holds } => {
            let document = ReservationDocument { allowed: Some(true), holds: Some(held(holds)), ..document };
            Ok(Json(document).into_response())
        }
        CallOutcome::Denied(denial) => {
            let document = ReservationDocument {
                allowed: Some(false),
                reason: Some(denial.reason),
                denied_by: Some(&denial.denied_by),
                ..document
            };
            Ok(Json(document).into_response())
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
            Ok(with_replay_header(Json(document).into_response(), *replayed))
        }
        CallOutcome::Released { reservation, replayed } => {
            let document = ReservationDocument {
                id: Some(&reservation.id),
                status: Some(reservation.status),
                ..document
            };
            Ok(with_replay_header(Json(document).into_response(), *replayed))
        }
        CallOutcome::Refused(refusal) => Err(Problem::refused(*refusal)),
        CallOutcome::Invalid(violations) => Err(Problem::invalid(violations.clone())),
    }
}

pub(super) async fn reserve(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    Parameters::of(&uri).finish()?;
    let mut request = Reserve::read(body::json(&headers, body).await?)?;
    if request.id.is_none() {
        request.id = idempotency_key(&headers)?;
    }
    respond(&api.engine.reserve(principal.environment, request).await?)
}

pub(super) async fn check(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    Parameters::of(&uri).finish()?;
    let request = Reserve::read(body::json(&headers, body).await?)?;
    respond(&api.engine.check(principal.environment, &request, false).await?)
}

/// The id in the path.
fn in_path(uri: &Uri, id: String) -> Result<EventId, Problem> {
    let mut parameters = Parameters::of(uri);
    let id = EventId::parse(id);
    if let Err(bad) = &id {
        parameters.add_error(Violation::new(bad.code, bad.detail.clone()).under("id"));
    }
    parameters.finish()?;
    id.map_err(|bad| Problem::invalid(bad.into()))
}

pub(super) async fn commit(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    Path(id): Path<String>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let id = in_path(&uri, id)?;
    let request = Commit::read(body::json_or_empty(&headers, body).await?)?;
    respond(&api.engine.commit(principal.environment, &id, request).await?)
}

pub(super) async fn release(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    Path(id): Path<String>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let id = in_path(&uri, id)?;
    let request = Release::read(body::json_or_empty(&headers, body).await?)?;
    respond(&api.engine.release(principal.environment, &id, request).await?)
}

pub(super) async fn extend(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    Path(id): Path<String>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let id = in_path(&uri, id)?;
    let request = Extend::read(body::json_or_empty(&headers, body).await?)?;
    respond(&api.engine.extend(principal.environment, &id, request).await?)
}

pub(super) async fn get(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    Path(id): Path<String>,
    uri: Uri,
) -> Result<Response, Problem> {
    let id = in_path(&uri, id)?;
    Ok(Json(api.engine.get_reservation(principal.environment, &id).await?).into_response())
}

pub(super) async fn list(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    uri: Uri,
) -> Result<Response, Problem> {
    let mut parameters = Parameters::of(&uri);
    let subject = parameters.optional("subject", subjects::parse);
    let status = parameters.optional("status", |value| query::word(value, &ReservationStatus::WORDS));
    let cursor = parameters.optional("cursor", query::text);
    let limit = parameters.limit();
    parameters.finish()?;
    let subject = subject.as_ref().map(SubjectId::as_str);
    let environment = principal.environment;
    let page = api.engine.list_reservations(environment, subject, status, cursor.as_deref(), limit).await?;
    Ok(Json(page).into_response())
}
