//! The interface as a whole: its description, its documentation, what every answer carries.

use std::collections::BTreeSet;

use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use metergate::http::{Access, routes};
use serde_json::{Value, json};

use crate::support::TestService;

/// The description as JSON, by way of the reader that catalogs use.
fn description() -> Value {
    config::Config::builder()
        .add_source(config::File::from_str(include_str!("../../../openapi.yaml"), config::FileFormat::Yaml))
        .build()
        .unwrap()
        .try_deserialize()
        .unwrap()
}

#[test]
fn the_description_has_exactly_the_routes() {
    let document = description();
    let mut described = BTreeSet::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for method in ["get", "put", "post", "delete", "patch"] {
            if item.get(method).is_some() {
                described.insert(format!("{} {path}", method.to_uppercase()));
            }
        }
    }
    let served: BTreeSet<String> =
        routes().iter().map(|route| format!("{} {}", route.method, route.path)).collect();
    assert_eq!(described, served);
}

#[test]
fn every_operation_says_who_may_call_and_what_it_answers() {
    let document = description();
    for route in routes() {
        let operation = &document["paths"][route.path][route.method.as_str().to_lowercase()];
        let name = format!("{} {}", route.method, route.path);
        assert!(operation["operationid"].is_string() || operation["operationId"].is_string(), "{name}");
        let security = operation["security"].as_array().unwrap_or_else(|| panic!("{name} names no security"));
        let is_open = matches!(route.access, Access::Open | Access::Signed);
        assert_eq!(security.is_empty(), is_open, "{name}");
        let responses = operation["responses"].as_object().unwrap();
        assert!(responses.keys().any(|status| status.starts_with('2')), "{name}");
        assert_eq!(responses.contains_key("401"), !is_open, "{name}");
        for parameter in route.path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}')) {
            let text = operation.to_string() + &document["paths"][route.path].to_string();
            assert!(
                text.contains(&format!("\"{parameter}\"")) || text.contains("$ref"),
                "{name}: {parameter}"
            );
        }
    }
}

#[tokio::test]
async fn operators_find_what_they_need() {
    let service = TestService::start().await;
    for (path, content_type, contains) in [
        ("/healthz", "application/json", "ok"),
        ("/readyz", "application/json", "ready"),
        ("/openapi.yaml", "application/yaml; charset=utf-8", "openapi: 3.1"),
        ("/docs/", "text/html", "swagger"),
    ] {
        let answer = service.send(Request::builder().uri(path).body(Body::empty()).unwrap()).await;
        assert_eq!(answer.status, StatusCode::OK, "{path}");
        assert_eq!(answer.headers["content-type"], content_type, "{path}");
        assert!(answer.text.contains(contains), "{path}");
        assert!(!answer.text.contains("https://cdn") && !answer.text.contains("unpkg.com"), "{path}");
    }
}

#[tokio::test]
async fn every_answer_carries_a_request_id() {
    let service = TestService::start().await;
    let given =
        service.request(Method::GET, "/v1/meters").header("x-request-id", "abc-123").body(Body::empty());
    assert_eq!(service.send(given.unwrap()).await.headers["x-request-id"], "abc-123");
    for path in ["/v1/meters", "/nothing", "/v1/usage"] {
        let answer = service.get(path).await;
        assert_eq!(answer.headers["x-request-id"].len(), 36, "{path}");
    }
    let indecent =
        service.request(Method::GET, "/v1/meters").header("x-request-id", "a b").body(Body::empty());
    assert_ne!(service.send(indecent.unwrap()).await.headers["x-request-id"], "a b");
}

#[tokio::test]
async fn usage_rows_are_available_as_csv() {
    let service = TestService::with_meters(json!([
        {"key": "m", "event_name": "e", "aggregation": "sum", "dimensions": ["model"], "unit": "t"}]))
    .await;
    service
        .record(&json!({"event_name": "e", "subject": "a,\"b\"", "value": 1.5, "properties": {"model": "x"},
            "timestamp": "2026-11-10T05:00:00Z"}))
        .await;
    let query = "/v1/usage?meter=m&from=2026-11-10T00:00:00Z&to=2026-11-11T00:00:00Z&window=day&group_by=model,subject";
    let csv = async |path: &str| {
        let request =
            service.request(Method::GET, path).header("accept", "text/csv").body(Body::empty()).unwrap();
        let answer = service.send(request).await;
        assert_eq!(answer.headers["content-type"], "text/csv; charset=utf-8");
        answer.text
    };
    assert_eq!(
        csv(query).await,
        "window_start,window_end,subject,model,value,event_count\n\
         2026-11-10T00:00:00Z,2026-11-11T00:00:00Z,\"a,\"\"b\"\"\",x,1.5,1\n"
    );
    assert_eq!(csv("/v1/subjects/a%2C%22b%22/usage").await, "meter,unit,value,event_count\nm,t,1.5,1\n");
}

#[tokio::test]
async fn json_numbers_are_written_without_exponent() {
    let service =
        TestService::with_meters(json!([{"key": "m", "event_name": "e", "aggregation": "sum"}])).await;
    let big = "9999999999999999999.999999999";
    for n in 0..3 {
        let body = format!(r#"{{"id": "{n}", "event_name": "e", "subject": "s", "value": {big}}}"#);
        service.send_typed(Method::POST, "/v1/events", "application/json", body.into_bytes()).await;
    }
    let answer = service.get("/v1/usage?meter=m&from=2026-11-01T00:00:00Z&to=2026-12-01T00:00:00Z").await;
    assert!(answer.text.contains("\"value\":29999999999999999999.999999997"), "{}", answer.text);
    assert!(service.get("/v1/events/0").await.text.contains(&format!("\"value\":{big}")));
}
