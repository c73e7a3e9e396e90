//! What became of an export whose answer was lost for longer than the provider remembers identifiers:
//! sending it again could count it twice. The provider's own summaries tell.

use std::time::Duration;

use sqlx::PgConnection;

use super::failure_text;
use crate::engine::EngineError;
use crate::providers::{Provider, SummaryWindow};
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

const MINUTE: i64 = 60_000_000;

/// The minute of a time: summaries are aligned to minutes.
fn minute_of(at: Timestamp) -> Span {
    let from = at.micros().div_euclid(MINUTE) * MINUTE;
    let from = Timestamp::from_micros(from).unwrap_or(at);
    Span { from, to: from.saturating_add(Duration::from_micros(MINUTE.unsigned_abs())) }
}

/// What the provider has of the customer in an export's minute, and what is known to be delivered
/// there. No other export of the two is under way meanwhile: they go one at a time.
async fn sums(
    connection: &mut PgConnection,
    provider: &dyn Provider,
    row: &ExportRow,
) -> Result<Result<(Units, Units), DeliveryStatus>, EngineError> {
    let minute = minute_of(row.occurred_at);
    let summaries = provider.summaries(&row.event_name, &row.customer, minute, SummaryWindow::Whole).await;
    let there = match summaries {
        Err(failure) => return Ok(Err(DeliveryStatus::Later(failure_text(&failure)))),
        // a meter that is not there has taken nothing
        Ok(None) => return Ok(Err(DeliveryStatus::NotTaken)),
        Ok(Some(summaries)) => summaries,
    };
    let mut sum = Units::default();
    for summary in &there {
        let Some(value) = Units::parse(&summary.value) else {
            return Ok(Err(DeliveryStatus::Unclear(format!(
                "{DELIVERY_UNKNOWN}: the provider's summary is {}",
                summary.value
            ))));
        };
        sum = sum.plus(value);
    }
    let delivered = store::exports::delivered_within(
        connection,
        row.customer_id,
        &row.event_name,
        minute.from,
        minute.to,
    )
    .await?;
    Ok(Ok((sum, Units::whole(delivered))))
}

/// What became of a cancelation whose answer was lost and which the provider refuses now: taken, if
/// what it has lacks the export.
pub(super) async fn of_cancelation(
    connection: &mut PgConnection,
    provider: &dyn Provider,
    row: &ExportRow,
) -> Result<DeliveryStatus, EngineError> {
    if row.is_level {
        return Ok(DeliveryStatus::NotTaken);
    }
    let (sum, delivered) = match sums(connection, provider, row).await? {
        Ok(sums) => sums,
        Err(delivery_status) => return Ok(delivery_status),
    };
    Ok(if sum.plus(Units::whole(row.value)) == delivered {
        DeliveryStatus::Taken
    } else {
        DeliveryStatus::NotTaken
    })
}

/// What became of an export, by what the provider says it has.
pub(super) async fn find_out(
    connection: &mut PgConnection,
    provider: &dyn Provider,
    row: &ExportRow,
) -> Result<DeliveryStatus, EngineError> {
    if row.is_level {
        return Ok(DeliveryStatus::NotTaken);
    }
    let (sum, delivered) = match sums(connection, provider, row).await? {
        Ok(sums) => sums,
        Err(delivery_status) => return Ok(delivery_status),
    };
    Ok(if sum == delivered {
        DeliveryStatus::NotTaken
    } else if sum == delivered.plus(Units::whole(row.value)) {
        DeliveryStatus::Taken
    } else {
        DeliveryStatus::Unclear(format!(
            "{DELIVERY_UNKNOWN}: no answer came for more than a day, and the provider has {sum} in that minute where \
             {delivered} were delivered without it"
        ))
    })
}
