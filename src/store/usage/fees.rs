//! What events cost one by one, by prices that take a percentage of each: read from the events themselves.
//! What is shown and billed is exact; counters that caps look at take each event rounded up to the digits
//! of a quantity, since they hold it before it is known what else there will be.

use std::collections::BTreeMap;

use sqlx::{PgConnection, Postgres, QueryBuilder, Row};

use super::measures::{MeasureScope, Measures};
use super::query::{Dimensions, MeterQuery};
use super::reader::read_key;
use super::rollups::{group_columns, push_groups, push_subjects};
use crate::store::StoreError;
use metergate_domain::gate::counted_prices::CapMeasure;
use metergate_domain::pricing::amount::Amount;
use metergate_domain::pricing::price::{Model, Price};
use metergate_domain::usage::query::Group;

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
    pub(super) fn push(&self, sql: &mut QueryBuilder<Postgres>) {
        let number = |amount: &Amount| amount.to_string();
        // times a hundredth, not divided by a hundred: that would round
        sql.push("least(greatest(number * ").push_bind(number(self.rate));
        sql.push("::numeric * 0.01 + ").push_bind(number(self.fixed_amount)).push("::numeric, ");
        sql.push_bind(self.least.map(number)).push("::numeric), ");
        sql.push_bind(self.most.map(number)).push("::numeric)");
    }

    /// Writes the part that a counter takes, rounded up to the digits of a quantity, as `Slice::measure` does.
    fn push_above(&self, sql: &mut QueryBuilder<Postgres>, measure: CapMeasure) {
        sql.push("ceil((");
        self.push(sql);
        if measure == CapMeasure::Excess {
            sql.push(" - number * ").push_bind(self.rate.to_string()).push("::numeric * 0.01");
        }
        sql.push(") * 1000000000) * 0.000000001");
    }
}

/// The fee of the events that a slice of a question takes.
#[derive(Debug, Clone, Copy)]
pub struct SliceFee<'a> {
    /// The place of the slice.
    pub slice: usize,
    pub fee: Fee<'a>,
    /// As a counter takes it, rounded up; none: exactly.
    pub counted_as: Option<CapMeasure>,
}

impl<'a> SliceFee<'a> {
    /// The exact fees of prices that bound what each event costs, by their place.
    pub fn of_prices(prices: &[&'a Price]) -> Vec<Self> {
        let bounding = prices.iter().enumerate().filter(|(_, price)| price.model.bounds_events());
        bounding
            .filter_map(|(slice, price)| Some(Self { slice, fee: Fee::of(&price.model)?, counted_as: None }))
            .collect()
    }
}

/// Returns the fees of events, by window and group. An event that was taken back gives its fee back.
pub async fn fees(
    connection: &mut PgConnection,
    meter_query: &MeterQuery<'_>,
    fees: &[SliceFee<'_>],
) -> Result<BTreeMap<(usize, Group), Amount>, StoreError> {
    if fees.is_empty() {
        return Ok(BTreeMap::new());
    }
    let dimensions = Dimensions::needed(meter_query.query);
    let groups = meter_query.query.group_by.len();
    let columns = group_columns(meter_query.query);
    let mut sql = QueryBuilder::new(format!("select w, subject, slice{columns}, sum(sign * case slice"));
    for SliceFee { slice, fee, counted_as } in fees {
        sql.push(format!(" when {slice} then "));
        match counted_as {
            None => fee.push(&mut sql),
            Some(measure) => fee.push_above(&mut sql, *measure),
        }
    }
    sql.push(" end)::text as fees from (select width_bucket(at, ").push_bind(meter_query.bounds.to_vec());
    sql.push(") as w, sign, number");
    push_groups(&mut sql, meter_query, &dimensions)?;
    sql.push(" from (");
    let spans = [meter_query.query.span];
    Measures::of(meter_query, &dimensions, MeasureScope::Spans(&spans)).push(&mut sql);
    sql.push(") named");
    push_subjects(&mut sql, meter_query);
    sql.push(" where true");
    dimensions.push_filter(&mut sql, &meter_query.query.filter)?;
    let slices: Vec<i32> = fees.iter().filter_map(|fee| i32::try_from(fee.slice).ok()).collect();
    sql.push(") measures where slice = any(").push_bind(slices);
    sql.push(format!(") group by w, subject, slice{columns}"));
    let rows = sql.build().persistent(false).fetch_all(connection).await?;
    rows.iter()
        .map(|row| {
            let text: &str = row.try_get("fees")?;
            let fees = Amount::from_sum(text);
            let fees =
                fees.ok_or_else(|| StoreError::internal(format!("the sum `{text}` is not a number")))?;
            Ok((read_key(row, groups)?, fees))
        })
        .collect()
}
