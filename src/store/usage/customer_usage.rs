//! The usage of a customer. Each event stores the customer at the time of recording, so later changes
//! of mappings or parents do not matter. [`super::usage`] reads the values.

use sqlx::PgConnection;

use crate::store::StoreError;
use crate::store::scope::Scope;
use metergate_domain::base::{Environment, Span, Timestamp};

/// A customer, the paths of its usage, and a time span.
#[derive(Debug, Clone, Copy)]
pub struct CustomerScope<'a> {
    pub environment: Environment,
    pub customer_id: i64,
    /// The result of [`paths`].
    pub paths: &'a [i64],
    pub span: Span,
}

/// Returns the paths with usage of a customer through a subject. The subject must be the nearest one
/// on the path that was ever mapped to the customer.
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

/// Returns whether a customer has any events.
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

/// Returns the times of the customer's events that were voided since a time.
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
