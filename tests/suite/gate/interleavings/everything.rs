//! Random calls of all kinds through two engines, with a fixed seed. No call fails, and afterwards every
//! counter matches the events and holds.

use axum::body::Body;
use axum::http::Method;
use futures::future::join_all;
use metergate_domain::base::{Environment, Timestamp};
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};

use super::well;
use crate::support::cluster::database_url;
use crate::support::service::{NOON, engine_settings};
use crate::support::{TestService, at};

const SUBJECTS: [&str; 6] = ["o1", "o2", "u1", "u2", "u3", "w1"];
const ROUNDS: u64 = 14;
const SECOND: i64 = 1_000_000;

struct Dice(u64);

impl Dice {
    /// Returns a number from 0 to `sides - 1`.
    fn roll(&mut self, sides: u32) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        u32::try_from((self.0 >> 33) % u64::from(sides)).unwrap()
    }

    fn flip(&mut self) -> bool {
        self.roll(2) == 0
    }

    fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.roll(u32::try_from(of.len()).unwrap()) as usize].clone()
    }
}

/// Returns a catalog with limits in periods of all kinds. Some limits depend on the edition.
fn catalog(edition: u32) -> Value {
    let mut limits = vec![
        json!({"key": "b", "meter": "m", "quota": 400, "period": "hour", "enforcement": "soft"}),
        json!({"key": "c", "meter": "n", "quota": 300, "period": "lifetime"}),
    ];
    if edition & 1 == 1 {
        limits.push(json!({"key": "d", "meter": "m", "filter": {"model": ["x"]}, "quota": 50,
            "period": "day", "anchor": "subscription"}));
    }
    if edition & 2 == 0 {
        limits.push(json!({"key": "a", "meter": "m", "quota": 100, "period": "minute"}));
    }
    if edition & 4 == 4 {
        limits.push(json!({"key": "e", "meter": "m", "quota": 4000, "period": "billing"}));
    }
    json!({
        "default_plan": "p",
        "meters": [
            {"key": "m", "event_name": "e", "aggregation": "sum", "dimensions": ["model"]},
            {"key": "n", "event_name": "e", "aggregation": "count"},
        ],
        "plans": [
            {"key": "p", "unmatched": "allow", "limits": limits},
            {"key": "q", "unmatched": "allow", "fallback_plan": "p", "on_plan_change": "reset", "limits": [
                {"key": "a", "meter": "m", "quota": 100, "period": "minute"},
                {"key": "z", "meter": "m", "quota": 1000, "period": "week", "anchor": "subscription"}]},
            {"key": "r", "unmatched": "allow", "limits": [
                {"key": "z", "meter": "n", "quota": 1000, "period": "month", "anchor": "subscription"},
                {"key": "h", "meter": "n", "quota": 2000, "period": "month", "enforcement": "soft"}]},
        ],
    })
}

type Call = (Method, String, Value);

/// A random choice of the next call, based on the existing data.
struct Chooser {
    dice: Dice,
    now: i64,
    held: Vec<String>,
    tracked: Vec<String>,
}

impl Chooser {
    fn time(&self, seconds: i64) -> String {
        Timestamp::from_micros(self.now + seconds * SECOND).unwrap().to_string()
    }

    /// Returns a call; `id` is its own id.
    fn call(&mut self, round: u64, id: String) -> Call {
        let subject = match self.dice.roll(4) {
            // A subject without any contact so far; several calls may meet it at once.
            0 => format!("new{round}_{}", self.dice.roll(3)),
            _ => self.dice.pick(&SUBJECTS).to_owned(),
        };
        match self.dice.roll(20) {
            0..=4 => self.track(id, &subject),
            5..=9 => self.reserve(id, &subject),
            10..=12 if !self.held.is_empty() => self.commit(),
            13 if !self.held.is_empty() => self.of_held("release", json!({})),
            14..=15 if !self.held.is_empty() => {
                let body = if self.dice.flip() {
                    json!({"ttl_seconds": 1 + self.dice.roll(100)})
                } else {
                    json!({"holds": [{"meter": "m", "value": self.dice.roll(30)}]})
                };
                self.of_held("extend", body)
            }
            16 if !self.tracked.is_empty() => {
                let id = self.dice.pick(&self.tracked);
                (Method::POST, format!("/v1/events/{id}/void"), json!({}))
            }
            17 => self.subscribe(&subject),
            18 => self.rearrange(),
            _ => (Method::GET, format!("/v1/subjects/{subject}/usage"), Value::Null),
        }
    }

    fn properties(&mut self) -> Value {
        if self.dice.flip() { json!({"model": "x"}) } else { json!({}) }
    }

    fn track(&mut self, id: String, subject: &str) -> Call {
        let timestamp = self.dice.pick(&[0, 0, 0, -30, -100, -290, -310, -4000, 200]);
        let body = json!({
            "id": id, "event_name": "e", "subject": subject, "value": i64::from(self.dice.roll(12)) - 2,
            "properties": self.properties(), "timestamp": self.time(timestamp),
        });
        self.tracked.push(id);
        (Method::POST, "/v1/events".to_owned(), body)
    }

    fn reserve(&mut self, id: String, subject: &str) -> Call {
        let body = json!({
            "id": id, "subject": subject, "ttl_seconds": 1 + self.dice.roll(90),
            "on_expiry": self.dice.pick(&["commit", "release"]),
            "holds": [
                {"meter": "m", "value": self.dice.roll(20), "properties": self.properties(),
                    "grant": self.dice.pick(&["up_to", "all", "all"])},
                {"meter": "n", "value": self.dice.roll(3)},
            ],
        });
        self.held.push(id);
        (Method::POST, "/v1/reservations".to_owned(), body)
    }

    fn of_held(&mut self, what: &str, body: Value) -> Call {
        let id = self.dice.pick(&self.held);
        (Method::POST, format!("/v1/reservations/{id}/{what}"), body)
    }

    fn commit(&mut self) -> Call {
        let values = if self.dice.roll(3) == 0 {
            json!([])
        } else {
            json!([{"meter": "m", "value": self.dice.roll(30)}])
        };
        let note = json!({"note": self.dice.roll(3)});
        let body = json!({"values": values, "final": self.dice.flip(), "properties": note});
        self.of_held("commit", body)
    }

    fn subscribe(&mut self, subject: &str) -> Call {
        let mut body = json!({"plan": self.dice.pick(&["p", "q", "r"])});
        let tenths = |dice: &mut Dice| i64::from(1 + dice.roll(100)) * 8_640;
        let (start, end) = (tenths(&mut self.dice), tenths(&mut self.dice));
        match self.dice.roll(5) {
            0 => {}
            1 => body["cycle_start"] = json!(self.time(-start)),
            2 => {
                body["cycle_start"] = json!(self.time(-start));
                body["period_end"] = json!(self.time(end));
            }
            3 => body["period_end"] = json!(self.time(end)),
            _ => {
                let soon = i64::from(self.dice.roll(400));
                body["ends_at"] = json!(self.time(soon));
            }
        }
        (Method::PUT, format!("/v1/subjects/{subject}/subscription"), body)
    }

    fn rearrange(&mut self) -> Call {
        if self.dice.roll(3) == 0 {
            return (Method::PUT, "/v1/catalog".to_owned(), catalog(self.dice.roll(8)));
        }
        let moves = [("u1", "o1"), ("u1", "o2"), ("u2", "o2"), ("u2", "o1"), ("w1", "u2"), ("w1", "u1")];
        let (seat, parent) = self.dice.pick(&moves);
        (Method::PUT, format!("/v1/subjects/{seat}"), json!({"parent": parent}))
    }
}

async fn make(service: &TestService, (method, path, body): &Call) {
    let request = service.request(method.clone(), path).header("content-type", "application/json");
    let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
    let answer = service.send(request.body(body).unwrap()).await;
    assert!(!answer.status.is_server_error(), "{method} {path}: {}", answer.text);
    assert_ne!(answer.status.as_u16(), 400, "{method} {path}: {}", answer.text);
}

#[tokio::test]
async fn random_concurrent_calls_leave_exact_counters() {
    let url = database_url().await;
    let services = [
        TestService::at_url(&url, engine_settings()).await,
        TestService::at_url(&url, engine_settings()).await,
    ];
    services[0].apply(catalog(0)).await;
    for (seat, parent) in [("u1", "o1"), ("u2", "o1"), ("u3", "o2"), ("w1", "u1")] {
        well(services[0].put(&format!("/v1/subjects/{seat}"), &json!({"parent": parent})).await);
        let path = format!("/v1/subjects/{seat}/subscription");
        if seat != "w1" {
            well(services[0].put(&path, &json!({"plan": "p"})).await);
        }
    }
    let mut chooser =
        Chooser { dice: Dice(1), now: at(NOON).micros(), held: Vec::new(), tracked: Vec::new() };
    let mut connection = PgConnection::connect(&url).await.unwrap();
    for round in 0..ROUNDS {
        chooser.now += chooser.dice.pick(&[0, 1, 7, 29, 61, 200, 4000]) * SECOND;
        for service in &services {
            service.clock.set(Timestamp::from_micros(chooser.now).unwrap());
        }
        let calls: Vec<(usize, Call)> = (0..24)
            .map(|n| (chooser.dice.roll(2) as usize, chooser.call(round, format!("{round}_{n}"))))
            .collect();
        let sweeping = async {
            if round % 3 == 0 {
                services[1].engine.sweep(Environment::Test).await.unwrap();
                services[0].engine.end_due_subscriptions(Environment::Test).await.unwrap();
            }
        };
        tokio::join!(join_all(calls.iter().map(|(n, call)| make(&services[*n], call))), sweeping);
        let verdict = services[0].engine.verify(Environment::Test).await.unwrap();
        assert_eq!(verdict.differences, 0, "round {round}: {:?}; {calls:#?}", verdict.shown);
        let negative = "select count(*) from counters where held < 0";
        let negative: i64 = sqlx::query_scalar(negative).fetch_one(&mut connection).await.unwrap();
        assert_eq!(negative, 0, "round {round}");
        if round % 5 == 0 {
            services[0].fold().await;
            while services[1].engine.drop_old_counters(Environment::Test).await.unwrap() {}
        }
    }
}
