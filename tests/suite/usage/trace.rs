//! A production LLM trace, loaded in several ways, always with the same totals. The project contains
//! a sample; the tests use the whole file if it exists next to the project.

use std::path::Path;

use axum::http::Method;
use futures::future::join_all;
use metergate_domain::catalog::Catalog;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};

use crate::support::service::{Process, TestService, engine_settings};

#[path = "../../../examples/replay/trace.rs"]
#[expect(dead_code, reason = "only the example uses all of this module")]
pub(crate) mod replay;

use replay::TraceEvent;

struct Trace {
    events: Vec<Value>,
    context: u64,
    generated: u64,
}

fn read(path: &Path) -> Trace {
    let events = replay::read(std::fs::File::open(path).unwrap()).unwrap();
    Trace {
        context: events.iter().map(|event| event.context_tokens).sum(),
        generated: events.iter().map(|event| event.generated_tokens).sum(),
        events: events.iter().map(TraceEvent::to_json).collect(),
    }
}

fn sample() -> Trace {
    read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/data/azure_llm_code_2023_sample.csv"))
}

/// Returns the whole file if it exists, or the sample.
fn whole() -> Trace {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data/azure_llm_code_2023.csv");
    if !path.exists() {
        return sample();
    }
    let trace = read(&path);
    assert_eq!((trace.events.len(), trace.context, trace.generated), (8_819, 18_059_974, 245_896));
    trace
}

const YEAR: &str = "from=2023-01-01T00:00:00Z&to=2024-01-01T00:00:00Z";
const DAY: &str = "from=2023-11-16T00:00:00Z&to=2023-11-17T00:00:00Z";
const METERS: [&str; 3] = ["llm_context_tokens", "llm_generated_tokens", "llm_requests"];

fn catalog() -> Value {
    let catalog = Catalog::read_yaml(include_str!("../../../config/catalog.yaml")).unwrap();
    serde_json::to_value(catalog).unwrap()
}

/// Checks that totals, and totals by minute and by subject, equal those of the trace.
async fn check(service: &TestService, trace: &Trace) {
    let expected = [trace.context, trace.generated, trace.events.len() as u64];
    for (meter, expected) in METERS.iter().zip(expected) {
        for query in ["", "&window=minute", "&window=day&timezone=Asia/Kolkata", "&group_by=subject,model"] {
            let range = if query == "&window=minute" { DAY } else { YEAR };
            let rows = service.usage(&format!("meter={meter}&{range}{query}")).await;
            let total: u64 = rows.iter().map(|row| row["value"].as_u64().unwrap()).sum();
            assert_eq!(total, expected, "{meter} {query}");
        }
    }
    service.verify().await;
}

#[tokio::test]
async fn trace_counts_once_in_any_order_batching_and_repetition() {
    let service = TestService::start().await;
    service.apply(catalog()).await;
    let mut trace = sample();
    assert_eq!((trace.events.len(), trace.context, trace.generated), (200, 414_215, 4_907));
    let mut rng = rand::rngs::StdRng::seed_from_u64(7);
    for round in 0..4 {
        trace.events.shuffle(&mut rng);
        let mut rest = trace.events.as_slice();
        while !rest.is_empty() {
            let (batch, after) = rest.split_at(rng.random_range(1..=rest.len().min(60)));
            rest = after;
            let answer = service.post("/v1/events?backfill=true", &json!(batch)).await.json();
            let expected = if round == 0 { "accepted" } else { "duplicates" };
            assert_eq!(answer[expected], batch.len(), "{answer}");
        }
        check(&service, &trace).await;
        service.fold().await;
        check(&service, &trace).await;
    }
}

#[tokio::test]
async fn a_trace_loads_as_ndjson() {
    let service = TestService::start().await;
    service.apply(catalog()).await;
    let trace = whole();
    let lines: Vec<String> = trace.events.iter().map(Value::to_string).collect();
    for expected in ["accepted", "duplicates"] {
        let body = lines.join("\n").into_bytes();
        let answer =
            service.send_typed(Method::POST, "/v1/events?backfill=true", "application/x-ndjson", body).await;
        assert_eq!(answer.json()[expected], trace.events.len(), "{}", answer.text);
        check(&service, &trace).await;
    }
    service.fold().await;
    check(&service, &trace).await;
}

#[tokio::test]
async fn a_trace_counts_once_over_two_processes_with_one_killed_in_mid_load() {
    let service = TestService::start().await;
    service.apply(catalog()).await;
    let trace = whole();
    let (first, second) = (Process::start(&service.url).await, Process::start(&service.url).await);
    let client = reqwest::Client::new();
    let send = async |base: &str, batch: &[Value]| -> bool {
        let request =
            client.post(format!("{base}/v1/events?backfill=true")).bearer_auth(&service.key).json(batch);
        let Ok(answer) = request.send().await else { return false };
        assert!(answer.status().is_success() || answer.status().as_u16() == 503, "{}", answer.status());
        answer.status().is_success()
    };
    // both processes load the same events; the first is killed during its calls
    let invalid_batches_are_rejected: Vec<&[Value]> =
        trace.events.chunks(trace.events.len().div_ceil(40)).collect();
    let (base, other) = (first.base.clone(), second.base.clone());
    let dying = async {
        let all = join_all(invalid_batches_are_rejected.iter().map(|batch| send(&base, batch)));
        let killed = async {
            send(&base, invalid_batches_are_rejected[0]).await;
            first.kill().await;
        };
        tokio::join!(all, killed).0
    };
    let living = async {
        let mut answered = Vec::new();
        for batch in invalid_batches_are_rejected.iter().rev().take(20) {
            answered.push(send(&other, batch).await);
        }
        answered
    };
    let (_, answered) = tokio::join!(dying, living);
    assert!(answered.iter().all(|answered| *answered));
    service.verify().await;
    for batch in &invalid_batches_are_rejected {
        assert!(send(&other, batch).await);
    }
    check(&service, &trace).await;
    second.stop().await;
    // a third process answers the same, in any state of folding
    let third = TestService::at_url(&service.url, engine_settings()).await;
    check(&third, &trace).await;
    third.fold().await;
    check(&third, &trace).await;
}
