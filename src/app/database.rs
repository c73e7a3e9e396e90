//! The database of this process: the one in `DATABASE_URL`, or the embedded one. A command uses the embedded
//! server of a running service, if there is one.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::Context;
use secrecy::{ExposeSecret, SecretString};

use super::settings::Settings;
use crate::embedded::{Cluster, ServerPurpose, running_url};
use crate::store::Database;

/// The database that exists on every new server.
const EMBEDDED_DATABASE: &str = "postgres";

/// A database, and its server if this process started it.
#[derive(Debug)]
pub(super) struct DatabaseHandle {
    pub(super) database: Database,
    pub(super) cluster: Option<Cluster>,
    pub(super) embedded: bool,
}

impl DatabaseHandle {
    /// Opens the database for the service: starts the embedded server if no URL is set.
    pub(super) async fn open(settings: &mut Settings) -> anyhow::Result<Self> {
        match settings.database_url.clone() {
            Some(url) => Self::at(settings, url.expose_secret(), None, false),
            None => Self::start_embedded(settings).await,
        }
    }

    /// Opens the database for a command: uses the embedded server of a running service, otherwise starts it.
    pub(super) async fn join(settings: &mut Settings) -> anyhow::Result<Self> {
        if settings.database_url.is_none()
            && let Some(url) = running_url(&settings.postgres.folder, EMBEDDED_DATABASE).await
        {
            set_token_secret(settings)?;
            return Self::at(settings, &url, None, true);
        }
        Self::open(settings).await
    }

    async fn start_embedded(settings: &mut Settings) -> anyhow::Result<Self> {
        let folder = settings.postgres.folder.clone();
        let cluster =
            Cluster::start(&folder, settings.postgres.bin.as_deref(), ServerPurpose::Service).await?;
        set_token_secret(settings)?;
        let url = cluster.url(EMBEDDED_DATABASE);
        Self::at(settings, &url, Some(cluster), true)
    }

    fn at(settings: &Settings, url: &str, cluster: Option<Cluster>, embedded: bool) -> anyhow::Result<Self> {
        let direct = settings.postgres.direct_url.as_ref().map(ExposeSecret::expose_secret);
        let direct = direct.filter(|_| !embedded);
        let database = Database::new(url, direct, settings.postgres.connections_max)?;
        Ok(Self { database, cluster, embedded })
    }

    /// Restarts the embedded server if it has ended.
    pub(super) async fn restart_if_down(&mut self) {
        if let Some(cluster) = &mut self.cluster
            && let Err(why) = cluster.revive().await
        {
            tracing::error!(%why, "the embedded PostgreSQL failed to restart; the next attempt follows in a second");
        }
    }

    /// Closes the connections, then stops the server if this process started it.
    pub(super) async fn close(self) {
        self.database.close().await;
        if let Some(cluster) = self.cluster {
            cluster.stop().await;
        }
    }
}

/// Sets the secret of test tokens to a generated one of this folder, unless the settings have one. Then
/// `metergate token mint` works on the embedded database without any setting.
fn set_token_secret(settings: &mut Settings) -> anyhow::Result<()> {
    if settings.auth.test.hs256_secret.is_some() {
        return Ok(());
    }
    let path = settings.postgres.folder.join("test_token_secret");
    let secret = read_or_create_secret(&path).with_context(|| format!("cannot use {}", path.display()))?;
    settings.auth.test.hs256_secret = Some(SecretString::from(secret));
    Ok(())
}

fn read_or_create_secret(path: &Path) -> std::io::Result<String> {
    use rand::RngExt;
    let made = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    if let Ok(mut file) = made {
        let secret: String =
            rand::rng().sample_iter(rand::distr::Alphanumeric).take(48).map(char::from).collect();
        file.write_all(secret.as_bytes())?;
    }
    fs::read_to_string(path)
}
