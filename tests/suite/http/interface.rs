//! The HTTP interface as a whole: openapi.yaml, the documentation, and the headers and formats of answers.

use std::collections::BTreeSet;

use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use metergate::http::{Access, routes};
use serde_json::{Value, json};

use crate::support::TestService;
use crate::support::contract::{self, DOCUMENT};

#[test]
fn the_document_lists_exactly_the_routes() {
    let mut documented = BTreeSet::new();
    for (path, item) in DOCUMENT["paths"].as_object().unwrap() {
        for method in ["get", "put", "post", "delete", "patch"] {
            if item.get(method).is_some() {
                documented.insert(format!("{} {path}", method.to_uppercase()));
            }
        }
    }
    let served: BTreeSet<String> =
        routes().iter().map(|route| format!("{} {}", route.method, route.path)).collect();
    assert_eq!(documented, served);
}

#[test]
fn every_operation_documents_credentials_responses_and_path_parameters() {
    for route in routes() {
        let item = &DOCUMENT["paths"][route.path];
        let operation = &item[route.method.as_str().to_lowercase()];
        let name = format!("{} {}", route.method, route.path);
        assert!(operation["operationId"].is_string(), "{name}");
        let security = operation["security"].as_array().unwrap_or_else(|| panic!("{name} lacks `security`"));
        let is_open = matches!(route.access, Access::Open | Access::Signed);
        assert_eq!(security.is_empty(), is_open, "{name}");
        let responses = operation["responses"].as_object().unwrap();
        assert!(responses.keys().any(|status| status.starts_with('2')), "{name}");
        assert_eq!(responses.contains_key("401"), !is_open, "{name}");
        let parameters: BTreeSet<&str> = [&operation["parameters"], &item["parameters"]]
            .into_iter()
            .filter_map(|list| list.as_array())
            .flatten()
            .map(|parameter| match parameter["$ref"].as_str() {
                Some(pointer) => DOCUMENT.pointer(pointer.trim_start_matches('#')).unwrap(),
                None => parameter,
            })
            .filter(|parameter| parameter["in"] == "path")
            .map(|parameter| parameter["name"].as_str().unwrap())
            .collect();
        let in_path: BTreeSet<&str> = route
            .path
            .split('/')
            .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
            .map(|part| part.trim_start_matches('*'))
            .collect();
        assert_eq!(parameters, in_path, "{name}");
    }
}

#[tokio::test]
async fn answers_outside_the_document_are_detected() {
    let service =
        TestService::with_meters(json!([{"key": "m", "event_name": "e", "aggregation": "sum"}])).await;
    service.record(&json!({"id": "1", "event_name": "e", "subject": "s"})).await;
    let path = "/v1/events/1";
    let mut answer = service.get(path).await;
    let documented = answer.json();
    let mut check = |status: u16, body: &Value| {
        answer.status = StatusCode::from_u16(status).unwrap();
        answer.text = body.to_string();
        contract::check(&Method::GET, path, &answer)
    };
    assert_eq!(check(200, &documented), Ok(()));
    assert!(check(202, &documented).is_err());
    // fields of a schema, of a schema that it composes, and of an object in a list
    for pointer in ["/batch_id", "/subject", "/meters/0/folded"] {
        let (parent, field) = pointer.rsplit_once('/').unwrap();
        let mut body = documented.clone();
        let object = body.pointer_mut(parent).unwrap().as_object_mut().unwrap();
        let value = object.remove(field).unwrap();
        assert!(check(200, &body).is_err(), "without {pointer}");
        let mut body = documented.clone();
        let object = body.pointer_mut(parent).unwrap().as_object_mut().unwrap();
        object.insert("undocumented".to_owned(), value);
        assert!(check(200, &body).is_err(), "with a field next to {pointer}");
    }
    let mut body = documented;
    body["value"] = json!("1");
    assert!(check(200, &body).is_err());
}

#[tokio::test]
async fn open_routes_answer_without_a_credential() {
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
async fn every_answer_has_a_request_id() {
    let service = TestService::start().await;
    let given =
        service.request(Method::GET, "/v1/meters").header("x-request-id", "abc-123").body(Body::empty());
    assert_eq!(service.send(given.unwrap()).await.headers["x-request-id"], "abc-123");
    for path in ["/v1/meters", "/unknown", "/v1/usage"] {
        let answer = service.get(path).await;
        assert_eq!(answer.headers["x-request-id"].len(), 36, "{path}");
    }
    let invalid =
        service.request(Method::GET, "/v1/meters").header("x-request-id", "a b").body(Body::empty());
    assert_ne!(service.send(invalid.unwrap()).await.headers["x-request-id"], "a b");
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
