//! Concurrent calls against one quota, through independent processes. Exactly the quota is granted, no call
//! is denied while quota is left, and concurrent repeats count once.

use std::sync::atomic::{AtomicBool, Ordering};

use axum::http::{Method, StatusCode};
use futures::future::join_all;
use serde_json::{Value, json};

use crate::support::TestService;
use crate::support::service::{Answer, Caller, Process};

/// Two processes on one database. The service inside the test process is for everything else.
struct Pair {
    service: TestService,
    processes: [Process; 2],
    callers: [Caller; 2],
}

impl Pair {
    async fn start(catalog: Value) -> Self {
        let service = TestService::start().await;
        service.apply(catalog).await;
        let processes = [Process::start(&service.url).await, Process::start(&service.url).await];
        let callers = [processes[0].caller(&service.key), processes[1].caller(&service.key)];
        Self { service, processes, callers }
    }

    /// Posts all calls at once, alternating between the two processes.
    async fn post_all(&self, calls: impl IntoIterator<Item = (String, Value)>) -> Vec<Answer> {
        let calls = calls.into_iter().enumerate().map(|(n, (path, body))| async move {
            let answer = self.callers[n % 2].post(&path, &body).await;
            assert!(!answer.status.is_server_error(), "{} {}", answer.status, answer.text);
            is_within_its_quotas(&answer);
            answer
        });
        join_all(calls).await
    }

    async fn subscribe(&self, subject: &str, plan: &str) {
        let path = format!("/v1/subjects/{subject}/subscription");
        assert_eq!(self.callers[0].put(&path, &json!({"plan": plan})).await.status, StatusCode::OK);
    }

    /// Returns `used` and `held` of the limit `tokens` in the plan of a subject.
    async fn level(&self, subject: &str) -> (i64, i64) {
        let report = self.callers[1].get(&format!("/v1/subjects/{subject}/usage")).await.json();
        let limits = report["limits"].as_array().unwrap();
        let limit = limits.iter().find(|limit| limit["key"] == "tokens").unwrap();
        (limit["used"].as_i64().unwrap(), limit["held"].as_i64().unwrap())
    }

    async fn end(self) {
        self.service.verify().await;
        for process in self.processes {
            process.stop().await;
        }
    }
}

/// Asserts that no shown limit is exceeded, and that every denying limit has too little quota left.
fn is_within_its_quotas(answer: &Answer) {
    let answer = answer.json();
    let number = |limit: &Value, name: &str| limit[name].as_i64().unwrap();
    for limit in answer["limits"].as_array().into_iter().flatten() {
        assert!(number(limit, "used") + number(limit, "held") <= number(limit, "quota"), "{answer}");
    }
    for denier in answer["denied_by"].as_array().into_iter().flatten() {
        let would = number(denier, "used") + number(denier, "held") + number(denier, "requested");
        assert!(would > number(denier, "quota"), "{answer}");
    }
}

/// Returns a plan with lifetime quotas, so that no test depends on the time of day.
fn plan(key: &str, tokens: i64, calls: i64) -> Value {
    json!({"key": key, "limits": [
        {"key": "tokens", "meter": "tokens", "quota": tokens, "period": "lifetime"},
        {"key": "calls", "meter": "calls", "quota": calls, "period": "lifetime"},
    ]})
}

fn catalog(plans: &[Value]) -> Value {
    json!({"default_plan": plans[0]["key"], "plans": plans, "meters": [
        {"key": "tokens", "event_name": "tokens", "aggregation": "sum"},
        {"key": "calls", "event_name": "calls", "aggregation": "count"},
    ]})
}

fn reserve(subject: &str, value: i64) -> (String, Value) {
    let body = json!({"subject": subject, "meter": "tokens", "value": value, "ttl_seconds": 86_400});
    ("/v1/reservations".to_owned(), body)
}

fn reserve_as(id: &str, subject: &str, value: i64) -> (String, Value) {
    let (path, mut body) = reserve(subject, value);
    body["id"] = json!(id);
    (path, body)
}

/// Returns a request for one token and one call, in either order.
fn reserve_both(subject: &str, n: usize) -> (String, Value) {
    let mut holds = vec![json!({"meter": "tokens", "value": 1}), json!({"meter": "calls", "value": 1})];
    holds.rotate_left(n % 2);
    ("/v1/reservations".to_owned(), json!({"subject": subject, "holds": holds, "ttl_seconds": 86_400}))
}

/// Returns the ids of the granted reservations.
fn held(answers: &[Answer]) -> Vec<String> {
    let held = answers.iter().filter(|answer| answer.status == StatusCode::CREATED).map(Answer::json);
    held.map(|answer| answer["id"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn grants_exactly_one_of_six_concurrent_holds() {
    let service = TestService::start().await;
    service.apply(catalog(&[plan("free", 10, 0)])).await;
    service.record(&json!({"event_name": "tokens", "subject": "user", "value": 9})).await;
    let (path, body) = reserve("user", 1);
    let answers = join_all((0..6).map(|_| service.post(&path, &body))).await;
    answers.iter().for_each(is_within_its_quotas);
    assert_eq!(held(&answers).len(), 1);
    let denied = answers.iter().filter(|answer| answer.json()["reason"] == "limit_reached");
    assert_eq!(denied.count(), 5);
    service.verify().await;
}

#[tokio::test]
async fn grants_exactly_the_quota_over_two_processes() {
    let pair = Pair::start(catalog(&[plan("free", 100, 0)])).await;
    let answers = pair.post_all((0..500).map(|_| reserve("user", 1))).await;
    assert_eq!(held(&answers).len(), 100);
    assert_eq!(pair.level("user").await, (0, 100));
    pair.end().await;
}

#[tokio::test]
async fn fills_a_subject_tree_exactly_to_its_limits() {
    let plans = [plan("seat", 14, 15), plan("org", 600, 650)];
    let pair = Pair::start(catalog(&plans)).await;
    pair.subscribe("org", "org").await;
    let users: Vec<String> = (0..50).map(|n| format!("user{n}")).collect();
    for user in &users {
        pair.callers[1].put(&format!("/v1/subjects/{user}"), &json!({"parent": "org"})).await;
        pair.subscribe(user, "seat").await;
    }
    // The users' limits allow 700 tokens, the org's limit 600.
    let everybody = || (0..16).flat_map(|n| users.iter().map(move |user| reserve_both(user, n)));
    let ids = held(&pair.post_all(everybody()).await);
    assert_eq!((ids.len(), pair.level("org").await), (600, (0, 600)));
    // Some reservations end while other calls request the freed quota.
    let settled = ids.iter().enumerate().map(|(n, id)| {
        let what = if n % 3 == 0 { "release" } else { "commit" };
        (format!("/v1/reservations/{id}/{what}"), json!({}))
    });
    let mixed: Vec<_> = settled.zip(everybody()).flat_map(|(settle, ask)| [settle, ask]).collect();
    let answers = pair.post_all(mixed).await;
    assert!(answers.iter().step_by(2).all(|answer| answer.status == StatusCode::OK));
    // Calls that were denied too early now get the freed quota.
    let mut more = held(&answers).len();
    more += held(&pair.post_all(everybody()).await).len();
    let mut seen = (0, 0);
    for user in &users {
        let level = pair.level(user).await;
        assert!(level.0 + level.1 <= 14);
        seen = (seen.0 + level.0, seen.1 + level.1);
    }
    assert_eq!((seen, pair.level("org").await), ((400, 200), (400, 200)));
    assert_eq!(more, 200);
    pair.end().await;
}

#[tokio::test]
async fn concurrent_first_contacts_make_one_subscription() {
    let pair = Pair::start(catalog(&[plan("free", 10, 0)])).await;
    let answers = pair.post_all((0..50).map(|_| reserve("new", 1))).await;
    assert_eq!(held(&answers).len(), 10);
    let subscription = pair.callers[0].get("/v1/subjects/new/subscription?history=true").await.json();
    assert_eq!(subscription["plan"], "free");
    assert_eq!(subscription["history"].as_array().unwrap().len(), 1, "{subscription}");
    // If a root is unknown, it gets the default plan at the first contact of a descendant.
    for n in 0..20 {
        pair.callers[0].put(&format!("/v1/subjects/seat{n}"), &json!({"parent": "root"})).await;
    }
    // An event with value zero is a contact, too.
    let touch = |n: usize| {
        let event = json!({"event_name": "tokens", "subject": format!("seat{n}"), "value": 0});
        ("/v1/events".to_owned(), event)
    };
    let asks = (0..40).map(|n| reserve(&format!("seat{}", n % 20), 1));
    let answers = pair.post_all((0..20).map(touch).zip(asks).flat_map(|(touch, ask)| [touch, ask])).await;
    assert_eq!(held(&answers).len(), 10);
    let subscription = pair.callers[1].get("/v1/subjects/root/subscription?history=true").await.json();
    assert_eq!(subscription["history"].as_array().unwrap().len(), 1, "{subscription}");
    assert_eq!(pair.callers[1].get("/v1/subjects/seat0/subscription").await.status, StatusCode::NOT_FOUND);
    pair.end().await;
}

#[tokio::test]
async fn a_late_default_plan_limits_all_descendants() {
    let pair = Pair::start(catalog(&[plan("free", 10, 0), plan("large", 1_000, 0)])).await;
    pair.subscribe("team", "large").await;
    pair.callers[0].put("/v1/subjects/team", &json!({"parent": "org"})).await;
    pair.callers[0].put("/v1/subjects/seat", &json!({"parent": "team"})).await;
    // Until the org has its first contact, the team's plan is the only one.
    let answers = pair.post_all((0..4).map(|_| reserve("seat", 5))).await;
    assert_eq!(held(&answers).len(), 4);
    pair.callers[0].post("/v1/events", &json!({"event_name": "calls", "subject": "org"})).await;
    assert_eq!(pair.level("org").await, (0, 20));
    for caller in &pair.callers {
        let (path, body) = reserve("seat", 1);
        let answer = caller.post(&path, &body).await.json();
        assert_eq!(answer["denied_by"][0]["subject"], "org", "{answer}");
    }
    pair.end().await;
}

#[tokio::test]
async fn changes_by_one_process_apply_to_the_next_decision_of_another() {
    let plans = [plan("small", 1, 0), plan("large", 1_000, 0)];
    let pair = Pair::start(catalog(&plans)).await;
    let subscription = "/v1/subjects/user/subscription";
    let (path, body) = reserve("user", 5);
    let may = async |caller: &Caller| {
        let answer = caller.post(&path, &body).await;
        if let Some(id) = held(std::slice::from_ref(&answer)).first() {
            caller.post(&format!("/v1/reservations/{id}/release"), &json!({})).await;
        }
        answer.json()["reason"].as_str().unwrap_or("may").to_owned()
    };
    for turn in 0..10 {
        let [one, other] = [&pair.callers[turn % 2], &pair.callers[1 - turn % 2]];
        one.put(subscription, &json!({"plan": "large"})).await;
        assert_eq!(may(other).await, "may");
        one.put(subscription, &json!({"plan": "small"})).await;
        assert_eq!(may(other).await, "limit_reached");
        one.put(subscription, &json!({"plan": "small", "overrides": {"tokens": 5}})).await;
        assert_eq!(may(other).await, "may");
        one.put("/v1/catalog", &catalog(&[plan("small", 1, 0), plan("large", 4, 0)])).await;
        one.put(subscription, &json!({"plan": "large"})).await;
        assert_eq!(may(other).await, "limit_reached");
        one.put("/v1/catalog", &catalog(&plans)).await;
        assert_eq!(may(other).await, "may");
        one.put("/v1/subjects/org/subscription", &json!({"plan": "small"})).await;
        one.put("/v1/subjects/user", &json!({"parent": "org"})).await;
        assert_eq!(may(other).await, "limit_reached");
        one.put("/v1/subjects/user", &json!({"parent": null})).await;
        assert_eq!(may(other).await, "may");
        one.send(Method::DELETE, subscription, &Value::Null).await;
        assert_eq!(may(other).await, "subscription_inactive");
    }
    pair.end().await;
}

#[tokio::test]
async fn concurrent_reserves_of_one_id_make_one_reservation() {
    let pair = Pair::start(catalog(&[plan("free", 100, 0)])).await;
    for round in 0..5 {
        let id = format!("job{round}");
        let answers = pair.post_all((0..40).map(|_| reserve_as(&id, "user", 3))).await;
        assert!(answers.iter().all(|answer| answer.status == StatusCode::CREATED));
        assert_eq!(answers.iter().filter(|answer| !answer.is_replay()).count(), 1);
    }
    assert_eq!(pair.level("user").await, (0, 15));
    // Two requests disagree about the content of one id; the first one wins.
    let answers = pair.post_all((0..40).map(|n| reserve_as("disputed", "user", 1 + n / 2 % 2))).await;
    assert_eq!(answers.iter().filter(|answer| answer.code() == "id_reused").count(), 20);
    assert_eq!(held(&answers).len(), 20);
    pair.end().await;
}

#[tokio::test]
async fn first_settlement_of_a_reservation_wins() {
    let pair = Pair::start(catalog(&[plan("free", 1_000, 0)])).await;
    let (mut used, mut kept) = (0, 0);
    for round in 0..12 {
        let id = format!("job{round}");
        pair.post_all([reserve_as(&id, "user", 10)]).await;
        let call = |what: &str, body: Value| (format!("/v1/reservations/{id}/{what}"), body);
        let commit = |value: usize| call("commit", json!({"values": [{"meter": "tokens", "value": value}]}));
        // Rounds alternate: equal commits, different commits, then commits against releases.
        let answers = match round % 3 {
            0 => pair.post_all((0..20).map(|_| commit(7))).await,
            1 => pair.post_all((0..20).map(&commit)).await,
            _ => {
                pair.post_all(
                    (0..20).map(|n| if n / 2 % 2 == 0 { commit(7) } else { call("release", json!({})) }),
                )
                .await
            }
        };
        let (done, refused): (Vec<_>, Vec<_>) =
            answers.iter().partition(|answer| answer.status == StatusCode::OK);
        assert_eq!(done.iter().filter(|answer| !answer.is_replay()).count(), 1);
        assert_eq!(refused.len(), [0, 19, 10][round % 3]);
        let first = done[0].json();
        let code = if first["status"] == "released" { "already_released" } else { "already_committed" };
        assert!(refused.iter().all(|answer| answer.status == StatusCode::CONFLICT && answer.code() == code));
        assert!(done.iter().all(|answer| answer.json()["events"] == first["events"]));
        used += first["committed"][0]["value"].as_i64().unwrap_or(0);
        kept = pair.level("user").await.1;
    }
    assert_eq!((pair.level("user").await, kept), ((used, 0), 0));
    pair.end().await;
}

#[tokio::test]
async fn reordered_steps_keep_the_greatest_total() {
    let pair = Pair::start(catalog(&[plan("free", 1_000, 0)])).await;
    pair.post_all([reserve_as("job", "user", 100)]).await;
    let step = |value: i64| {
        let values = json!({"values": [{"meter": "tokens", "value": value}], "final": false});
        ("/v1/reservations/job/commit".to_owned(), values)
    };
    let extend = ("/v1/reservations/job/extend".to_owned(), json!({"ttl_seconds": 86_400}));
    let answers = pair.post_all((1..=40).map(step).chain((1..=40).rev().map(step)).chain([extend])).await;
    assert!(answers.iter().all(|answer| answer.status == StatusCode::OK));
    assert_eq!(pair.level("user").await, (40, 60));
    let below = pair
        .post_all([(
            "/v1/reservations/job/commit".to_owned(),
            json!({"values": [{"meter": "tokens", "value": 39}]}),
        )])
        .await;
    assert_eq!(below[0].code(), "below_committed");
    pair.post_all([(
        "/v1/reservations/job/commit".to_owned(),
        json!({"values": [{"meter": "tokens", "value": 41}]}),
    )])
    .await;
    assert_eq!(pair.level("user").await, (41, 0));
    pair.end().await;
}

#[tokio::test]
async fn limits_changed_under_load_count_all_usage() {
    let with = [plan("large", 100_000, 100_000), plan("other", 100_000, 100_000)];
    let without = [json!({"key": "large", "unmatched": "allow"}), plan("other", 100_000, 100_000)];
    let pair = Pair::start(catalog(&with)).await;
    let is_loading = AtomicBool::new(true);
    let load = async {
        let callers = (0..12).map(|caller| {
            let pair = &pair;
            async move {
                let mut sum = (0, 0);
                for n in 0..30 {
                    let (id, calls) = (format!("c{caller}n{n}"), &pair.callers[(caller + n) % 2]);
                    let (path, body) = reserve_as(&id, "user", 3);
                    let answer = calls.post(&path, &body).await;
                    assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.text);
                    let settle = |what: &str| format!("/v1/reservations/{id}/{what}");
                    let (path, body, used, held) = match n % 3 {
                        0 => (settle("commit"), json!({"values": [{"meter": "tokens", "value": 2}]}), 2, 0),
                        1 => (settle("release"), json!({}), 0, 0),
                        _ => (
                            "/v1/events".to_owned(),
                            json!({"event_name": "tokens", "subject": "user"}),
                            1,
                            3,
                        ),
                    };
                    let answer = calls.post(&path, &body).await;
                    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
                    sum = (sum.0 + used, sum.1 + held);
                }
                sum
            }
        });
        let sums = join_all(callers).await;
        is_loading.store(false, Ordering::SeqCst);
        sums.into_iter().fold((0, 0), |all, sum| (all.0 + sum.0, all.1 + sum.1))
    };
    let changes = async {
        for n in 0.. {
            if !is_loading.load(Ordering::SeqCst) {
                return;
            }
            let [one, other] = [&pair.callers[n % 2], &pair.callers[1 - n % 2]];
            one.put("/v1/catalog", &catalog(&without)).await;
            other.put("/v1/subjects/user/subscription", &json!({"plan": "other"})).await;
            one.put("/v1/catalog", &catalog(&with)).await;
            other.put("/v1/subjects/user", &json!({"parent": "org"})).await;
            one.put("/v1/subjects/user/subscription", &json!({"plan": "large"})).await;
            other.put("/v1/subjects/user", &json!({"parent": null})).await;
        }
    };
    let (expected, ()) = tokio::join!(load, changes);
    assert_eq!(pair.level("user").await, expected);
    pair.end().await;
}
