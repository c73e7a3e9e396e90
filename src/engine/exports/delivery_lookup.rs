//! Looks up deliveries whose answer was lost for longer than the provider remembers identifiers: sending
//! one again could count it twice. The provider's own summaries tell.

use std::time::Duration;

use sqlx::PgConnection;

use crate::engine::error::EngineError;
use crate::providers::{Provider, SummaryQuery, SummaryWindow};
use crate::store;
use crate::store::exports::{DELIVERY_UNKNOWN, ExportRow};
use metergate_domain::base::timestamp::Timestamp;
use metergate_domain::base::window::Span;
use metergate_domain::exports::Units;

#[derive(Debug, PartialEq, Eq)]
pub(super) enum DeliveryStatus {
    Taken,
    NotTaken,
    /// The sums fit neither: somebody has to look.
    Unclear(String),
    /// The provider cannot be asked now.
    Later(String),
}

/// The sums of an export's minute at both sides.
struct MinuteSums {
    /// The provider's sum.
    provider: Units,
    /// The sum of what is known to be delivered.
    delivered: Units,
}

const MINUTE: i64 = 60_000_000;

/// The minute of a time: summaries are aligned to minutes.
fn minute_of(at: Timestamp) -> Span {
    let from = at.micros().div_euclid(MINUTE) * MINUTE;
    let from = Timestamp::from_micros(from).unwrap_or(at);
    Span { from, to: from.saturating_add(Duration::from_micros(MINUTE.unsigned_abs())) }
}

/// Reads both sums of an export's minute; or the status, where that is known without them. No other
/// export of the customer and meter is under way meanwhile: they go one at a time.
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
        // a meter that is not there has taken nothing
        Ok(None) => return Ok(Err(DeliveryStatus::NotTaken)),
        Ok(Some(summaries)) => summaries,
    };
    let mut sum = Units::default();
    for summary in &summaries {
        let Some(value) = Units::parse(&summary.value) else {
            let why = format!("{DELIVERY_UNKNOWN}: the provider's summary is {}", summary.value);
            return Ok(Err(DeliveryStatus::Unclear(why)));
        };
        sum = sum.plus(value);
    }
    let delivered = store::exports::delivered_within(connection, row.customer_id, event_name, minute).await?;
    Ok(Ok(MinuteSums { provider: sum, delivered: Units::whole(delivered) }))
}

/// Looks up a cancelation whose answer was lost and which the provider refuses now: it was taken, if the
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

/// Looks up an export by what the provider says it has.
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
            "{DELIVERY_UNKNOWN}: no answer came for more than a day, and the provider has {provider} in that minute \
             where {delivered} were delivered without it"
        ))
    })
}
