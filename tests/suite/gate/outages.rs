//! Failures of processes, backends and servers under load. No answer is wrong, no quota is held twice, and
//! no committed data is lost.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use axum::http::StatusCode;
use futures::future::join_all;
use serde_json::{Value, json};
use sqlx::Connection;

use crate::support::service::{Answer, Process, engine_settings};
use crate::support::{TestService, at, cluster};

const QUOTA: i64 = 1_000_000;

/// Returns a catalog with a lifetime quota, so that no test depends on the time of day.
fn catalog() -> Value {
    json!({
        "default_plan": "free",
        "meters": [{"key": "m", "event_name": "e", "aggregation": "sum"}],
        "plans": [{"key": "free", "limits": [{"key": "l", "meter": "m", "quota": QUOTA, "period": "lifetime"}]}],
    })
}

/// A call on a reservation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Word {
    Made,
    Step,
    Commit,
    Release,
    Extend,
}

const WORDS: [Word; 5] = [Word::Made, Word::Step, Word::Commit, Word::Release, Word::Extend];

impl Word {
    /// Returns the path and body of the call; the reservation holds 10.
    fn call(self, id: &str) -> (String, Value) {
        let settle = |what: &str| format!("/v1/reservations/{id}/{what}");
        let values = json!([{"meter": "m", "value": 4}]);
        match self {
            Self::Made => {
                let body =
                    json!({"id": id, "subject": "user", "meter": "m", "value": 10, "ttl_seconds": 86_400});
                ("/v1/reservations".to_owned(), body)
            }
            Self::Step => (settle("commit"), json!({"values": values, "final": false})),
            Self::Commit => (settle("commit"), json!({"values": values})),
            Self::Release => (settle("release"), json!({})),
            Self::Extend => (settle("extend"), json!({"holds": [{"meter": "m", "value": 15}]})),
        }
    }

    /// Returns `used` and `held` after the call.
    fn leaves(self) -> (i64, i64) {
        match self {
            Self::Made => (0, 10),
            Self::Step => (4, 6),
            Self::Commit => (4, 0),
            Self::Release => (0, 0),
            Self::Extend => (0, 15),
        }
    }

    /// Returns whether a shown reservation has the effect of the call.
    fn was_heard(self, shown: &Value) -> bool {
        let hold = &shown["holds"][0];
        match self {
            Self::Made => shown["id"].is_string(),
            Self::Step => hold["committed"] == 4,
            Self::Commit => shown["status"] == "committed" && hold["committed"] == 4,
            Self::Release => shown["status"] == "released",
            Self::Extend => hold["value"] == 15,
        }
    }
}

/// Returns whether the service answered the call, and asserts that the answer is right.
fn is_said(word: Word, answer: &Answer) -> bool {
    if answer.status == StatusCode::SERVICE_UNAVAILABLE {
        return false;
    }
    let expected = if word == Word::Made { StatusCode::CREATED } else { StatusCode::OK };
    assert_eq!(answer.status, expected, "{word:?}: {}", answer.text);
    assert_ne!(answer.json()["allowed"], false, "{word:?}: {}", answer.text);
    true
}

async fn say(service: &TestService, word: Word, id: &str) -> Answer {
    let (path, body) = word.call(id);
    service.post(&path, &body).await
}

/// Returns `used` and `held` of the counter, and retries until the database is back.
async fn level(service: &TestService) -> (i64, i64) {
    let mut answer = service.get("/v1/subjects/user/usage").await;
    while answer.status != StatusCode::OK {
        answer = service.get("/v1/subjects/user/usage").await;
    }
    let limit = &answer.json()["limits"][0];
    (limit["used"].as_i64().unwrap(), limit["held"].as_i64().unwrap())
}

/// Returns all reservations.
async fn all(service: &TestService) -> Vec<Value> {
    let (mut found, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = service.get(&format!("/v1/reservations?subject=user&limit=200{cursor}")).await.json();
        found.extend(page["data"].as_array().unwrap().clone());
        let Some(next) = page["next_cursor"].as_str() else { return found };
        cursor = format!("&cursor={next}");
    }
}

/// Returns the sums of `used` and `held` over all reservations.
fn sum(reservations: &[Value]) -> (i64, i64) {
    reservations.iter().fold((0, 0), |(used, held), shown| {
        let number = |name: &str| shown["holds"][0][name].as_i64().unwrap();
        let open = if shown["status"] == "held" { number("value") - number("committed") } else { 0 };
        (used + number("committed"), held + open)
    })
}

#[tokio::test]
async fn a_killed_process_leaves_complete_calls_and_its_holds_expire() {
    let service = TestService::start().await;
    service.apply(catalog()).await;
    let (first, second) = (Process::start(&service.url).await, Process::start(&service.url).await);
    let (dying, living) = (first.caller(&service.key), second.caller(&service.key));
    let heard = Mutex::new(Vec::new());
    let count = AtomicU32::new(0);
    let load = (0..16).map(|caller| {
        let (calls, heard, count) = (if caller < 12 { &dying } else { &living }, &heard, &count);
        async move {
            for n in 0.. {
                let id = format!("c{caller}n{n}");
                for word in [Word::Made, WORDS[n % 5]] {
                    let (path, body) = word.call(&id);
                    // The callers of the living process continue until the other one is dead.
                    let Some(answer) = calls.try_send(axum::http::Method::POST, &path, &body).await else {
                        return;
                    };
                    if !is_said(word, &answer) {
                        break;
                    }
                    heard.lock().unwrap().push((id.clone(), word));
                    count.fetch_add(1, Ordering::SeqCst);
                }
                if caller >= 12 && n == 40 {
                    return;
                }
            }
        }
    });
    let kill = async {
        while count.load(Ordering::SeqCst) < 120 {
            tokio::task::yield_now().await;
        }
        first.kill().await;
    };
    tokio::join!(join_all(load), kill);
    service.verify().await;
    for (id, word) in heard.into_inner().unwrap() {
        let shown = living.get(&format!("/v1/reservations/{id}")).await.json();
        assert!(word.was_heard(&shown), "{word:?}: {shown}");
    }
    second.stop().await;
    // From here on the test sets the clock.
    service.clock.set(at("2020-01-01T00:00:00Z"));
    let made = all(&service).await;
    let last = made.iter().map(|shown| shown["expires_at"].as_str().unwrap()).max().unwrap();
    let (used, held) = sum(&made);
    assert_eq!(level(&service).await, (used, held));
    assert!(held > 0);
    service.clock.set(at(last));
    assert_eq!(level(&service).await, (used, 0));
    let everything = json!({"subject": "user", "meter": "m", "value": QUOTA - used});
    assert_eq!(service.post("/v1/reservations", &everything).await.status, StatusCode::CREATED);
    assert!(all(&service).await.iter().skip(1).all(|shown| shown["status"] != "held"));
    service.verify().await;
}

#[tokio::test]
async fn terminated_backends_apply_each_call_once() {
    const CALLERS: u32 = 15;
    const JOBS: u32 = 20;
    let service = TestService::start().await;
    service.apply(catalog()).await;
    let done = AtomicU32::new(0);
    let load = (0..CALLERS).map(|caller| {
        let (service, done) = (&service, &done);
        async move {
            for n in 0..JOBS {
                let id = format!("c{caller}n{n}");
                for word in [Word::Made, WORDS[n as usize % 5]] {
                    // A caller retries until the call is answered.
                    while !is_said(word, &say(service, word, &id).await) {}
                }
                done.fetch_add(1, Ordering::SeqCst);
            }
        }
    });
    let terminator = async {
        let mut connection = sqlx::PgConnection::connect(&service.url).await.unwrap();
        for round in 1..=20 {
            cluster::terminate_a_backend(&mut connection).await;
            // Some work is done before the next termination.
            while done.load(Ordering::SeqCst) < round * CALLERS * JOBS / 25 {
                tokio::task::yield_now().await;
            }
        }
    };
    tokio::join!(join_all(load), terminator);
    let each = i64::from(CALLERS * JOBS) / 5;
    let expected = WORDS
        .iter()
        .fold((0, 0), |sum, word| (sum.0 + word.leaves().0 * each, sum.1 + word.leaves().1 * each));
    assert_eq!(level(&service).await, expected);
    assert_eq!(sum(&all(&service).await), expected);
    service.verify().await;
}

#[tokio::test]
async fn lost_commit_answers_apply_each_call_once() {
    let (service, proxy) = TestService::behind_proxy(catalog()).await;
    say(&service, Word::Made, "first contact").await;
    let (mut swallowed, mut expected) = (0, Word::Made.leaves());
    for (round, delivered) in [true, false, true, false].into_iter().enumerate() {
        for word in WORDS {
            let ids: Vec<String> = (0..20).map(|n| format!("r{round}{word:?}{n}")).collect();
            if word != Word::Made {
                join_all(ids.iter().map(|id| say(&service, Word::Made, id))).await;
            }
            proxy.swallow_commits(1, delivered);
            for answer in join_all(ids.iter().map(|id| say(&service, word, id))).await {
                // The answer is not a replay, since this call made the change.
                assert!(
                    is_said(word, &answer) && !answer.is_replay(),
                    "{word:?}, {delivered}: {}",
                    answer.text
                );
            }
            swallowed += 1;
            assert_eq!(proxy.swallowed(), swallowed, "the proxy must have swallowed the commit");
            expected = (expected.0 + word.leaves().0 * 20, expected.1 + word.leaves().1 * 20);
            assert_eq!(level(&service).await, expected, "{word:?}, {delivered}");
        }
    }
    assert_eq!(sum(&all(&service).await), expected);
    service.verify().await;
}

/// A killed backend makes the server recover as after a crash, which loses unsynced data. Acknowledged
/// calls must survive it.
#[tokio::test]
async fn server_crashes_lose_no_acknowledged_calls() {
    let (_folder, server, url) = cluster::server_of_its_own().await;
    cluster::let_commits_linger(&url).await;
    let services = [
        TestService::at_url(&url, engine_settings()).await,
        TestService::at_url(&url, engine_settings()).await,
    ];
    services[0].apply(catalog()).await;
    let heard = Mutex::new(Vec::new());
    let count = AtomicU32::new(0);
    let crashing = AtomicBool::new(true);
    let load = (0..12).map(|caller| {
        let (service, heard, count, crashing) = (&services[caller % 2], &heard, &count, &crashing);
        async move {
            for n in 0.. {
                let id = format!("c{caller}n{n}");
                for word in [Word::Made, WORDS[n % 5]] {
                    if !crashing.load(Ordering::SeqCst) {
                        return;
                    }
                    // Calls without an answer are not repeated, so each may have been applied or not.
                    let answer = say(service, word, &id).await;
                    if !is_said(word, &answer) {
                        break;
                    }
                    heard.lock().unwrap().push((id.clone(), word));
                    count.fetch_add(1, Ordering::SeqCst);
                }
            }
        }
    });
    let crashes = async {
        for _ in 0..6 {
            let before = count.load(Ordering::SeqCst);
            while count.load(Ordering::SeqCst) < before + 30 {
                tokio::task::yield_now().await;
            }
            cluster::kill_a_backend(&url).await;
        }
        crashing.store(false, Ordering::SeqCst);
    };
    tokio::join!(join_all(load), crashes);
    while services[0].get("/readyz").await.status != StatusCode::OK {}
    for (id, word) in heard.into_inner().unwrap() {
        let shown = services[0].get(&format!("/v1/reservations/{id}")).await.json();
        assert!(word.was_heard(&shown), "{word:?}: {shown}");
    }
    assert_eq!(sum(&all(&services[0]).await), level(&services[1]).await);
    services[0].verify().await;
    for service in &services {
        service.engine.database().close().await;
    }
    server.stop().await;
}
