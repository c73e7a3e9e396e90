//! What a price rated of a subject's use, counted from what was recorded.

use std::collections::BTreeMap;

use sqlx::PgConnection;

use crate::engine::gate::counters::unexpected;
use crate::engine::usage::reader;
use crate::store::{self, StoreError};
use metergate_domain::base::environment::Environment;
use metergate_domain::base::names::SubjectId;
use metergate_domain::base::quantity::Total;
use metergate_domain::base::window::{Span, Zone};
use metergate_domain::catalog::meter::StoredMeter;
use metergate_domain::gate::applicable_cap::PricedUsage;
use metergate_domain::gate::counted_prices::{CapMeasure, CountedSlice};
use metergate_domain::usage::event::Properties;
use metergate_domain::usage::query::{GroupBySubject, UsageQuery, UsageRow};

/// What is used of it in a period, by the subject and all below it.
pub(crate) async fn used(
    snapshot: &mut PgConnection,
    environment: Environment,
    stored: &StoredMeter,
    priced_usage: &PricedUsage<'_>,
    period: Span,
) -> Result<Total, StoreError> {
    let slice = priced_usage.slice;
    let mut sum = Total::default();
    for span in slice.rated.segments(period, slice.aggregation.is_reservable()) {
        let found = match priced_usage.measure {
            CapMeasure::Quantity => {
                let query = usage_query_for(slice, stored, &priced_usage.member().subject, span);
                let rows = reader::answer(snapshot, environment, stored, &query).await.map_err(unexpected)?;
                // a level was asked for by the filter of its price
                let admits = |row: &&UsageRow| slice.admits(&properties(row), span.from);
                let rated = rows.iter().filter(|row| !slice.aggregation.is_reservable() || admits(row));
                rated.fold(Total::default(), |sum, row| sum + row.value.unwrap_or_default())
            }
            CapMeasure::Fees | CapMeasure::Excess => {
                let names = [priced_usage.member().subject.to_string()];
                let paths = store::subjects::subject::path_ids(snapshot, environment, &names, true).await?;
                let of = (&slice, priced_usage.measure);
                let groups =
                    store::pricing::event_fees::fees_above(snapshot, environment, stored, of, &paths, span)
                        .await?;
                let rated = groups.iter().filter(|(properties, _)| slice.admits(properties, span.from));
                rated.fold(Total::default(), |sum, (_, fees)| sum + *fees)
            }
        };
        sum = sum + found;
    }
    Ok(sum)
}

/// The question whose answer is a level that a price rates, as long as the price rates it in a period.
pub(crate) fn level(
    priced_usage: &PricedUsage<'_>,
    stored: &StoredMeter,
    period: Span,
) -> Option<UsageQuery> {
    let slice = priced_usage.slice;
    let segments = slice.rated.segments(period, slice.aggregation.is_reservable());
    Some(usage_query_for(slice, stored, &priced_usage.member().subject, segments.into_iter().next()?))
}

/// Use by those dimensions. A level is asked for by the filter of its price alone: levels do not add up.
fn usage_query_for(
    slice: CountedSlice<'_>,
    stored: &StoredMeter,
    subject: &SubjectId,
    span: Span,
) -> UsageQuery {
    let adds_up = slice.aggregation.is_reservable();
    let filter = &slice.price.filter;
    UsageQuery {
        meter: stored.meter.key.clone(),
        span,
        window: None,
        zone: Zone::default(),
        subjects: vec![subject.clone()],
        descendants: true,
        whose: GroupBySubject::All,
        group_by: if adds_up { slice.rated.dimensions() } else { Vec::new() },
        filter: if adds_up {
            BTreeMap::new()
        } else {
            filter.iter().map(|(name, values)| (name.to_owned(), values.to_vec())).collect()
        },
        slices: Vec::new(),
        tells_new: false,
        fill: false,
    }
}

fn properties(row: &UsageRow) -> Properties {
    let named = row.group.iter().filter_map(|(name, value)| Some((name.clone(), value.clone()?.into())));
    Properties::of(named.collect())
}
