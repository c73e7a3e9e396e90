//! The official npm package `stripe` against the real service over TCP. Without node, npm or the registry,
//! the test reports that and ends.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::process::Command;

use crate::support::service::{Process, engine_settings};
use crate::support::{TestService, cluster};

const SCRIPT: &str = include_str!("../../sdk/stripe.mjs");
const INSTALL_MAX: Duration = Duration::from_mins(2);
const RUN_MAX: Duration = Duration::from_mins(1);

fn skipped(why: &str) {
    // written past the output capture of the test runner, so that a skipped test is visible
    writeln!(std::io::stderr(), "skipped: {why}").ok();
}

async fn run(command: &mut Command, at_most: Duration) -> Result<Output, String> {
    let done = tokio::time::timeout(at_most, command.kill_on_drop(true).output()).await;
    let output = done.map_err(|_| "the command took too long".to_owned())?.map_err(|why| why.to_string())?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() { Ok(output) } else { Err(said) }
}

/// Returns a folder with the package, which is installed once and kept in the target folder.
async fn package() -> Option<PathBuf> {
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join("npm-stripe");
    if let Err(why) = run(Command::new("node").arg("--version"), RUN_MAX).await {
        skipped(&format!("node does not run: {why}"));
        return None;
    }
    if !kept.is_dir() {
        let fresh = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let mut npm = Command::new("npm");
        npm.args(["install", "--no-audit", "--no-fund", "stripe@latest"]).current_dir(fresh.path());
        if let Err(why) = run(&mut npm, INSTALL_MAX).await {
            skipped(&format!("npm cannot install stripe: {why}"));
            return None;
        }
        // a concurrent run may have installed the package first; that folder is as good
        std::fs::rename(fresh.path(), &kept).ok();
    }
    Some(kept)
}

#[tokio::test]
async fn the_npm_package_reports_usage_with_another_host_and_key() {
    let Some(package) = package().await else { return };
    let url = cluster::database_url().await;
    let service = TestService::at_url(&url, engine_settings()).await;
    service
        .apply(json!({
            "default_plan": "free",
            "meters": [{"key": "tokens", "event_name": "ai", "aggregation": "sum", "dimensions": ["model"],
                        "stripe": {"event_name": "ai_tokens"}}],
            "plans": [{"key": "free", "limits": [
                {"key": "tokens", "meter": "tokens", "quota": 100, "period": "lifetime"}]}],
        }))
        .await;
    let process = Process::start(&url).await;
    let (host, port) = process.base.trim_start_matches("http://").split_once(':').unwrap();
    // the script lies in the package's folder, where node finds the package by name
    let script = tempfile::Builder::new().suffix(".mjs").tempfile_in(&package).unwrap();
    std::fs::write(script.path(), SCRIPT).unwrap();
    let mut node = Command::new("node");
    node.arg(script.path()).args([host, port, &service.key]);
    let output = run(&mut node, RUN_MAX).await.unwrap_or_else(|why| panic!("{why}"));
    let out: Value = serde_json::from_slice(&output.stdout).unwrap();

    let created = &out["created"];
    assert_eq!(created["object"], "billing.meter_event");
    assert_eq!((&created["event_name"], &created["identifier"]), (&json!("ai_tokens"), &json!("evt_1")));
    assert_eq!((&created["livemode"], &created["timestamp"]), (&json!(false), &out["timestamp"]));
    assert_eq!(created["payload"], json!({"stripe_customer_id": "cus_1", "value": "100", "model": "gpt-4o"}));
    assert_eq!(out["unnamed"]["identifier"].as_str().map(str::len), Some(36));
    assert_eq!(out["retried"]["identifier"], "evt_2");
    assert_eq!(out["retriedUnnamed"]["identifier"].as_str().map(str::len), Some(36));
    assert_eq!(out["lost"], 2);
    assert_eq!(out["adjustment"]["status"], "complete");
    assert_eq!(out["adjustment"]["cancel"], json!({"identifier": "evt_3"}));

    let failed = |name: &str, class: &str, status: u16, code: Option<&str>| {
        let error = &out[name];
        assert_eq!((&error["name"], &error["status"]), (&json!(class), &json!(status)), "{name}: {error}");
        assert_eq!(error["code"].as_str(), code, "{name}: {error}");
        assert!(error["requestId"].is_string(), "{name}: {error}");
    };
    failed("duplicate", "StripeInvalidRequestError", 400, None);
    let message = out["duplicate"]["message"].as_str().unwrap();
    assert!(message.starts_with("An event already exists with identifier evt_1"), "{message}");
    failed("unknownAdjustment", "StripeInvalidRequestError", 400, Some("resource_missing"));
    failed("noMeter", "StripeInvalidRequestError", 400, Some("no_meter"));
    failed("wrongKey", "StripeAuthenticationError", 401, None);
    failed("notHere", "StripeInvalidRequestError", 404, None);

    let caller = process.caller(&service.key);
    // 100 + 20 + 3 + 4, without the voided event
    let usage = "/v1/usage?meter=tokens&subject=cus_1&from=2020-01-01T00:00:00Z&to=2100-01-01T00:00:00Z";
    let usage = caller.get(usage).await.json();
    assert_eq!((&usage["data"][0]["value"], &usage["data"][0]["event_count"]), (&json!(127), &json!(4)));
    let report = caller.get("/v1/subjects/cus_1/usage").await.json();
    assert_eq!(report["limits"][0]["used"], 127, "{report}");
    assert_eq!(caller.get("/v1/subjects/cus_1").await.json()["stripe_customer_id"], "cus_1");
    process.stop().await;
}
