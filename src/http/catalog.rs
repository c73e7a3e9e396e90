//! `/v1/catalog`, `/v1/meters`, `/v1/plans`.

use axum::Json;
use axum::body::Body;
use axum::extract::{Extension, State};
use axum::http::{HeaderMap, Uri};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::json;

use super::problem::Problem;
use super::query;
use super::query::Parameters;
use super::{Api, body};
use crate::engine::access::Principal;
use crate::engine::cursor;
use metergate_domain::catalog::Catalog;

pub(super) async fn apply(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let mut parameters = Parameters::of(&uri);
    let dry_run = parameters.flag("dry_run");
    parameters.finish()?;
    let catalog = read(&headers, body).await?;
    Ok(Json(api.engine.apply_catalog(principal.environment, catalog, dry_run).await?).into_response())
}

async fn read(headers: &HeaderMap, body: Body) -> Result<Catalog, Problem> {
    match body::media_type(headers).as_str() {
        "application/json" => Ok(Catalog::read(body::parse(&body::read(body).await?)?)?),
        "application/yaml" | "application/x-yaml" | "text/yaml" => {
            let bytes = body::read(body).await?;
            let text = std::str::from_utf8(&bytes)
                .map_err(|_| Problem::bad_request("malformed_yaml", "the body is not UTF-8"))?;
            Catalog::read_yaml(text).map_err(|violations| match violations.first() {
                Some(violation) if violation.code == "malformed_yaml" => {
                    Problem::bad_request(violation.code, violation.detail.clone())
                }
                _ => Problem::invalid(violations),
            })
        }
        other => Err(body::unsupported(other, "application/json or application/yaml")),
    }
}

pub(super) async fn show(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    uri: Uri,
) -> Result<Response, Problem> {
    Parameters::of(&uri).finish()?;
    Ok(Json(api.engine.catalog(principal.environment).await?).into_response())
}

pub(super) async fn meters(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    uri: Uri,
) -> Result<Response, Problem> {
    let page = CatalogPageQuery::asked(&uri)?;
    page.of(in_force(&api, &principal).await?.meters, |meter| meter.key.as_str())
}

/// What a pricing page needs.
pub(super) async fn plans(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    uri: Uri,
) -> Result<Response, Problem> {
    let page = CatalogPageQuery::asked(&uri)?;
    page.of(in_force(&api, &principal).await?.plans, |plan| plan.key.as_str())
}

async fn in_force(api: &Api, principal: &Principal) -> Result<Catalog, Problem> {
    Ok(api.engine.catalog(principal.environment).await?.catalog)
}

/// A part of what the catalog lists, in its order: what comes after a key.
struct CatalogPageQuery {
    after: Option<String>,
    limit: usize,
}

impl CatalogPageQuery {
    fn asked(uri: &Uri) -> Result<Self, Problem> {
        let mut parameters = Parameters::of(uri);
        let after = parameters.optional("cursor", query::text);
        let limit = parameters.limit() as usize;
        parameters.finish()?;
        Ok(Self { after, limit })
    }

    fn of<T: Serialize>(self, all: Vec<T>, key: impl Fn(&T) -> &str) -> Result<Response, Problem> {
        let place = |after: &String| all.iter().position(|item| key(item) == after);
        let from = match &self.after {
            None => 0,
            Some(after) => place(after).ok_or_else(cursor::unknown)? + 1,
        };
        let rest = all.get(from..).unwrap_or_default();
        let data = rest.get(..self.limit).unwrap_or(rest);
        let next_cursor = data.last().filter(|_| data.len() < rest.len()).map(&key);
        Ok(Json(json!({"data": data, "next_cursor": next_cursor})).into_response())
    }
}
