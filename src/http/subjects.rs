//! `/v1/subjects`: subjects and the tree that they form.

use axum::Json;
use axum::extract::State;

use super::extract::{Caller, JsonOf, NoQuery, QueryOf, SubjectPath};
use super::problem::Problem;
use super::query::{FromQuery, Parameters};
use super::state::Api;
use crate::engine::{Page, PageRequest, SubjectChange, SubjectView};
use metergate_domain::base::names::SubjectId;

pub(super) async fn put(
    State(api): State<Api>,
    caller: Caller,
    _: NoQuery,
    SubjectPath(subject): SubjectPath,
    JsonOf(change): JsonOf<SubjectChange>,
) -> Result<Json<SubjectView>, Problem> {
    Ok(Json(api.engine.put_subject(caller.environment, subject, change).await?))
}

pub(super) async fn get(
    State(api): State<Api>,
    caller: Caller,
    _: NoQuery,
    SubjectPath(subject): SubjectPath,
) -> Result<Json<SubjectView>, Problem> {
    Ok(Json(api.engine.get_subject(caller.environment, &subject).await?))
}

pub(super) struct Parent(Option<SubjectId>);

impl FromQuery for Parent {
    fn parse(parameters: &mut Parameters) -> Option<Self> {
        Some(Self(parameters.subject("parent")))
    }
}

pub(super) async fn list(
    State(api): State<Api>,
    caller: Caller,
    QueryOf((Parent(parent), page)): QueryOf<(Parent, PageRequest)>,
) -> Result<Json<Page<SubjectView>>, Problem> {
    Ok(Json(api.engine.list_subjects(caller.environment, parent.as_ref(), &page).await?))
}
