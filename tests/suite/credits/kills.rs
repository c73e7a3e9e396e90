//! A process that is killed while it spends credits leaves nothing half done.

use std::sync::atomic::{AtomicU32, Ordering};

use axum::http::{Method, StatusCode};
use futures::future::join_all;
use serde_json::{Value, json};

use super::{balance, ledger, start};
use crate::support::at;
use crate::support::service::Process;

/// Returns the requests of one job of a caller.
fn job(id: &str, n: usize) -> [(String, Value); 2] {
    let reserve = json!({"id": id, "subject": "a", "meter": "tokens", "value": 3, "ttl_seconds": 86_400});
    let commit = |value: i64| json!({"values": [{"meter": "tokens", "value": value}]});
    let of = |what: &str| format!("/v1/reservations/{id}/{what}");
    let then = match n % 5 {
        0 => (of("commit"), Value::Null),
        1 => (of("commit"), commit(1)),
        // more than held
        2 => (of("commit"), commit(5)),
        3 => (of("release"), Value::Null),
        // the hold stays open
        _ => ("/v1/events".to_owned(), json!({"id": id, "event_name": "tokens", "subject": "a", "value": 2})),
    };
    [("/v1/reservations".to_owned(), reserve), then]
}

#[tokio::test]
async fn killed_processes_leave_no_credits_half_spent() {
    const GIVEN: i64 = 5_075;
    let service = start().await;
    let (first, second) = (Process::start(&service.url).await, Process::start(&service.url).await);
    let (dying, living) = (first.caller(&service.key), second.caller(&service.key));
    for (amount, priority) in [(40, 1), (35, 0), (5_000, 2)] {
        let request = json!({"credit_unit": "credits", "amount": amount, "priority": priority});
        let answer = living.post("/v1/subjects/a/credits/grants", &request).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.text);
    }
    let count = AtomicU32::new(0);
    let load = (0..16_usize).map(|caller| {
        let (calls, count) = (if caller < 12 { &dying } else { &living }, &count);
        async move {
            for n in 0..60 {
                for (path, body) in job(&format!("c{caller}n{n}"), n) {
                    let Some(answer) = calls.try_send(Method::POST, &path, &body).await else { return n };
                    assert!(answer.status.is_success(), "{path} {body}: {}", answer.text);
                    count.fetch_add(1, Ordering::SeqCst);
                }
            }
            60
        }
    });
    let kill = async {
        while count.load(Ordering::SeqCst) < 120 {
            tokio::task::yield_now().await;
        }
        first.kill().await;
    };
    let (reached, ()) = tokio::join!(join_all(load), kill);
    assert!(reached[..12].iter().all(|n| *n < 60), "the processes must die before they finish: {reached:?}");
    service.verify().await;

    let check = json!({"subject": "a", "meter": "tokens", "value": 0});
    let limit = living.post("/v1/check", &check).await.json()["limits"][0].clone();
    let shown = living.get("/v1/subjects/a/credits").await.json()["balances"][0].clone();
    second.stop().await;
    // the clock stands still from here
    service.clock.set(at("2020-01-01T00:00:00Z"));
    let number = |value: &Value| value.as_i64().unwrap_or_else(|| panic!("{value}"));
    let moved = ledger(&service, "a").await;
    let sum = |kind: &str| -> i64 {
        moved.iter().filter(|row| row["kind"] == kind).map(|row| number(&row["amount"])).sum()
    };
    let (kept, burnt) = (sum("hold") - sum("release") - sum("settle"), sum("settle") + sum("spend"));
    assert_eq!((sum("grant"), sum("uncovered")), (GIVEN, 0));
    assert_eq!((number(&shown["balance"]), number(&shown["pending"])), (GIVEN - kept - burnt, kept));
    assert_eq!(balance(&service, "a").await, (GIVEN - kept - burnt, kept));
    assert!(kept > 0 && burnt > 0);
    // a token costs one credit, and credits cover the usage above the quota of ten
    let [used, held, covered] = ["used", "held", "covered"].map(|name| number(&limit[name]));
    assert_eq!((covered, used + held), (kept + burnt, 10 + kept + burnt), "{limit}");
}
