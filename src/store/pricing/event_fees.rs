//! What events cost one by one, by prices that take a percentage of each: read from the events themselves.
//! What is shown and billed is exact; counters that caps look at take each event rounded up to the digits
//! of a quantity, since they hold it before it is known what else there will be.

use std::collections::BTreeMap;

use sqlx::{PgConnection, Postgres, QueryBuilder, Row};

use crate::store::StoreError;
use crate::store::usage::measures::{MeasureScope, push_measures};
use crate::store::usage::{HolderColumns, MeterQuery, needed_dimensions, push_slice};
use metergate_domain::base::environment::Environment;
use metergate_domain::base::quantity::Total;
use metergate_domain::base::window::Span;
use metergate_domain::catalog::meter::StoredMeter;
use metergate_domain::gate::counted_prices::{CapMeasure, CountedSlice};
use metergate_domain::pricing::amount::Amount;
use metergate_domain::pricing::price::Model;
use metergate_domain::usage::event::Properties;

/// A percentage of each event's value and an amount for each, within bounds.
#[derive(Debug, Clone, Copy)]
pub struct Fee<'a> {
    /// In percent.
    rate: &'a Amount,
    fixed_amount: &'a Amount,
    least: Option<&'a Amount>,
    most: Option<&'a Amount>,
}

impl<'a> Fee<'a> {
    /// None of a model that does not look at each event.
    pub fn of(model: &'a Model) -> Option<Self> {
        let Model::Percentage { rate, fixed_amount, event_minimum, event_maximum } = model else {
            return None;
        };
        Some(Self { rate, fixed_amount, least: event_minimum.as_ref(), most: event_maximum.as_ref() })
    }

    /// Writes the fee of the event whose value is in the column `number`, exactly.
    pub(crate) fn push(&self, sql: &mut QueryBuilder<Postgres>) {
        let number = |amount: &Amount| amount.to_string();
        // times a hundredth, not divided by a hundred: that would round
        sql.push("least(greatest(number * ").push_bind(number(self.rate));
        sql.push("::numeric * 0.01 + ").push_bind(number(self.fixed_amount)).push("::numeric, ");
        sql.push_bind(self.least.map(number)).push("::numeric), ");
        sql.push_bind(self.most.map(number)).push("::numeric)");
    }

    /// What a counter takes of it, rounded up to the digits of a quantity, as `CountedSlice::measure` does.
    fn push_above(&self, sql: &mut QueryBuilder<Postgres>, measure: CapMeasure) {
        sql.push("ceil((");
        self.push(sql);
        if measure == CapMeasure::Excess {
            sql.push(" - number * ").push_bind(self.rate.to_string()).push("::numeric * 0.01");
        }
        sql.push(") * 1000000000) * 0.000000001");
    }
}

/// The fees of the events that one slice of a question takes, by holder and part between bounds. What
/// was taken back gives its fee back.
pub async fn sums(
    connection: &mut PgConnection,
    environment: Environment,
    meter_query: &MeterQuery<'_>,
    place: usize,
    fee: Fee<'_>,
) -> Result<BTreeMap<(Option<String>, usize), Amount>, StoreError> {
    let MeterQuery { stored, query, paths, holders, bounds, .. } = *meter_query;
    let dimensions = needed_dimensions(query);
    let mut sql =
        QueryBuilder::new("select w, subject, sum(sign * fee)::text as fees from (select width_bucket(at, ");
    sql.push_bind(bounds.to_vec()).push(") as w, sign, ");
    sql.push(if holders.is_some() { "holder.subject_id::text" } else { "null::text" }).push(" as subject, ");
    push_slice(&mut sql, &query.slices, &dimensions);
    sql.push(" as slice, ");
    fee.push(&mut sql);
    sql.push(" as fee from (");
    let spans = [query.span];
    push_measures(&mut sql, environment, stored, &dimensions, paths, &MeasureScope::Spans(&spans));
    sql.push(") measures");
    if let Some(HolderColumns { paths, subject_ids }) = holders {
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

/// The fees of the events on some paths, or their excess, as a counter takes them: by the dimensions that tell which price
/// rates them.
pub async fn fees_above(
    connection: &mut PgConnection,
    environment: Environment,
    stored: &StoredMeter,
    (slice, measure): (&CountedSlice<'_>, CapMeasure),
    paths: &[i64],
    span: Span,
) -> Result<Vec<(Properties, Total)>, StoreError> {
    let Some(fee) = Fee::of(&slice.price.model) else { return Ok(Vec::new()) };
    let dimensions = slice.rated.dimensions();
    let mut sql = QueryBuilder::new("select members, sum(sign * ");
    fee.push_above(&mut sql, measure);
    sql.push(") as fees from (");
    push_measures(&mut sql, environment, stored, &dimensions, Some(paths), &MeasureScope::Spans(&[span]));
    sql.push(") measures group by members");
    let rows = sql.build().persistent(false).fetch_all(connection).await?;
    rows.iter()
        .map(|row| {
            let members: Vec<Option<String>> = row.try_get("members")?;
            let named = dimensions.iter().cloned().zip(members);
            let named = named.filter_map(|(name, value)| Some((name, value?.into())));
            Ok((Properties::of(named.collect()), row.try_get("fees")?))
        })
        .collect()
}
