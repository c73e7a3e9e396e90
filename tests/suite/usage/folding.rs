//! Rollups, the unfolded backlog, voids and gaps against a small model. In every state of folding,
//! all answers must match the events.

use std::collections::BTreeMap;

use metergate_domain::base::Total;
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::support::TestService;
use crate::support::cluster::sqlx_execute;

const AGGREGATIONS: [&str; 7] = ["sum", "count", "min", "max", "avg", "last", "unique_count"];
/// Subjects with their paths.
const SUBJECTS: [(&str, &[&str]); 4] = [
    ("root", &["root"]),
    ("team", &["team", "root"]),
    ("kid", &["kid", "team", "root"]),
    ("loner", &["loner"]),
];
const MODELS: [Option<&str>; 3] = [Some("a"), Some("b"), None];

#[derive(Debug, Clone)]
enum Step {
    Record(Vec<Fact>),
    Void(prop::sample::Index),
    Fold,
    Build,
    SumDays,
    Ask(Question),
}

#[derive(Debug, Clone)]
struct Fact {
    subject: usize,
    model: usize,
    value: i64,
    minute: i64,
}

#[derive(Debug, Clone)]
struct Question {
    aggregation: usize,
    from: i64,
    minutes: i64,
    /// The window's length in minutes, and the offset of its zone in minutes.
    window: Option<(i64, i64)>,
    by_model: bool,
    by_subject: bool,
    only_model: Option<usize>,
    subject: Option<(usize, bool)>,
}

fn fact() -> impl Strategy<Value = Fact> {
    // on three days; the last one is not over yet
    (0..4_usize, 0..3_usize, -3_i64..12, 0_i64..3, 0_i64..360).prop_map(
        |(subject, model, value, day, minute)| Fact { subject, model, value, minute: day * 1_440 + minute },
    )
}

fn question() -> impl Strategy<Value = Question> {
    let window =
        prop::option::of(prop::sample::select(vec![(60, 0), (60, 330), (1440, 0), (1440, 330), (1, 0)]));
    let subject = prop::option::of((0..4_usize, any::<bool>()));
    (
        0..7_usize,
        prop_oneof![0_i64..300, 0_i64..3_000],
        prop_oneof![1_i64..360, 1_000_i64..4_000],
        window,
        any::<bool>(),
        any::<bool>(),
        prop::option::of(0..2_usize),
        subject,
    )
        .prop_map(|(aggregation, from, minutes, window, by_model, by_subject, only_model, subject)| {
            Question { aggregation, from, minutes, window, by_model, by_subject, only_model, subject }
        })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => prop::collection::vec(fact(), 1..8).prop_map(Step::Record),
        2 => any::<prop::sample::Index>().prop_map(Step::Void),
        2 => Just(Step::Fold),
        1 => Just(Step::Build),
        2 => Just(Step::SumDays),
        6 => question().prop_map(Step::Ask),
    ]
}

/// Minute 0: the start of the first of three days. The clock of the test is at noon of the third.
const START: &str = "2026-11-18T00:00:00Z";

fn time(minute: i64) -> String {
    let start: jiff::Timestamp = START.parse().unwrap();
    (start + jiff::SignedDuration::from_mins(minute)).to_string()
}

type Key = (String, Option<String>, Option<String>);

/// Returns the expected answer: (window start, subject, model) → value and count.
fn expected(facts: &[(Fact, bool)], ask: &Question) -> BTreeMap<Key, (String, usize)> {
    let mut groups: BTreeMap<Key, Vec<(i64, i64)>> = BTreeMap::new();
    for (fact, voided) in facts {
        let (name, path) = SUBJECTS[fact.subject];
        let model = MODELS[fact.model];
        let in_subject = ask.subject.is_none_or(|(subject, descendants)| {
            name == SUBJECTS[subject].0 || descendants && path.contains(&SUBJECTS[subject].0)
        });
        let in_range = (ask.from..ask.from + ask.minutes).contains(&fact.minute);
        let in_model = ask.only_model.is_none_or(|only| model == MODELS[only]);
        if *voided || !in_subject || !in_range || !in_model {
            continue;
        }
        let start = match ask.window {
            None => ask.from,
            Some((length, shift)) => (fact.minute + shift).div_euclid(length) * length - shift,
        };
        let subject = ask.by_subject.then(|| name.to_owned());
        let model = model.filter(|_| ask.by_model).map(str::to_owned);
        groups.entry((time(start), subject, model)).or_default().push((fact.minute, fact.value));
    }
    if groups.is_empty() && ask.window.is_none() && !ask.by_model && !ask.by_subject {
        groups.insert((time(ask.from), None, None), Vec::new());
    }
    groups
        .into_iter()
        .map(|(key, found)| {
            let values: Vec<i64> = found.iter().map(|(_, value)| *value).collect();
            let count = values.len();
            let total = |units: i64| Some(Total::from(units));
            let value = match AGGREGATIONS[ask.aggregation] {
                "sum" => total(values.iter().sum()),
                "count" => total(count.try_into().unwrap()),
                "min" => values.iter().min().and_then(|v| total(*v)),
                "max" => values.iter().max().and_then(|v| total(*v)),
                "avg" => Total::from(values.iter().sum::<i64>()).average_of(count.try_into().unwrap()),
                // the latest minute; within it, the last arrival
                "last" => found
                    .iter()
                    .enumerate()
                    .max_by_key(|(n, (minute, _))| (*minute, *n))
                    .and_then(|(_, (_, v))| total(*v)),
                _ => {
                    let distinct: std::collections::BTreeSet<i64> = values.into_iter().collect();
                    total(distinct.len().try_into().unwrap())
                }
            };
            (key, (value.map_or("null".to_owned(), |v| v.to_string()), count))
        })
        .collect()
}

async fn ask(service: &TestService, ask: &Question) -> BTreeMap<Key, (String, usize)> {
    let mut query = vec![format!(
        "meter={}&from={}&to={}",
        AGGREGATIONS[ask.aggregation],
        time(ask.from),
        time(ask.from + ask.minutes)
    )];
    if let Some((length, shift)) = ask.window {
        let word = match length {
            1 => "minute",
            60 => "hour",
            _ => "day",
        };
        query.push(format!("window={word}&timezone={}", if shift == 0 { "UTC" } else { "Asia/Kolkata" }));
    }
    let groups: Vec<&str> = [("model", ask.by_model), ("subject", ask.by_subject)]
        .iter()
        .filter(|(_, by)| *by)
        .map(|(g, _)| *g)
        .collect();
    query.push(format!("group_by={}", groups.join(",")));
    if let Some(model) = ask.only_model.and_then(|only| MODELS[only]) {
        query.push(format!("filter[model]={model}"));
    }
    if let Some((subject, descendants)) = ask.subject {
        query.push(format!("subject={}&descendants={descendants}", SUBJECTS[subject].0));
    }
    let rows = service.usage(&query.join("&")).await;
    let text = |value: &Value| value.as_str().map(str::to_owned);
    rows.iter()
        .map(|row| {
            let key =
                (text(&row["window_start"]).unwrap(), text(&row["subject"]), text(&row["group"]["model"]));
            (key, (row["value"].to_string(), usize::try_from(row["event_count"].as_u64().unwrap()).unwrap()))
        })
        .collect()
}

async fn play(steps: &[Step]) -> Result<(), TestCaseError> {
    let meters = AGGREGATIONS.map(|aggregation| {
        json!({"key": aggregation, "event_name": "e", "aggregation": aggregation, "dimensions": ["model"]})
    });
    let service = TestService::with_meters(json!(meters)).await;
    service.put("/v1/subjects/team", &json!({"parent": "root"})).await;
    service.put("/v1/subjects/kid", &json!({"parent": "team"})).await;
    let mut facts: Vec<(Fact, bool)> = Vec::new();
    for step in steps {
        match step {
            Step::Record(new) => {
                let events: Vec<Value> = new
                    .iter()
                    .enumerate()
                    .map(|(n, fact)| {
                        let mut event = json!({"id": (facts.len() + n).to_string(), "event_name": "e",
                            "subject": SUBJECTS[fact.subject].0, "value": fact.value, "timestamp": time(fact.minute)});
                        if let Some(model) = MODELS[fact.model] {
                            event["properties"] = json!({"model": model});
                        }
                        event
                    })
                    .collect();
                service.record(&json!(events)).await;
                facts.extend(new.iter().cloned().map(|fact| (fact, false)));
            }
            Step::Void(which) if !facts.is_empty() => {
                let index = which.index(facts.len());
                let answer = service.post(&format!("/v1/events/{index}/void"), &json!({})).await;
                prop_assert_eq!(answer.status.as_u16(), 200);
                facts[index].1 = true;
            }
            Step::Void(_) => {}
            Step::Fold => {
                service
                    .engine
                    .fold_some(metergate_domain::base::environment::Environment::Test)
                    .await
                    .unwrap();
            }
            Step::Build => {
                service
                    .engine
                    .build_some(metergate_domain::base::environment::Environment::Test)
                    .await
                    .unwrap();
            }
            Step::SumDays => {
                while service
                    .engine
                    .sum_some_days(metergate_domain::base::environment::Environment::Test)
                    .await
                    .unwrap()
                {}
            }
            Step::Ask(question) => {
                prop_assert_eq!(ask(&service, question).await, expected(&facts, question), "{:?}", question);
            }
        }
    }
    let verdict =
        service.engine.verify(metergate_domain::base::environment::Environment::Test).await.unwrap();
    prop_assert_eq!(verdict.differences, 0, "{:?}", verdict.shown);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn usage_answers_equal_sums_over_events_at_every_fold_state(steps in prop::collection::vec(step(), 20..60)) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(play(&steps))?;
    }
}

#[tokio::test]
async fn verify_reports_wrong_rollups() {
    let service = TestService::with_meters(json!([
        {"key": "sum", "event_name": "e", "aggregation": "sum"},
        {"key": "who", "event_name": "e", "aggregation": "unique_count", "value_property": "value"},
    ]))
    .await;
    for id in ["a", "b"] {
        let yesterday = json!({"id": id, "event_name": "e", "subject": "s", "value": 5, "timestamp": "2026-11-19T10:00:00Z"});
        service.record(&yesterday).await;
    }
    service.post("/v1/events/b/void", &json!({})).await;
    service.fold().await;
    service.verify().await;
    let wrongs = [
        ("update rollups set sum = sum + 1", "update rollups set sum = sum - 1"),
        ("update rollups set count = count + 1", "update rollups set count = count - 1"),
        ("update rollup_members set refs = refs + 1", "update rollup_members set refs = refs - 1"),
        ("update day_rollups set sum = sum + 1", "update day_rollups set sum = sum - 1"),
        ("update day_rollup_members set refs = refs + 1", "update day_rollup_members set refs = refs - 1"),
        (
            "create table days as select * from day_rollups; delete from day_rollups",
            "insert into day_rollups select * from days",
        ),
        (
            "update event_keys set batch_id = batch_id + 1000",
            "update event_keys set batch_id = batch_id - 1000",
        ),
        (
            "create table kept as select * from voids; delete from voids",
            "insert into voids select * from kept",
        ),
        (
            "create table lost as select * from events where sign = 1; delete from events where sign = 1",
            "insert into events select * from lost",
        ),
    ];
    for (wrong, right) in wrongs {
        sqlx_execute(&service.url, wrong).await;
        let verdict =
            service.engine.verify(metergate_domain::base::environment::Environment::Test).await.unwrap();
        assert!(verdict.differences > 0 && !verdict.shown.is_empty(), "{wrong}");
        sqlx_execute(&service.url, right).await;
        service.verify().await;
    }
}

#[tokio::test]
async fn concurrent_folds_fold_each_event_once() {
    let service =
        TestService::with_meters(json!([{"key": "m", "event_name": "e", "aggregation": "sum"}])).await;
    for n in 0..30 {
        service.record(&json!({"id": n.to_string(), "event_name": "e", "subject": "s", "value": 1})).await;
    }
    let environment = metergate_domain::base::environment::Environment::Test;
    let folds = futures::future::join_all((0..4).map(|_| service.engine.fold_some(environment))).await;
    let folded: i64 = folds.into_iter().map(|fold| fold.unwrap().events).sum();
    assert_eq!(folded, 30);
    service.verify().await;
    let november = "from=2026-11-01T00:00:00Z&to=2026-12-01T00:00:00Z";
    assert_eq!(service.values(&format!("meter=m&{november}")).await, ["30"]);
}
