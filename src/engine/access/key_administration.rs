//! Creates, lists and revokes keys: the use cases.

use super::keys::{ID_CHARS, KeyKind, PREFIX, PROOF_CHARS, digest, parse};
use crate::engine::error::EngineError;
use crate::engine::services::Engine;
use crate::store::api_keys::{self, ApiKey, NewApiKey};
use metergate_domain::base::Environment;
use rand::RngExt;
use rand::distr::Alphanumeric;

impl Engine {
    /// Creates a key. Only this answer contains the whole key.
    pub async fn create_key(
        &self,
        environment: Environment,
        kind: KeyKind,
        name: &str,
    ) -> Result<String, EngineError> {
        let mut rng = rand::rng();
        let mut characters = |count: usize| -> String {
            (&mut rng).sample_iter(Alphanumeric).take(count).map(char::from).collect()
        };
        let (id, proof) = (characters(ID_CHARS), characters(PROOF_CHARS));
        let key = format!("{PREFIX}{}_{environment}_{id}{proof}", kind.tag());
        let (kind, digest) = (kind.as_str(), &digest(&key));
        let written = NewApiKey { id: &id, environment, kind, name, digest };
        api_keys::insert(self.database().pool(), written).await?;
        Ok(key)
    }

    pub async fn list_keys(&self) -> Result<Vec<ApiKey>, EngineError> {
        Ok(api_keys::list(self.database().pool()).await?)
    }

    /// Revokes a key, given by its id or as the whole key.
    pub async fn revoke_key(&self, id_or_key: &str) -> Result<(), EngineError> {
        let id = parse(id_or_key).map_or(id_or_key, |(_, _, id)| id);
        if api_keys::revoke(self.database().pool(), id).await? {
            return Ok(());
        }
        let detail = "no key has this id; run `metergate keys list` to see the keys".to_owned();
        Err(EngineError::NotFound { code: "key_not_found", detail })
    }
}
