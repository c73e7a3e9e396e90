//! Minting end-user tokens: the use case.

use super::tokens::{Claims, ScopeClaim};
use crate::engine::error::EngineError;
use crate::engine::services::Engine;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use metergate_domain::base::Environment;
use metergate_domain::base::names::SubjectId;
use secrecy::ExposeSecret;

impl Engine {
    /// Creates a token for tests, signed with the environment's HS256 secret.
    pub fn mint_token(
        &self,
        environment: Environment,
        subject: &SubjectId,
        scope: &str,
        expires_at_seconds: i64,
    ) -> Result<String, EngineError> {
        let settings = self.inner.settings.tokens.iter().find(|(of, _)| *of == environment).map(|(_, s)| s);
        let Some((secret, audience)) = settings.and_then(|s| Some((s.hs256_secret.as_ref()?, &s.audience)))
        else {
            let detail = format!(
                "a secret to sign with is required; set METERGATE__AUTH__{}__HS256_SECRET",
                environment.as_str().to_uppercase()
            );
            return Err(EngineError::NotFound { code: "no_token_secret", detail });
        };
        let claims = Claims {
            sub: subject.to_string(),
            exp: expires_at_seconds,
            scope: ScopeClaim::Words(scope.to_owned()),
            environment: Some(environment),
            aud: serde_json::Value::String(audience.clone()),
        };
        let key = EncodingKey::from_secret(secret.expose_secret().as_bytes());
        jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &key)
            .map_err(|why| EngineError::Internal(format!("the token cannot be signed: {why}")))
    }
}
