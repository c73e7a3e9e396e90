//! The binary without any setting: its own PostgreSQL, which survives restarts and which commands find.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Output, Stdio};

use metergate::store::Database;
use serde_json::{Value, json};
use tokio::process::Command;

use crate::support::cluster::{sqlx_execute, start_throwaway};
use crate::support::service::Process;

const BINARY: &str = env!("CARGO_BIN_EXE_metergate");

async fn command(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(BINARY);
    command
        .current_dir(folder)
        .args(arguments)
        .env_remove("DATABASE_URL")
        .env_remove("STRIPE_SECRET")
        .stdin(Stdio::null());
    command.output().await.unwrap()
}

async fn key(folder: &Path) -> String {
    let made = command(folder, &["keys", "create", "--environment", "test", "--kind", "secret"]).await;
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let key = String::from_utf8(made.stdout).unwrap();
    assert!(key.starts_with("mg_sk_test_") && key.lines().count() == 1, "{key}");
    key.trim().to_owned()
}

async fn total(process: &Process, key: &str) -> Value {
    let url = format!("{}/v1/subjects/s/usage", process.base);
    let report: Value =
        reqwest::Client::new().get(url).bearer_auth(key).send().await.unwrap().json().await.unwrap();
    report["meters"][0]["value"].clone()
}

async fn record(process: &Process, key: &str) {
    let event = json!({"event_name": "ai_tokens", "subject": "s", "value": 2});
    let url = format!("{}/v1/events", process.base);
    let answer = reqwest::Client::new().post(url).bearer_auth(key).json(&event).send().await.unwrap();
    assert_eq!(answer.status().as_u16(), 200);
}

#[tokio::test]
async fn data_survives_stops_and_kills_and_commands_join() {
    // a folder that only its owner can enter, like a clone in a private home
    let folder = tempfile::tempdir().unwrap();
    let start = || Process::start_with(&[], folder.path());

    let first = start().await;
    let key = key(folder.path()).await;
    record(&first, &key).await;
    // a second service cannot use the same folder, and reports that in one line
    let second = command(folder.path(), &[]).await;
    let output = String::from_utf8_lossy(&second.stderr).into_owned();
    let word = output.lines().find(|line| line.starts_with("metergate: ")).unwrap_or_default().to_owned();
    assert!(!second.status.success() && word.contains("another metergate"), "{output}");
    let token = command(folder.path(), &["token", "mint", "--subject", "s"]).await;
    assert_eq!(total(&first, String::from_utf8(token.stdout).unwrap().trim()).await, 2);
    first.stop().await;
    assert!(
        !folder.path().join(".metergate/data/postmaster.pid").exists(),
        "the server must end with the program"
    );

    let second = start().await;
    assert_eq!(total(&second, &key).await, 2);
    record(&second, &key).await;
    second.kill().await;

    let third = start().await;
    assert_eq!(total(&third, &key).await, 4);
    let verified = command(folder.path(), &["verify"]).await;
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stdout));
    third.stop().await;

    // without a service, a command starts the database
    let alone = command(folder.path(), &["catalog", "show"]).await;
    let shown: Value = serde_json::from_slice(&alone.stdout).unwrap();
    assert_eq!(shown["default_plan"], "free");
    // exports need a Stripe account, and the command names the missing variable
    let exported = command(folder.path(), &["export", "run"]).await;
    let output = String::from_utf8_lossy(&exported.stderr).into_owned();
    assert!(!exported.status.success() && output.contains("STRIPE_SECRET"), "{output}");
    // if the server's account cannot reach the folder, the data is elsewhere: delete that too
    if let Ok(elsewhere) = std::fs::read_link(folder.path().join(".metergate/data")) {
        std::fs::remove_dir_all(elsewhere).unwrap();
    }
}

#[tokio::test]
async fn an_interrupted_first_start_does_not_block_the_next() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    // the state that `kill -9` leaves during initialisation
    let data = folder.path().join(".metergate/data");
    std::fs::create_dir_all(data.join("base")).unwrap();
    std::fs::write(data.join("PG_VERSION"), "15\n").unwrap();
    std::fs::write(folder.path().join(".metergate/initialising"), "").unwrap();
    let shown = command(folder.path(), &["catalog", "show"]).await;
    assert!(shown.status.success(), "{}", String::from_utf8_lossy(&shown.stderr));
    assert!(!folder.path().join(".metergate/initialising").exists());
}

#[tokio::test]
async fn an_ordinary_user_can_run_the_embedded_database() {
    let folder = tempfile::tempdir().unwrap();
    let made = std::fs::metadata(folder.path()).unwrap();
    if std::os::unix::fs::MetadataExt::uid(&made) != 0 {
        // this test run is already an ordinary user's
        return;
    }
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let home = folder.path().join("home");
    std::fs::create_dir(&home).unwrap();
    let (user, binary) = (65_534, home.join("metergate"));
    std::fs::copy(BINARY, &binary).unwrap();
    std::os::unix::fs::chown(&home, Some(user), Some(user)).unwrap();
    let mut command = Command::new(&binary);
    command.current_dir(&home).args(["catalog", "show"]).env_remove("DATABASE_URL").uid(user).gid(user);
    let output = command.output().await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(home.join(".metergate/data/PG_VERSION").exists());
}

#[tokio::test]
async fn an_invalid_setting_stops_the_start_and_is_named() {
    let folder = tempfile::tempdir().unwrap();
    for (name, value, named) in [
        ("METERGATE__HTTP__COLOUR", "red", "colour"),
        ("METERGATE__EVENTS__MAX_AGE", "soon", "soon"),
        ("METERGATE__POSTGRES__BIN", "/nowhere", "/nowhere"),
        ("DATABASE_URL", "not a url", "DATABASE_URL"),
    ] {
        let mut command = Command::new(BINARY);
        command.current_dir(folder.path()).env_remove("DATABASE_URL").env(name, value).stdin(Stdio::null());
        let output = command.output().await.unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && text.contains(named), "{name}: {text}");
    }
}

/// Shows that a database with the schema of an earlier or later build is not changed.
#[tokio::test]
async fn an_incompatible_schema_stops_the_start_and_is_explained() {
    let earlier = "create table _sqlx_migrations (version bigint primary key, description text not null,
             installed_on timestamptz not null default now(), success boolean not null, checksum bytea not null,
             execution_time bigint not null);
         insert into _sqlx_migrations (version, description, success, checksum, execution_time)
             select n, 'core', true, 'earlier', 1 from generate_series(1, 15) n";
    let later = "insert into _sqlx_migrations (version, description, success, checksum, execution_time)
             values (9999, 'later', true, 'later', 1)";
    let server = start_throwaway().await;
    sqlx_execute(&server.url("postgres"), "create database earlier").await;
    let migrated = Database::new(&server.url("postgres"), None, 1).unwrap();
    migrated.migrate().await.unwrap();
    for (database, change, named) in [
        ("earlier", earlier, ["schema version 15", "an earlier build", "new, empty database"]),
        ("postgres", later, ["schema version 9999", "a later build", "new, empty database"]),
    ] {
        let url = server.url(database);
        sqlx_execute(&url, change).await;
        let mut command = Command::new(BINARY);
        command.arg("serve").env("DATABASE_URL", &url).stdin(Stdio::null());
        let output = command.output().await.unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        for part in named {
            assert!(stderr.contains(part), "{database}: {stderr}");
        }
    }
    migrated.close().await;
    server.stop().await;
}
