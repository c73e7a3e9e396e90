//! `/v1/subjects/{subject}/spend-caps`: the spend caps of a subject.

use axum::Json;
use axum::extract::State;
use serde::Serialize;

use super::extract::{Caller, JsonOf, NoQuery, SubjectPath};
use super::problem::Problem;
use super::state::Api;
use metergate_domain::pricing::SpendCap;

pub(super) async fn put(
    State(api): State<Api>,
    caller: Caller,
    _: NoQuery,
    SubjectPath(subject): SubjectPath,
    JsonOf(caps): JsonOf<Vec<SpendCap>>,
) -> Result<Json<impl Serialize>, Problem> {
    Ok(Json(api.engine.put_spend_caps(caller.environment, subject, caller.viewer(), caps).await?))
}

pub(super) async fn get(
    State(api): State<Api>,
    caller: Caller,
    _: NoQuery,
    SubjectPath(subject): SubjectPath,
) -> Result<Json<impl Serialize>, Problem> {
    Ok(Json(api.engine.spend_caps(caller.environment, &subject, caller.viewer()).await?))
}
