//! Random steps in any order. The balances equal the ledger and are never negative. A check decides like
//! the reservation after it. Results do not depend on when due changes are applied.

use axum::http::StatusCode;
use metergate_domain::base::Environment;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Value, json};

use super::{balances, grant, ledger, start};
use crate::support::{TestService, at};

#[derive(Debug, Clone)]
enum Step {
    Grant { amount: i64, priority: i64, life: Option<i64>, in_meter: bool },
    VoidGrant(usize),
    Reserve { tokens: i64, calls: i64, up_to: bool, commits: bool, ttl: i64 },
    Commit { which: usize, tokens: i64, is_final: bool },
    Release(usize),
    Extend { which: usize, tokens: i64, ttl: i64 },
    Track(i64),
    VoidEvent(usize),
    Wait(i64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (1_i64..40, 0_i64..3, prop::option::of(1_i64..200), any::<bool>())
            .prop_map(|(amount, priority, life, in_meter)| Step::Grant { amount, priority, life, in_meter }),
        (0_usize..20).prop_map(Step::VoidGrant),
        (0_i64..25, 0_i64..4, any::<bool>(), any::<bool>(), 1_i64..120).prop_map(
            |(tokens, calls, up_to, commits, ttl)| Step::Reserve { tokens, calls, up_to, commits, ttl }
        ),
        (0_usize..20, 0_i64..30, any::<bool>()).prop_map(|(which, tokens, is_final)| Step::Commit {
            which,
            tokens,
            is_final
        }),
        (0_usize..20).prop_map(Step::Release),
        (0_usize..20, 0_i64..40, 1_i64..120).prop_map(|(which, tokens, ttl)| Step::Extend {
            which,
            tokens,
            ttl
        }),
        (1_i64..15).prop_map(Step::Track),
        (0_usize..20).prop_map(Step::VoidEvent),
        (1_i64..90).prop_map(Step::Wait),
    ]
}

/// One of two services that receive the same steps.
struct Twin {
    service: TestService,
    sweeps: bool,
    /// The ids of the grants in the order of their creation.
    grants: Vec<String>,
    micros: i64,
}

impl Twin {
    async fn start(sweeps: bool) -> Self {
        let service = start().await;
        let micros = at(crate::support::service::NOON).micros();
        Self { service, sweeps, grants: Vec::new(), micros }
    }

    /// Returns the result of a step without generated ids.
    async fn take(&mut self, n: usize, step: &Step) -> Value {
        let service = &self.service;
        let said = |answer: crate::support::service::Answer| {
            assert!(!answer.status.is_server_error(), "{}", answer.text);
            let json = answer.json();
            json!([
                answer.status.as_u16(),
                json["allowed"],
                json["reason"],
                json["status"],
                json["limits"],
                json["code"],
                json["holds"]
            ])
        };
        match step {
            Step::Grant { amount, priority, life, in_meter } => {
                let mut request = json!({"amount": amount, "priority": priority});
                let unit = if *in_meter { ("meter", "tokens") } else { ("credit_unit", "credits") };
                request[unit.0] = json!(unit.1);
                if let Some(seconds) = life {
                    request["expires_after"] = json!(format!("{seconds}s"));
                }
                let made = grant(service, "a", &request).await;
                assert_eq!(made.status, StatusCode::CREATED, "{}", made.text);
                self.grants.push(made.json()["id"].as_str().unwrap().to_owned());
                Value::Null
            }
            Step::VoidGrant(which) => {
                let Some(id) = self.grants.get(*which) else { return Value::Null };
                let answer =
                    service.post(&format!("/v1/subjects/a/credits/grants/{id}/void"), &json!({})).await;
                json!([
                    answer.status.as_u16(),
                    answer.json()["available"],
                    answer.json()["held"],
                    answer.is_replay()
                ])
            }
            Step::Reserve { tokens, calls, up_to, commits, ttl } => {
                let how = if *up_to { "up_to" } else { "exactly" };
                let mut body = json!({"subject": "a", "ttl_seconds": ttl, "dry_run": true, "holds": [
                    {"meter": "tokens", "value": tokens, "grant": how, "properties": {"model": if n.is_multiple_of(3) { "big" } else { "small" }}},
                    {"meter": "calls", "value": calls}]});
                if !up_to {
                    body["holds"][0].as_object_mut().unwrap().remove("grant");
                }
                let checked = service.post("/v1/reservations", &body).await.json();
                body["dry_run"] = json!(false);
                body["id"] = json!(format!("r{n}"));
                body["on_expiry"] = json!(if *commits { "commit" } else { "release" });
                let answer = service.post("/v1/reservations", &body).await;
                let held = answer.json();
                assert_eq!(
                    (&checked["allowed"], &checked["reason"]),
                    (&held["allowed"], &held["reason"]),
                    "{held}"
                );
                assert_eq!(
                    (&checked["holds"], &checked["denied_by"]),
                    (&held["holds"], &held["denied_by"]),
                    "{held}"
                );
                said(answer)
            }
            Step::Commit { which, tokens, is_final } => {
                let body = json!({"values": [{"meter": "tokens", "value": tokens}], "final": is_final});
                said(service.post(&format!("/v1/reservations/r{which}/commit"), &body).await)
            }
            Step::Release(which) => {
                said(service.post(&format!("/v1/reservations/r{which}/release"), &json!({})).await)
            }
            Step::Extend { which, tokens, ttl } => {
                let body = json!({"holds": [{"meter": "tokens", "value": tokens}], "ttl_seconds": ttl});
                said(service.post(&format!("/v1/reservations/r{which}/extend"), &body).await)
            }
            Step::Track(value) => {
                let body =
                    json!({"id": format!("e{n}"), "event_name": "tokens", "subject": "a", "value": value});
                said(service.post("/v1/events", &body).await)
            }
            Step::VoidEvent(which) => {
                let answer = service.post(&format!("/v1/events/e{which}/void"), &json!({})).await;
                json!([answer.status.as_u16()])
            }
            Step::Wait(seconds) => {
                self.micros += seconds * 1_000_000;
                let now = metergate_domain::base::timestamp::Timestamp::from_micros(self.micros).unwrap();
                service.clock.set(now);
                Value::Null
            }
        }
    }

    /// Returns the balance of each unit with its expiring parts.
    async fn shown(&self) -> Vec<Value> {
        let mut shown = balances(&self.service, "a").await;
        for balance in &mut shown {
            assert!(
                !balance["balance"].to_string().starts_with('-')
                    && !balance["pending"].to_string().starts_with('-')
            );
            for expiring in balance["expiring"].as_array_mut().unwrap() {
                expiring.as_object_mut().unwrap().remove("grant");
            }
            balance["expiring"].as_array_mut().unwrap().sort_by_key(ToString::to_string);
        }
        // a unit without a balance is shown as long as it has grants
        shown.retain(|balance| balance["balance"] != 0 || balance["pending"] != 0);
        shown
    }

    async fn rest(&self) {
        if self.sweeps {
            while self.service.engine.sweep(Environment::Test).await.unwrap() {}
            while self.service.engine.settle_due_wallets(Environment::Test).await.unwrap() {}
        }
    }
}

#[tokio::test]
async fn results_do_not_depend_on_who_applies_due_changes() {
    let mut runner = TestRunner::new(Config { failure_persistence: None, ..Config::default() });
    for _ in 0..12 {
        let steps = prop::collection::vec(step(), 24).new_tree(&mut runner).unwrap().current();
        let mut twins = [Twin::start(false).await, Twin::start(true).await];
        for (n, step) in steps.iter().enumerate() {
            let mut came = Vec::new();
            for twin in &mut twins {
                twin.rest().await;
                came.push(twin.take(n, step).await);
            }
            assert_eq!(came[0], came[1], "{n}: {steps:?}");
            if n % 6 == 5 {
                let shown = [twins[0].shown().await, twins[1].shown().await];
                assert_eq!(shown[0], shown[1], "{n}: {steps:?}");
            }
            if n % 4 == 3 {
                for twin in &twins {
                    let verdict = twin.service.engine.verify(Environment::Test).await.unwrap();
                    assert_eq!(verdict.differences, 0, "{n}: {:?} {steps:?}", verdict.shown);
                }
            }
        }
        for twin in &twins {
            ledger(&twin.service, "a").await;
        }
    }
}
