//! What events cost one by one, where a price bounds the fee of each: read from the events themselves,
//! exactly.

use std::collections::BTreeMap;

use sqlx::{PgConnection, QueryBuilder, Row};

use super::StoreError;
use super::measures::{Scope, push_measures};
use super::usage::{needed_dimensions, push_slice};
use crate::domain::environment::Environment;
use crate::domain::meter::StoredMeter;
use crate::domain::pricing::amount::Amount;
use crate::domain::timestamp::Timestamp;
use crate::domain::usage::UsageQuery;

/// A percentage of each event's value and an amount for each, within bounds.
#[derive(Debug, Clone, Copy)]
pub struct Fee<'a> {
    /// In percent.
    pub rate: &'a Amount,
    pub fixed_amount: &'a Amount,
    pub least: Option<&'a Amount>,
    pub most: Option<&'a Amount>,
}

/// The fees of the events that one slice of a question takes, between bounds, by their number. What
/// was taken back gives its fee back.
pub async fn sums(
    connection: &mut PgConnection,
    environment: Environment,
    stored: &StoredMeter,
    (query, place): (&UsageQuery, usize),
    paths: &[i64],
    bounds: &[Timestamp],
    fee: Fee<'_>,
) -> Result<BTreeMap<usize, Amount>, StoreError> {
    let dimensions = needed_dimensions(query);
    let number = |amount: &Amount| amount.to_string();
    let mut sql = QueryBuilder::new("select w, sum(sign * fee)::text as fees from (select width_bucket(at, ");
    sql.push_bind(bounds.to_vec()).push(") as w, sign, ");
    push_slice(&mut sql, &query.slices, &dimensions);
    // times a hundredth, not divided by a hundred: that would round
    sql.push(" as slice, least(greatest(number * ").push_bind(number(fee.rate));
    sql.push("::numeric * 0.01 + ").push_bind(number(fee.fixed_amount)).push("::numeric, ");
    sql.push_bind(fee.least.map(number)).push("::numeric), ");
    sql.push_bind(fee.most.map(number)).push("::numeric) as fee from (");
    let spans = [query.span];
    push_measures(&mut sql, environment, stored, &dimensions, Some(paths), &Scope::Spans(&spans));
    sql.push(") measures) fees where slice = ").push_bind(i32::try_from(place).unwrap_or(i32::MAX));
    sql.push(" group by w");
    let rows = sql.build().persistent(false).fetch_all(connection).await?;
    rows.iter()
        .map(|row| {
            let (window, text): (i32, String) = (row.try_get("w")?, row.try_get("fees")?);
            let fees = Amount::from_sum(&text)
                .ok_or_else(|| StoreError::Refused(sqlx::Error::Decode("a sum that is no number".into())))?;
            // width_bucket counts from 1
            Ok((usize::try_from(window - 1).unwrap_or_default(), fees))
        })
        .collect()
}
