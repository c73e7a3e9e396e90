//! `/v1/subjects/{subject}/subscription`: the plan of a subject.

use axum::Json;
use axum::extract::State;

use super::extract::{Caller, JsonOf, NoQuery, QueryOf, SubjectPath};
use super::problem::Problem;
use super::query;
use super::query::{FromQuery, Parameters};
use super::state::Api;
use crate::engine::SubscriptionView;
use metergate_domain::base::names::PlanKey;
use metergate_domain::subjects::{End, SubscriptionParams};

pub(super) async fn put(
    State(api): State<Api>,
    caller: Caller,
    _: NoQuery,
    SubjectPath(subject): SubjectPath,
    JsonOf(statement): JsonOf<SubscriptionParams>,
) -> Result<Json<SubscriptionView>, Problem> {
    Ok(Json(api.engine.put_subscription(caller.environment, subject, statement).await?))
}

pub(super) struct WithHistory(bool);

impl FromQuery for WithHistory {
    fn parse(parameters: &mut Parameters) -> Option<Self> {
        Some(Self(parameters.flag("history")))
    }
}

pub(super) async fn get(
    State(api): State<Api>,
    caller: Caller,
    QueryOf(WithHistory(history)): QueryOf<WithHistory>,
    SubjectPath(subject): SubjectPath,
) -> Result<Json<SubscriptionView>, Problem> {
    Ok(Json(api.engine.get_subscription(caller.environment, &subject, history).await?))
}

/// The end of a subscription and the plan after it.
pub(super) struct Ending {
    end: End,
    fallback_plan: Option<PlanKey>,
}

impl FromQuery for Ending {
    fn parse(parameters: &mut Parameters) -> Option<Self> {
        let end = parameters.optional("at", |value| match value.as_str() {
            "now" => Ok(End::Now),
            "period_end" => Ok(End::PeriodEnd),
            _ => Ok(End::At(query::timestamp(value)?)),
        });
        let fallback_plan = parameters.optional("fallback_plan", |key| Ok(PlanKey::parse(key)?));
        Some(Self { end: end.unwrap_or(End::Now), fallback_plan })
    }
}

pub(super) async fn end(
    State(api): State<Api>,
    caller: Caller,
    QueryOf(Ending { end, fallback_plan }): QueryOf<Ending>,
    SubjectPath(subject): SubjectPath,
) -> Result<Json<SubscriptionView>, Problem> {
    Ok(Json(api.engine.end_subscription(caller.environment, subject, end, fallback_plan).await?))
}
