//! Rows of the spend caps of subjects.

use serde::Deserialize;
use serde_json::Value;
use sqlx::PgConnection;
use sqlx::types::Json;

use crate::store::StoreError;
use crate::store::scope::Scope;
use metergate_domain::base::Timestamp;
use metergate_domain::gate::{CapTerms, EffectiveFrom};
use metergate_domain::pricing::SpendCap;

#[derive(Deserialize)]
struct Stored {
    cap: Value,
    since: String,
}

fn unreadable(what: impl std::fmt::Debug) -> StoreError {
    StoreError::Refused(sqlx::Error::Decode(format!("a stored spend cap cannot be read: {what:?}").into()))
}

/// Reads the caps of one subject from a column that aggregates them.
pub(crate) fn read(gathered: Option<Json<Vec<Value>>>) -> Result<Vec<CapTerms>, StoreError> {
    let read = |value: Value| {
        let stored: Stored = serde_json::from_value(value).map_err(unreadable)?;
        let at = Timestamp::parse(&stored.since).map_err(unreadable)?;
        let cap = SpendCap::read(stored.cap).map_err(unreadable)?;
        // earlier usage of the cap is unknown
        Ok(CapTerms { cap, since: EffectiveFrom { at, ..EffectiveFrom::UNKNOWN } })
    };
    gathered.into_iter().flat_map(|Json(caps)| caps).map(read).collect()
}

/// Returns the caps of a subject, by key.
pub async fn of_subject(connection: &mut PgConnection, subject_id: i64) -> Result<Vec<CapTerms>, StoreError> {
    let gathered = sqlx::query_scalar(
        "select jsonb_agg(jsonb_build_object('cap', cap, 'since', since) order by key) as caps
         from spend_caps where subject_id = $1",
    )
    .bind(subject_id)
    .fetch_one(connection)
    .await?;
    read(gathered)
}

/// Replaces the caps of a subject. The caller holds the configuration lock.
pub async fn replace(scope: &mut Scope<'_>, subject_id: i64, caps: &[CapTerms]) -> Result<(), StoreError> {
    sqlx::query("delete from spend_caps where subject_id = $1")
        .bind(subject_id)
        .execute(&mut *scope.connection)
        .await?;
    sqlx::query(
        "insert into spend_caps (subject_id, key, environment, cap, since)
         select $1, key, $2, cap, since from unnest($3::text[], $4::jsonb[], $5::timestamptz[]) as given (key, cap, since)",
    )
    .bind(subject_id)
    .bind(scope.environment.code())
    .bind(caps.iter().map(|terms| terms.cap.key.to_string()).collect::<Vec<_>>())
    .bind(caps.iter().map(|terms| Json(&terms.cap)).collect::<Vec<_>>())
    .bind(caps.iter().map(|terms| terms.since.at).collect::<Vec<_>>())
    .execute(&mut *scope.connection)
    .await?;
    Ok(())
}
