//! Credit packs that were bought: each line of a paid invoice or checkout whose price belongs to a pack
//! grants the pack once. A checkout with an invoice is the same purchase as that invoice.

use serde_json::Value;

use super::fetch::is_plain;
use super::worker::WebhookOutcome;
use crate::engine::error::EngineError;
use crate::engine::services::Engine;
use crate::providers::stripe::webhook::{self, Purchase};
use crate::providers::stripe::{Client, Fault};
use crate::store;
use crate::store::Scope;
use metergate_domain::base::environment::Environment;
use metergate_domain::base::names::SubjectId;
use metergate_domain::base::quantity::{Quantity, Total};
use metergate_domain::credits::grant::{GrantSource, Request};
use metergate_domain::credits::offers::CreditPack;
use metergate_domain::credits::recurrence::Rollover;

impl Engine {
    /// Grants what a purchase bought. None where it bought no credits.
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
            WebhookOutcome::Waits("an invoice has more lines than were told, and no key to ask for them with")
        };
        match self.stripe(environment).filter(|_| purchase.has_more) {
            Some(stripe) => match lines(stripe.client(), &purchase).await {
                Ok(Some(lines)) => purchase.items = webhook::items_of(&lines),
                Ok(None) => {}
                Err(fault) => return Ok(Some(WebhookOutcome::Later(fault))),
            },
            // which of them is a pack, and how many of it, is not known by halves
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
                "no subject is mapped to the customer who bought credits",
            )));
        };
        drop(connection);
        for (price, pack, count) in bought {
            let reference = format!("stripe:{}:{price}", purchase.reference);
            let Some(request) = request(pack, count, reference) else {
                return Ok(Some(WebhookOutcome::Failed(format!(
                    "{count} of the pack `{}` are too many",
                    pack.key
                ))));
            };
            match self.grant_credits(environment, subject.clone(), request).await {
                // it was granted when the pack, or the mapping, was another
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

/// All lines of a purchase; none where the biller does not know it.
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

/// Finds the buyer: the subject that the checkout names, else the one that its customer is mapped to.
async fn buyer(scope: &mut Scope<'_>, purchase: &Purchase) -> Result<Option<SubjectId>, EngineError> {
    if let Some(subject) = &purchase.subject {
        return Ok(Some(subject.clone()));
    }
    let Some(customer) = &purchase.customer else { return Ok(None) };
    let found = store::subjects::subject::of_mapping(scope, customer).await?;
    let named = found.map(|(_, name)| SubjectId::parse(name)).transpose();
    named.map_err(|why| EngineError::Internal(why.to_string()))
}

/// So many packs as one grant; none where that is more than a grant can be.
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
