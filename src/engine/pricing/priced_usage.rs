//! The usage that a price rates, read from recorded events.

use std::collections::BTreeMap;

use crate::engine::usage::reader;
use crate::store::usage::MeterQuery;
use crate::store::usage::fees::{Fee, SliceFee, fees};
use crate::store::{Scope, StoreError};
use metergate_domain::base::{Span, Total};
use metergate_domain::catalog::StoredMeter;
use metergate_domain::gate::{CapMeasure, PricedUsage};
use metergate_domain::pricing::Price;
use metergate_domain::usage::{Subjects, UsageQuery};

/// Returns the usage that a price rates in a period, by the subject and all its descendants.
pub(crate) async fn used(
    scope: &mut Scope<'_>,
    stored: &StoredMeter,
    priced_usage: &PricedUsage<'_>,
    period: Span,
) -> Result<Total, StoreError> {
    let Some(query) = level(priced_usage, stored, period) else { return Ok(Total::default()) };
    let slice = priced_usage.slice;
    if !slice.aggregation.is_reservable() {
        return reader::value(scope, stored, &query).await;
    }
    // a price rates only usage that no stronger price rates
    let rivals: Vec<&Price> = slice.rated.rivals().collect();
    let own = rivals.len();
    let slices = rivals.into_iter().chain([slice.price]).map(Price::slice).collect();
    let query = UsageQuery { filter: BTreeMap::new(), slices, ..query };
    let paths = reader::paths(scope, &query).await?;
    let bounds = [query.span.from, query.span.to];
    let usage = reader::usage_scope(paths.as_deref());
    let question = MeterQuery::new(scope.environment, stored, &query, usage, &bounds);
    match (priced_usage.measure, Fee::of(&slice.price.model)) {
        (CapMeasure::Quantity, _) => {
            let found = reader::read(scope.connection, &question).await?;
            let own = found.into_iter().find(|((_, group), _)| group.slice == Some(own));
            Ok(own.and_then(|(_, found)| found.sum).unwrap_or_default())
        }
        (CapMeasure::Fees | CapMeasure::Excess, None) => Ok(Total::default()),
        (measure, Some(fee)) => {
            let own = SliceFee { slice: own, fee, counted_as: Some(measure) };
            let found = fees(scope.connection, &question, &[own]).await?;
            Ok(found.into_values().next().map_or(Total::default(), |fees| fees.quantity_above()))
        }
    }
}

/// Builds the query of the gauge that a price rates in a period, with its filter and its effective times.
pub(crate) fn level(
    priced_usage: &PricedUsage<'_>,
    stored: &StoredMeter,
    period: Span,
) -> Option<UsageQuery> {
    let own = priced_usage.slice.price.slice();
    let span = own.within(period);
    (!span.is_empty()).then(|| UsageQuery {
        subjects: Subjects::one(priced_usage.member().subject.as_str()),
        descendants: true,
        filter: own.filter,
        ..UsageQuery::internal(&stored.meter.key, span)
    })
}
