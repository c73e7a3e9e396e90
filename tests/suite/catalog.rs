//! Applying catalogs: atomic, idempotent, and answered with the changes.

use axum::http::{Method, StatusCode};
use metergate_domain::catalog::Catalog;
use serde_json::{Value, json};

use crate::support::TestService;

fn meter(key: &str) -> Value {
    json!({"key": key, "event_name": format!("event_{key}"), "aggregation": "sum"})
}

fn actions(answer: &Value) -> Vec<String> {
    answer["changes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|change| {
            let word = |name: &str| change[name].as_str().unwrap().to_owned();
            format!("{} {} {}", word("action"), word("kind"), word("key"))
        })
        .collect()
}

#[tokio::test]
async fn apply_reports_changes_and_dry_run_writes_nothing() {
    let service = TestService::start().await;
    let catalog = json!({"default_plan": "free", "meters": [meter("a"), meter("b")],
        "plans": [{"key": "free", "limits": [{"key": "l", "meter": "a", "quota": 5, "period": "month"}]}]});
    let expected = ["update catalog default_plan", "create meter a", "create meter b", "create plan free"];
    let dry = service.put("/v1/catalog?dry_run=true", &catalog).await.json();
    assert_eq!((actions(&dry), dry["dry_run"].clone()), (expected.map(str::to_owned).to_vec(), json!(true)));
    assert_eq!(service.get("/v1/catalog").await.json()["meters"], json!([]));
    let applied = service.put("/v1/catalog", &catalog).await.json();
    assert_eq!(
        (actions(&applied), applied["version"].clone()),
        (expected.map(str::to_owned).to_vec(), json!(1))
    );
    let again = service.put("/v1/catalog", &catalog).await.json();
    assert_eq!((actions(&again), again["version"].clone()), (Vec::new(), json!(1)));

    let shown = service.get("/v1/catalog").await.json();
    assert_eq!(shown["meters"][0]["value_property"], "value");
    assert_eq!(shown["plans"][0]["limits"][0]["enforcement"], "hard");
    assert_eq!(service.get("/v1/meters").await.json()["data"].as_array().unwrap().len(), 2);
    assert_eq!(service.get("/v1/plans").await.json()["data"][0]["key"], "free");

    // the shown document can be applied, as JSON or as YAML
    let mut document = shown.clone();
    document.as_object_mut().unwrap().remove("version");
    assert_eq!(actions(&service.put("/v1/catalog", &document).await.json()), Vec::<String>::new());
    let yaml = "default_plan: null\nmeters:\n  - {key: a, event_name: event_a, aggregation: sum, unit: x}\n";
    let answer = service.send_typed(Method::PUT, "/v1/catalog", "application/yaml", yaml.into()).await;
    let expected = ["update catalog default_plan", "update meter a", "delete meter b", "delete plan free"];
    assert_eq!(actions(&answer.json()), expected, "{}", answer.text);
}

#[tokio::test]
async fn refuses_changes_that_orphan_or_alter_recorded_usage() {
    let service = TestService::with_meters(json!([meter("a"), meter("b")])).await;
    service.record(&json!({"event_name": "event_a", "subject": "s"})).await;
    let refused = service.put("/v1/catalog", &json!({"meters": [meter("b")]})).await;
    assert_eq!((refused.status.as_u16(), refused.code().as_str()), (422, "meter_in_use"));
    assert!(refused.json()["detail"].as_str().unwrap().contains("`a`"));
    let mut changed = meter("b");
    changed["aggregation"] = json!("max");
    let refused = service.put("/v1/catalog", &json!({"meters": [meter("a"), changed, meter("c")]})).await;
    assert_eq!(refused.code(), "meter_immutable");
    assert_eq!(
        service.get("/v1/meters").await.json()["data"].as_array().unwrap().len(),
        2,
        "a rejected document must change nothing"
    );
    assert_eq!(service.put("/v1/catalog", &json!({"meters": [meter("a")]})).await.status, StatusCode::OK);
}

#[tokio::test]
async fn catalog_errors_are_reported_with_their_pointers() {
    let service = TestService::start().await;
    let cases = [
        (
            json!({"meters": [{"key": "a b", "event_name": "e", "aggregation": "sum"}]}),
            "/meters/0/key",
            "invalid_key",
        ),
        (json!({"meters": [meter("a"), meter("a")]}), "/meters", "duplicate_key"),
        (
            json!({"meters": [{"key": "a", "event_name": "e", "aggregation": "median"}]}),
            "/meters/0/aggregation",
            "invalid_choice",
        ),
        (
            json!({"meters": [{"key": "a", "event_name": "e", "aggregation": "sum", "filter": {"p": ["\0"]}}]}),
            "/meters",
            "nul_character",
        ),
        (
            json!({"plans": [{"key": "p", "stripe_price_ids": 5}]}),
            "/plans/0/stripe_price_ids",
            "invalid_type",
        ),
        (json!({"plans": [{"key": "p", "stripe_price_ids": ["\0"]}]}), "/plans", "nul_character"),
        (
            json!({"plans": [{"key": "p", "limits": [{"key": "l", "meter": "x", "quota": 1, "period": "day"}]}]}),
            "/plans/0/limits/0/meter",
            "unknown_meter",
        ),
        (json!({"default_plan": "none"}), "/default_plan", "unknown_plan"),
        (json!({"colour": 1}), "/colour", "unknown_field"),
    ];
    for (catalog, pointer, code) in cases {
        let answer = service.put("/v1/catalog", &catalog).await;
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (422, code), "{catalog}");
        assert_eq!(answer.json()["errors"][0]["pointer"], pointer, "{catalog}");
    }
}

#[tokio::test]
async fn a_change_through_one_process_takes_effect_in_another_at_once() {
    let first = TestService::with_meters(json!([])).await;
    let second = TestService::at_url(&first.url, crate::support::service::engine_settings()).await;
    let event = json!({"event_name": "e", "subject": "s", "properties": {"n": "many"}});
    assert_eq!(second.post("/v1/events", &event).await.status, StatusCode::OK);
    let numeric = json!({"key": "m", "event_name": "e", "aggregation": "sum", "value_property": "n"});
    first.apply(json!({"meters": [numeric]})).await;
    assert_eq!(second.post("/v1/events", &event).await.code(), "invalid_value");
    first.put("/v1/subjects/s", &json!({"parent": "org"})).await;
    second.record(&json!({"id": "x", "event_name": "e", "subject": "s"})).await;
    assert_eq!(second.get("/v1/events/x").await.json()["path"], json!(["s", "org"]));
}

#[tokio::test]
async fn lists_plans_and_meters_in_pages_with_any_json_as_features() {
    let service = TestService::start().await;
    let features = [json!({"a": [1, null]}), json!([1]), json!("text"), json!(7.5)];
    let plan = |(n, features): (usize, &Value)| json!({"key": format!("p{n}"), "features": features});
    let plans: Vec<Value> = features.iter().enumerate().map(plan).collect();
    service.apply(json!({"plans": plans})).await;
    let (mut found, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = service.get(&format!("/v1/plans?limit=3{cursor}")).await.json();
        found.extend(page["data"].as_array().unwrap().iter().map(|plan| plan["features"].clone()));
        let Some(next) = page["next_cursor"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    assert_eq!(found, features);
    assert_eq!(service.get("/v1/meters?limit=1").await.json(), json!({"data": [], "next_cursor": null}));
    assert_eq!(service.get("/v1/plans?cursor=none").await.code(), "invalid_cursor");
}

#[tokio::test]
async fn the_sample_catalog_is_valid() {
    let service = TestService::start().await;
    let catalog = Catalog::read_yaml(include_str!("../../config/catalog.yaml")).unwrap();
    service.apply(serde_json::to_value(&catalog).unwrap()).await;
    let keys: Vec<String> = catalog.meters.iter().map(|meter| meter.key.to_string()).collect();
    for wanted in ["ai_tokens", "images", "api_calls", "storage_gb", "seats", "compute_seconds"] {
        assert!(keys.contains(&wanted.to_owned()), "{wanted}");
    }
}
