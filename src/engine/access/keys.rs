//! API keys: `mg_sk_live_…`, `mg_sk_test_…` (secret), `mg_pk_live_…`, `mg_pk_test_…` (publishable).
//!
//! After the prefix, 12 characters identify the key and 32 are its secret. The database keeps the
//! identifier and a BLAKE3 digest of the whole key. A fast hash is enough, because a random secret
//! cannot be guessed.

use serde::Serialize;
use subtle::ConstantTimeEq;

use super::principal::{Principal, Role};
use crate::store::api_keys;
use crate::store::{Database, StoreError};
use metergate_domain::base::Environment;

pub(super) const PREFIX: &str = "mg_";
pub(super) const ID_CHARS: usize = 12;
pub(super) const PROOF_CHARS: usize = 32;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyKind {
    Secret,
    Publishable,
}

impl KeyKind {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Secret => "secret",
            Self::Publishable => "publishable",
        }
    }

    pub(super) fn tag(self) -> &'static str {
        match self {
            Self::Secret => "sk",
            Self::Publishable => "pk",
        }
    }
}

pub(super) fn digest(key: &str) -> [u8; 32] {
    blake3::hash(key.as_bytes()).into()
}

/// Splits a key into kind, environment and id.
pub(super) fn parse(key: &str) -> Option<(KeyKind, Environment, &str)> {
    let rest = key.strip_prefix(PREFIX)?;
    let (tag, rest) = rest.split_once('_')?;
    let (environment, rest) = rest.split_once('_')?;
    let kind = [KeyKind::Secret, KeyKind::Publishable].into_iter().find(|kind| kind.tag() == tag)?;
    let shaped = rest.len() == ID_CHARS + PROOF_CHARS && rest.bytes().all(|b| b.is_ascii_alphanumeric());
    shaped.then_some((kind, environment.parse().ok()?, rest.get(..ID_CHARS)?))
}

/// Returns the caller of a presented key. Errors are texts, because all waiting callers share them.
pub(super) async fn look_up(
    database: &Database,
    presented: &str,
    digest: [u8; 32],
) -> Result<Option<Principal>, String> {
    let Some((kind, environment, id)) = parse(presented) else { return Ok(None) };
    let row = api_keys::find_active(database.pool(), id).await.map_err(|why: StoreError| why.to_string())?;
    let Some((row, kept)) = row else { return Ok(None) };
    let proven: bool = kept.ct_eq(&digest).into();
    if !proven || row.environment != environment || row.kind != kind.as_str() {
        return Ok(None);
    }
    let role = match kind {
        KeyKind::Secret => Role::Secret,
        KeyKind::Publishable => Role::Publishable,
    };
    Ok(Some(Principal { environment, role }))
}
