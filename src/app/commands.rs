//! The commands, each on the database that the service uses.

use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};

use super::cli::{CatalogCommand, CatalogFile, Command, ExportCommand, KeysCommand, TokenCommand};
use super::database::DatabaseHandle;
use super::output::{format_errors, print_json, print_line};
use super::serve::migrate;
use super::settings::Settings;
use super::{logging, serve};
use crate::engine::{Clock, Engine, EngineError};
use metergate_domain::base::Environment;
use metergate_domain::base::names::SubjectId;
use metergate_domain::catalog::Catalog;

/// Longest wait of a command for the database, shorter than the wait of the service.
const DATABASE_WAIT_MAX: Duration = Duration::from_secs(5);
/// Longest wait of a healthcheck for an answer.
const HEALTHCHECK_MAX: Duration = Duration::from_secs(3);

impl Command {
    /// Runs the command and returns the exit code of the process.
    pub async fn run(self, mut settings: Settings) -> anyhow::Result<ExitCode> {
        match self {
            Self::Serve => {
                serve(settings).await?;
                return Ok(ExitCode::SUCCESS);
            }
            Self::Healthcheck => return healthcheck(&settings).await,
            _ => {}
        }
        "warn,sqlx=error".clone_into(&mut settings.log.filter);
        logging::start(&settings.log)?;
        let handle = DatabaseHandle::join(&mut settings).await?;
        let done = self.run_on(&settings, &handle).await;
        handle.close().await;
        done
    }

    async fn run_on(self, settings: &Settings, handle: &DatabaseHandle) -> anyhow::Result<ExitCode> {
        migrate(&handle.database, DATABASE_WAIT_MAX).await?;
        let clock = Clock::postgres(settings.clock.offset);
        let engine = Engine::start(handle.database.clone(), clock, settings.engine())?;
        let done = self.run_with(&engine).await;
        engine.stop().await;
        done
    }

    async fn run_with(self, engine: &Engine) -> anyhow::Result<ExitCode> {
        match self {
            Self::Serve | Self::Healthcheck => {}
            Self::Catalog(CatalogCommand::Apply(given)) => apply(engine, &given, false).await?,
            Self::Catalog(CatalogCommand::Diff(given)) => apply(engine, &given, true).await?,
            Self::Catalog(CatalogCommand::Show { environment }) => {
                print_json(&engine.catalog(environment.into()).await?.catalog)?;
            }
            Self::Keys(KeysCommand::Create { environment, kind, name }) => {
                print_line(engine.create_key(environment.into(), kind.into(), &name).await?)?;
            }
            Self::Keys(KeysCommand::List) => list_keys(engine).await?,
            Self::Keys(KeysCommand::Revoke { id }) => engine.revoke_key(&id).await?,
            Self::Token(TokenCommand::Mint { subject, environment, scope, ttl }) => {
                let subject = SubjectId::parse(subject).context("--subject")?;
                #[expect(
                    clippy::disallowed_methods,
                    reason = "a token is valid from the time of the command"
                )]
                let expires_at = (SystemTime::now() + ttl).duration_since(UNIX_EPOCH)?.as_secs();
                print_line(engine.mint_token(
                    environment.into(),
                    &subject,
                    &scope,
                    expires_at.cast_signed(),
                )?)?;
            }
            Self::Export(ExportCommand::Run { environment }) => {
                return export(engine, environment.map(Into::into)).await;
            }
            Self::Verify { environment } => return verify(engine, environment.map(Into::into)).await,
        }
        Ok(ExitCode::SUCCESS)
    }
}

async fn apply(engine: &Engine, given: &CatalogFile, dry_run: bool) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(&given.file)
        .with_context(|| format!("cannot read {}", given.file.display()))?;
    // JSON is nearly YAML, but its strings may contain characters that YAML refuses
    let is_json = given.file.extension().is_some_and(|extension| extension == "json");
    let read = if is_json { Catalog::read(serde_json::from_str(&text)?) } else { Catalog::read_yaml(&text) };
    let catalog = read.map_err(|errors| anyhow::anyhow!(format_errors(&errors)))?;
    match engine.apply_catalog(given.environment.into(), catalog, dry_run).await {
        Ok(applied) => print_json(&applied),
        Err(EngineError::Invalid(errors)) => bail!(format_errors(&errors)),
        Err(other) => Err(other.into()),
    }
}

async fn list_keys(engine: &Engine) -> anyhow::Result<()> {
    print_line(format_args!(
        "{:<14}{:<13}{:<13}{:<22}{:<22}name",
        "id", "environment", "kind", "created", "revoked"
    ))?;
    for key in engine.list_keys().await? {
        let seconds = |text: String| text.chars().take(19).collect::<String>();
        let revoked = key.revoked_at.map(|at| seconds(at.to_string())).unwrap_or_default();
        let created = seconds(key.created_at.to_string());
        print_line(format_args!(
            "{:<14}{:<13}{:<13}{created:<22}{revoked:<22}{}",
            key.id, key.environment, key.kind, key.name
        ))?;
    }
    Ok(())
}

async fn verify(engine: &Engine, only: Option<Environment>) -> anyhow::Result<ExitCode> {
    let mut differences = 0;
    for environment in
        Environment::ALL.into_iter().filter(|environment| only.is_none_or(|only| only == *environment))
    {
        let verdict = engine.verify(environment).await?;
        print_line(format_args!(
            "{environment}: {} events, {} rollups and {} counters recounted, {} differences",
            verdict.events, verdict.rollups, verdict.counters, verdict.differences
        ))?;
        for shown in verdict.shown {
            print_line(format_args!("  {shown}"))?;
        }
        differences += verdict.differences;
    }
    Ok(if differences == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn export(engine: &Engine, only: Option<Environment>) -> anyhow::Result<ExitCode> {
    let is_meant =
        |environment| only.map_or_else(|| engine.exports_somewhere(environment), |only| only == environment);
    let meant: Vec<Environment> = Environment::ALL.into_iter().filter(|each| is_meant(*each)).collect();
    if meant.is_empty() {
        bail!(
            "no environment has a Stripe account: set STRIPE_SECRET or STRIPE_TEST_SECRET, as for the service"
        );
    }
    let mut is_settled = true;
    for environment in meant {
        let ran = engine.run_exports(environment).await?;
        print_line(format_args!(
            "{environment}: {} created, {} delivered, {} dead, {} pending",
            ran.created, ran.delivered, ran.dead, ran.pending
        ))?;
        is_settled &= ran.dead == 0 && ran.pending == 0;
    }
    Ok(if is_settled { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Calls `/readyz` at the address of the service, for containers.
async fn healthcheck(settings: &Settings) -> anyhow::Result<ExitCode> {
    let mut address = settings.http.bind;
    if address.ip().is_unspecified() {
        address.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
    }
    let url = format!("http://{address}/readyz");
    let client = reqwest::Client::builder().timeout(HEALTHCHECK_MAX).no_proxy().build()?;
    let ready = client.get(url).send().await.is_ok_and(|answer| answer.status().is_success());
    Ok(if ready { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
