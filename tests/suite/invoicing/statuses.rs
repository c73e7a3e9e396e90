//! The status of an invoice follows Stripe's webhooks in any order.

use serde_json::{Value, json};

use super::{Pair, Same, get, invoices};
use crate::support::stripe_fake::{Options, Payments, shuffled};

fn cheap() -> Vec<Same> {
    vec![Same { ours: json!({"model": "per_unit", "unit_amount": 3}), theirs: vec![("unit_amount", "3")] }]
}

async fn pair() -> Pair {
    let pair = Pair::with("usd", &cheap(), Options::default(), false).await;
    pair.set_clock("2026-11-20T12:00:00Z").await;
    let event =
        json!({"event_name": "m0", "subject": "acme", "value": 40, "timestamp": "2026-11-20T11:00:00Z"});
    assert_eq!(pair.books.service.post("/v1/events", &event).await.json()["accepted"], 1);
    pair.export().await;
    pair
}

async fn of_period(pair: &Pair) -> Value {
    let all = invoices(&pair.books.service, "subject=acme").await;
    all.into_iter().find(|it| it["period"]["start"] == "2026-11-20T10:00:00Z").unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn statuses_do_not_depend_on_webhook_order_or_repeats() {
    for seed in 0..6 {
        let pair = pair().await;
        let customer = pair.stripe.get("/v1/customers")["data"][0]["id"].as_str().unwrap().to_owned();
        if seed % 2 == 0 {
            pair.stripe.set_payments(&customer, Payments::Fail);
        }
        pair.stripe.set_clock(crate::support::stripe_fake::unix("2026-12-20T11:00:00Z"));
        pair.books.set_clock("2026-12-20T11:00:00Z");
        pair.books.bill().await;
        assert_eq!(of_period(&pair).await["status"], "final", "no webhook has arrived yet");
        if seed % 2 == 0 {
            let open = pair.stripe.get("/v1/invoices")["data"][0]["id"].as_str().unwrap().to_owned();
            pair.stripe.post(&format!("/v1/invoices/{open}/void"), &[]);
        }
        for webhook in shuffled(&pair.stripe.take_webhooks(), 2, seed) {
            pair.deliver(&webhook).await;
        }
        let invoice = of_period(&pair).await;
        let expected = if seed % 2 == 0 { "void" } else { "paid" };
        assert_eq!(invoice["status"], expected, "{seed}");
        assert_eq!(
            (&invoice["provider"]["status"], &invoice["provider"]["total"]),
            (&json!(expected), &json!(120))
        );
        let listed = get(&pair.books.service, &format!("/v1/invoices?status={expected}")).await;
        assert_eq!(listed["data"].as_array().unwrap().len(), 1);
        assert_eq!(get(&pair.books.service, "/v1/invoices?status=final").await["data"], json!([]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn invoices_move_from_draft_to_paid() {
    let pair = pair().await;
    let customer = pair.stripe.get("/v1/customers")["data"][0]["id"].as_str().unwrap().to_owned();
    pair.stripe.set_payments(&customer, Payments::Fail);
    pair.set_clock("2026-12-20T10:00:00Z").await;
    let invoice = of_period(&pair).await;
    assert_eq!((&invoice["status"], &invoice["provider"]["status"]), (&json!("draft"), &json!("draft")));
    pair.set_clock("2026-12-20T11:00:00Z").await;
    pair.books.bill().await;
    let invoice = of_period(&pair).await;
    assert_eq!((&invoice["status"], &invoice["number"]), (&json!("open"), &json!("MG-000001")));
    pair.stripe.set_payments(&customer, Payments::Succeed);
    let id = invoice["provider"]["invoice"].as_str().unwrap();
    pair.stripe.post(&format!("/v1/invoices/{id}/pay"), &[]);
    pair.hear().await;
    let settled = of_period(&pair).await;
    assert_eq!((&settled["status"], &settled["lines"]), (&json!("paid"), &invoice["lines"]));
}
