//! Many callers on one balance, over several independent processes.

use axum::http::StatusCode;
use futures::future::join_all;
use serde_json::{Value, json};

use super::{balance, granted, ledger, start};
use crate::support::service::{Answer, Process};
use crate::support::{TestService, at};

/// Builds a hold request; callers use up the quota of 10 first, so the holds need credits.
fn ask(n: usize, value: i64) -> Value {
    json!({"id": format!("r{n}"), "subject": "a", "meter": "tokens", "value": value, "ttl_seconds": 86_400})
}

#[tokio::test]
async fn concurrent_holds_spend_three_grants_exactly() {
    let service = start().await;
    let processes = [Process::start(&service.url).await, Process::start(&service.url).await];
    let callers = [processes[0].caller(&service.key), processes[1].caller(&service.key)];
    // no quota is left: 50 of one token each fit into three grants
    let used = json!({"event_name": "tokens", "subject": "a", "value": 10});
    assert_eq!(callers[0].post("/v1/events", &used).await.status, StatusCode::OK);
    for (amount, priority) in [(20, 1), (17, 0), (13, 2)] {
        let request = json!({"credit_unit": "credits", "amount": amount, "priority": priority});
        let answer = callers[0].post("/v1/subjects/a/credits/grants", &request).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.text);
    }
    // the processes use the time of the system, and this clock stands still
    service.clock.set(at("2020-01-01T00:00:00Z"));
    let calls = (0..200).map(|n| {
        let caller = &callers[n % 2];
        async move { caller.post("/v1/reservations", &ask(n, 1)).await }
    });
    let answers: Vec<Answer> = join_all(calls).await;
    let held: Vec<String> = answers
        .iter()
        .filter(|answer| answer.status == StatusCode::CREATED)
        .map(|answer| answer.json()["id"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(held.len(), 50);
    let denied = answers.iter().filter(|answer| answer.status == StatusCode::OK).map(Answer::json);
    assert!(denied.into_iter().all(|answer| answer["reason"] == "insufficient_credits"));
    assert_eq!(balance(&service, "a").await, (0, 50));
    service.verify().await;

    // many callers settle at once, some twice, while new ones request the returned credits
    let settle = held.iter().enumerate().flat_map(|(n, id)| {
        let how = if n % 3 == 0 { "release" } else { "commit" };
        (0..2).map(move |by| (by, format!("/v1/reservations/{id}/{how}")))
    });
    let settle = settle.map(|(by, path)| {
        let caller = &callers[by];
        async move { caller.post(&path, &Value::Null).await }
    });
    let more = (200..260).map(|n| {
        let caller = &callers[n % 2];
        async move { caller.post("/v1/reservations", &ask(n, 1)).await }
    });
    let (settled, more) = tokio::join!(join_all(settle), join_all(more));
    assert!(settled.iter().all(|answer| answer.status == StatusCode::OK));
    let again =
        i64::try_from(more.iter().filter(|answer| answer.status == StatusCode::CREATED).count()).unwrap();
    // 17 of 50 were released, so at most these can be held again
    assert_eq!(balance(&service, "a").await, (17 - again, again));
    ledger(&service, "a").await;
    service.verify().await;
    for process in processes {
        process.stop().await;
    }
}

/// Each unit of a tier is sold once, to any of the callers.
#[tokio::test]
async fn concurrent_uses_pay_the_price_of_their_own_units() {
    let service = start().await;
    service.apply(super::tiered()).await;
    service.put("/v1/subjects/a/subscription", &json!({"plan": "free"})).await;
    service.record(&json!({"event_name": "tokens", "subject": "a", "value": 10})).await;
    // 10 units at 2, 10 at 5 and 30 at 1
    granted(&service, "a", &json!({"currency": "usd", "amount": 100})).await;
    let answers = join_all((0..80).map(|n| {
        let service = &service;
        async move { service.post("/v1/reservations", &ask(n, 1)).await }
    }))
    .await;
    let held = answers.iter().filter(|answer| answer.status == StatusCode::CREATED);
    let held: Vec<Value> = held.map(|answer| answer.json()["id"].clone()).collect();
    assert_eq!((held.len(), balance(&service, "a").await), (50, (0, 100)));
    let settled = join_all(held.iter().map(|id| {
        let path = format!("/v1/reservations/{}/commit", id.as_str().unwrap());
        let service = &service;
        async move { service.post(&path, &json!({})).await }
    }))
    .await;
    assert!(settled.iter().all(|answer| answer.status == StatusCode::OK));
    assert_eq!(balance(&service, "a").await, (0, 0));
    let mut spent: Vec<i64> = ledger(&service, "a")
        .await
        .iter()
        .filter(|row| row["kind"] == "settle")
        .map(|row| row["amount"].as_i64().unwrap())
        .collect();
    spent.sort_unstable();
    assert_eq!(spent, [vec![1; 30], vec![2; 10], vec![5; 10]].concat());
    service.verify().await;
}

#[tokio::test]
async fn concurrent_holds_spend_grants_that_their_cost_does_not_divide() {
    let service = TestService::start().await;
    service.apply(super::calls_at_three()).await;
    for amount in [50, 50, 50] {
        granted(&service, "a", &json!({"credit_unit": "credits", "amount": amount})).await;
    }
    let processes = [Process::start(&service.url).await, Process::start(&service.url).await];
    let callers = [processes[0].caller(&service.key), processes[1].caller(&service.key)];
    let calls = (0..200).map(|n| {
        let caller = &callers[n % 2];
        let ask = json!({"id": format!("r{n}"), "subject": "a", "meter": "calls", "value": 1, "ttl_seconds": 86_400});
        async move { caller.post("/v1/reservations", &ask).await }
    });
    let answers: Vec<Answer> = join_all(calls).await;
    let held: Vec<Value> =
        answers.iter().filter(|answer| answer.status == StatusCode::CREATED).map(Answer::json).collect();
    assert_eq!(held.len(), 50);
    assert_eq!(balance(&service, "a").await, (0, 150));
    let commits = held.iter().enumerate().map(|(n, held)| {
        let (caller, path) =
            (&callers[n % 2], format!("/v1/reservations/{}/commit", held["id"].as_str().unwrap()));
        async move { caller.post(&path, &Value::Null).await }
    });
    assert!(join_all(commits).await.iter().all(|answer| answer.status == StatusCode::OK));
    assert_eq!(balance(&service, "a").await, (0, 0));
    service.verify().await;
    for process in processes {
        process.stop().await;
    }
}

#[tokio::test]
async fn concurrent_calls_never_overspend_a_balance() {
    let service = start().await;
    let processes = [Process::start(&service.url).await, Process::start(&service.url).await];
    let callers = [processes[0].caller(&service.key), processes[1].caller(&service.key)];
    let calls = (0..160_usize).map(|n| {
        let caller = &callers[n % 2];
        let (path, body) = match n % 8 {
            0 => ("/v1/subjects/a/credits/grants".to_owned(),
                  json!({"credit_unit": "credits", "amount": 7, "external_ref": format!("order {}", n / 16)})),
            1 => ("/v1/events".to_owned(), json!({"id": format!("e{n}"), "event_name": "tokens", "subject": "a", "value": 2})),
            2 => ("/v1/events".to_owned(), json!({"id": format!("e{n}"), "event_name": "calls", "subject": "a"})),
            3 => (format!("/v1/events/e{}/void", n.saturating_sub(10)), Value::Null),
            4 => (format!("/v1/reservations/r{}/commit", n.saturating_sub(12)), Value::Null),
            5 => (format!("/v1/reservations/r{}/release", n.saturating_sub(20)), Value::Null),
            6 => ("/v1/reservations".to_owned(), ask(n, 3)),
            _ => ("/v1/reservations".to_owned(), json!({"id": format!("r{n}"), "subject": "a", "ttl_seconds": 1,
                  "holds": [{"meter": "calls", "value": 1}, {"meter": "tokens", "value": 2, "grant": "up_to"}]})),
        };
        async move { (path.clone(), caller.post(&path, &body).await) }
    });
    for (path, answer) in join_all(calls).await {
        assert!(!answer.status.is_server_error(), "{path} {}", answer.text);
    }
    service.verify().await;
    let (left, held) = balance(&service, "a").await;
    assert!(left >= 0 && held >= 0);
    ledger(&service, "a").await;
    // ten orders, each sent twice and granted once
    let grants = service.get("/v1/subjects/a/credits/grants?limit=100").await.json();
    assert_eq!(grants["data"].as_array().unwrap().len(), 10);
    for process in processes {
        process.stop().await;
    }
    service.verify().await;
}
