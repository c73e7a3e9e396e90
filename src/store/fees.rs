//! What events cost one by one, by prices that take a percentage of each.

use sqlx::{PgConnection, QueryBuilder, Row};

use super::StoreError;
use super::measures::{Scope, push_measures};
use crate::domain::environment::Environment;
use crate::domain::event::Properties;
use crate::domain::gate::budget::{Measure, Slice};
use crate::domain::meter::StoredMeter;
use crate::domain::pricing::price::Model;
use crate::domain::quantity::Total;
use crate::domain::window::Span;

/// The fees of the events on some paths, or their excess, each rounded up as `Slice::measure` does, by the
/// dimensions that tell what rates them.
pub async fn sums(
    connection: &mut PgConnection,
    environment: Environment,
    stored: &StoredMeter,
    (slice, measure): (&Slice, Measure),
    paths: &[i64],
    span: Span,
) -> Result<Vec<(Properties, Total)>, StoreError> {
    let Model::Percentage { rate, fixed_amount, event_minimum, event_maximum } = &slice.price.model else {
        return Ok(Vec::new());
    };
    let dimensions = slice.dimensions();
    let mut sql = QueryBuilder::new("with measures as (");
    push_measures(&mut sql, environment, stored, &dimensions, Some(paths), &Scope::Spans(&[span]));
    // numeric multiplies exactly; it would round a quotient
    sql.push("), shares as (select members, sign, number * ").push_bind(rate.to_string());
    sql.push("::numeric * 0.01 as share from measures), fees as (select members, sign, share + ");
    sql.push_bind(fixed_amount.to_string()).push("::numeric as fee, ");
    sql.push(if measure == Measure::Excess { "share" } else { "0" }).push(" as plain from shares)");
    sql.push(" select members, sum(sign * ceil((least(greatest(fee, ");
    sql.push_bind(event_minimum.as_ref().map(ToString::to_string)).push("::numeric), ");
    sql.push_bind(event_maximum.as_ref().map(ToString::to_string));
    sql.push("::numeric) - plain) * 1000000000)) * 0.000000001 as fees from fees group by members");
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
