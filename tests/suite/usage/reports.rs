//! Reports of late, voided and multi-dimensional usage over several subjects. In every state of
//! folding, a report from rollups must match a report from events alone.

use metergate_domain::base::Environment;
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::support::TestService;

const SUBJECTS: [&str; 3] = ["org", "team", "stranger"];
const MODELS: [Option<&str>; 3] = [Some("a"), Some("b"), None];
const REGIONS: [Option<&str>; 2] = [Some("eu"), None];
/// A time in the month before the period.
const START: &str = "2026-10-22T00:00:00Z";
/// The minutes up to the clock of the test: noon of the thirtieth day.
const MINUTES: i64 = 29 * 1_440 + 720;

#[derive(Debug, Clone)]
enum Step {
    Record(Vec<Fact>),
    Void(prop::sample::Index),
    Fold,
    Build,
    SumDays,
    Ask(usize),
}

#[derive(Debug, Clone)]
struct Fact {
    subject: usize,
    model: usize,
    region: usize,
    value: i64,
    minute: i64,
}

fn step() -> impl Strategy<Value = Step> {
    // frequent in the period's first hour, around the change of a price, and today
    let minute = prop_oneof![4 => 0..MINUTES, 1 => 5_390_i64..5_460, 1 => 20_150_i64..20_170, 1 => MINUTES - 720..MINUTES];
    let fact = (0..3_usize, 0..3_usize, 0..2_usize, -3_i64..12, minute)
        .prop_map(|(subject, model, region, value, minute)| Fact { subject, model, region, value, minute });
    prop_oneof![
        3 => prop::collection::vec(fact, 1..20).prop_map(Step::Record),
        2 => any::<prop::sample::Index>().prop_map(Step::Void),
        2 => Just(Step::Fold),
        1 => Just(Step::Build),
        2 => Just(Step::SumDays),
        3 => (0..3_usize).prop_map(Step::Ask),
    ]
}

/// Returns a catalog with prices of slices, prices with start times, gauge prices, and fees per
/// event.
fn catalog() -> Value {
    let meters: Vec<Value> = ["sum", "count", "min", "max", "avg", "last", "unique_count"]
        .map(|aggregation| {
            json!({"key": aggregation, "event_name": "e", "aggregation": aggregation, "dimensions": ["model", "region"]})
        })
        .into();
    let price = |key: &str, meter: &str, of: Value| {
        let mut price = json!({"key": key, "meter": meter, "currency": "usd"});
        price.as_object_mut().unwrap().extend(of.as_object().unwrap().clone());
        price
    };
    let turn = "2026-11-05T00:00:00Z";
    let prices = [
        price("sum", "sum", json!({"model": "per_unit", "unit_amount": 2, "effective_to": turn})),
        price("dearer", "sum", json!({"model": "per_unit", "unit_amount": 3, "effective_from": turn})),
        price("a", "sum", json!({"filter": {"model": "a"}, "model": "per_unit", "unit_amount": 7})),
        price(
            "fees",
            "sum",
            json!({"filter": {"model": "b"}, "model": "percentage", "rate": 50, "event_maximum": 2}),
        ),
        price("calls", "count", json!({"model": "package", "unit_amount": 5, "per_units": 3})),
        price("peak_b", "max", json!({"filter": {"model": "b"}, "model": "per_unit", "unit_amount": 20})),
        price("peak_a", "max", json!({"filter": {"model": "a"}, "model": "per_unit", "unit_amount": 10})),
        price("members", "unique_count", json!({"model": "per_unit", "unit_amount": 100})),
    ];
    json!({"meters": meters, "plans": [{"key": "pro", "unmatched": "allow", "prices": prices}]})
}

async fn service() -> TestService {
    let service = TestService::start().await;
    service.apply(catalog()).await;
    let cycle = json!({"plan": "pro", "cycle_start": "2026-10-25T18:33:34.5Z"});
    for subject in ["org", "stranger"] {
        service.put(&format!("/v1/subjects/{subject}/subscription"), &cycle).await;
    }
    service.put("/v1/subjects/team", &json!({"parent": "org"})).await;
    service
}

fn events(facts: &[Fact], first: usize) -> Value {
    let start: jiff::Timestamp = START.parse().unwrap();
    let event = |(place, fact): (usize, &Fact)| {
        let mut properties = json!({});
        for (name, value) in [("model", MODELS[fact.model]), ("region", REGIONS[fact.region])] {
            if let Some(value) = value {
                properties[name] = json!(value);
            }
        }
        json!({"id": (first + place).to_string(), "event_name": "e", "subject": SUBJECTS[fact.subject],
            "value": fact.value, "properties": properties,
            "timestamp": (start + jiff::SignedDuration::from_mins(fact.minute)).to_string()})
    };
    facts.iter().enumerate().map(event).collect()
}

async fn play(steps: &[Step]) -> Result<(), TestCaseError> {
    // one service never folds, so it reads only events
    let (plain, service) = (service().await, service().await);
    let engine = &service.engine;
    let mut recorded = 0;
    let asks = (0..3).map(Step::Ask);
    for step in steps.iter().cloned().chain(asks) {
        match step {
            Step::Record(facts) => {
                let events = events(&facts, recorded);
                plain.record(&events).await;
                service.record(&events).await;
                recorded += facts.len();
            }
            Step::Void(_) if recorded == 0 => {}
            Step::Void(which) => {
                let path = format!("/v1/events/{}/void", which.index(recorded));
                for each in [&plain, &service] {
                    prop_assert_eq!(each.post(&path, &json!({})).await.status.as_u16(), 200);
                }
            }
            Step::Fold => drop(engine.fold_some(Environment::Test).await.unwrap()),
            Step::Build => drop(engine.build_some(Environment::Test).await.unwrap()),
            Step::SumDays => while engine.sum_some_days(Environment::Test).await.unwrap() {},
            Step::Ask(subject) => {
                let path = format!("/v1/subjects/{}/usage", SUBJECTS[subject]);
                let (expected, found) = (plain.get(&path).await, service.get(&path).await);
                prop_assert_eq!(expected.status.as_u16(), 200);
                prop_assert_eq!(found.json(), expected.json());
            }
        }
    }
    let verdict = engine.verify(Environment::Test).await.unwrap();
    prop_assert_eq!(verdict.differences, 0, "{:?}", verdict.shown);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, max_shrink_iters: 100, ..ProptestConfig::default() })]

    #[test]
    fn reports_equal_event_sums_at_every_fold_state(steps in prop::collection::vec(step(), 15..40)) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(play(&steps))?;
    }
}
