//! API keys by their public part.

use serde::Serialize;
use sqlx::{FromRow, PgPool, Row};

use super::StoreError;
use metergate_domain::base::{Environment, Timestamp};

/// A stored API key without its secret.
#[derive(Debug, Clone, FromRow, Serialize)]
pub struct ApiKey {
    pub id: String,
    #[sqlx(try_from = "i16")]
    pub environment: Environment,
    pub kind: String,
    pub name: String,
    pub created_at: Timestamp,
    pub revoked_at: Option<Timestamp>,
}

/// A new API key.
#[derive(Debug, Clone, Copy)]
pub struct NewApiKey<'a> {
    pub id: &'a str,
    pub environment: Environment,
    pub kind: &'a str,
    pub name: &'a str,
    pub digest: &'a [u8],
}

pub async fn insert(pool: &PgPool, key: NewApiKey<'_>) -> Result<(), StoreError> {
    sqlx::query("insert into api_keys (id, environment, kind, name, digest) values ($1, $2, $3, $4, $5)")
        .bind(key.id)
        .bind(key.environment.code())
        .bind(key.kind)
        .bind(key.name)
        .bind(key.digest)
        .execute(pool)
        .await?;
    Ok(())
}

/// Returns a key that has not been revoked, with its digest.
pub async fn find_active(pool: &PgPool, id: &str) -> Result<Option<(ApiKey, Vec<u8>)>, StoreError> {
    let row = sqlx::query("select * from api_keys where id = $1 and revoked_at is null").bind(id);
    let row = row.fetch_optional(pool).await?;
    row.map(|row| Ok((ApiKey::from_row(&row)?, row.try_get("digest")?))).transpose()
}

/// Returns all keys, including revoked ones.
pub async fn list(pool: &PgPool) -> Result<Vec<ApiKey>, StoreError> {
    Ok(sqlx::query_as("select * from api_keys order by created_at, id").fetch_all(pool).await?)
}

/// Revokes a key and returns false if no key has the id.
pub async fn revoke(pool: &PgPool, id: &str) -> Result<bool, StoreError> {
    let done = sqlx::query("update api_keys set revoked_at = coalesce(revoked_at, now()) where id = $1")
        .bind(id)
        .execute(pool)
        .await?;
    Ok(done.rows_affected() > 0)
}
