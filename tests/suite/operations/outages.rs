//! Database outages, complete and partial, at the worst moments. Every acknowledged call survives, no call
//! counts twice, and the service keeps running.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use axum::http::StatusCode;
use futures::future::join_all;
use metergate::embedded::{Cluster, ServerPurpose};
use serde_json::json;
use sqlx::Connection;

use crate::support::proxy::Proxy;
use crate::support::service::{Answer, Process, engine_settings};
use crate::support::{TestService, cluster};

const NOVEMBER: &str = "from=2026-11-01T00:00:00Z&to=2026-12-01T00:00:00Z";

async fn service_behind_proxy() -> (TestService, Proxy) {
    TestService::behind_proxy(json!({"meters": [{"key": "m", "event_name": "e", "aggregation": "sum"}]}))
        .await
}

async fn send(service: &TestService, id: &str) -> Answer {
    service.post("/v1/events", &json!({"id": id, "event_name": "e", "subject": "s", "value": 3})).await
}

/// Records the first event. Behind the proxy, a call waits for a writer only briefly, and a writer
/// connects at its first batch. So the call is repeated until it is recorded.
async fn record_first(service: &TestService, id: &str) {
    while send(service, id).await.status != StatusCode::OK {}
}

#[tokio::test]
async fn calls_get_503_while_the_database_is_down() {
    let (service, proxy) = service_behind_proxy().await;
    record_first(&service, "before").await;
    proxy.cut();
    let paths = [
        "/v1/usage?meter=m&from=2026-11-01T00:00:00Z&to=2026-12-01T00:00:00Z",
        "/readyz",
        "/v1/events/before",
    ];
    for path in paths {
        let answer = service.get(path).await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{path}: {}", answer.text);
        assert_eq!(answer.headers["retry-after"], "1");
        assert!(!answer.text.contains("sock") && !answer.text.contains("os error"), "{}", answer.text);
    }
    assert_eq!(service.get("/healthz").await.status, StatusCode::OK);
    let answers = join_all((0..50).map(|n| {
        let service = &service;
        async move { send(service, &format!("during{n}")).await.status }
    }))
    .await;
    assert!(answers.iter().all(|status| *status == StatusCode::SERVICE_UNAVAILABLE));
    proxy.mend();
    let mut status = send(&service, "after").await.status;
    while status != StatusCode::OK {
        status = send(&service, "after").await.status;
    }
    assert_eq!(
        service.values(&format!("meter=m&{NOVEMBER}")).await,
        ["6"],
        "refused calls must not be recorded"
    );
    service.verify().await;
}

#[tokio::test]
async fn a_commit_with_a_lost_answer_counts_once() {
    let (service, proxy) = service_behind_proxy().await;
    record_first(&service, "first contact").await;
    for (round, delivered) in [(0, true), (1, false), (2, true), (3, false)] {
        proxy.swallow_commits(1, delivered);
        let calls = (0..20).map(|n| {
            let service = &service;
            async move { send(service, &format!("r{round}n{n}")).await }
        });
        for answer in join_all(calls).await {
            // the answer is true: this call recorded the event, once
            assert_eq!(answer.json()["accepted"], 1, "{}", answer.text);
        }
        assert_eq!(proxy.swallowed(), round + 1, "the answer of the commit must have been lost");
    }
    assert_eq!(service.values(&format!("meter=m&{NOVEMBER}")).await, ["243"]);
    service.verify().await;
}

#[tokio::test]
async fn terminated_backends_lose_and_duplicate_no_events() {
    let (service, _proxy) = service_behind_proxy().await;
    let acknowledged = AtomicU32::new(0);
    let terminator = async {
        let mut connection = sqlx::PgConnection::connect(&service.url).await.unwrap();
        for round in 1..=25 {
            cluster::terminate_a_backend(&mut connection).await;
            // then let some calls finish
            while acknowledged.load(Ordering::SeqCst) < round * 20 {
                tokio::task::yield_now().await;
            }
        }
    };
    let load = async {
        let callers = (0..16).map(|caller| {
            let (service, acknowledged) = (&service, &acknowledged);
            async move {
                for n in 0..40 {
                    let id = format!("c{caller}n{n}");
                    // a caller retries until the call is acknowledged
                    while send(service, &id).await.status != StatusCode::OK {}
                    acknowledged.fetch_add(1, Ordering::SeqCst);
                }
            }
        });
        join_all(callers).await;
    };
    tokio::join!(load, terminator);
    let mut rows = service.get(&format!("/v1/usage?meter=m&{NOVEMBER}")).await;
    while rows.status != StatusCode::OK {
        rows = service.get(&format!("/v1/usage?meter=m&{NOVEMBER}")).await;
    }
    assert_eq!(rows.json()["data"][0]["value"], 16 * 40 * 3);
    service.verify().await;
}

#[tokio::test]
async fn the_service_reconnects_after_a_server_restart() {
    let (folder, server, url) = cluster::server_of_its_own().await;
    let mut settings = engine_settings();
    settings.wait_max = Duration::from_millis(100);
    let service = TestService::at_url(&url, settings).await;
    service.apply(json!({"meters": [{"key": "m", "event_name": "e", "aggregation": "sum"}]})).await;
    let process = Process::start(&url).await;
    let client = reqwest::Client::new();
    let call = async |id: &str| {
        let event = json!({"id": id, "event_name": "e", "subject": "s", "value": 1});
        let request =
            client.post(format!("{}/v1/events", process.base)).bearer_auth(&service.key).json(&event);
        request.send().await.unwrap().status().as_u16()
    };
    assert_eq!(call("a").await, 200);
    let acknowledged = AtomicU32::new(1);
    let refused = AtomicU32::new(0);
    let stop_loading = AtomicBool::new(false);
    let load = async {
        let callers = (0..8).map(|caller| {
            let (call, acknowledged, refused, stop_loading) = (&call, &acknowledged, &refused, &stop_loading);
            async move {
                let mut n = 0;
                while !stop_loading.load(Ordering::SeqCst) {
                    let id = format!("c{caller}n{n}");
                    loop {
                        match call(&id).await {
                            200 => break,
                            503 => refused.fetch_add(1, Ordering::SeqCst),
                            other => panic!("{other}"),
                        };
                    }
                    acknowledged.fetch_add(1, Ordering::SeqCst);
                    n += 1;
                }
            }
        });
        join_all(callers).await;
    };
    let outage = async {
        while acknowledged.load(Ordering::SeqCst) < 50 {
            tokio::task::yield_now().await;
        }
        server.stop().await;
        while refused.load(Ordering::SeqCst) < 8 {
            tokio::task::yield_now().await;
        }
        let server = Cluster::start(folder.path(), None, ServerPurpose::Service).await.unwrap();
        let before = acknowledged.load(Ordering::SeqCst);
        while acknowledged.load(Ordering::SeqCst) < before + 50 {
            tokio::task::yield_now().await;
        }
        stop_loading.store(true, Ordering::SeqCst);
        server
    };
    let ((), server) = tokio::join!(load, outage);
    process.stop().await;
    let mut counted =
        service.get("/v1/usage?meter=m&from=2026-01-01T00:00:00Z&to=2028-01-01T00:00:00Z").await;
    while counted.status != StatusCode::OK {
        counted = service.get("/v1/usage?meter=m&from=2026-01-01T00:00:00Z&to=2028-01-01T00:00:00Z").await;
    }
    assert_eq!(counted.json()["data"][0]["value"], acknowledged.load(Ordering::SeqCst));
    service.verify().await;
    service.engine.database().close().await;
    server.stop().await;
}

/// Shows that acknowledged calls survive a crash. A killed backend makes the server recover: unsynced
/// data is lost and transaction ids are reused. An acknowledgement must not depend on either.
#[tokio::test]
async fn server_crashes_lose_no_acknowledged_calls() {
    let (_folder, server, url) = cluster::server_of_its_own().await;
    cluster::let_commits_linger(&url).await;
    let services = [
        TestService::at_url(&url, engine_settings()).await,
        TestService::at_url(&url, engine_settings()).await,
    ];
    services[0].apply(json!({"meters": [{"key": "m", "event_name": "e", "aggregation": "sum"}]})).await;
    let acknowledged = AtomicU32::new(0);
    let ids = std::sync::Mutex::new(Vec::new());
    let crashing = AtomicBool::new(true);
    let load = async {
        let callers = (0..12).map(|caller| {
            let (service, acknowledged, crashing, ids) =
                (&services[caller % 2], &acknowledged, &crashing, &ids);
            async move {
                let mut n = 0;
                while crashing.load(Ordering::SeqCst) {
                    // one attempt only: an unacknowledged event may or may not exist, and is not checked
                    let id = format!("c{caller}n{n}");
                    let answer = send(service, &id).await;
                    if answer.status == StatusCode::OK {
                        assert_eq!(answer.json()["accepted"], 1);
                        ids.lock().unwrap().push(id);
                        acknowledged.fetch_add(1, Ordering::SeqCst);
                    }
                    n += 1;
                }
            }
        });
        join_all(callers).await;
    };
    let crashes = async {
        for _ in 0..6 {
            let before = acknowledged.load(Ordering::SeqCst);
            while acknowledged.load(Ordering::SeqCst) < before + 30 {
                tokio::task::yield_now().await;
            }
            cluster::kill_a_backend(&url).await;
        }
        crashing.store(false, Ordering::SeqCst);
    };
    tokio::join!(load, crashes);
    while services[0].get("/readyz").await.status != StatusCode::OK {}
    for id in ids.into_inner().unwrap() {
        assert_eq!(services[0].get(&format!("/v1/events/{id}")).await.status, StatusCode::OK, "{id} is lost");
    }
    services[0].verify().await;
    for service in &services {
        service.engine.database().close().await;
    }
    server.stop().await;
}
