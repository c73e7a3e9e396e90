//! Where usage of a customer lies: each event names the customer it was recorded for, whatever became of
//! mappings and of the tree since. Values are read by [`super::usage`].

use sqlx::PgConnection;

use crate::store::StoreError;
use crate::store::scope::Scope;
use metergate_domain::base::environment::Environment;
use metergate_domain::base::timestamp::Timestamp;
use metergate_domain::base::window::Span;

/// Whose usage, and of when.
#[derive(Debug, Clone, Copy)]
pub struct CustomerScope<'a> {
    pub environment: Environment,
    pub customer_id: i64,
    /// See [`paths`].
    pub paths: &'a [i64],
    pub span: Span,
}

/// The paths on which usage of a customer may lie, of those that have a subject as the nearest that was
/// ever mapped to it.
pub async fn paths(
    connection: &mut PgConnection,
    customer_id: i64,
    subject_id: i64,
) -> Result<Vec<i64>, StoreError> {
    let found = sqlx::query_scalar(
        "select p.id from paths p
         where p.ancestors && array[$2::bigint] and $2 = (
             select level.id from unnest(p.ancestors) with ordinality as level (id, n)
             where exists (select from customer_mappings m where m.customer_id = $1 and m.subject_id = level.id)
             order by level.n limit 1)",
    )
    .bind(customer_id)
    .bind(subject_id)
    .fetch_all(connection)
    .await?;
    Ok(found)
}

/// Whether anything was recorded for a customer.
pub async fn is_any(connection: &mut PgConnection, whose: CustomerScope<'_>) -> Result<bool, StoreError> {
    let found = sqlx::query_scalar(
        "select exists (select from events where environment = $1 and customer_id = $2 and path_id = any($3)
                                             and occurred_at >= $4 and occurred_at < $5)",
    )
    .bind(whose.environment.code())
    .bind(whose.customer_id)
    .bind(whose.paths)
    .bind(whose.span.from)
    .bind(whose.span.to)
    .fetch_one(connection)
    .await?;
    Ok(found)
}

/// When events of a customer happened that were taken back since a time.
pub async fn taken_back_since(
    scope: &mut Scope<'_>,
    customer_id: i64,
    since: Timestamp,
) -> Result<Vec<Timestamp>, StoreError> {
    let found = sqlx::query_scalar(
        "select distinct e.occurred_at
         from voids v join events e on e.batch_id = v.batch_id and e.key = v.key and e.sign = -1
         where v.environment = $1 and v.voided_at >= $3 and e.environment = $1 and e.customer_id = $2",
    )
    .bind(scope.environment.code())
    .bind(customer_id)
    .bind(since)
    .fetch_all(&mut *scope.connection)
    .await?;
    Ok(found)
}
