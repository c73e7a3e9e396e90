//! Looks up exports with an unknown outcome, once the provider may have forgotten their identifiers. A
//! repeated call could then count twice. The provider's own summaries show the outcome.

use std::time::Duration;

use sqlx::PgConnection;

use crate::engine::error::EngineError;
use crate::providers::{Provider, SummaryQuery, SummaryWindow};
use crate::store;
use crate::store::exports::{DELIVERY_UNKNOWN, ExportRow};
use metergate_domain::base::{Span, Timestamp};
use metergate_domain::exports::Units;

/// The outcome of a call with a lost answer, according to the provider's sums.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum DeliveryStatus {
    Taken,
    NotTaken,
    /// The sums fit neither outcome: an operator must decide.
    Unclear(String),
    /// The provider cannot be asked now.
    Later(String),
}

/// The sums of an export's minute at the provider and here.
struct MinuteSums {
    /// The provider's sum.
    provider: Units,
    /// The sum of the confirmed deliveries.
    delivered: Units,
}

const MINUTE: i64 = 60_000_000;

/// Returns the minute that contains a time, because summaries are aligned to minutes.
fn minute_of(at: Timestamp) -> Span {
    let from = at.micros().div_euclid(MINUTE) * MINUTE;
    let from = Timestamp::from_micros(from).unwrap_or(at);
    Span { from, to: from.saturating_add(Duration::from_micros(MINUTE.unsigned_abs())) }
}

/// Reads both sums of an export's minute, or returns the status if it is known without the sums. The
/// sums are stable: exports of one customer and meter are sent one at a time.
async fn minute_sums(
    connection: &mut PgConnection,
    provider: &dyn Provider,
    row: &ExportRow,
) -> Result<Result<MinuteSums, DeliveryStatus>, EngineError> {
    if row.is_gauge {
        return Ok(Err(DeliveryStatus::NotTaken));
    }
    let minute = minute_of(row.occurred_at);
    let (event_name, customer) = (row.event_name.as_str(), row.customer.as_str());
    let query = SummaryQuery { event_name, customer, span: minute, grain: SummaryWindow::Whole };
    let summaries = match provider.summaries(query).await {
        Err(failure) => return Ok(Err(DeliveryStatus::Later(failure.to_string()))),
        // a meter that does not exist has taken nothing
        Ok(None) => return Ok(Err(DeliveryStatus::NotTaken)),
        Ok(Some(summaries)) => summaries,
    };
    let mut sum = Units::default();
    for summary in &summaries {
        let Some(value) = Units::parse(&summary.value) else {
            let why =
                format!("{DELIVERY_UNKNOWN}: the provider's summary must be a number; got {}", summary.value);
            return Ok(Err(DeliveryStatus::Unclear(why)));
        };
        sum = sum.plus(value);
    }
    let delivered = store::exports::delivered_within(connection, row.customer_id, event_name, minute).await?;
    Ok(Ok(MinuteSums { provider: sum, delivered: Units::whole(delivered) }))
}

/// Looks up a refused cancelation with an earlier unknown outcome. The earlier call succeeded if the
/// provider lacks the export.
pub(super) async fn of_cancelation(
    connection: &mut PgConnection,
    provider: &dyn Provider,
    row: &ExportRow,
) -> Result<DeliveryStatus, EngineError> {
    let MinuteSums { provider, delivered } = match minute_sums(connection, provider, row).await? {
        Ok(sums) => sums,
        Err(status) => return Ok(status),
    };
    let is_taken = provider.plus(Units::whole(row.value)) == delivered;
    Ok(if is_taken { DeliveryStatus::Taken } else { DeliveryStatus::NotTaken })
}

/// Looks up an export in the provider's summaries.
pub(super) async fn of_delivery(
    connection: &mut PgConnection,
    provider: &dyn Provider,
    row: &ExportRow,
) -> Result<DeliveryStatus, EngineError> {
    let MinuteSums { provider, delivered } = match minute_sums(connection, provider, row).await? {
        Ok(sums) => sums,
        Err(status) => return Ok(status),
    };
    Ok(if provider == delivered {
        DeliveryStatus::NotTaken
    } else if provider == delivered.plus(Units::whole(row.value)) {
        DeliveryStatus::Taken
    } else {
        DeliveryStatus::Unclear(format!(
            "{DELIVERY_UNKNOWN}: no answer came for more than a day; the provider has {provider} in that minute, \
             and other exports explain {delivered}"
        ))
    })
}
