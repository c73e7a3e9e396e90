//! End-user tokens: JWTs (RFC 7519) that the application issues to its users, so that a browser can
//! read its own usage. The claim `sub` is the subject, and `scope` lists the rights.
//!
//! Every configured key is bound to one algorithm. A token names an algorithm, but never chooses how a
//! key is used. The key that verifies a token determines its environment.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jsonwebtoken::jwk::{AlgorithmParameters, JwkSet};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use super::principal::{Principal, Role};
use crate::engine::error::EngineError;
use metergate_domain::base::Environment;
use metergate_domain::base::names::SubjectId;

/// The shortest HS256 secret; a shorter one could be guessed from one token.
pub const HS256_SECRET_BYTES_MIN: usize = 32;
/// The shortest time between two fetches of the JWKS document for an unknown key.
const JWKS_AGE_MIN: Duration = Duration::from_secs(10);
/// The age at which the document is fetched again, so that a withdrawn key is forgotten.
const JWKS_AGE_MAX: Duration = Duration::from_mins(10);
const JWKS_ANSWER_MAX: Duration = Duration::from_secs(5);
const JWKS_BYTES_MAX: usize = 256 * 1024;

/// The ways to verify tokens of an environment; each is optional.
#[derive(Debug, Clone, Default)]
pub struct TokenSettings {
    pub hs256_secret: Option<SecretString>,
    /// A PEM of an RSA, P-256 or Ed25519 public key.
    pub public_key: Option<String>,
    pub jwks_url: Option<String>,
    /// The audience that `aud` must name.
    pub audience: String,
}

#[derive(Debug, Deserialize, Serialize)]
pub(super) struct Claims {
    pub(super) sub: String,
    pub(super) exp: i64,
    #[serde(default)]
    pub(super) scope: ScopeClaim,
    /// The environment, if given; it must be the one of the key that verified the token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) environment: Option<Environment>,
    pub(super) aud: serde_json::Value,
}

/// Scopes separated by spaces, as in RFC 8693, or as a list.
#[derive(Debug, Deserialize, Serialize)]
#[serde(untagged)]
pub(super) enum ScopeClaim {
    Words(String),
    List(Vec<String>),
}

impl Default for ScopeClaim {
    fn default() -> Self {
        Self::List(Vec::new())
    }
}

impl ScopeClaim {
    fn into_list(self) -> Vec<String> {
        match self {
            Self::Words(words) => words.split_whitespace().map(str::to_owned).collect(),
            Self::List(list) => list,
        }
    }
}

/// A key with its only permitted algorithm.
struct BoundKey {
    algorithm: Algorithm,
    key: DecodingKey,
}

impl fmt::Debug for BoundKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BoundKey({:?})", self.algorithm)
    }
}

/// Verifies the tokens of one environment.
#[derive(Debug)]
pub(super) struct TokenVerifier {
    environment: Environment,
    audience: String,
    keys: Vec<BoundKey>,
    jwks: Option<Jwks>,
}

impl TokenVerifier {
    pub(super) fn new(environment: Environment, settings: TokenSettings) -> Result<Self, EngineError> {
        let mut keys = Vec::new();
        if let Some(secret) = &settings.hs256_secret {
            let secret = secret.expose_secret().as_bytes();
            if secret.len() < HS256_SECRET_BYTES_MIN {
                let why = format!(
                    "auth.{environment}.hs256_secret must have at least {HS256_SECRET_BYTES_MIN} bytes"
                );
                return Err(EngineError::Internal(why));
            }
            keys.push(BoundKey { algorithm: Algorithm::HS256, key: DecodingKey::from_secret(secret) });
        }
        if let Some(pem) = &settings.public_key {
            let key = public_key(pem.as_bytes()).ok_or_else(|| {
                let why = format!(
                    "auth.{environment}.public_key must be a PEM of an RSA, P-256 or Ed25519 public key"
                );
                EngineError::Internal(why)
            })?;
            keys.push(key);
        }
        let jwks = settings.jwks_url.map(Jwks::new).transpose()?;
        Ok(Self { environment, audience: settings.audience, keys, jwks })
    }

    /// Returns the caller of a token, if the token is valid here.
    pub(super) async fn verify(&self, token: &str) -> Option<Principal> {
        let header = jsonwebtoken::decode_header(token).ok()?;
        for bound in self.keys.iter().filter(|bound| bound.algorithm == header.alg) {
            if let Some(principal) = self.check(token, bound) {
                return Some(principal);
            }
        }
        let bound = self.jwks.as_ref()?.find(header.alg, header.kid.as_deref()).await?;
        self.check(token, &bound)
    }

    fn check(&self, token: &str, bound: &BoundKey) -> Option<Principal> {
        let mut validation = Validation::new(bound.algorithm);
        validation.leeway = 0;
        validation.validate_nbf = true;
        validation.set_audience(&[&self.audience]);
        validation.set_required_spec_claims(&["exp", "sub", "aud"]);
        let claims = jsonwebtoken::decode::<Claims>(token, &bound.key, &validation).ok()?.claims;
        if claims.environment.is_some_and(|environment| environment != self.environment) {
            return None;
        }
        let subject = SubjectId::parse(claims.sub).ok()?;
        let role = Role::EndUser { subject, scopes: claims.scope.into_list() };
        Some(Principal { environment: self.environment, role })
    }
}

fn public_key(pem: &[u8]) -> Option<BoundKey> {
    let bound = |algorithm, key| Some(BoundKey { algorithm, key });
    if let Ok(key) = DecodingKey::from_rsa_pem(pem) {
        return bound(Algorithm::RS256, key);
    }
    if let Ok(key) = DecodingKey::from_ec_pem(pem) {
        return bound(Algorithm::ES256, key);
    }
    DecodingKey::from_ed_pem(pem).ok().and_then(|key| bound(Algorithm::EdDSA, key))
}

/// A JWKS document (RFC 7517), fetched on demand.
#[derive(Debug)]
struct Jwks {
    url: String,
    client: reqwest::Client,
    known: Mutex<Option<Known>>,
}

#[derive(Debug, Clone)]
struct Known {
    keys: Arc<JwkSet>,
    asked_at: Instant,
}

impl Jwks {
    fn new(url: String) -> Result<Self, EngineError> {
        let client = reqwest::Client::builder()
            .timeout(JWKS_ANSWER_MAX)
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|why| {
                EngineError::Internal(format!("the HTTP client for JWKS cannot be created: {why}"))
            })?;
        Ok(Self { url, client, known: Mutex::new(None) })
    }

    async fn find(&self, algorithm: Algorithm, kid: Option<&str>) -> Option<BoundKey> {
        // one caller fetches while the others wait
        let mut known = self.known.lock().await;
        let fresh = known.as_ref().is_some_and(|known| known.asked_at.elapsed() < JWKS_AGE_MAX);
        if fresh && let Some(key) = pick(known.as_ref()?.keys.as_ref(), algorithm, kid) {
            return Some(key);
        }
        let rested = known.as_ref().is_none_or(|known| known.asked_at.elapsed() >= JWKS_AGE_MIN);
        if rested {
            let keys = match self.fetch().await {
                Ok(keys) => Arc::new(keys),
                Err(why) => {
                    tracing::warn!(url = %self.url, %why, "the JWKS document cannot be fetched");
                    // the known keys stay valid while the other side is unavailable
                    known.as_ref().map_or_else(
                        || Arc::new(JwkSet { keys: Vec::new() }),
                        |known| Arc::clone(&known.keys),
                    )
                }
            };
            *known = Some(Known { keys, asked_at: Instant::now() });
        }
        pick(known.as_ref()?.keys.as_ref(), algorithm, kid)
    }

    async fn fetch(&self) -> Result<JwkSet, String> {
        let answer = self.client.get(&self.url).send().await.map_err(|why| why.to_string())?;
        let mut answer = answer.error_for_status().map_err(|why| why.to_string())?;
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(|why| why.to_string())? {
            body.extend_from_slice(&chunk);
            if body.len() > JWKS_BYTES_MAX {
                return Err(format!("the document must have at most {JWKS_BYTES_MAX} bytes"));
            }
        }
        serde_json::from_slice(&body).map_err(|why| why.to_string())
    }
}

/// Returns the key with the id. Without an id, returns the only key that fits the algorithm.
fn pick(keys: &JwkSet, algorithm: Algorithm, kid: Option<&str>) -> Option<BoundKey> {
    let fits = |parameters: &AlgorithmParameters| match parameters {
        AlgorithmParameters::RSA(_) => algorithm == Algorithm::RS256,
        AlgorithmParameters::EllipticCurve(_) => algorithm == Algorithm::ES256,
        AlgorithmParameters::OctetKeyPair(_) => algorithm == Algorithm::EdDSA,
        // a public document must not contain shared secrets
        _ => false,
    };
    let mut fitting = keys.keys.iter().filter(|jwk| fits(&jwk.algorithm));
    let jwk = match kid {
        Some(kid) => fitting.find(|jwk| jwk.common.key_id.as_deref() == Some(kid))?,
        None => fitting.next().filter(|_| fitting.next().is_none())?,
    };
    Some(BoundKey { algorithm, key: DecodingKey::from_jwk(jwk).ok()? })
}
