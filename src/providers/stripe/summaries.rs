//! `GET /v1/billing/meters/{id}/event_summaries`: what Stripe says it has.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use serde_json::Value;

use super::client::{Client, Fault};
use super::meter_events::seconds;
use crate::providers::{Failure, Summary, SummaryWindow};
use metergate_domain::base::timestamp::Timestamp;
use metergate_domain::base::window::Span;

/// The most that a page may have.
const PAGE_MAX: usize = 100;
/// More pages than a question of ours has.
const PAGES_MAX: usize = 20;

/// Meters by event name: reads are few at Stripe, and a meter's name is for ever.
#[derive(Debug, Default)]
pub(super) struct MeterIds(Mutex<HashMap<String, String>>);

impl MeterIds {
    async fn find(&self, client: &Client, event_name: &str) -> Result<Option<String>, Fault> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(event_name).cloned();
        if known.is_some() {
            return Ok(known);
        }
        let found = meter_id(client, event_name).await?;
        if let Some(id) = &found {
            let mut ids = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            ids.insert(event_name.to_owned(), id.clone());
        }
        Ok(found)
    }
}

pub(super) async fn read(
    client: &Client,
    ids: &MeterIds,
    event_name: &str,
    customer: &str,
    span: Span,
    grain: SummaryWindow,
) -> Result<Option<Vec<Summary>>, Failure> {
    let Some(meter) = ids.find(client, event_name).await.map_err(why)? else { return Ok(None) };
    let path = format!("/v1/billing/meters/{meter}/event_summaries");
    let mut summaries = Vec::new();
    let mut after: Option<String> = None;
    for _ in 0..PAGES_MAX {
        let mut query = vec![
            ("customer", customer.to_owned()),
            ("start_time", seconds(span.from).to_string()),
            ("end_time", seconds(span.to).to_string()),
            ("limit", PAGE_MAX.to_string()),
        ];
        match grain {
            SummaryWindow::Whole => {}
            SummaryWindow::Hour => query.push(("value_grouping_window", "hour".to_owned())),
            SummaryWindow::Day => query.push(("value_grouping_window", "day".to_owned())),
        }
        query.extend(after.take().map(|id| ("starting_after", id)));
        let page = client.get(&path, &query).await.map_err(why)?;
        let rows = page["data"].as_array().map_or(&[][..], Vec::as_slice);
        summaries.extend(rows.iter().filter_map(summary));
        after = rows.last().and_then(|row| row["id"].as_str()).map(str::to_owned);
        if page["has_more"] != Value::Bool(true) || after.is_none() {
            break;
        }
    }
    Ok(Some(summaries))
}

fn why(fault: Fault) -> Failure {
    fault.failure
}

/// The meter with an event name; an active one before one that is not.
async fn meter_id(client: &Client, event_name: &str) -> Result<Option<String>, Fault> {
    for status in ["active", "inactive"] {
        let mut after: Option<String> = None;
        for _ in 0..PAGES_MAX {
            let mut query = vec![("status", status.to_owned()), ("limit", PAGE_MAX.to_string())];
            query.extend(after.take().map(|id| ("starting_after", id)));
            let page = client.get("/v1/billing/meters", &query).await?;
            let meters = page["data"].as_array().map_or(&[][..], Vec::as_slice);
            if let Some(found) = meters.iter().find(|meter| meter["event_name"] == event_name) {
                return Ok(found["id"].as_str().map(str::to_owned));
            }
            after = meters.last().and_then(|meter| meter["id"].as_str()).map(str::to_owned);
            if page["has_more"] != Value::Bool(true) || after.is_none() {
                break;
            }
        }
    }
    Ok(None)
}

fn summary(row: &Value) -> Option<Summary> {
    let at = |name: &str| Timestamp::from_micros(row[name].as_i64()?.checked_mul(1_000_000)?);
    let Value::Number(value) = &row["aggregated_value"] else { return None };
    Some(Summary {
        window: Span { from: at("start_time")?, to: at("end_time")? },
        value: value.as_str().to_owned(),
    })
}
