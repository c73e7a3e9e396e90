//! Comparison of our invoices with those of the fake Stripe, which has its own rating code.

use std::path::Path;

use axum::http::{Method, StatusCode};
use serde_json::{Value, json};

use super::{END, Pair, Same, get, invoices};
use crate::support::stripe_fake::{Endpoint, Fault, Options, TierLines, unix};
use crate::usage::trace::replay;

/// The models that both sides have.
fn models() -> Vec<Same> {
    let tiers = |tiers: Value, model: &str| json!({"model": model, "tiers": tiers});
    let two = || {
        json!([{"up_to": 1_000, "unit_amount": "0.0375"}, {"up_to": 50_000, "unit_amount": "0.0125", "flat_amount": "99.5"},
               {"up_to": null, "unit_amount": "0.000000000007", "flat_amount": 1}])
    };
    let two_of_theirs = |mode: &'static str| {
        vec![
            ("billing_scheme", "tiered"),
            ("tiers_mode", mode),
            ("tiers[0][up_to]", "1000"),
            ("tiers[0][unit_amount_decimal]", "0.0375"),
            ("tiers[1][up_to]", "50000"),
            ("tiers[1][unit_amount_decimal]", "0.0125"),
            ("tiers[1][flat_amount_decimal]", "99.5"),
            ("tiers[2][up_to]", "inf"),
            ("tiers[2][unit_amount_decimal]", "0.000000000007"),
            ("tiers[2][flat_amount]", "1"),
        ]
    };
    let package = |round: &'static str| Same {
        ours: json!({"model": "package", "unit_amount": 25, "per_units": 300, "round": round}),
        theirs: vec![
            ("unit_amount", "25"),
            ("transform_quantity[divide_by]", "300"),
            ("transform_quantity[round]", round),
        ],
    };
    vec![
        Same {
            ours: json!({"model": "per_unit", "unit_amount": "0.05"}),
            theirs: vec![("unit_amount_decimal", "0.05")],
        },
        Same { ours: tiers(two(), "graduated"), theirs: two_of_theirs("graduated") },
        Same { ours: tiers(two(), "volume"), theirs: two_of_theirs("volume") },
        package("up"),
        package("down"),
        Same { ours: json!({"model": "flat", "amount": 900}), theirs: vec![("unit_amount", "900")] },
    ]
}

impl Pair {
    /// Asserts that both sides have the same positive amount on every line.
    async fn assert_agrees(&self, path: &str, lines: usize) -> Value {
        let compared = get(&self.books.service, &format!("{path}?compare=provider")).await;
        assert_eq!(compared["lines"].as_array().unwrap().len(), lines, "{compared}");
        for line in compared["lines"].as_array().unwrap() {
            assert_eq!((&line["difference"], &line["ours"]), (&json!(0), &line["theirs"]), "{compared}");
            assert!(
                line["provider_price"].is_string() && !line["prices"].as_array().unwrap().is_empty(),
                "{line}"
            );
        }
        assert_eq!(compared["total"]["difference"], 0);
        compared
    }

    async fn use_all(&self, quantities: &[i64]) {
        for (index, value) in quantities.iter().enumerate() {
            let event = json!({"event_name": format!("m{index}"), "subject": "acme", "value": value,
                               "timestamp": "2026-11-20T11:00:00Z"});
            assert_eq!(self.books.service.post("/v1/events", &event).await.json()["accepted"], 1);
        }
        self.export().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn models_agree_with_stripe_in_every_kind_of_currency() {
    let quantities: [[i64; 5]; 4] = [
        [0, 0, 0, 0, 0],
        [30, 1_000, 1_000, 300, 299],
        [1_234_567, 1_001, 1_001, 301, 600],
        [9, 50_001, 7_000_000, 1, 100_000],
    ];
    for (currency, quantities) in ["usd", "jpy", "kwd", "eur"].into_iter().zip(quantities) {
        // lines match by price id, or by the meter of the price
        let pair = Pair::with(currency, &models(), Options::default(), currency == "jpy").await;
        pair.set_clock("2026-11-20T12:00:00Z").await;
        pair.use_all(&quantities).await;
        let upcoming = pair.assert_agrees("/v1/subjects/acme/invoices/upcoming", 6).await;
        assert_eq!(
            (&upcoming["provider"]["invoice"], &upcoming["currency"]),
            (&Value::Null, &json!(currency))
        );
        // during its grace Stripe's invoice is a draft, and so is ours
        pair.set_clock(END).await;
        let draft = invoices(&pair.books.service, "subject=acme&status=draft").await[0].clone();
        let path = format!("/v1/invoices/{}", draft["id"].as_str().unwrap());
        assert_eq!(pair.assert_agrees(&path, 6).await["provider"]["status"], "draft");
        pair.set_clock("2026-12-20T11:00:00Z").await;
        pair.books.bill().await;
        let compared = pair.assert_agrees(&path, 6).await;
        assert_eq!(
            (&compared["status"], &compared["provider"]["currency"]),
            (&json!("paid"), &json!(currency))
        );
        let invoice = get(&pair.books.service, &path).await;
        assert_eq!(invoice["total"], invoice["provider"]["total"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn comparison_shows_each_difference_on_its_line() {
    let pair =
        Pair::with("usd", &models(), Options { tiers: TierLines::Apart, ..Options::default() }, false).await;
    pair.set_clock("2026-11-20T12:00:00Z").await;
    pair.use_all(&[100, 1_001, 0, 0, 0]).await;
    // not exported yet
    let event =
        json!({"event_name": "m0", "subject": "acme", "value": 60, "timestamp": "2026-11-20T11:30:00Z"});
    pair.books.service.post("/v1/events", &event).await;
    let compared = get(&pair.books.service, "/v1/subjects/acme/invoices/upcoming?compare=provider").await;
    let of = |price: &str| {
        let lines = compared["lines"].as_array().unwrap();
        let line = lines.iter().find(|line| line["prices"] == json!([price])).unwrap();
        (
            line["ours"].as_i64().unwrap(),
            line["theirs"].as_i64().unwrap(),
            line["difference"].as_i64().unwrap(),
        )
    };
    assert_eq!(of("p0"), (8, 5, 3));
    // 37.5 and 99.5125, rounded together and separately
    assert_eq!(of("p1"), (137, 38 + 100, -1));
    assert_eq!(compared["total"]["difference"], 2);
}

/// An hour of production with some thousand requests, moved to now and rated by both sides.
#[tokio::test(flavor = "multi_thread")]
async fn trace_invoices_match_stripe_to_the_cent() {
    let tiers = || {
        json!([{"up_to": 1_000_000, "unit_amount": "0.0003"}, {"up_to": 10_000_000, "unit_amount": "0.00025"},
                          {"up_to": null, "unit_amount": "0.0001875"}])
    };
    let prices = vec![
        Same {
            ours: json!({"model": "graduated", "tiers": tiers()}),
            theirs: vec![
                ("billing_scheme", "tiered"),
                ("tiers_mode", "graduated"),
                ("tiers[0][up_to]", "1000000"),
                ("tiers[0][unit_amount_decimal]", "0.0003"),
                ("tiers[1][up_to]", "10000000"),
                ("tiers[1][unit_amount_decimal]", "0.00025"),
                ("tiers[2][up_to]", "inf"),
                ("tiers[2][unit_amount_decimal]", "0.0001875"),
            ],
        },
        Same {
            ours: json!({"model": "volume", "tiers": [{"up_to": 100_000, "unit_amount": "0.0015"}, {"up_to": null, "unit_amount": "0.00123", "flat_amount": 10}]}),
            theirs: vec![
                ("billing_scheme", "tiered"),
                ("tiers_mode", "volume"),
                ("tiers[0][up_to]", "100000"),
                ("tiers[0][unit_amount_decimal]", "0.0015"),
                ("tiers[1][up_to]", "inf"),
                ("tiers[1][unit_amount_decimal]", "0.00123"),
                ("tiers[1][flat_amount]", "10"),
            ],
        },
        Same {
            ours: json!({"model": "package", "unit_amount": 7, "per_units": 50}),
            theirs: vec![
                ("unit_amount", "7"),
                ("transform_quantity[divide_by]", "50"),
                ("transform_quantity[round]", "up"),
            ],
        },
    ];
    let pair = Pair::with("usd", &prices, Options::default(), true).await;
    pair.set_clock("2026-11-20T12:00:00Z").await;
    let (events, context, generated) = trace();
    // one event of the trace counts on three meters
    let mut lines = Vec::new();
    let subjects: std::collections::BTreeSet<&str> =
        events.iter().map(|event| event.subject.as_str()).collect();
    for subject in subjects {
        pair.books.put(&format!("/v1/subjects/{subject}"), &json!({"parent": "acme"})).await;
    }
    for event in &events {
        let values = [event.context_tokens, event.generated_tokens, 1];
        for (index, value) in values.into_iter().enumerate() {
            lines.push(
                json!({"id": event.id, "source": format!("trace{index}"), "event_name": format!("m{index}"),
                "subject": event.subject, "value": value, "timestamp": event.at.to_string()})
                .to_string(),
            );
        }
    }
    for chunk in lines.chunks(9_000) {
        let body = chunk.join("\n").into_bytes();
        let answer =
            pair.books.service.send_typed(Method::POST, "/v1/events", "application/x-ndjson", body).await;
        assert_eq!(answer.json()["accepted"], chunk.len(), "{}", answer.text);
    }
    pair.export().await;
    let upcoming = pair.assert_agrees("/v1/subjects/acme/invoices/upcoming", 3).await;
    pair.set_clock("2026-12-20T11:00:00Z").await;
    pair.books.bill().await;
    let invoice = invoices(&pair.books.service, "subject=acme&status=paid").await[0].clone();
    let used: Vec<u64> = (0..3).map(|n| invoice["lines"][n]["quantity"].as_u64().unwrap()).collect();
    assert_eq!(used, [context, generated, events.len() as u64]);
    let compared = pair.assert_agrees(&format!("/v1/invoices/{}", invoice["id"].as_str().unwrap()), 3).await;
    assert_eq!(compared["total"], upcoming["total"]);
    assert_eq!(invoice["provider"]["total"], invoice["total"]);
    pair.books.service.verify().await;
}

/// Returns the whole trace if the file exists, otherwise the sample. Moves the trace to begin one minute
/// into the period.
fn trace() -> (Vec<replay::TraceEvent>, u64, u64) {
    let home = Path::new(env!("CARGO_MANIFEST_DIR"));
    let whole = ["../shared/data/azure_llm_code_2023.csv", "/work/shared/data/azure_llm_code_2023.csv"];
    let path = whole.iter().map(|path| home.join(path)).find(|path| path.exists());
    let path = path.unwrap_or_else(|| home.join("examples/data/azure_llm_code_2023_sample.csv"));
    let events = replay::read(std::fs::File::open(path).unwrap()).unwrap();
    let first = events.iter().map(|event| event.at).min().unwrap();
    let start: jiff::Timestamp = "2026-11-20T10:01:00Z".parse().unwrap();
    let by = start.duration_since(first);
    let (context, generated) = events.iter().fold((0, 0), |(context, generated), event| {
        (context + event.context_tokens, generated + event.generated_tokens)
    });
    (events.into_iter().map(|event| event.moved(by)).collect(), context, generated)
}

#[tokio::test(flavor = "multi_thread")]
async fn comparisons_without_a_provider_invoice_name_the_reason() {
    let books = super::Books::open().await;
    let answer = books.service.get("/v1/subjects/acme/invoices/upcoming?compare=provider").await;
    assert_eq!((answer.status, answer.code().as_str()), (StatusCode::CONFLICT, "no_provider"));

    let pair = Pair::with("usd", &models(), Options::default(), false).await;
    let upcoming = "/v1/subjects/acme/invoices/upcoming?compare=provider";
    for (fault, expected) in [
        (Fault::ErrorBefore, "provider_unavailable"),
        (Fault::ResetBefore, "provider_unavailable"),
        (Fault::Unauthorized, "provider_unavailable"),
    ] {
        pair.stripe.fail_next(Endpoint::Any, fault, 1);
        let answer = pair.books.service.get(upcoming).await;
        assert_eq!((answer.status, answer.code().as_str()), (StatusCode::SERVICE_UNAVAILABLE, expected));
    }
    // a subject without a subscription at Stripe
    pair.books.put("/v1/subjects/own", &json!({"stripe_customer_id": "cus_own"})).await;
    pair.books.subscribe("own", &json!({"plan": "pro"})).await;
    let answer = pair.books.service.get("/v1/subjects/own/invoices/upcoming?compare=provider").await;
    assert_eq!((answer.status, answer.code().as_str()), (StatusCode::CONFLICT, "no_provider_subscription"));
    // an invoice without a webhook
    pair.stripe.set_clock(unix("2026-12-20T11:00:00Z"));
    pair.books.set_clock("2026-12-20T11:00:00Z");
    pair.books.bill().await;
    let invoice = invoices(&pair.books.service, "subject=acme&status=final").await[0].clone();
    let answer = pair.compare(&invoice["id"]).await;
    assert_eq!((answer.status, answer.code().as_str()), (StatusCode::CONFLICT, "provider_invoice_not_found"));
    assert!(pair.subscription.starts_with("sub_"));
}
