//! Catalogs and their meters.

use std::collections::{HashMap, HashSet};

use serde_json::Value;
use sqlx::types::Json;
use sqlx::{FromRow, PgConnection};
use uuid::Uuid;

use super::StoreError;
use crate::store::scope::Scope;
use metergate_domain::base::Timestamp;
use metergate_domain::catalog::{Catalog, Meter, StoredMeter};
use metergate_domain::gate::EffectiveFrom;

/// Returns the catalog in force and its version. Without a catalog, returns an empty one and version 0.
pub async fn current(scope: &mut Scope<'_>) -> Result<(Catalog, i64), StoreError> {
    let row: Option<(Json<Value>, i64)> = sqlx::query_as(
        "select document, version from catalogs where environment = $1 order by version desc limit 1",
    )
    .bind(scope.environment.code())
    .fetch_optional(&mut *scope.connection)
    .await?;
    let Some((Json(document), version)) = row else { return Ok((Catalog::default(), 0)) };
    Ok((stored(Catalog::read_stored(document))?, version))
}

/// Returns the latest catalog that contains a plan.
pub async fn last_with_plan(scope: &mut Scope<'_>, plan: &str) -> Result<Option<Catalog>, StoreError> {
    let found = sqlx::query_scalar(
        "select document from catalogs
         where environment = $1 and document @> jsonb_build_object('plans', jsonb_build_array(jsonb_build_object('key', $2::text)))
         order by version desc limit 1",
    )
    .bind(scope.environment.code())
    .bind(plan)
    .fetch_optional(&mut *scope.connection)
    .await?;
    found.map(|Json(document): Json<Value>| stored(Catalog::read_stored(document))).transpose()
}

pub async fn insert_version(
    scope: &mut Scope<'_>,
    version: i64,
    catalog: &Catalog,
) -> Result<(), StoreError> {
    sqlx::query(
        "with made as (insert into catalogs (environment, version, document) values ($1, $2, $3))
         update environments set catalog_version = catalog_version + 1 where environment = $1",
    )
    .bind(scope.environment.code())
    .bind(version)
    .bind(Json(catalog))
    .execute(&mut *scope.connection)
    .await?;
    Ok(())
}

/// Returns the times since which plans have limits of their definitions.
pub async fn plan_limits(
    scope: &mut Scope<'_>,
) -> Result<HashMap<(String, Uuid), EffectiveFrom>, StoreError> {
    let rows: Vec<(String, Uuid, Timestamp, i64)> =
        sqlx::query_as("select plan, definition, since, version from plan_limits where environment = $1")
            .bind(scope.environment.code())
            .fetch_all(&mut *scope.connection)
            .await?;
    let keyed = |(plan, definition, at, version)| ((plan, definition), EffectiveFrom { at, version });
    Ok(rows.into_iter().map(keyed).collect())
}

/// Stores the definitions of a plan's limits: new ones start now, in the version that the caller has
/// raised. Removes other definitions and returns them.
pub async fn set_plan_limits(
    scope: &mut Scope<'_>,
    plan: &str,
    definitions: &[Uuid],
    now: Timestamp,
) -> Result<Vec<Uuid>, StoreError> {
    sqlx::query(
        "insert into plan_limits (environment, plan, definition, since, version)
         select distinct $1, $2, definition, $4::timestamptz, e.config_version
         from unnest($3::uuid[]) definition join environments e on e.environment = $1
         on conflict on constraint plan_limits_pk do nothing",
    )
    .bind(scope.environment.code())
    .bind(plan)
    .bind(definitions)
    .bind(now)
    .execute(&mut *scope.connection)
    .await?;
    let dropped = sqlx::query_scalar(
        "delete from plan_limits where environment = $1 and plan = $2 and definition <> all($3)
         returning definition",
    )
    .bind(scope.environment.code())
    .bind(plan)
    .bind(definitions)
    .fetch_all(&mut *scope.connection)
    .await?;
    Ok(dropped)
}

/// Returns all meters of the environment, by key.
pub async fn meters(scope: &mut Scope<'_>) -> Result<Vec<StoredMeter>, StoreError> {
    let rows: Vec<MeterRow> = sqlx::query_as(
        "select id, event_name_id, definition from meters where environment = $1 order by key",
    )
    .bind(scope.environment.code())
    .fetch_all(&mut *scope.connection)
    .await?;
    rows.into_iter().map(MeterRow::read).collect()
}

/// Returns a meter of the environment by key.
pub async fn meter(scope: &mut Scope<'_>, key: &str) -> Result<Option<StoredMeter>, StoreError> {
    let row: Option<MeterRow> = sqlx::query_as(
        "select id, event_name_id, definition from meters where environment = $1 and key = $2",
    )
    .bind(scope.environment.code())
    .bind(key)
    .fetch_optional(&mut *scope.connection)
    .await?;
    row.map(MeterRow::read).transpose()
}

#[derive(FromRow)]
struct MeterRow {
    id: i32,
    event_name_id: i32,
    #[sqlx(json)]
    definition: Value,
}

impl MeterRow {
    fn read(self) -> Result<StoredMeter, StoreError> {
        let Self { id, event_name_id, definition } = self;
        Ok(StoredMeter { id, event_name_id, meter: stored(Meter::read(definition))? })
    }
}

/// Converts a violation in a stored document into an error of the store.
fn stored<T>(read: metergate_domain::base::fields::Parsed<T>) -> Result<T, StoreError> {
    read.map_err(|violations| {
        StoreError::Refused(sqlx::Error::Decode(
            format!("a stored catalog is not valid: {violations:?}").into(),
        ))
    })
}

pub async fn insert_meter(
    scope: &mut Scope<'_>,
    event_name_id: i32,
    meter: &Meter,
) -> Result<i32, StoreError> {
    let id = sqlx::query_scalar(
        "insert into meters (environment, key, event_name_id, definition) values ($1, $2, $3, $4) returning id",
    )
    .bind(scope.environment.code())
    .bind(meter.key.as_str())
    .bind(event_name_id)
    .bind(Json(meter))
    .fetch_one(&mut *scope.connection)
    .await?;
    Ok(id)
}

pub async fn update_meter(connection: &mut PgConnection, id: i32, meter: &Meter) -> Result<(), StoreError> {
    sqlx::query("update meters set definition = $2 where id = $1")
        .bind(id)
        .bind(Json(meter))
        .execute(connection)
        .await?;
    Ok(())
}

pub async fn delete_meter(connection: &mut PgConnection, id: i32) -> Result<(), StoreError> {
    sqlx::query("delete from meters where id = $1").bind(id).execute(connection).await?;
    Ok(())
}

/// Returns whether an event with a name exists. The answer is exact only while nothing is recorded.
pub async fn has_events(scope: &mut Scope<'_>, event_name_id: i32) -> Result<bool, StoreError> {
    let found = sqlx::query_scalar(
        "select exists (select from events where environment = $1 and event_name_id = $2)",
    )
    .bind(scope.environment.code())
    .bind(event_name_id)
    .fetch_one(&mut *scope.connection)
    .await?;
    Ok(found)
}

/// Adds a gap of all hours of a meter: reads use its events until a job has built the rollups.
pub async fn insert_gap(scope: &mut Scope<'_>, meter_id: i32, permanent: bool) -> Result<(), StoreError> {
    sqlx::query(
        "insert into rollup_gaps (environment, meter_id, from_hour, to_hour, permanent) values ($1, $2, $3, $4, $5)",
    )
    .bind(scope.environment.code())
    .bind(meter_id)
    .bind(Timestamp::MIN.hour_floor())
    .bind(Timestamp::MAX.hour_floor())
    .bind(permanent)
    .execute(&mut *scope.connection)
    .await?;
    Ok(())
}

/// Returns all event names that an event or a meter ever used.
pub async fn known_event_names(scope: &mut Scope<'_>) -> Result<HashSet<String>, StoreError> {
    let names: Vec<String> = sqlx::query_scalar("select name from event_names where environment = $1")
        .bind(scope.environment.code())
        .fetch_all(&mut *scope.connection)
        .await?;
    Ok(names.into_iter().collect())
}

/// Returns the numbers of event names, and inserts missing names.
pub async fn event_name_ids(
    scope: &mut Scope<'_>,
    names: &[String],
) -> Result<Vec<(String, i32)>, StoreError> {
    sqlx::query(
        "insert into event_names (environment, name) select $1, name from unnest($2::text[]) name
         on conflict on constraint event_names_name do nothing",
    )
    .bind(scope.environment.code())
    .bind(names)
    .execute(&mut *scope.connection)
    .await?;
    let rows = sqlx::query_as("select name, id from event_names where environment = $1 and name = any($2)")
        .bind(scope.environment.code())
        .bind(names)
        .fetch_all(&mut *scope.connection)
        .await?;
    Ok(rows)
}
