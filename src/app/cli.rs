//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};

use crate::engine::access::keys::KeyKind;
use metergate_domain::base::Environment;

/// Usage metering and limits for services that bill with Stripe, in one binary on PostgreSQL
#[derive(Debug, Parser)]
#[command(name = "metergate", version, about)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Option<Command>,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the service (default)
    Serve,
    /// Apply, compare or show the meters and plans of an environment
    #[command(subcommand)]
    Catalog(CatalogCommand),
    /// Create, list or revoke API keys
    #[command(subcommand)]
    Keys(KeysCommand),
    /// Create an end-user token for tests
    #[command(subcommand)]
    Token(TokenCommand),
    /// Compare every rollup and counter with the events; exits 1 if any differs
    Verify {
        /// Check only this environment [default: both]
        #[arg(long)]
        environment: Option<EnvironmentName>,
    },
    /// Send usage to the billing provider
    #[command(subcommand)]
    Export(ExportCommand),
    /// Check whether the running service is ready; exits 1 if not
    Healthcheck,
}

#[derive(Debug, Subcommand)]
pub enum ExportCommand {
    /// Send all usage that is due, including the current hour, and print the result; exits 1 if an export
    /// is pending or dead
    Run {
        /// Export only this environment [default: every environment with a Stripe account]
        #[arg(long)]
        environment: Option<EnvironmentName>,
    },
}

#[derive(Debug, Subcommand)]
pub enum CatalogCommand {
    /// Apply a catalog; if any part is invalid, nothing changes
    Apply(CatalogFile),
    /// Show the changes that `apply` would make
    Diff(CatalogFile),
    /// Print the current catalog as JSON
    Show {
        #[arg(long, default_value = "test")]
        environment: EnvironmentName,
    },
}

#[derive(Debug, clap::Args)]
pub struct CatalogFile {
    /// Catalog file, in YAML or JSON
    #[arg(default_value = "config/catalog.yaml")]
    pub file: PathBuf,
    #[arg(long, default_value = "test")]
    pub environment: EnvironmentName,
}

#[derive(Debug, Subcommand)]
pub enum KeysCommand {
    /// Create a key and print it; it cannot be shown again
    Create {
        #[arg(long, default_value = "test")]
        environment: EnvironmentName,
        #[arg(long, default_value = "secret")]
        kind: KindName,
        #[arg(long, default_value = "")]
        name: String,
    },
    /// List the keys, without their secret parts
    List,
    /// Revoke a key
    Revoke {
        /// Id of the key, or the key itself
        id: String,
    },
}

#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Sign a token with the environment's HS256 secret and print it
    Mint {
        #[arg(long)]
        subject: String,
        #[arg(long, default_value = "test")]
        environment: EnvironmentName,
        /// Scopes, separated by spaces
        #[arg(long, default_value = "usage:read")]
        scope: String,
        /// Lifetime of the token, such as 15m or 1h
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
