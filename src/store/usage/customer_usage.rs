//! What was recorded for a customer, as prices rate it: read from the events themselves, each of which
//! names whom it was recorded for. Exact whatever became of mappings and of the tree since.

use std::collections::HashMap;

use sqlx::{PgConnection, Postgres, QueryBuilder, Row};

use super::measures::{MeasureScope, push_measures};
use super::push_slice;
use crate::store::StoreError;
use crate::store::pricing::event_fees::Fee;
use metergate_domain::base::environment::Environment;
use metergate_domain::base::quantity::Total;
use metergate_domain::base::timestamp::Timestamp;
use metergate_domain::base::window::Span;
use metergate_domain::catalog::meter::{Aggregation, StoredMeter};
use metergate_domain::pricing::amount::Amount;
use metergate_domain::pricing::price::Price;
use metergate_domain::usage::query::UsageSlice;

/// Whose usage, and of when.
#[derive(Debug, Clone, Copy)]
pub struct CustomerScope<'a> {
    pub environment: Environment,
    pub customer_id: i64,
    /// See [`paths`].
    pub paths: &'a [i64],
    pub span: Span,
}

/// What was used of what a price rates.
#[derive(Debug, Clone, Default)]
pub struct CustomerUsage {
    pub count: i64,
    pub value: Total,
    /// What its events cost one by one, of prices that bound that.
    pub event_fees: Option<Amount>,
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
    connection: &mut PgConnection,
    environment: Environment,
    customer_id: i64,
    since: Timestamp,
) -> Result<Vec<Timestamp>, StoreError> {
    let found = sqlx::query_scalar(
        "select distinct e.occurred_at
         from voids v join events e on e.batch_id = v.batch_id and e.key = v.key and e.sign = -1
         where v.environment = $1 and v.voided_at >= $3 and e.environment = $1 and e.customer_id = $2",
    )
    .bind(environment.code())
    .bind(customer_id)
    .bind(since)
    .fetch_all(connection)
    .await?;
    Ok(found)
}

/// What the first of some prices of a meter that admits it rates, by the place of the price.
pub async fn find(
    connection: &mut PgConnection,
    whose: CustomerScope<'_>,
    stored: &StoredMeter,
    prices: &[&Price],
) -> Result<HashMap<usize, CustomerUsage>, StoreError> {
    let slices: Vec<UsageSlice> = prices.iter().map(|price| price.slice()).collect();
    let mut dimensions: Vec<String> = slices.iter().flat_map(|slice| slice.filter.keys().cloned()).collect();
    dimensions.sort_unstable();
    dimensions.dedup();
    let mut sql = QueryBuilder::new("with measures as (");
    let spans = [whose.span];
    push_measures(
        &mut sql,
        whose.environment,
        stored,
        &dimensions,
        Some(whose.paths),
        &MeasureScope::Spans(&spans),
    );
    sql.push("), placed as (select *, ");
    push_slice(&mut sql, &slices, &dimensions);
    sql.push(" as place from measures where customer_id = ").push_bind(whose.customer_id).push(") ");
    match stored.meter.aggregation {
        Aggregation::Sum | Aggregation::Count => {
            sql.push(
                "select place, sum(sign)::bigint as count, sum(sign * number)::text as value, sum(sign * ",
            );
            push_fee(&mut sql, prices);
            sql.push(")::text as fees");
        }
        Aggregation::Max => {
            sql.push(
                "select place, sum(sign)::bigint as count, (max(number) filter (where live))::text as value,
                 null::text as fees",
            );
        }
        Aggregation::Last => {
            sql.push(
                "select place, sum(sign)::bigint as count, null::text as fees,
                 (max(array[extract(epoch from at), batch_id, ordinal, number]) filter (where live))[4]::text as value",
            );
        }
        Aggregation::UniqueCount => {
            sql.push(
                "select place, sum(count)::bigint as count, (count(*) filter (where count > 0))::text as value,
                 null::text as fees
                 from (select place, member, sum(sign)::bigint as count from placed group by place, member) placed",
            );
        }
        // the catalog lets them have no price
        Aggregation::Avg | Aggregation::Min => return Ok(HashMap::new()),
    }
    if stored.meter.aggregation != Aggregation::UniqueCount {
        sql.push(" from placed");
    }
    sql.push(" where place is not null group by place");
    let rows = sql.build().persistent(false).fetch_all(connection).await?;
    let mut found = HashMap::new();
    for row in rows {
        let place: i32 = row.try_get("place")?;
        let (value, fees): (Option<String>, Option<String>) = (row.try_get("value")?, row.try_get("fees")?);
        let unreadable = || StoreError::Refused(sqlx::Error::Decode("a sum that is no number".into()));
        let value = value.map(|text| Total::from_decimal(&text).map_err(|_| unreadable())).transpose()?;
        let fees = fees.map(|text| Amount::from_sum(&text).ok_or_else(unreadable)).transpose()?;
        let place = usize::try_from(place).unwrap_or_default();
        let has_fees = prices.get(place).is_some_and(|price| price.model.bounds_events());
        let usage = CustomerUsage {
            count: row.try_get("count")?,
            value: value.unwrap_or_default(),
            event_fees: fees.filter(|_| has_fees),
        };
        found.insert(place, usage);
    }
    Ok(found)
}

/// What the price at its place takes of an event, where that bounds it; else nothing.
fn push_fee(sql: &mut QueryBuilder<Postgres>, prices: &[&Price]) {
    sql.push("case place");
    for (place, price) in prices.iter().enumerate().filter(|(_, price)| price.model.bounds_events()) {
        if let Some(fee) = Fee::of(&price.model) {
            sql.push(format!(" when {place} then "));
            fee.push(sql);
        }
    }
    // a case needs a branch
    sql.push(" when -1 then 0::numeric else 0::numeric end");
}
