//! `GET /v1/billing/meters/{id}/event_summaries`: Stripe's own sums.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use serde_json::Value;

use super::client::{Client, Fault};
use super::meter_events::seconds;
use crate::providers::{Failure, Summary, SummaryQuery, SummaryWindow};
use metergate_domain::base::{Span, Timestamp};

/// Meter ids by event name. They never change, and Stripe allows few reads.
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
    query: SummaryQuery<'_>,
) -> Result<Option<Vec<Summary>>, Failure> {
    let SummaryQuery { event_name, customer, span, grain } = query;
    let Some(meter) = ids.find(client, event_name).await.map_err(why)? else { return Ok(None) };
    let path = format!("/v1/billing/meters/{meter}/event_summaries");
    let mut fields = vec![
        ("customer", customer.to_owned()),
        ("start_time", seconds(span.from).to_string()),
        ("end_time", seconds(span.to).to_string()),
    ];
    match grain {
        SummaryWindow::Whole => {}
        SummaryWindow::Hour => fields.push(("value_grouping_window", "hour".to_owned())),
        SummaryWindow::Day => fields.push(("value_grouping_window", "day".to_owned())),
    }
    let rows = client.list(&path, &fields, None, |_| false).await.map_err(why)?;
    Ok(Some(rows.iter().filter_map(summary).collect()))
}

fn why(fault: Fault) -> Failure {
    fault.failure
}

/// Finds the meter with an event name. An active meter precedes an inactive one.
async fn meter_id(client: &Client, event_name: &str) -> Result<Option<String>, Fault> {
    let is_it = |meter: &Value| meter["event_name"] == event_name;
    for status in ["active", "inactive"] {
        let query = [("status", status.to_owned())];
        let has_it = |page: &[Value]| page.iter().any(is_it);
        let meters = client.list("/v1/billing/meters", &query, None, has_it).await?;
        if let Some(found) = meters.iter().find(|meter| is_it(meter)) {
            return Ok(found["id"].as_str().map(str::to_owned));
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
