//! Grants and voids refund a spend together, and never more than was spent.

use axum::http::StatusCode;
use futures::future::join_all;
use serde_json::{Value, json};

use super::{balance, grant, granted, ledger, moved, start};
use crate::support::TestService;

/// Returns the ledger id of a spend of 20 for an event.
async fn spent(service: &TestService, event: &str) -> Value {
    let body = json!({"id": event, "event_name": "tokens", "subject": "a", "value": 30});
    service.record(&body).await;
    let last = ledger(service, "a").await[0].clone();
    assert_eq!(
        (&last["kind"], &last["amount"], &last["event"]),
        (&json!("spend"), &json!(20), &json!(event))
    );
    last["id"].clone()
}

fn refund(spend: &Value, amount: i64) -> Value {
    json!({"credit_unit": "credits", "amount": amount, "source": "refund", "refund_of": spend})
}

async fn void(service: &TestService, event: &str) {
    let answer = service.post(&format!("/v1/events/{event}/void"), &json!({})).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
}

#[tokio::test]
async fn refund_grants_never_exceed_the_spend() {
    let service = start().await;
    granted(&service, "a", &json!({"credit_unit": "credits", "amount": 100})).await;
    let spend = spent(&service, "e1").await;
    let in_tokens = json!({"meter": "tokens", "amount": 5, "source": "refund", "refund_of": spend});
    let later = {
        let mut later = refund(&spend, 3);
        later["effective_at"] = json!("2026-11-25T00:00:00Z");
        later
    };
    let steps = [
        (refund(&spend, 1000), Err(("/amount", "refund_exceeds_spend"))),
        (in_tokens, Err(("/refund_of", "refund_unit_mismatch"))),
        (refund(&spend, 15), Ok(95)),
        (refund(&spend, 6), Err(("/amount", "refund_exceeds_spend"))),
        // a grant that takes effect later counts as a refund, too
        (later, Ok(95)),
        (refund(&spend, 3), Err(("/amount", "refund_exceeds_spend"))),
        (refund(&spend, 2), Ok(97)),
        (refund(&spend, 1), Err(("/amount", "refund_exceeds_spend"))),
    ];
    let mut ids = Vec::new();
    for (request, expected) in steps {
        let answer = grant(&service, "a", &request).await;
        match expected {
            Ok(left) => {
                assert_eq!(answer.status, StatusCode::CREATED, "{request}: {}", answer.text);
                assert_eq!(balance(&service, "a").await, (left, 0), "{request}");
                ids.push(answer.json()["id"].as_str().unwrap().to_owned());
            }
            Err((pointer, code)) => {
                assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY, "{request}: {}", answer.text);
                let violation = &answer.json()["errors"][0];
                assert_eq!(
                    (violation["pointer"].as_str(), violation["code"].as_str()),
                    (Some(pointer), Some(code))
                );
            }
        }
    }
    // a voided refund no longer counts, even if it never took effect
    for (id, amount, left) in [(&ids[1], 3, 100), (&ids[2], 2, 100)] {
        let path = format!("/v1/subjects/a/credits/grants/{id}/void");
        assert_eq!(service.post(&path, &json!({})).await.status, StatusCode::OK);
        granted(&service, "a", &refund(&spend, amount)).await;
        assert_eq!(balance(&service, "a").await, (left, 0));
    }
    // the spend is fully refunded: a void returns nothing more
    void(&service, "e1").await;
    assert_eq!(balance(&service, "a").await, (100, 0));
    service.verify().await;
}

#[tokio::test]
async fn voids_and_refunds_together_never_exceed_the_spend() {
    let service = start().await;
    granted(&service, "a", &json!({"credit_unit": "credits", "amount": 100})).await;
    // partly refunded: the void returns the rest
    let spend = spent(&service, "e1").await;
    granted(&service, "a", &refund(&spend, 15)).await;
    void(&service, "e1").await;
    assert_eq!(balance(&service, "a").await, (100, 0));
    assert_eq!(moved(&service, "a").await, ["grant 100", "spend 20", "grant 15", "refund 5"]);
    // reversed by a void: nothing is left to refund
    let spend = spent(&service, "e2").await;
    void(&service, "e2").await;
    assert_eq!(grant(&service, "a", &refund(&spend, 1)).await.code(), "refund_exceeds_spend");
    // many refunds at once: as many as fit
    let spend = spent(&service, "e3").await;
    let asked = refund(&spend, 6);
    let answers = join_all((0..8).map(|_| grant(&service, "a", &asked))).await;
    let made = answers.iter().filter(|answer| answer.status == StatusCode::CREATED).count();
    assert_eq!(made, 3);
    void(&service, "e3").await;
    assert_eq!(balance(&service, "a").await, (100, 0));
    service.verify().await;
}
