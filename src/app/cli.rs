//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};

use crate::engine::access::keys::KeyKind;
use metergate_domain::base::environment::Environment;

/// Metering and limits beside Stripe: one binary and PostgreSQL.
#[derive(Debug, Parser)]
#[command(name = "metergate", version, about)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Option<Command>,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the service (the default)
    Serve,
    /// Apply, compare or show the meters and plans of an environment
    #[command(subcommand)]
    Catalog(CatalogCommand),
    /// Make, list or revoke API keys
    #[command(subcommand)]
    Keys(KeysCommand),
    /// Make an end-user token, for trying
    #[command(subcommand)]
    Token(TokenCommand),
    /// Recount every rollup and counter from the events; exits 1 on any difference
    Verify {
        /// Only this environment
        #[arg(long)]
        environment: Option<EnvironmentName>,
    },
    /// Hand usage to the billing provider
    #[command(subcommand)]
    Export(ExportCommand),
    /// Ask a running service whether it is ready; exits 1 if not
    Healthcheck,
}

#[derive(Debug, Subcommand)]
pub enum ExportCommand {
    /// Settle everything that is due, the running hour too, and print what came of it; exits 1 while
    /// something is pending or dead
    Run {
        /// Only this environment; else every one with an account
        #[arg(long)]
        environment: Option<EnvironmentName>,
    },
}

#[derive(Debug, Subcommand)]
pub enum CatalogCommand {
    /// Apply a catalog, all or nothing
    Apply(CatalogFile),
    /// Show what applying it would change
    Diff(CatalogFile),
    /// Show the catalog in force, as JSON
    Show {
        #[arg(long, default_value = "test")]
        environment: EnvironmentName,
    },
}

#[derive(Debug, clap::Args)]
pub struct CatalogFile {
    /// YAML or JSON
    #[arg(default_value = "config/catalog.yaml")]
    pub file: PathBuf,
    #[arg(long, default_value = "test")]
    pub environment: EnvironmentName,
}

#[derive(Debug, Subcommand)]
pub enum KeysCommand {
    /// Make a key and print it; it is not shown again
    Create {
        #[arg(long, default_value = "test")]
        environment: EnvironmentName,
        #[arg(long, default_value = "secret")]
        kind: KindName,
        #[arg(long, default_value = "")]
        name: String,
    },
    /// List the keys, but for what proves them
    List,
    /// Revoke a key, by its id or by itself
    Revoke { id: String },
}

#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Sign a token with the environment's HS256 secret and print it
    Mint {
        #[arg(long)]
        subject: String,
        #[arg(long, default_value = "test")]
        environment: EnvironmentName,
        /// Space-separated
        #[arg(long, default_value = "usage:read")]
        scope: String,
        /// How long it is good: 15m, 1h
        #[arg(long, default_value = "1h", value_parser = humantime::parse_duration)]
        ttl: Duration,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum EnvironmentName {
    Test,
    Live,
}

impl From<EnvironmentName> for Environment {
    fn from(name: EnvironmentName) -> Self {
        match name {
            EnvironmentName::Test => Self::Test,
            EnvironmentName::Live => Self::Live,
        }
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum KindName {
    Secret,
    Publishable,
}

impl From<KindName> for KeyKind {
    fn from(name: KindName) -> Self {
        match name {
            KindName::Secret => Self::Secret,
            KindName::Publishable => Self::Publishable,
        }
    }
}
