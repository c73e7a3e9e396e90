//! `/v1/catalog`, `/v1/meters`, `/v1/plans`.

use axum::Json;
use axum::body::Body;
use axum::extract::{Extension, State};
use axum::http::{HeaderMap, Uri};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::json;

use super::problem::Problem;
use super::query::Parameters;
use super::{Api, body};
use crate::domain::catalog::Catalog;
use crate::engine::access::Principal;

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
            Catalog::read_yaml(text).map_err(|flaws| match flaws.first() {
                Some(flaw) if flaw.code == "malformed_yaml" => {
                    Problem::bad_request(flaw.code, flaw.detail.clone())
                }
                _ => Problem::invalid(flaws),
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
    Ok(all_of(in_force(&api, &principal, &uri).await?.meters))
}

/// What a pricing page needs.
pub(super) async fn plans(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    uri: Uri,
) -> Result<Response, Problem> {
    Ok(all_of(in_force(&api, &principal, &uri).await?.plans))
}

async fn in_force(api: &Api, principal: &Principal, uri: &Uri) -> Result<Catalog, Problem> {
    Parameters::of(uri).finish()?;
    Ok(api.engine.catalog(principal.environment).await?.catalog)
}

/// A list that is always one page: the catalog bounds it.
fn all_of(data: Vec<impl Serialize>) -> Response {
    Json(json!({"data": data, "next_cursor": null})).into_response()
}
