//! Settings. Later sources override earlier ones: the compiled-in defaults, `config/default.yaml` in the working
//! directory, `METERGATE__SECTION__KEY` variables, and the variables that platforms set (`DATABASE_URL`, `PORT`).
//! An unknown or malformed setting stops the start with an error that names it. Secrets are never printed.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use axum::http::HeaderValue;
use config::{Config, Environment as Variables, File, FileFormat};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Deserializer, de};

use crate::engine::EngineSettings;
use crate::engine::access::tokens::TokenSettings;
use crate::engine::clock::Offset;
use crate::http::HttpSettings;
use crate::jobs::JobSchedule;
use crate::providers::stripe::{StripeAccount, StripeSettings, environment_of};
use metergate_domain::base::Environment;

/// An edited copy of the defaults, in the working directory; optional.
const FILE: &str = "config/default.yaml";
const DEFAULTS: &str = include_str!("../../config/default.yaml");

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    pub http: Http,
    pub postgres: Postgres,
    pub events: Events,
    pub fold: Fold,
    pub auth: Auth,
    pub stripe: StripeSection,
    pub clock: ClockSection,
    pub log: Log,
    /// `DATABASE_URL`, which may contain a password. If it is not set, the embedded PostgreSQL runs.
    #[serde(skip)]
    pub database_url: Option<SecretString>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Http {
    pub bind: SocketAddr,
    #[serde(deserialize_with = "origins")]
    pub cors_origins: Vec<HeaderValue>,
    #[serde(deserialize_with = "duration")]
    pub request_max: Duration,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Postgres {
    pub bin: Option<PathBuf>,
    pub folder: PathBuf,
    #[serde(deserialize_with = "connections")]
    pub connections_max: u32,
    pub direct_url: Option<SecretString>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Events {
    #[serde(deserialize_with = "duration")]
    pub max_age: Duration,
    #[serde(deserialize_with = "duration")]
    pub wait_max: Duration,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fold {
    #[serde(deserialize_with = "duration")]
    pub interval: Duration,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Auth {
    #[serde(deserialize_with = "duration")]
    pub credential_life: Duration,
    pub live: Tokens,
    pub test: Tokens,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tokens {
    pub hs256_secret: Option<SecretString>,
    pub public_key: Option<String>,
    #[serde(deserialize_with = "http_url")]
    pub jwks_url: Option<String>,
    pub audience: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StripeSection {
    #[serde(deserialize_with = "base_url")]
    pub api_base: String,
    #[serde(deserialize_with = "schedule")]
    pub export_interval: JobSchedule,
    #[serde(deserialize_with = "duration")]
    pub late_grace: Duration,
    #[serde(deserialize_with = "rate")]
    pub calls_per_second: Option<u32>,
    /// Accounts from `STRIPE_SECRET` and similar variables.
    #[serde(skip, default = "no_accounts")]
    pub accounts: [(Environment, StripeAccount); 2],
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClockSection {
    #[serde(deserialize_with = "offset")]
    pub offset: Offset,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Log {
    pub format: LogFormat,
    pub filter: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    Auto,
    Json,
    Human,
}

/// An error in the settings.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    #[error("a setting is unknown or malformed: {0}; config/default.yaml lists all settings")]
    Malformed(String),
    #[error("PORT must be a port number from 0 to 65535; correct or unset it")]
    Port,
    #[error("{0} must be a Stripe API key, which begins with sk_live_, rk_live_, sk_test_ or rk_test_")]
    NoStripeKey(&'static str),
    #[error("STRIPE_TEST_SECRET must be a test key, but is a live key; set STRIPE_SECRET to it instead")]
    LiveKeyForTest,
    #[error("STRIPE_SECRET and STRIPE_TEST_SECRET are both test keys; set only one of them")]
    TwoTestKeys,
    #[error(
        "auth.live.hs256_secret and auth.test.hs256_secret must differ, so that a token is valid in one environment only"
    )]
    SharedSecret,
}

impl Settings {
    /// Loads the settings with the environment variables of this process.
    pub fn load() -> Result<Self, SettingsError> {
        Self::from_variables(
            std::env::vars_os()
                .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
                .collect(),
        )
    }

    /// Loads the settings with the given environment variables.
    pub fn from_variables(variables: HashMap<String, String>) -> Result<Self, SettingsError> {
        let set = |name: &str| variables.get(name).filter(|value| !value.is_empty()).cloned();
        let (port, database_url) = (set("PORT"), set("DATABASE_URL"));
        let accounts = accounts(&set)?;
        let ours = Variables::with_prefix("METERGATE")
            .prefix_separator("__")
            .separator("__")
            .source(Some(variables));
        let config = Config::builder()
            .add_source(File::from_str(DEFAULTS, FileFormat::Yaml))
            .add_source(File::new(FILE, FileFormat::Yaml).required(false))
            .add_source(ours)
            .build()
            .map_err(malformed)?;
        let mut settings: Self = config.try_deserialize().map_err(malformed)?;
        if let Some(port) = port {
            settings.http.bind.set_port(port.parse().map_err(|_| SettingsError::Port)?);
        }
        let secret = |tokens: &Tokens| tokens.hs256_secret.as_ref().map(|s| s.expose_secret().to_owned());
        if secret(&settings.auth.live).is_some() && secret(&settings.auth.live) == secret(&settings.auth.test)
        {
            return Err(SettingsError::SharedSecret);
        }
        settings.database_url = database_url.map(SecretString::from);
        settings.stripe.accounts = accounts;
        Ok(settings)
    }

    pub fn engine(&self) -> EngineSettings {
        let tokens = |tokens: &Tokens| TokenSettings {
            hs256_secret: tokens.hs256_secret.clone(),
            public_key: tokens.public_key.clone(),
            jwks_url: tokens.jwks_url.clone(),
            audience: tokens.audience.clone(),
        };
        EngineSettings {
            event_age_max: self.events.max_age,
            wait_max: self.events.wait_max,
            credential_life: self.auth.credential_life,
            tokens: [
                (Environment::Test, tokens(&self.auth.test)),
                (Environment::Live, tokens(&self.auth.live)),
            ],
            stripe: StripeSettings {
                api_base: self.stripe.api_base.clone(),
                calls_per_second: self.stripe.calls_per_second,
                accounts: self.stripe.accounts.clone(),
            },
            late_grace: self.stripe.late_grace,
        }
    }

    pub fn http(&self) -> HttpSettings {
        HttpSettings { cors_origins: self.http.cors_origins.clone(), request_max: self.http.request_max }
    }
}

fn no_accounts() -> [(Environment, StripeAccount); 2] {
    StripeSettings::default().accounts
}

/// Reads the Stripe accounts. The prefix of a key determines its environment, and the key's webhook secrets
/// belong to the same one. Webhook secrets without a key belong to the environment of their variable's name.
fn accounts(
    set: &impl Fn(&str) -> Option<String>,
) -> Result<[(Environment, StripeAccount); 2], SettingsError> {
    let (mut test, mut live) = (StripeAccount::default(), StripeAccount::default());
    let secrets = |name: &str| -> Vec<SecretString> {
        let listed = set(name).unwrap_or_default();
        listed.split(',').map(str::trim).filter(|secret| !secret.is_empty()).map(SecretString::from).collect()
    };
    let key = |name: &'static str| {
        let Some(key) = set(name).map(SecretString::from) else { return Ok(None) };
        let environment = environment_of(&key).ok_or(SettingsError::NoStripeKey(name))?;
        Ok(Some((environment, key)))
    };
    let of_test = key("STRIPE_TEST_SECRET")?;
    let is_taken = of_test.is_some();
    match of_test {
        Some((Environment::Live, _)) => return Err(SettingsError::LiveKeyForTest),
        Some((Environment::Test, key)) => test.api_key = Some(key),
        None => {}
    }
    test.webhook_secrets.extend(secrets("STRIPE_TEST_WEBHOOK_SECRET"));
    match key("STRIPE_SECRET")? {
        Some((Environment::Test, _)) if is_taken => return Err(SettingsError::TwoTestKeys),
        Some((Environment::Test, key)) => {
            test.api_key = Some(key);
            test.webhook_secrets.extend(secrets("STRIPE_WEBHOOK_SECRET"));
        }
        Some((Environment::Live, key)) => {
            live.api_key = Some(key);
            live.webhook_secrets.extend(secrets("STRIPE_WEBHOOK_SECRET"));
        }
        None => live.webhook_secrets.extend(secrets("STRIPE_WEBHOOK_SECRET")),
    }
    Ok([(Environment::Test, test), (Environment::Live, live)])
}

fn malformed(why: config::ConfigError) -> SettingsError {
    SettingsError::Malformed(why.to_string())
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    humantime::parse_duration(&text)
        .map_err(|_| de::Error::custom(format!("must be a duration such as 60s, 15m or 1h; got `{text}`")))
}

/// Reads a duration, otherwise a cron expression.
fn schedule<'de, D: Deserializer<'de>>(deserializer: D) -> Result<JobSchedule, D::Error> {
    let text = String::deserialize(deserializer)?;
    JobSchedule::parse(&text).map_err(|_| {
        de::Error::custom(format!(
            "must be a duration such as 60s or a cron expression such as @daily; got `{text}`"
        ))
    })
}

fn rate<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    match Option::<u32>::deserialize(deserializer)? {
        Some(0) => Err(de::Error::custom("calls_per_second must be 1 or more; got 0")),
        rate => Ok(rate),
    }
}

fn base_url<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    http_url(deserializer)?.ok_or_else(|| de::Error::custom("api_base must be a URL"))
}

fn offset<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Offset, D::Error> {
    let text = String::deserialize(deserializer)?;
    let (behind, length) = match text.strip_prefix('-') {
        Some(length) => (true, length),
        None => (false, text.strip_prefix('+').unwrap_or(&text)),
    };
    let length = humantime::parse_duration(length)
        .map_err(|_| de::Error::custom(format!("must be an offset such as 31d or -1h; got `{text}`")))?;
    Ok(if behind { Offset::Behind(length) } else { Offset::Ahead(length) })
}

fn connections<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    match u32::deserialize(deserializer)? {
        count @ 1..=1_000 => Ok(count),
        count => Err(de::Error::custom(format!("connections_max must be from 1 to 1000; got {count}"))),
    }
}

fn http_url<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let Some(text) = Option::<String>::deserialize(deserializer)? else { return Ok(None) };
    match reqwest::Url::parse(&text) {
        Ok(url) if matches!(url.scheme(), "http" | "https") => Ok(Some(text)),
        _ => Err(de::Error::custom(format!("must be an http or https URL; got `{text}`"))),
    }
}

fn origins<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<HeaderValue>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let origin = |origin: &str| {
        let shaped = origin.starts_with("http://") || origin.starts_with("https://");
        HeaderValue::from_str(origin).ok().filter(|_| shaped && !origin.ends_with('/')).ok_or_else(|| {
            de::Error::custom(format!("must list origins such as https://app.example.com; got `{origin}`"))
        })
    };
    text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(origin).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(variables: &[(&str, &str)]) -> Result<Settings, SettingsError> {
        Settings::from_variables(variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
    }

    #[test]
    fn variables_override_defaults() {
        let settings = load(&[
            ("METERGATE__HTTP__BIND", "0.0.0.0:9000"),
            ("METERGATE__HTTP__CORS_ORIGINS", "https://a.example, http://localhost:3000"),
            ("METERGATE__EVENTS__MAX_AGE", "35d"),
            ("METERGATE__POSTGRES__CONNECTIONS_MAX", "4"),
            ("METERGATE__CLOCK__OFFSET", "-1h"),
            ("METERGATE__AUTH__TEST__HS256_SECRET", "12345678901234567890123456789012"),
            ("PORT", "9001"),
            ("DATABASE_URL", "postgres://u:hunter2@db/m"),
        ])
        .unwrap();
        assert_eq!(settings.http.bind.to_string(), "0.0.0.0:9001");
        assert_eq!(settings.http.cors_origins.len(), 2);
        assert_eq!(settings.events.max_age, Duration::from_hours(35 * 24));
        assert_eq!(settings.postgres.connections_max, 4);
        assert_eq!(settings.clock.offset, Offset::Behind(Duration::from_hours(1)));
        let shown = format!("{settings:?}");
        assert!(!shown.contains("hunter2") && !shown.contains("1234567890"), "{shown}");
    }

    #[test]
    fn the_prefix_of_a_stripe_key_selects_its_environment() {
        let settings = load(&[
            ("STRIPE_SECRET", "sk_test_hush"),
            ("STRIPE_WEBHOOK_SECRET", "whsec_new, whsec_old"),
            ("METERGATE__STRIPE__EXPORT_INTERVAL", "@daily"),
        ])
        .unwrap();
        let engine = settings.engine();
        let test = engine.stripe.account(Environment::Test).unwrap();
        assert!(test.api_key.is_some());
        assert_eq!(test.webhook_secrets.len(), 2);
        let live = engine.stripe.account(Environment::Live).unwrap();
        assert!(live.api_key.is_none() && live.webhook_secrets.is_empty());
        let shown = format!("{settings:?}{engine:?}");
        assert!(!shown.contains("hush") && !shown.contains("whsec"), "{shown}");
    }

    #[test]
    fn errors_name_the_setting() {
        let cases = [
            (vec![("METERGATE__HTTP__PORT", "1")], "port"),
            (vec![("METERGATE__COLOUR", "red")], "colour"),
            (vec![("METERGATE__FOLD__INTERVAL", "soon")], "soon"),
            (vec![("METERGATE__POSTGRES__CONNECTIONS_MAX", "many")], "connections_max"),
            (vec![("METERGATE__POSTGRES__CONNECTIONS_MAX", "0")], "connections_max"),
            (vec![("METERGATE__AUTH__LIVE__JWKS_URL", "keys.json")], "keys.json"),
            (vec![("METERGATE__LOG__FORMAT", "xml")], "xml"),
            (vec![("PORT", "http")], "PORT"),
            (vec![("METERGATE__STRIPE__EXPORT_INTERVAL", "now and then")], "now and then"),
            (vec![("METERGATE__STRIPE__API_BASE", "stripe")], "stripe"),
            (vec![("METERGATE__STRIPE__CALLS_PER_SECOND", "0")], "calls_per_second"),
            (vec![("STRIPE_SECRET", "hush")], "STRIPE_SECRET"),
            (vec![("STRIPE_TEST_SECRET", "sk_live_1")], "live key"),
            (vec![("STRIPE_TEST_SECRET", "sk_test_1"), ("STRIPE_SECRET", "sk_test_2")], "both test keys"),
            (
                vec![
                    ("METERGATE__AUTH__TEST__HS256_SECRET", "x"),
                    ("METERGATE__AUTH__LIVE__HS256_SECRET", "x"),
                ],
                "must differ",
            ),
        ];
        for (variables, named) in cases {
            let why = load(&variables).unwrap_err().to_string();
            assert!(why.contains(named), "{variables:?}: {why}");
        }
    }
}
