//! `/v1/catalog`, `/v1/meters`, `/v1/plans`.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use serde::Serialize;

use super::body;
use super::extract::{Caller, NoQuery, QueryOf};
use super::problem::Problem;
use super::query::{FromQuery, Parameters};
use super::state::Api;
use crate::engine::{Applied, CatalogView, Page, PageRequest, cursor};
use metergate_domain::catalog::{Catalog, Meter, Plan};

pub(super) struct DryRun(bool);

impl FromQuery for DryRun {
    fn parse(parameters: &mut Parameters) -> Option<Self> {
        Some(Self(parameters.flag("dry_run")))
    }
}

pub(super) async fn apply(
    State(api): State<Api>,
    caller: Caller,
    QueryOf(DryRun(dry_run)): QueryOf<DryRun>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Applied>, Problem> {
    let catalog = read(&headers, body).await?;
    Ok(Json(api.engine.apply_catalog(caller.environment, catalog, dry_run).await?))
}

async fn read(headers: &HeaderMap, body: Body) -> Result<Catalog, Problem> {
    match body::media_type(headers).as_str() {
        "application/json" => Ok(Catalog::read(body::parse(&body::read(body).await?)?)?),
        "application/yaml" | "application/x-yaml" | "text/yaml" => {
            let bytes = body::read(body).await?;
            let text = std::str::from_utf8(&bytes).map_err(|why| {
                let detail = format!("the request body is not valid UTF-8: {why}");
                Problem::bad_request("malformed_yaml", detail)
            })?;
            Catalog::read_yaml(text).map_err(|violations| match violations.first() {
                malformed if malformed.code == "malformed_yaml" => {
                    Problem::bad_request(malformed.code, malformed.detail.clone())
                }
                _ => violations.into(),
            })
        }
        other => Err(body::unsupported(other, "application/json or application/yaml")),
    }
}

pub(super) async fn show(
    State(api): State<Api>,
    caller: Caller,
    _: NoQuery,
) -> Result<Json<CatalogView>, Problem> {
    Ok(Json(api.engine.catalog(caller.environment).await?))
}

pub(super) async fn meters(
    State(api): State<Api>,
    caller: Caller,
    QueryOf(page): QueryOf<PageRequest>,
) -> Result<Json<Page<Meter>>, Problem> {
    let catalog = api.engine.catalog(caller.environment).await?.catalog;
    page_of(catalog.meters, &page, |meter| meter.key.as_str())
}

/// Lists the plans, for example for a pricing page.
pub(super) async fn plans(
    State(api): State<Api>,
    caller: Caller,
    QueryOf(page): QueryOf<PageRequest>,
) -> Result<Json<Page<Plan>>, Problem> {
    let catalog = api.engine.catalog(caller.environment).await?.catalog;
    page_of(catalog.plans, &page, |plan| plan.key.as_str())
}

/// Returns the page of an ordered list that begins after the cursor's key.
fn page_of<T: Serialize>(
    mut all: Vec<T>,
    page: &PageRequest,
    key: impl Fn(&T) -> &str,
) -> Result<Json<Page<T>>, Problem> {
    if let Some(after) = page.place::<String>()? {
        let index = all.iter().position(|item| key(item) == after).ok_or_else(cursor::unknown)?;
        all.drain(..=index);
    }
    Ok(Json(Page::from_rows(all, page.limit, |item| key(item).to_owned())))
}
