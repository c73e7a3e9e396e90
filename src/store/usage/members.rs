//! Members that a `unique_count` meter has counted.

use sqlx::{PgConnection, QueryBuilder};

use super::measures::{MeasureScope, Measures};
use super::query::{Dimensions, MeterQuery};
use crate::store::StoreError;

/// Returns whether a `unique_count` meter has counted a member within a query.
pub async fn has_member(
    connection: &mut PgConnection,
    meter_query: &MeterQuery<'_>,
    member: &str,
) -> Result<bool, StoreError> {
    let dimensions = Dimensions::needed(meter_query.query);
    let spans = [meter_query.query.span];
    let mut sql = QueryBuilder::new("select coalesce(sum(sign), 0) > 0 from (");
    Measures::of(meter_query, &dimensions, MeasureScope::Spans(&spans)).push(&mut sql);
    sql.push(") measures where member = ").push_bind(member.to_owned());
    dimensions.push_filter(&mut sql, &meter_query.query.filter)?;
    Ok(sql.build_query_scalar().persistent(false).fetch_one(connection).await?)
}
