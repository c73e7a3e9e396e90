//! The first start on the embedded database: the sample catalog, a key, and a command to try.

use std::net::SocketAddr;

use super::output::{format_errors, print_line};
use crate::engine::Engine;
use crate::engine::access::keys::KeyKind;
use metergate_domain::base::Environment;
use metergate_domain::catalog::Catalog;

/// The catalog to apply, if this file exists. Otherwise the compiled-in catalog.
const CATALOG_FILE: &str = "config/catalog.yaml";
const SAMPLE_CATALOG: &str = include_str!("../../config/catalog.yaml");

/// Applies the catalog and prints a key and a command, unless the test environment has a catalog.
pub(super) async fn first_run(engine: &Engine, address: SocketAddr) -> anyhow::Result<()> {
    let environment = Environment::Test;
    if engine.catalog(environment).await?.version > 0 {
        return Ok(());
    }
    let edited = std::fs::read_to_string(CATALOG_FILE).ok();
    let catalog = Catalog::read_yaml(edited.as_deref().unwrap_or(SAMPLE_CATALOG))
        .map_err(|errors| anyhow::anyhow!(format_errors(&errors)))?;
    engine.apply_catalog(environment, catalog, false).await?;
    let key = engine.create_key(environment, KeyKind::Secret, "first start").await?;
    print_line(format_args!(
        "A secret key for the test environment, shown only now:\n\n  export KEY={key}\n\nTry it:\n\n  \
         curl http://{address}/v1/events -H \"Authorization: Bearer $KEY\" -H 'Content-Type: application/json' \\\n    \
         -d '{{\"event_name\": \"ai_tokens\", \"subject\": \"user_1\", \"value\": 1500, \"properties\": {{\"model\": \"gpt-4o\"}}}}'\n  \
         curl http://{address}/v1/subjects/user_1/usage -H \"Authorization: Bearer $KEY\"\n\n\
         All endpoints: http://{address}/docs\n"
    ))
}
