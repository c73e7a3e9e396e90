//! A fake of Stripe, to try Metergate without an account. The tests use the same fake.
//!
//! ```text
//! cargo run --example stripe_fake -- --webhook-url http://127.0.0.1:8080/webhooks/stripe
//! ```
//!
//! Keeps all data in memory. Besides Stripe's own routes it has `POST /fake/advance` (`days`,
//! `seconds`), `POST /fake/customers/{id}/payments` (`outcome` succeed, fail or missing), `POST
//! /fake/subscriptions/{id}/pause`, `POST /fake/webhooks` (`silent` true or false), `POST /fake/faults`
//! (`fault`, such as `reset_after` or `error_after`, and `count`), `GET /fake/totals`, and the `url` of
//! a checkout session, which completes it.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command-line program prints its results")]

#[expect(dead_code, unused_imports, reason = "only the tests use the other items")]
#[path = "../tests/suite/support/stripe_fake/mod.rs"]
mod stripe_fake;

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use stripe_fake::{Clock, Options, StripeFake};

/// Serve a fake of Stripe
#[derive(Debug, Parser)]
struct Arguments {
    #[arg(long, default_value = "127.0.0.1:12111")]
    bind: SocketAddr,
    /// The secret key that calls must carry
    #[arg(long, default_value = "sk_test_fake")]
    api_key: String,
    /// The address that receives webhooks
    #[arg(long)]
    webhook_url: Option<String>,
    /// The secret that signs webhooks
    #[arg(long, default_value = "whsec_fake")]
    webhook_secret: String,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let options = Options {
        livemode: arguments.api_key.starts_with("sk_live_"),
        api_key: arguments.api_key.clone(),
        clock: Clock::Running(0),
        latency: Duration::ZERO,
        webhook_url: arguments.webhook_url,
        webhook_secrets: vec![arguments.webhook_secret.clone()],
        ..Options::default()
    };
    let fake = match StripeFake::bind(arguments.bind, options).await {
        Ok(fake) => fake,
        Err(why) => {
            eprintln!("stripe_fake: cannot listen on {}: {why}", arguments.bind);
            return ExitCode::FAILURE;
        }
    };
    println!("A fake of Stripe listens on {}. Start Metergate with:", fake.url());
    println!(
        "METERGATE__STRIPE__API_BASE={} STRIPE_SECRET={} STRIPE_WEBHOOK_SECRET={}",
        fake.url(),
        arguments.api_key,
        arguments.webhook_secret
    );
    if let Err(why) = tokio::signal::ctrl_c().await {
        eprintln!("stripe_fake: cannot wait for Ctrl-C: {why}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
