//! What a price rated of a subject's use, counted from what was recorded.

use std::collections::BTreeMap;

use sqlx::PgConnection;

use crate::engine::gate::counters::unexpected;
use crate::engine::usage::reader;
use crate::store::{self, StoreError};
use metergate_domain::base::environment::Environment;
use metergate_domain::base::names::SubjectId;
use metergate_domain::base::quantity::Total;
use metergate_domain::base::timestamp::Timestamp;
use metergate_domain::base::window::{Span, Zone};
use metergate_domain::catalog::meter::StoredMeter;
use metergate_domain::gate::applicable_cap::{CapMeasure, PricedSlice, PricedUsage};
use metergate_domain::pricing::price::Price;
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
    for span in segments(slice, period) {
        let found = match priced_usage.measure {
            CapMeasure::Quantity => {
                let query = slice_query(slice, stored, &priced_usage.member().subject, span);
                let rows = reader::answer(snapshot, environment, stored, &query).await.map_err(unexpected)?;
                // a level was asked for by the filter of its price
                let admits = |row: &&UsageRow| slice.admits(&properties(row), span.from);
                let rated = rows.iter().filter(|row| !slice.aggregation.is_reservable() || admits(row));
                rated.fold(Total::default(), |sum, row| sum + row.value.unwrap_or_default())
            }
            CapMeasure::Fees | CapMeasure::Excess => {
                let names = std::slice::from_ref(&priced_usage.member().subject);
                let paths = store::subjects::subject::path_ids(snapshot, environment, names, true).await?;
                let of = (slice, priced_usage.measure);
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

/// A period cut where the price or one that comes before it comes into force or goes out of it; a price
/// that rates all of it alike leaves it whole. Those of levels leave nothing to each other.
fn segments(slice: &PricedSlice, period: Span) -> Vec<Span> {
    let rivals: &[Price] = if slice.aggregation.is_reservable() { &slice.rivals } else { &[] };
    let prices = rivals.iter().chain([&slice.price]);
    let edges = prices.flat_map(|price| [price.effective_from, price.effective_to]).flatten();
    let mut edges: Vec<Timestamp> = edges.filter(|edge| period.contains(*edge)).collect();
    edges.extend([period.from, period.to]);
    edges.sort_unstable();
    edges.dedup();
    let spans = edges.windows(2).map(|pair| Span { from: pair[0], to: pair[1] });
    spans.filter(|span| slice.price.is_in_force(span.from)).collect()
}

/// The question whose answer is a level that a price rates, as long as the price rates it in a period.
pub(crate) fn level(
    priced_usage: &PricedUsage<'_>,
    stored: &StoredMeter,
    period: Span,
) -> Option<UsageQuery> {
    let span = segments(priced_usage.slice, period).into_iter().next()?;
    Some(slice_query(priced_usage.slice, stored, &priced_usage.member().subject, span))
}

/// Use by those dimensions. A level is asked for by the filter of its price alone: levels do not add up.
fn slice_query(slice: &PricedSlice, stored: &StoredMeter, subject: &str, span: Span) -> UsageQuery {
    let adds_up = slice.aggregation.is_reservable();
    let filter = &slice.price.filter;
    UsageQuery {
        meter: stored.meter.key.clone(),
        span,
        window: None,
        zone: Zone::default(),
        subjects: SubjectId::parse(subject).into_iter().collect(),
        descendants: true,
        whose: GroupBySubject::All,
        group_by: if adds_up { slice.dimensions() } else { Vec::new() },
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
