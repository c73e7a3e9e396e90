//! Credit packs: each line of a paid invoice or checkout with a pack's price grants the pack once. A
//! checkout with an invoice is the same purchase as that invoice.

use serde_json::Value;

use super::fetch::is_plain;
use super::worker::WebhookOutcome;
use crate::engine::error::EngineError;
use crate::engine::services::Engine;
use crate::providers::stripe::webhook::{self, Purchase};
use crate::providers::stripe::{Client, Fault};
use crate::store;
use crate::store::Scope;
use metergate_domain::base::names::SubjectId;
use metergate_domain::base::{Environment, Quantity, Total};
use metergate_domain::credits::{CreditPack, GrantSource, Request, Rollover};

impl Engine {
    /// Grants the credits of a purchase. Returns none if the purchase has no credit packs.
    pub(super) async fn grant_packs(
        &self,
        environment: Environment,
        purchase: Option<Purchase>,
    ) -> Result<Option<WebhookOutcome>, EngineError> {
        let Some(mut purchase) = purchase else { return Ok(None) };
        let mut connection = self.database().pool().acquire().await?;
        let scope = &mut Scope::new(&mut connection, environment);
        let (catalog, _) = store::catalog::current(scope).await?;
        if catalog.credit_packs.is_empty() {
            return Ok(None);
        }
        let no_key = || {
            WebhookOutcome::Waits("the event lacks some lines of the invoice; set an API key to fetch them")
        };
        match self.stripe(environment).filter(|_| purchase.has_more) {
            Some(stripe) => match lines(stripe.client(), &purchase).await {
                Ok(Some(lines)) => purchase.items = webhook::items_of(&lines),
                Ok(None) => {}
                Err(fault) => return Ok(Some(WebhookOutcome::Later(fault))),
            },
            // the missing lines may contain packs
            None if purchase.has_more && purchase.checkout.is_none() => return Ok(Some(no_key())),
            None => {}
        }
        let pack_of = |price: &str| {
            catalog.credit_packs.iter().find(|p| p.stripe_price_ids.contains(environment, price))
        };
        let bought: Vec<(&str, &CreditPack, i64)> = purchase
            .items
            .iter()
            .filter_map(|(price, count)| Some((price.as_str(), pack_of(price)?, *count)))
            .collect();
        if bought.is_empty() {
            return Ok(None);
        }
        let Some(subject) = buyer(scope, &purchase).await? else {
            return Ok(Some(WebhookOutcome::Waits(
                "no subject is mapped to the customer of the purchase; map one",
            )));
        };
        drop(connection);
        for (price, pack, count) in bought {
            let reference = format!("stripe:{}:{price}", purchase.reference);
            let Some(request) = request(pack, count, reference) else {
                return Ok(Some(WebhookOutcome::Failed(format!(
                    "the quantity of the pack `{}` must make a valid amount; got {count}",
                    pack.key
                ))));
            };
            match self.grant_credits(environment, subject.clone(), request).await {
                // the purchase was granted under an earlier pack or mapping
                Ok(_) | Err(EngineError::Conflict { .. }) => {}
                Err(EngineError::Invalid(violations)) => {
                    let why = &violations.first().detail;
                    return Ok(Some(WebhookOutcome::Failed(format!(
                        "the pack `{}` cannot be granted: {why}",
                        pack.key
                    ))));
                }
                Err(why) => return Err(why),
            }
        }
        Ok(Some(WebhookOutcome::Applied))
    }
}

/// Fetches all lines of a purchase; none if the provider does not know the purchase.
async fn lines(client: &Client, purchase: &Purchase) -> Result<Option<Vec<Value>>, Fault> {
    let id = purchase.checkout.as_ref().unwrap_or(&purchase.reference);
    if !is_plain(id) {
        return Ok(None);
    }
    let path = match &purchase.checkout {
        Some(session) => format!("/v1/checkout/sessions/{session}/line_items"),
        None => format!("/v1/invoices/{id}/lines"),
    };
    match client.list(&path, &[], None, |_| false).await {
        Err(fault) if fault.status == Some(404) => Ok(None),
        lines => lines.map(Some),
    }
}

/// Finds the buyer: the subject of the checkout, otherwise the subject of the customer.
async fn buyer(scope: &mut Scope<'_>, purchase: &Purchase) -> Result<Option<SubjectId>, EngineError> {
    if let Some(subject) = &purchase.subject {
        return Ok(Some(subject.clone()));
    }
    let Some(customer) = &purchase.customer else { return Ok(None) };
    let found = store::subjects::subject::of_mapping(scope, customer).await?;
    let named = found.map(|(_, name)| SubjectId::parse(name)).transpose();
    named.map_err(|why| EngineError::Internal(why.to_string()))
}

/// Returns the grant of several packs at once; none if the amount is too large.
fn request(pack: &CreditPack, count: i64, external_ref: String) -> Option<Request> {
    let nanos = pack.amount.nanos().checked_mul(count.into())?;
    let amount: Quantity = Total::from_nanos(nanos).quantity()?;
    Some(Request {
        unit: pack.unit.clone(),
        amount,
        priority: pack.priority,
        effective_at: None,
        expires_at: None,
        expires_after: pack.expires_after,
        source: GrantSource::Purchase,
        external_ref: Some(external_ref),
        recurrence: None,
        rollover: Rollover::default(),
        refund_of: None,
        reason: Some(format!("pack {}", pack.key)),
    })
}
