//! `/v1/subjects/{subject}/credits` and `/v1/notices`: prepaid credits, their ledger and notices about them.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

use super::extract::{
    Caller, GrantPath, IdentifiedJson, JsonOf, NoQuery, QueryOf, SubjectPath, with_replay_header,
};
use super::problem::Problem;
use super::query::{FromQuery, Parameters};
use super::state::Api;
use crate::engine::{CreditNotice, CreditsView, GrantView, MovementView, Page, PageRequest};
use metergate_domain::credits::{NoticeFilter, NoticeKind, Request, VoidRequest};

pub(super) async fn grant(
    State(api): State<Api>,
    caller: Caller,
    _: NoQuery,
    SubjectPath(subject): SubjectPath,
    IdentifiedJson(request): IdentifiedJson<Request>,
) -> Result<Response, Problem> {
    let (grant, is_replay) = api.engine.grant_credits(caller.environment, subject, request).await?;
    Ok(with_replay_header((StatusCode::CREATED, Json(grant)).into_response(), is_replay))
}

pub(super) async fn void(
    State(api): State<Api>,
    caller: Caller,
    _: NoQuery,
    GrantPath { subject, id }: GrantPath,
    JsonOf(request): JsonOf<VoidRequest>,
) -> Result<Response, Problem> {
    let (grant, is_replay) = api.engine.void_grant(caller.environment, subject, id, request).await?;
    Ok(with_replay_header(Json(grant).into_response(), is_replay))
}

pub(super) async fn balance(
    State(api): State<Api>,
    caller: Caller,
    _: NoQuery,
    SubjectPath(subject): SubjectPath,
) -> Result<Json<CreditsView>, Problem> {
    Ok(Json(api.engine.credits(caller.environment, &subject).await?))
}

pub(super) async fn grants(
    State(api): State<Api>,
    caller: Caller,
    QueryOf(page): QueryOf<PageRequest>,
    SubjectPath(subject): SubjectPath,
) -> Result<Json<Page<GrantView>>, Problem> {
    Ok(Json(api.engine.list_grants(caller.environment, &subject, &page).await?))
}

pub(super) async fn ledger(
    State(api): State<Api>,
    caller: Caller,
    QueryOf(page): QueryOf<PageRequest>,
    SubjectPath(subject): SubjectPath,
) -> Result<Json<Page<MovementView>>, Problem> {
    Ok(Json(api.engine.credit_ledger(caller.environment, &subject, &page).await?))
}

impl FromQuery for NoticeFilter {
    fn parse(parameters: &mut Parameters) -> Option<Self> {
        Some(Self {
            subject: parameters.subject("subject"),
            kind: parameters.word("kind", &NoticeKind::WORDS),
        })
    }
}

pub(super) async fn notices(
    State(api): State<Api>,
    caller: Caller,
    QueryOf((filter, page)): QueryOf<(NoticeFilter, PageRequest)>,
) -> Result<Json<Page<CreditNotice>>, Problem> {
    Ok(Json(api.engine.list_notices(caller.environment, &filter, &page).await?))
}
