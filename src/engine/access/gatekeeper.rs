//! The check of a credential, and what it may do.

use super::principal::Principal;
use super::tokens::TokenVerifier;
use crate::engine::access::keys;
use crate::engine::error::EngineError;
use crate::engine::settings::EngineSettings;
use crate::store::Database;
use metergate_domain::base::limits::CREDENTIAL_CHARS_MAX;
use moka::future::Cache;
use secrecy::SecretString;
use std::sync::Arc;

/// The most look-up results in memory.
pub(super) const VERDICTS_MAX: u64 = 10_000;

/// Checks credentials. Keeps recent results of key look-ups.
#[derive(Debug)]
pub struct Gatekeeper {
    pub(super) database: Database,
    pub(super) verifiers: Vec<TokenVerifier>,
    /// Look-up results by the digest of the credential. They are kept for seconds only, so that a
    /// revocation takes effect everywhere.
    pub(super) verdicts: Cache<[u8; 32], Option<Principal>>,
}

pub(super) const BAD_CREDENTIAL: EngineError = EngineError::Unauthorized {
    detail: "the credential is unknown, revoked, expired or meant for another service; send a valid key or token",
};

impl Gatekeeper {
    pub(crate) fn new(database: Database, settings: &EngineSettings) -> Result<Self, EngineError> {
        let verifiers = settings
            .tokens
            .iter()
            .map(|(environment, settings)| TokenVerifier::new(*environment, settings.clone()))
            .collect::<Result<_, _>>()?;
        let verdicts =
            Cache::builder().max_capacity(VERDICTS_MAX).time_to_live(settings.credential_life).build();
        Ok(Self { database, verifiers, verdicts })
    }

    /// Returns the caller of a credential, or an error if the credential is not valid.
    pub async fn admit(&self, credential: &SecretString) -> Result<Principal, EngineError> {
        use secrecy::ExposeSecret;
        let text = credential.expose_secret();
        if text.len() > CREDENTIAL_CHARS_MAX {
            return Err(BAD_CREDENTIAL);
        }
        if text.starts_with(keys::PREFIX) {
            let digest = keys::digest(text);
            if let Some(verdict) = self.verdicts.get(&digest).await {
                return verdict.ok_or(BAD_CREDENTIAL);
            }
            // boxed, as below: otherwise every call would carry the memory of a future that it seldom
            // needs
            let look_up = keys::look_up(&self.database, text, digest);
            let looked_up = Box::pin(self.verdicts.try_get_with(digest, look_up)).await;
            return match looked_up {
                Ok(verdict) => verdict.ok_or(BAD_CREDENTIAL),
                Err(why) => Err(EngineError::unavailable(Arc::unwrap_or_clone(why))),
            };
        }
        for verifier in &self.verifiers {
            if let Some(principal) = Box::pin(verifier.verify(text)).await {
                return Ok(principal);
            }
        }
        Err(BAD_CREDENTIAL)
    }
}
