//! Export to the Stripe fake: the rate of calls with ten thousand customers waiting, and the cost of
//! recording for billed customers.

#![expect(clippy::print_stderr, reason = "progress")]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use metergate::embedded::Cluster;

use crate::Arguments;
use crate::events::{self, SUBJECTS};
use crate::http::{self, Connection, Expected, Load};
use crate::report::{Table, float, median_ratio, rate, thousands, whole};
use crate::service::{Service, command};
use crate::stage::{
    self, BATCH_ACCEPTED, BATCH_CONNECTIONS, BATCH_EVENTS, CONNECTIONS, SINGLE_ACCEPTED, admin,
};
use crate::stripe_fake::{Clock, Endpoint, Options, StripeFake};

const KEY: &str = "sk_live_fake";
const METER: &str = events::EVENT_NAME;
/// The rate that a live account allows.
const CALLS_PER_SECOND: u32 = 1_000;
const LATENCY: Duration = Duration::from_millis(5);
const ROUNDS: usize = 3;
const BATCHED: usize = 400_000;
const SINGLES: Duration = Duration::from_secs(5);
const DONE: [Expected; 1] = [Expected { status: 200, text: "{" }];

/// A service on a database of its own, in the live environment.
struct Site {
    url: String,
    key: String,
    service: Service,
}

impl Site {
    /// Creates ten thousand subjects. With `is_billed`, each is a customer of the account.
    async fn open(
        cluster: &Cluster,
        name: &str,
        stripe: &StripeFake,
        is_billed: bool,
    ) -> anyhow::Result<Self> {
        admin(cluster, &format!("create database {name}")).await?;
        let url = cluster.url(name);
        let key = command(&url, &["keys", "create", "--environment", "live", "--kind", "secret"]).await?;
        let base = stripe.url();
        let variables = [("STRIPE_SECRET", KEY), ("METERGATE__STRIPE__API_BASE", base.as_str())];
        let service = Service::start_with(&url, &variables).await?;
        let site = Self { url, key, service };
        let stripe = if is_billed { format!("stripe: {{event_name: {METER}}}, ") } else { String::new() };
        let catalog = format!(
            "meters:\n  - {{key: {METER}, event_name: {METER}, {stripe}aggregation: sum, value_property: value, dimensions: [model]}}\n"
        );
        let put = |path: &str, media_type, body: &str| http::put(path, &site.key, media_type, body);
        let catalog = put("/v1/catalog", "application/yaml", &catalog);
        http::drive(site.address(), Load::all([catalog], &DONE, 1)).await?;
        let customers = (0..SUBJECTS).map(|n| {
            let customer = if is_billed { format!("\"cus_{n}\"") } else { "null".to_owned() };
            let body = format!("{{\"stripe_customer_id\":{customer}}}");
            put(&format!("/v1/subjects/{}", events::subject(n)), "application/json", &body)
        });
        http::drive(site.address(), Load::all(customers, &DONE, BATCH_CONNECTIONS)).await?;
        site.record_each().await?;
        stage::wait_until_folded(&site.url).await?;
        Ok(site)
    }

    fn address(&self) -> SocketAddr {
        self.service.address
    }

    fn post_events(&self, subjects: impl IntoIterator<Item = String>) -> Vec<u8> {
        http::post("/v1/events", &self.key, "application/json", &events::body(subjects))
    }

    /// Records one event per subject.
    async fn record_each(&self) -> anyhow::Result<()> {
        let subjects: Vec<String> = (0..SUBJECTS).map(events::subject).collect();
        let invalid_batches_are_rejected =
            subjects.chunks(BATCH_EVENTS).map(|chunk| self.post_events(chunk.iter().cloned()));
        http::drive(
            self.address(),
            Load::all(invalid_batches_are_rejected, &BATCH_ACCEPTED, BATCH_CONNECTIONS),
        )
        .await?;
        Ok(())
    }

    /// Returns the events per second of a load, until all are in the rollups and the sums.
    async fn measure(&self, load: Load, of_a_turn: usize) -> anyhow::Result<f64> {
        let started = Instant::now();
        let measured = http::drive(self.address(), load).await?;
        stage::wait_until_folded(&self.url).await?;
        Ok(float(measured.turns * of_a_turn) / started.elapsed().as_secs_f64())
    }

    async fn invalid_batches_are_rejected(&self) -> anyhow::Result<f64> {
        let calls = BATCHED / BATCH_EVENTS;
        let invalid_batches_are_rejected =
            (0..calls).map(|_| self.post_events(events::random_subjects(BATCH_EVENTS)));
        self.measure(
            Load::all(invalid_batches_are_rejected, &BATCH_ACCEPTED, BATCH_CONNECTIONS),
            BATCH_EVENTS,
        )
        .await
    }

    async fn singles(&self) -> anyhow::Result<f64> {
        let single = || [self.post_events(events::random_subjects(1))];
        self.measure(Load::for_time(SINGLES, single, &SINGLE_ACCEPTED, CONNECTIONS), 1).await
    }
}

/// Returns the calls per second that reach the fake, first without and then with the creation of
/// exports.
async fn hand_over(site: &Site, stripe: &StripeFake) -> anyhow::Result<(f64, f64)> {
    site.record_each().await?;
    stage::wait_until_folded(&site.url).await?;
    let before = stripe.calls(Endpoint::MeterEvents);
    let mut connection = Connection::open(site.address()).await?;
    let request = http::post("/v1/exports/run", &site.key, "application/json", "");
    let started = Instant::now();
    let run = async {
        let answer = connection.call(&request).await?;
        anyhow::Ok((answer.status, answer.text()))
    };
    let first = async {
        while stripe.calls(Endpoint::MeterEvents) == before {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Instant::now()
    };
    let (answer, first) = tokio::join!(run, first);
    let (status, text) = answer?;
    ensure!(status == 200 && text.contains("\"pending\":0"), "{status}: {text}");
    let calls = stripe.calls(Endpoint::MeterEvents) - before;
    let calls = float(usize::try_from(calls)?);
    ensure!(
        whole(calls) >= SUBJECTS,
        "the fake must get a call for each of {SUBJECTS} customers; got {calls}"
    );
    Ok((calls / first.elapsed().as_secs_f64(), calls / started.elapsed().as_secs_f64()))
}

pub(crate) async fn run(arguments: &Arguments, cluster: &Cluster) -> anyhow::Result<Table> {
    let options = Options {
        api_key: KEY.to_owned(),
        livemode: true,
        clock: Clock::Running(0),
        latency: LATENCY,
        calls_per_second: Some(CALLS_PER_SECOND),
        ..Options::default()
    };
    let stripe = StripeFake::start(options).await;
    stripe.meter(METER);
    eprintln!("creating {SUBJECTS} customers");
    let billed = Site::open(cluster, "billed", &stripe, true).await?;
    let unbilled = Site::open(cluster, "unbilled", &stripe, false).await?;
    let rounds = if arguments.quick { 1 } else { ROUNDS };

    let (mut sent, mut in_all) = (Vec::new(), Vec::new());
    for round in 1..=rounds {
        let (calls, with_making) = hand_over(&billed, &stripe).await?;
        eprintln!(
            "round {round} of {rounds}: {calls:.0} calls/s to Stripe, {with_making:.0} with the creation of exports"
        );
        sent.push(calls);
        in_all.push(with_making);
    }
    let refused = stripe.answers(Endpoint::MeterEvents, Some(429));

    let (mut invalid_batches_are_rejected, mut singles) =
        ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
    for round in 1..=rounds {
        for (n, site) in [&billed, &unbilled].into_iter().enumerate() {
            invalid_batches_are_rejected[n].push(site.invalid_batches_are_rejected().await?);
        }
        for (n, site) in [&billed, &unbilled].into_iter().enumerate() {
            singles[n].push(site.singles().await?);
        }
        let last = |rates: &[Vec<f64>; 2]| {
            rates.each_ref().map(|rates| rates.last().map(|rate| thousands(*rate)).unwrap_or_default())
        };
        eprintln!(
            "round {round} of {rounds}: billed and unbilled: batches {:?} events/s, singles {:?} calls/s",
            last(&invalid_batches_are_rejected),
            last(&singles)
        );
    }

    let mut table = Table::default();
    let allowed = vec![f64::from(CALLS_PER_SECOND); rounds];
    let against = format!("allowed: {} calls/s", thousands(f64::from(CALLS_PER_SECOND)));
    table.add(
        &format!("calls to Stripe, {} customers waiting", thousands(float(SUBJECTS))),
        rate(&sent, "calls/s"),
        against.clone(),
        Some(median_ratio(&sent, &allowed)),
        "0.90",
    );
    table.add(
        "the same, with the making of the exports",
        rate(&in_all, "calls/s"),
        against,
        Some(median_ratio(&in_all, &allowed)),
        "",
    );
    table.add_alone("calls that Stripe refused (429)", refused.to_string(), "0");
    for (what, unit, rates) in [
        (
            "batches of 500 for customers who are billed, until all is folded",
            "events/s",
            &invalid_batches_are_rejected,
        ),
        ("single events for customers who are billed, until all is folded", "calls/s", &singles),
    ] {
        let against = format!("for nobody: {}", rate(&rates[1], unit));
        table.add(what, rate(&rates[0], unit), against, Some(median_ratio(&rates[0], &rates[1])), "0.85");
    }
    let overlaps = stripe.violations().len();
    ensure!(overlaps == 0, "{:?}", stripe.violations().first().context("a violation")?);
    for site in [billed, unbilled] {
        let url = site.url.clone();
        site.service.stop().await?;
        command(&url, &["verify", "--environment", "live"]).await?;
    }
    Ok(table)
}
