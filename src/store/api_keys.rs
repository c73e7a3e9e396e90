//! Keys of the API, by their public part.

use sqlx::{PgPool, Row};

use super::StoreError;
use metergate_domain::base::environment::Environment;
use metergate_domain::base::timestamp::Timestamp;

#[derive(Debug, Clone)]
pub struct ApiKeyRow {
    pub id: String,
    pub environment: Environment,
    pub kind: String,
    pub name: String,
    pub digest: Vec<u8>,
    pub created_at: Timestamp,
    pub revoked_at: Option<Timestamp>,
}

fn read(row: &sqlx::postgres::PgRow) -> Result<ApiKeyRow, StoreError> {
    let code: i16 = row.try_get("environment")?;
    Ok(ApiKeyRow {
        id: row.try_get("id")?,
        environment: if code == Environment::Live.code() { Environment::Live } else { Environment::Test },
        kind: row.try_get("kind")?,
        name: row.try_get("name")?,
        digest: row.try_get("digest")?,
        created_at: row.try_get("created_at")?,
        revoked_at: row.try_get("revoked_at")?,
    })
}

pub async fn insert(
    pool: &PgPool,
    id: &str,
    environment: Environment,
    kind: &str,
    name: &str,
    digest: &[u8],
) -> Result<(), StoreError> {
    sqlx::query("insert into api_keys (id, environment, kind, name, digest) values ($1, $2, $3, $4, $5)")
        .bind(id)
        .bind(environment.code())
        .bind(kind)
        .bind(name)
        .bind(digest)
        .execute(pool)
        .await?;
    Ok(())
}

/// A key that has not been revoked.
pub async fn find_active(pool: &PgPool, id: &str) -> Result<Option<ApiKeyRow>, StoreError> {
    let row = sqlx::query("select * from api_keys where id = $1 and revoked_at is null")
        .bind(id)
        .fetch_optional(pool)
        .await?;
    row.as_ref().map(read).transpose()
}

pub async fn list(pool: &PgPool) -> Result<Vec<ApiKeyRow>, StoreError> {
    let rows = sqlx::query("select * from api_keys order by created_at, id").fetch_all(pool).await?;
    rows.iter().map(read).collect()
}

/// Whether there was such a key to revoke.
pub async fn revoke(pool: &PgPool, id: &str) -> Result<bool, StoreError> {
    let done = sqlx::query("update api_keys set revoked_at = coalesce(revoked_at, now()) where id = $1")
        .bind(id)
        .execute(pool)
        .await?;
    Ok(done.rows_affected() > 0)
}
