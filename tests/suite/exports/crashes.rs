//! Replicas are killed repeatedly, a server crashes, and Stripe fails in every way, while usage is
//! recorded and voided over HTTP. In the end Stripe has exactly the recorded usage.
//!
//! The short form runs with all other tests. The long form takes some minutes:
//!
//! ```text
//! cargo test --release --test suite -- --ignored soak --nocapture
//! ```

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::http::{Method, StatusCode};
use futures::future::join_all;
use metergate_domain::base::Timestamp;
use metergate_domain::base::timestamp::{MICROS_PER_HOUR, MICROS_PER_SECOND};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};

use crate::support::service::{Caller, Process, engine_settings};
use crate::support::stripe_fake::{Clock, Endpoint, Fault, Options, Plan, StripeFake};
use crate::support::{TestService, cluster};

const METERS: [&str; 3] = ["ai_tokens", "requests", "storage"];
const CALLERS: usize = 8;
const BATCH: usize = 50;
/// The number of batches after which an event is voided. Many are exported by then.
const VOIDED_AFTER: usize = 8;
/// The number of events of which one is voided.
const VOIDED: usize = 25;
/// The most calls of one replica to Stripe at once.
const CALLS_MAX: usize = 64;

#[derive(Debug, Clone, Copy)]
struct Size {
    events: usize,
    customers: usize,
    kills: usize,
    crashes: usize,
}

const SHORT: Size = Size { events: 4_000, customers: 30, kills: 4, crashes: 1 };
const WHOLE: Size = Size { events: 100_000, customers: 300, kills: 20, crashes: 2 };

/// Enables all of Stripe's faults, each with its own probability.
fn faults(seed: u64) -> Plan {
    let all = [
        (Fault::ResetAfter, 0.12),
        (Fault::ResetBefore, 0.12),
        (Fault::ErrorBefore, 0.1),
        (Fault::ErrorBeforeKept, 0.12),
        (Fault::ErrorAfter, 0.12),
        (Fault::LockTimeout, 0.12),
        (Fault::RateLimited("endpoint-rate"), 0.12),
        (Fault::Slow(Duration::from_millis(30)), 0.3),
        (Fault::Unauthorized, 0.1),
    ];
    all.into_iter()
        .fold(Plan::seeded(seed), |plan, (fault, chance)| plan.chance(Endpoint::Any, fault, chance))
}

/// Recorded usage by customer, meter, and whether it is after the renewal.
type Expected = BTreeMap<(usize, &'static str, bool), i128>;

#[derive(Debug, Clone)]
struct Event {
    id: String,
    customer: usize,
    is_storage: bool,
    value: i64,
    at: Timestamp,
    is_voided: bool,
}

impl Event {
    fn to_json(&self) -> Value {
        let event_name = if self.is_storage { "storage" } else { "ai_tokens" };
        let subject = format!("s{}", self.customer);
        json!({"id": self.id, "event_name": event_name, "subject": subject, "value": self.value, "timestamp": self.at})
    }
}

/// The server, its replicas, and the Stripe fake that they export to.
struct Field {
    stripe: StripeFake,
    url: String,
    folder: tempfile::TempDir,
    key: String,
    renewal: Timestamp,
    /// The addresses of the present replicas.
    replicas: Mutex<Vec<Caller>>,
    /// The number of events that may be recorded so far.
    allowed: AtomicUsize,
    acknowledged: AtomicUsize,
    repeated: AtomicUsize,
}

impl Field {
    async fn process(&self) -> Process {
        let base = self.stripe.url();
        let variables = [
            ("DATABASE_URL", self.url.as_str()),
            ("STRIPE_SECRET", "sk_test_fake"),
            ("METERGATE__STRIPE__API_BASE", &base),
            ("METERGATE__STRIPE__EXPORT_INTERVAL", "200ms"),
            ("METERGATE__STRIPE__CALLS_PER_SECOND", "5000"),
            // the ended period accepts its usage until the end of the test
            ("METERGATE__STRIPE__LATE_GRACE", "12h"),
        ];
        Process::start_with(&variables, self.folder.path()).await
    }

    fn replica(&self, number: usize) -> Caller {
        self.replicas.lock().unwrap()[number % 2].clone()
    }

    /// Repeats a call, alternating between the replicas, until one accepts it.
    async fn insist(&self, number: usize, path: &str, body: &Value) -> Value {
        for turn in number.. {
            match self.replica(turn).try_send(Method::POST, path, body).await {
                Some(answer) if answer.status == StatusCode::OK => return answer.json(),
                Some(answer) => assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{}", answer.text),
                None => {}
            }
            self.repeated.fetch_add(1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        unreachable!("the loop ends only with an accepted call")
    }

    async fn load(&self, number: usize, events: &[Event]) {
        let invalid_batches_are_rejected: Vec<&[Event]> = events.chunks(BATCH).collect();
        for (n, batch) in invalid_batches_are_rejected.iter().enumerate() {
            while self.acknowledged.load(Ordering::SeqCst) >= self.allowed.load(Ordering::SeqCst) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let body = Value::Array(batch.iter().map(Event::to_json).collect());
            let answer = self.insist(number, "/v1/events", &body).await;
            let known = answer["accepted"].as_u64().unwrap() + answer["duplicates"].as_u64().unwrap();
            assert_eq!(known, batch.len() as u64, "{answer}");
            self.acknowledged.fetch_add(batch.len(), Ordering::SeqCst);
            if let Some(earlier) = n.checked_sub(VOIDED_AFTER) {
                self.void(number, invalid_batches_are_rejected[earlier]).await;
            }
        }
        for batch in invalid_batches_are_rejected.iter().rev().take(VOIDED_AFTER) {
            self.void(number, batch).await;
        }
    }

    async fn void(&self, number: usize, events: &[Event]) {
        for event in events.iter().filter(|event| event.is_voided) {
            self.insist(number, &format!("/v1/events/{}/void", event.id), &json!({})).await;
        }
    }

    /// Waits until Stripe was called about recorded usage, then allows more events, and waits until
    /// their recording has begun.
    async fn reach(&self, events: usize, customers: usize) {
        let calls = self.stripe.calls(Endpoint::MeterEvents) + customers as u64;
        while self.stripe.calls(Endpoint::MeterEvents) < calls {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let before = self.acknowledged.load(Ordering::SeqCst);
        self.allowed.store(events, Ordering::SeqCst);
        while self.acknowledged.load(Ordering::SeqCst) == before {
            tokio::task::yield_now().await;
        }
    }

    /// Exports all due usage, including the current hour, until none is left. Returns the number of
    /// runs.
    async fn settle(&self) -> usize {
        for runs in 1..200 {
            let ran = self.insist(runs, "/v1/exports/run", &Value::Null).await;
            assert_eq!(ran["dead"], 0, "{ran}");
            if ran["pending"] == 0 && ran["created"] == 0 {
                return runs;
            }
        }
        panic!("exports must settle within the permitted runs")
    }
}

fn truncated(at: Timestamp, to_micros: i64) -> Timestamp {
    Timestamp::from_micros(at.micros().div_euclid(to_micros) * to_micros).unwrap()
}

fn minus_minutes(at: Timestamp, minutes: u64) -> Timestamp {
    at.saturating_sub(Duration::from_mins(minutes))
}

#[expect(clippy::disallowed_methods, reason = "processes use the system clock")]
fn now() -> Timestamp {
    Timestamp::from_micros(jiff::Timestamp::now().as_microsecond()).unwrap()
}

/// Creates the events of two periods, shuffled.
fn make_events(size: Size, renewal: Timestamp, until: Timestamp, rng: &mut StdRng) -> Vec<Event> {
    let first = minus_minutes(renewal, 100).micros();
    let mut events: Vec<Event> = (0..size.events)
        .map(|n| {
            let to = if n % 2 == 0 { renewal.micros() } else { until.micros() };
            let from = if n % 2 == 0 { first } else { renewal.micros() };
            Event {
                id: format!("event_{n}"),
                customer: n / 2 % size.customers,
                is_storage: n % 5 == 0,
                value: rng.random_range(1..5_000),
                at: Timestamp::from_micros(rng.random_range(from..to)).unwrap(),
                is_voided: rng.random_range(0..VOIDED) == 0,
            }
        })
        .collect();
    // right at the boundary
    for (event, at) in
        events.iter_mut().zip([renewal.micros() - 1, renewal.micros()].into_iter().cycle()).take(100)
    {
        event.at = Timestamp::from_micros(at).unwrap();
    }
    events.shuffle(rng);
    events
}

fn expected(events: &[Event], renewal: Timestamp) -> Expected {
    let mut expected = Expected::new();
    for event in events.iter().filter(|event| !event.is_voided) {
        let mut add = |meter, value: i64| {
            *expected.entry((event.customer, meter, event.at >= renewal)).or_default() += i128::from(value);
        };
        if event.is_storage {
            add("storage", event.value);
        } else {
            add("ai_tokens", event.value);
            add("requests", 1);
        }
    }
    expected
}

fn catalog() -> Value {
    let meter = |key: &str, event_name: &str, aggregation: &str| json!({"key": key, "event_name": event_name, "aggregation": aggregation, "stripe": {"event_name": key}});
    json!({
        "meters": [meter("ai_tokens", "ai_tokens", "sum"), meter("requests", "ai_tokens", "count"),
                   meter("storage", "storage", "sum")],
        "plans": [{"key": "pro", "limits": []}],
    })
}

async fn kill_and_crash(size: Size, seed: u64) {
    let begun = Instant::now();
    let mut rng = StdRng::seed_from_u64(seed);
    let started = now();
    // both periods have hours that are over
    let renewal = truncated(minus_minutes(started, 100), MICROS_PER_SECOND);
    let events = make_events(size, renewal, started, &mut rng);
    let expected = expected(&events, renewal);

    let (_data, server, url) = cluster::server_of_its_own().await;
    let options =
        Options { clock: Clock::Running(0), latency: Duration::from_millis(2), ..Options::default() };
    let stripe = StripeFake::start(options).await;
    for meter in METERS {
        stripe.meter(meter);
    }
    let observer = TestService::at_url(&url, engine_settings()).await;
    observer.clock.set(started);
    observer.apply(catalog()).await;
    let period =
        json!({"plan": "pro", "cycle_start": minus_minutes(renewal, 30 * 24 * 60), "period_end": renewal});
    for n in 0..size.customers {
        let subject = json!({"stripe_customer_id": format!("cus_{n}")});
        assert_eq!(observer.put(&format!("/v1/subjects/s{n}"), &subject).await.status, StatusCode::OK);
        let answer = observer.put(&format!("/v1/subjects/s{n}/subscription"), &period).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
    }
    stripe.set_faults(faults(seed));
    let field = Field {
        stripe,
        url,
        folder: tempfile::tempdir().unwrap(),
        key: observer.key.clone(),
        renewal,
        replicas: Mutex::new(Vec::new()),
        allowed: AtomicUsize::new(size.events / (size.kills + 2)),
        acknowledged: AtomicUsize::new(0),
        repeated: AtomicUsize::new(0),
    };
    let processes = [field.process().await, field.process().await];
    *field.replicas.lock().unwrap() = processes.iter().map(|process| process.caller(&field.key)).collect();

    let (mut crashes, mut replicas) = (0, processes.map(Some));
    let loads = events.chunks(events.len().div_ceil(CALLERS)).enumerate();
    let loading = join_all(loads.map(|(number, events)| field.load(number, events)));
    let killing = async {
        for kill in 0..size.kills {
            field.reach(size.events * (kill + 2) / (size.kills + 2), size.customers).await;
            replicas[kill % 2].take().unwrap().kill().await;
            if (kill + 1) % (size.kills / (size.crashes + 1)) == 0 && crashes < size.crashes {
                crashes += 1;
                cluster::kill_a_backend(&field.url).await;
            }
            let heir = field.process().await;
            field.replicas.lock().unwrap()[kill % 2] = heir.caller(&field.key);
            replicas[kill % 2] = Some(heir);
            // also exports the current hour during the test, with any result
            field.replica(kill).try_send(Method::POST, "/v1/exports/run", &Value::Null).await;
        }
        field.allowed.store(usize::MAX, Ordering::SeqCst);
    };
    tokio::join!(loading, killing);
    let loaded = begun.elapsed();
    field.stripe.set_faults(Plan::seeded(0));
    let runs = field.settle().await;
    check(&field, &observer, &expected, size).await;
    report(&field, (size, runs), (loaded, begun.elapsed()));
    for process in replicas.into_iter().flatten() {
        process.stop().await;
    }
    observer.engine.database().close().await;
    server.stop().await;
}

async fn check(field: &Field, observer: &TestService, expected: &Expected, size: Size) {
    let renewal = field.renewal.micros().div_euclid(MICROS_PER_SECOND);
    for n in 0..size.customers {
        let customer = format!("cus_{n}");
        for meter in METERS {
            for (is_later, (from, to)) in [(false, (0, renewal)), (true, (renewal, i64::MAX))] {
                let there = field.stripe.total(&customer, meter, from, to);
                let recorded = expected.get(&(n, meter, is_later)).copied().unwrap_or_default();
                assert_eq!(there, recorded, "{customer}, {meter}, after the renewal: {is_later}");
            }
            let from = truncated(minus_minutes(field.renewal, 120), MICROS_PER_HOUR);
            let to = from.saturating_add(Duration::from_hours(8));
            let query = format!("customer={customer}&meter={meter}&from={from}&to={to}");
            let compared = field.replica(n).get(&format!("/v1/reconciliation?{query}")).await;
            assert_eq!(compared.status, StatusCode::OK, "{}", compared.text);
            let total = &compared.json()["total"];
            assert_eq!(total["difference"], 0, "{customer}, {meter}: {total}");
            assert_eq!(total["events"], total["provider"], "{customer}, {meter}: {total}");
        }
    }
    // a replica that is killed, or loses its session, leaves calls behind that another may overlap
    let (overlaps, others): (Vec<String>, Vec<String>) =
        field.stripe.violations().into_iter().partition(|what| what.starts_with("overlapping calls"));
    assert_eq!(others, Vec::<String>::new());
    assert!(overlaps.len() <= (size.kills + 2 * size.crashes) * CALLS_MAX, "{} overlaps", overlaps.len());
    observer.verify().await;
    let verified = tokio::process::Command::new(env!("CARGO_BIN_EXE_metergate"))
        .args(["verify", "--environment", "test"])
        .env("DATABASE_URL", &field.url)
        .current_dir(field.folder.path())
        .status()
        .await;
    assert!(verified.unwrap().success());
}

#[expect(clippy::print_stdout, reason = "figures for a manual run")]
fn report(field: &Field, (size, runs): (Size, usize), (loaded, took): (Duration, Duration)) {
    let taken = field.stripe.events();
    println!(
        "{size:?}: recorded in {loaded:.1?}, settled and checked in {took:.1?}, {runs} runs at the end; {} calls repeated; \
         {} meter events taken, {} of them canceled, {} calls arrived, {} got no answer, {} refused as overlapping",
        field.repeated.load(Ordering::SeqCst),
        taken.len(),
        taken.iter().filter(|event| event.is_canceled).count(),
        field.stripe.calls(Endpoint::Any),
        field.stripe.answers(Endpoint::Any, None),
        field.stripe.violations().len(),
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_replicas_and_a_crashing_server_bill_each_unit_once() {
    kill_and_crash(SHORT, 7).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes"]
async fn soak_killed_replicas_and_a_crashing_server_bill_each_unit_once() {
    kill_and_crash(WHOLE, 20_261_121).await;
}
