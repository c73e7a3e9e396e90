//! Fees of single events, for prices that charge a percentage of each event, computed from the
//! events. Shown and invoiced fees are exact. Counters of caps add each fee rounded up to the digits
//! of a quantity, because a hold must reserve it before other events are known.

use std::collections::BTreeMap;

use sqlx::{PgConnection, Postgres, QueryBuilder, Row};

use super::measures::{MeasureScope, Measures};
use super::query::{Dimensions, MeterQuery};
use super::reader::read_key;
use super::rollups::{group_columns, push_groups, push_subjects};
use crate::store::StoreError;
use metergate_domain::gate::CapMeasure;
use metergate_domain::pricing::{Amount, Model, Price};
use metergate_domain::usage::Group;

/// A percentage of each event's value plus a fixed amount, within bounds.
#[derive(Debug, Clone, Copy)]
pub struct Fee<'a> {
    /// The percentage.
    rate: &'a Amount,
    fixed_amount: &'a Amount,
    least: Option<&'a Amount>,
    most: Option<&'a Amount>,
}

impl<'a> Fee<'a> {
    /// Returns the fee of a percentage model, or none for other models.
    pub fn of(model: &'a Model) -> Option<Self> {
        let Model::Percentage { rate, fixed_amount, event_minimum, event_maximum } = model else {
            return None;
        };
        Some(Self { rate, fixed_amount, least: event_minimum.as_ref(), most: event_maximum.as_ref() })
    }

    /// Writes the exact fee of an event. Its value is in the column `number`.
    pub(super) fn push(&self, sql: &mut QueryBuilder<Postgres>) {
        let number = |amount: &Amount| amount.to_string();
        // multiplied by 0.01, because a division by 100 would round
        sql.push("least(greatest(number * ").push_bind(number(self.rate));
        sql.push("::numeric * 0.01 + ").push_bind(number(self.fixed_amount)).push("::numeric, ");
        sql.push_bind(self.least.map(number)).push("::numeric), ");
        sql.push_bind(self.most.map(number)).push("::numeric)");
    }

    /// Writes the part of the fee that a counter adds, rounded up to the digits of a quantity like
    /// `Slice::measure`.
    fn push_above(&self, sql: &mut QueryBuilder<Postgres>, measure: CapMeasure) {
        sql.push("ceil((");
        self.push(sql);
        if measure == CapMeasure::Excess {
            sql.push(" - number * ").push_bind(self.rate.to_string()).push("::numeric * 0.01");
        }
        sql.push(") * 1000000000) * 0.000000001");
    }
}

/// The fee of the events in a slice of a query.
#[derive(Debug, Clone, Copy)]
pub struct SliceFee<'a> {
    /// The index of the slice.
    pub slice: usize,
    pub fee: Fee<'a>,
    /// The counter's measure, which rounds up; none for exact fees.
    pub counted_as: Option<CapMeasure>,
}

impl<'a> SliceFee<'a> {
    /// Returns the exact fees of prices with bounds per event, by index.
    pub fn of_prices(prices: &[&'a Price]) -> Vec<Self> {
        let bounding = prices.iter().enumerate().filter(|(_, price)| price.model.bounds_events());
        bounding
            .filter_map(|(slice, price)| Some(Self { slice, fee: Fee::of(&price.model)?, counted_as: None }))
            .collect()
    }
}

/// Returns the fees of events by window and group. A void subtracts the fee of its event.
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
