//! What events cost one by one, where a price bounds the fee of each: read from the events themselves,
//! exactly.

use std::collections::BTreeMap;

use sqlx::{PgConnection, QueryBuilder, Row};

use super::StoreError;
use super::measures::{Scope, push_measures};
use super::usage::{Holders, Question, needed_dimensions, push_slice};
use crate::domain::environment::Environment;
use crate::domain::pricing::amount::Amount;

/// A percentage of each event's value and an amount for each, within bounds.
#[derive(Debug, Clone, Copy)]
pub struct Fee<'a> {
    /// In percent.
    pub rate: &'a Amount,
    pub fixed_amount: &'a Amount,
    pub least: Option<&'a Amount>,
    pub most: Option<&'a Amount>,
}

/// The fees of the events that one slice of a question takes, by holder and part between bounds. What
/// was taken back gives its fee back.
pub async fn sums(
    connection: &mut PgConnection,
    environment: Environment,
    question: &Question<'_>,
    place: usize,
    fee: Fee<'_>,
) -> Result<BTreeMap<(Option<String>, usize), Amount>, StoreError> {
    let Question { stored, query, paths, holders, bounds, .. } = *question;
    let dimensions = needed_dimensions(query);
    let number = |amount: &Amount| amount.to_string();
    let mut sql =
        QueryBuilder::new("select w, subject, sum(sign * fee)::text as fees from (select width_bucket(at, ");
    sql.push_bind(bounds.to_vec()).push(") as w, sign, ");
    sql.push(if holders.is_some() { "holder.subject_id::text" } else { "null::text" }).push(" as subject, ");
    push_slice(&mut sql, &query.slices, &dimensions);
    // times a hundredth, not divided by a hundred: that would round
    sql.push(" as slice, least(greatest(number * ").push_bind(number(fee.rate));
    sql.push("::numeric * 0.01 + ").push_bind(number(fee.fixed_amount)).push("::numeric, ");
    sql.push_bind(fee.least.map(number)).push("::numeric), ");
    sql.push_bind(fee.most.map(number)).push("::numeric) as fee from (");
    let spans = [query.span];
    push_measures(&mut sql, environment, stored, &dimensions, paths, &Scope::Spans(&spans));
    sql.push(") measures");
    if let Some(Holders { paths, subject_ids }) = holders {
        sql.push(" join unnest(").push_bind(paths.clone()).push(", ").push_bind(subject_ids.clone());
        sql.push(") as holder (path_id, subject_id) using (path_id)");
    }
    sql.push(") fees where slice = ").push_bind(i32::try_from(place).unwrap_or(i32::MAX));
    sql.push(" group by w, subject");
    let rows = sql.build().persistent(false).fetch_all(connection).await?;
    rows.iter()
        .map(|row| {
            let (window, text): (i32, String) = (row.try_get("w")?, row.try_get("fees")?);
            let fees = Amount::from_sum(&text)
                .ok_or_else(|| StoreError::Refused(sqlx::Error::Decode("a sum that is no number".into())))?;
            // width_bucket counts from 1
            let window = usize::try_from(window - 1).unwrap_or_default();
            Ok(((row.try_get("subject")?, window), fees))
        })
        .collect()
}
