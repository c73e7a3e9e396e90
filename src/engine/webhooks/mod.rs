//! Webhooks of the provider. Receipt stores an event and answers at once; workers apply the event later.
//! One worker at a time claims an event. The result follows from the provider's latest state, in any
//! order of arrival.

pub(crate) mod apply_subscription;
pub(crate) mod fetch;
pub(crate) mod mapping;
pub(crate) mod meter_errors;
pub(crate) mod packs;
pub(crate) mod worker;

use serde_json::Value;
use serde_json::value::RawValue;

use crate::engine::error::EngineError;
use crate::engine::page::{Page, PageRequest};
use crate::engine::services::Engine;
use crate::providers::stripe::signature::{Age, Signature};
use crate::providers::stripe::webhook::{self, Topic};
use crate::store::webhook_events::{Arrival, WebhookRow};
use crate::store::{self, Scope, webhook_events};
use metergate_domain::base::Environment;
use metergate_domain::base::limits::{WEBHOOK_DELETES_MAX, WEBHOOK_KEPT, WEBHOOK_UNDONE_KEPT};
use metergate_domain::webhook::{WebhookNotice, WebhookStatus};

fn untrusted(code: &'static str, detail: &'static str) -> EngineError {
    EngineError::Untrusted { code, detail }
}

fn invalid_signature() -> EngineError {
    untrusted(
        "invalid_signature",
        "the signature must match a configured secret; check the secret and forward the request body unchanged",
    )
}

impl Engine {
    /// Receives a webhook. A correctly signed event is stored once, and applied later.
    pub async fn receive_webhook(&self, header: Option<&str>, body: &[u8]) -> Result<(), EngineError> {
        let claim = match header {
            None => return Err(untrusted("missing_signature", "the `Stripe-Signature` header is required")),
            Some(header) => Signature::parse(header).ok_or_else(invalid_signature)?,
        };
        let signers = self.signers(&claim, body)?;
        let mut connection = self.database().pool().acquire().await?;
        let now = self.inner.clock.outside(store::usage::now(&mut connection).await?);
        match claim.age(now) {
            Age::Fresh => {}
            Age::TooOld => {
                return Err(untrusted(
                    "signature_too_old",
                    "the signature must be at most 300 s old; check the clocks",
                ));
            }
            Age::InFuture => {
                return Err(untrusted(
                    "signature_in_future",
                    "the signature must not be over 300 s ahead of now; check the clocks",
                ));
            }
        }
        let payload: &RawValue = serde_json::from_slice(body)
            .map_err(|_| untrusted("malformed_json", "the request body is not valid JSON"))?;
        let notice = serde_json::from_str::<Value>(payload.get()).ok().as_ref().and_then(webhook::notice);
        let Some(notice) = notice else {
            return Err(untrusted("malformed_event", "the request body must be an event with an `id`"));
        };
        let environment = environment_of(&notice, &signers)?;
        let matters = Topic::of(&notice.kind) != Topic::Other;
        let arrival = Arrival { notice: &notice, payload, matters };
        if webhook_events::insert(&mut Scope::new(&mut connection, environment), arrival, now).await? {
            self.webhook_wake(environment).notify_one();
        }
        metrics::counter!("metergate_webhooks_total", "environment" => environment.as_str()).increment(1);
        Ok(())
    }

    /// Returns the environments with a secret that signed a body.
    fn signers(&self, claim: &Signature, body: &[u8]) -> Result<Vec<Environment>, EngineError> {
        let accounts = &self.inner.settings.stripe.accounts;
        if accounts.iter().all(|(_, account)| account.webhook_secrets.is_empty()) {
            return Err(EngineError::Unavailable {
                code: "webhooks_not_configured",
                detail:
                    "set STRIPE_WEBHOOK_SECRET, or STRIPE_TEST_WEBHOOK_SECRET; until then no webhook is accepted"
                        .into(),
                why: "a webhook arrived, but no webhook secret is configured".to_owned(),
            });
        }
        let signed = accounts
            .iter()
            .filter(|(_, account)| account.webhook_secrets.iter().any(|secret| claim.is_by(secret, body)))
            .map(|(environment, _)| *environment);
        let signers: Vec<Environment> = signed.collect();
        if signers.is_empty() { Err(invalid_signature()) } else { Ok(signers) }
    }

    /// Returns a page of events, the latest first.
    pub async fn list_webhook_events(
        &self,
        environment: Environment,
        status: Option<WebhookStatus>,
        page: &PageRequest,
    ) -> Result<Page<WebhookRow>, EngineError> {
        let before = page.before_number()?;
        let mut connection = self.database().pool().acquire().await?;
        let rows = webhook_events::list(
            &mut Scope::new(&mut connection, environment),
            status,
            before,
            page.rows_max(),
        )
        .await?;
        Ok(Page::from_rows(rows, page.limit, |row| row.seq))
    }

    /// Deletes events after their retention time.
    pub async fn forget_old_webhooks(&self) -> Result<(), EngineError> {
        let mut connection = self.database().pool().acquire().await?;
        let now = self.inner.clock.outside(store::usage::now(&mut connection).await?);
        let kept = [
            ([WebhookStatus::Applied, WebhookStatus::Ignored], WEBHOOK_KEPT),
            ([WebhookStatus::Unmapped, WebhookStatus::Failed], WEBHOOK_UNDONE_KEPT),
        ];
        for (statuses, kept) in kept {
            let before = now.saturating_sub(kept);
            let limit = WEBHOOK_DELETES_MAX;
            while webhook_events::delete_settled(&mut connection, &statuses, before, limit).await? > 0 {}
        }
        Ok(())
    }
}

/// Returns the environment, which `livemode` decides. It must match the secret.
fn environment_of(notice: &WebhookNotice, signers: &[Environment]) -> Result<Environment, EngineError> {
    let environment = match (notice.livemode, signers) {
        (Some(true), _) => Environment::Live,
        (Some(false), _) => Environment::Test,
        (None, [only]) => *only,
        (None, _) => {
            return Err(untrusted(
                "malformed_event",
                "the event must have `livemode`, as several secrets are configured",
            ));
        }
    };
    if signers.contains(&environment) {
        return Ok(environment);
    }
    Err(untrusted(
        "livemode_mismatch",
        "the `livemode` of the event must match the environment of the secret that signed it",
    ))
}
