//! Invoices of Stripe, and previews of the next ones
//! (<https://docs.stripe.com/api/invoices/create_preview>).

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use serde_json::Value;
use uuid::Uuid;

use super::client::{Client, Fault};
use crate::providers::{Bill, BillLine, Failure};

/// The event names of meters by price, which never change at Stripe. None means a price without a meter.
#[derive(Debug, Default)]
pub(super) struct MeterNames(Mutex<HashMap<String, Option<String>>>);

impl MeterNames {
    async fn of_price(&self, client: &Client, price: &str) -> Result<Option<String>, Fault> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(price).cloned();
        if let Some(known) = known {
            return Ok(known);
        }
        let object = client.get(&format!("/v1/prices/{price}"), &[]).await?;
        let name = match object["recurring"]["meter"].as_str() {
            None => None,
            Some(meter) => {
                let meter = client.get(&format!("/v1/billing/meters/{meter}"), &[]).await?;
                meter["event_name"].as_str().map(str::to_owned)
            }
        };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(price.to_owned(), name.clone());
        Ok(name)
    }
}

pub(super) async fn read(client: &Client, names: &MeterNames, id: &str) -> Result<Option<Bill>, Failure> {
    let asked = match client.get(&format!("/v1/invoices/{id}"), &[]).await {
        Err(fault) if fault.status == Some(404) => return Ok(None),
        Err(fault) => return Err(fault.failure),
        Ok(invoice) => bill(client, names, &invoice).await,
    };
    asked.map(Some).map_err(|fault| fault.failure)
}

pub(super) async fn preview(
    client: &Client,
    names: &MeterNames,
    customer: &str,
    subscription: &str,
) -> Result<Option<Bill>, Failure> {
    let fields = [("customer", customer.to_owned()), ("subscription", subscription.to_owned())];
    // a preview creates nothing, so each call gets a new key
    let key = format!("preview-{}", Uuid::now_v7());
    let asked = match client.post("/v1/invoices/create_preview", &fields, &key).await {
        Err(fault) if fault.status == Some(404) || fault.failure.code == "invoice_upcoming_none" => {
            return Ok(None);
        }
        Err(fault) => return Err(fault.failure),
        Ok(invoice) => bill(client, names, &invoice).await,
    };
    asked.map(|bill| Some(Bill { invoice: None, ..bill })).map_err(|fault| fault.failure)
}

async fn bill(client: &Client, names: &MeterNames, invoice: &Value) -> Result<Bill, Fault> {
    let text = |name: &str| invoice[name].as_str().map(str::to_owned);
    let id = text("id");
    let mut rows = invoice["lines"]["data"].as_array().cloned().unwrap_or_default();
    let last = rows.last().and_then(|row| row["id"].as_str()).map(str::to_owned);
    if let (Some(id), Some(last), true) = (&id, last, invoice["lines"]["has_more"] == true) {
        rows.extend(client.list(&format!("/v1/invoices/{id}/lines"), &[], Some(last), |_| false).await?);
    }
    let mut lines = Vec::with_capacity(rows.len());
    for row in &rows {
        lines.push(line(client, names, row).await?);
    }
    Ok(Bill {
        invoice: id,
        status: text("status").unwrap_or_default(),
        currency: text("currency").unwrap_or_default(),
        lines,
    })
}

async fn line(client: &Client, names: &MeterNames, row: &Value) -> Result<BillLine, Fault> {
    // until 2025-03-31.basil the price was in the line itself
    let places = [&row["pricing"]["price_details"]["price"], &row["price"]["id"], &row["price"]];
    let price = places.iter().find_map(|place| place.as_str()).map(str::to_owned);
    let event_name = match &price {
        None => None,
        Some(price) => names.of_price(client, price).await?,
    };
    Ok(BillLine { price, event_name, amount: row["amount"].as_i64().unwrap_or_default() })
}
