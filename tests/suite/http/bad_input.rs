//! Invalid input: every case has its problem and code, and changes nothing.

use axum::body::Body;
use axum::http::Method;
use serde_json::{Value, json};

use crate::support::TestService;

async fn service() -> TestService {
    TestService::with_meters(json!([
        {"key": "m", "event_name": "e", "aggregation": "sum", "dimensions": ["model"]},
        {"key": "n", "event_name": "e", "aggregation": "sum", "value_property": "n"},
    ]))
    .await
}

/// Asserts that no event and no subject exists.
async fn nothing_is_left(service: &TestService) {
    assert_eq!(service.get("/v1/events").await.json()["data"], json!([]));
    assert_eq!(service.get("/v1/subjects").await.json()["data"], json!([]));
    service.verify().await;
}

#[tokio::test]
async fn invalid_single_events_are_rejected() {
    let service = service().await;
    let event = |field: &str, value: Value| {
        let mut event = json!({"event_name": "e", "subject": "s"});
        event[field] = value;
        event.to_string()
    };
    let number =
        |field: &str, text: &str| format!(r#"{{"event_name": "e", "subject": "s", "{field}": {text}}}"#);
    let cases: Vec<(String, u16, &str, &str)> = vec![
        (String::new(), 400, "empty_body", ""),
        (" \n".to_owned(), 400, "empty_body", ""),
        ("{".to_owned(), 400, "malformed_json", ""),
        ("{\"event_name\": \"e\"} x".to_owned(), 400, "malformed_json", ""),
        ("\u{feff}{}".to_owned(), 400, "malformed_json", ""),
        (number("value", "NaN"), 400, "malformed_json", ""),
        (number("value", "Infinity"), 400, "malformed_json", ""),
        (format!("{}1{}", "[".repeat(200), "]".repeat(200)), 400, "malformed_json", ""),
        ("\"text\"".to_owned(), 422, "invalid_type", ""),
        ("5".to_owned(), 422, "invalid_type", ""),
        ("null".to_owned(), 422, "invalid_type", ""),
        ("{}".to_owned(), 422, "missing_field", "/event_name"),
        ("[]".to_owned(), 422, "empty", ""),
        (event("event_name", json!(5)), 422, "invalid_type", "/event_name"),
        (event("event_name", json!("")), 422, "empty", "/event_name"),
        (event("subject", json!(null)), 422, "missing_field", "/subject"),
        (event("subject", json!("s".repeat(256))), 422, "too_long", "/subject"),
        (event("subject", json!("a\0b")), 422, "nul_character", "/subject"),
        (event("id", json!("i".repeat(256))), 422, "too_long", "/id"),
        (event("id", json!("a\0b")), 422, "nul_character", "/id"),
        (event("id", json!(7)), 422, "invalid_type", "/id"),
        (event("source", json!("s".repeat(256))), 422, "too_long", "/source"),
        (event("value", json!("NaN")), 422, "invalid_value", "/value"),
        (event("value", json!(true)), 422, "invalid_value", "/value"),
        (number("value", "1234567890123456789012345678901234567890"), 422, "invalid_value", "/value"),
        (number("value", "0.1234567891"), 422, "invalid_value", "/value"),
        (number("value", "1e30"), 422, "invalid_value", "/value"),
        (number("value", "1e-30"), 422, "invalid_value", "/value"),
        (number("value", "1e999999999999"), 422, "invalid_value", "/value"),
        (event("properties", json!([1])), 422, "invalid_type", "/properties"),
        (event("properties", json!({"a": {"b": ["x\0"]}})), 422, "nul_character", "/properties/a"),
        (event("properties", json!({"a\0": 1})), 422, "nul_character", "/properties/a\0"),
        (number("properties", r#"{"a": 1e400000}"#), 422, "invalid_value", "/properties/a"),
        (event("properties", json!({"a": "x".repeat(17_000)})), 422, "too_long", "/properties"),
        (event("properties", json!({"n": "abc"})), 422, "invalid_value", "/properties/n"),
        (event("properties", json!({"n": {}})), 422, "invalid_value", "/properties/n"),
        (number("properties", r#"{"n": 0.1234567891}"#), 422, "invalid_value", "/properties/n"),
        (event("timestamp", json!("2026-11-20")), 422, "invalid_timestamp", "/timestamp"),
        (event("timestamp", json!(1_700_000_000)), 422, "invalid_type", "/timestamp"),
        (event("timestamp", json!("2026-10-21T11:59:59Z")), 422, "timestamp_too_old", "/timestamp"),
        (event("timestamp", json!("2026-11-20T12:05:01Z")), 422, "timestamp_in_future", "/timestamp"),
        (event("colour", json!("red")), 422, "unknown_field", "/colour"),
    ];
    for (body, status, code, pointer) in cases {
        let answer = service
            .send_typed(Method::POST, "/v1/events", "application/json", body.clone().into_bytes())
            .await;
        assert_eq!(
            (answer.status.as_u16(), answer.code().as_str()),
            (status, code),
            "{body}: {}",
            answer.text
        );
        assert_eq!(answer.headers["content-type"], "application/problem+json");
        let problem = answer.json();
        assert_eq!(problem["status"], status);
        for member in ["type", "title", "detail"] {
            assert!(problem[member].as_str().is_some_and(|text| !text.is_empty()), "{body}: {problem}");
        }
        if status == 422 {
            assert_eq!(problem["errors"][0]["pointer"], pointer, "{body}");
            assert_eq!(problem["errors"][0]["code"], code, "{body}");
        }
    }
    nothing_is_left(&service).await;
}

/// Media type, encoding, body, and the expected status and code.
type Case = (&'static str, Option<&'static str>, Vec<u8>, u16, &'static str);

#[tokio::test]
async fn invalid_bodies_are_rejected() {
    use std::io::Write;
    let service = service().await;
    let gzip = |bytes: &[u8]| {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        gzip.write_all(bytes).unwrap();
        gzip.finish().unwrap()
    };
    let spaces = vec![b' '; 200 * 1024 * 1024];
    let event = br#"{"event_name": "e", "subject": "s"}"#.to_vec();
    let truncated = gzip(&event)[..20].to_vec();
    let cases: Vec<Case> = vec![
        ("application/json", None, vec![b'x'; 20 * 1024 * 1024], 413, "body_too_large"),
        ("application/json", Some("gzip"), gzip(&spaces), 413, "body_too_large"),
        ("application/json", Some("zstd"), zstd::encode_all(&spaces[..], 1).unwrap(), 413, "body_too_large"),
        ("application/json", Some("gzip"), event.clone(), 400, "malformed_body"),
        ("application/json", Some("gzip"), truncated, 400, "malformed_body"),
        ("application/json", Some("br"), event.clone(), 415, "unsupported_encoding"),
        ("text/plain", None, event.clone(), 415, "unsupported_media_type"),
        ("application/x-www-form-urlencoded", None, event.clone(), 415, "unsupported_media_type"),
        (
            "application/x-ndjson",
            None,
            b"{\"event_name\": \"e\", \"subject\": \"s\"}\n{".to_vec(),
            400,
            "malformed_json",
        ),
        ("application/x-ndjson", None, b"\n\n".to_vec(), 400, "empty_body"),
        ("application/cloudevents-batch+json", None, event.clone(), 422, "invalid_type"),
        ("application/cloudevents+json", None, b"[]".to_vec(), 422, "invalid_type"),
        ("application/json", None, vec![0xff, 0xfe, b'{', b'}'], 400, "malformed_json"),
    ];
    for (media_type, encoding, body, status, code) in cases {
        let mut request = service.request(Method::POST, "/v1/events").header("content-type", media_type);
        if let Some(encoding) = encoding {
            request = request.header("content-encoding", encoding);
        }
        let answer = service.send(request.body(Body::from(body)).unwrap()).await;
        assert_eq!(
            (answer.status.as_u16(), answer.code().as_str()),
            (status, code),
            "{media_type} {encoding:?}"
        );
    }
    nothing_is_left(&service).await;
}

#[tokio::test]
async fn invalid_batches_are_rejected() {
    let service = service().await;
    let event = json!({"event_name": "e", "subject": "s"});
    let answer = service.post("/v1/events", &json!(vec![event.clone(); 1001])).await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (422, "too_many_events"));
    nothing_is_left(&service).await;

    let mut batch = vec![event.clone(); 1000];
    batch[500] = json!({"id": "bad", "event_name": "e", "subject": "s2", "value": "NaN"});
    let answer = service.post("/v1/events", &json!(batch)).await;
    assert_eq!((answer.status.as_u16(), answer.json()["accepted"].clone()), (200, json!(999)));
    let rejected = &answer.json()["rejected"];
    assert_eq!(rejected.as_array().unwrap().len(), 1);
    assert_eq!((rejected[0]["index"].clone(), rejected[0]["id"].clone()), (json!(500), json!("bad")));
    assert_eq!(rejected[0]["code"], "invalid_value");
    assert!(rejected[0]["detail"].as_str().unwrap().contains("/value"));
    assert_eq!(service.get("/v1/subjects/s2").await.status.as_u16(), 404);

    let mixed = json!([5, {}, {"event_name": "e", "subject": "s", "x": 1}, event,
        {"id": "old", "event_name": "e", "subject": "s", "timestamp": "2020-01-01T00:00:00Z"},
        {"id": "twice", "event_name": "e", "subject": "s"}, {"id": "twice", "event_name": "e", "subject": "s"},
        {"id": "twice", "event_name": "e", "subject": "other"}]);
    let answer = service.post("/v1/events", &mixed).await.json();
    assert_eq!((answer["accepted"].clone(), answer["duplicates"].clone()), (json!(2), json!(1)));
    let codes: Vec<(u64, &str)> = answer["rejected"]
        .as_array()
        .unwrap()
        .iter()
        .map(|rejection| (rejection["index"].as_u64().unwrap(), rejection["code"].as_str().unwrap()))
        .collect();
    let expected = [
        (0, "invalid_type"),
        (1, "missing_field"),
        (2, "unknown_field"),
        (4, "timestamp_too_old"),
        (7, "id_reused"),
    ];
    assert_eq!(codes, expected);
    service.verify().await;
}

#[tokio::test]
async fn invalid_queries_are_rejected() {
    let service = service().await;
    let range = "from=2026-11-01T00:00:00Z&to=2026-12-01T00:00:00Z";
    let cases = [
        (format!("/v1/usage?{range}"), "missing_parameter", "/meter"),
        ("/v1/usage?meter=m&to=2026-11-01T00:00:00Z".to_owned(), "missing_parameter", "/from"),
        (format!("/v1/usage?meter=none&{range}"), "unknown_meter", "/meter"),
        (
            "/v1/usage?meter=m&from=2026-12-01T00:00:00Z&to=2026-11-01T00:00:00Z".to_owned(),
            "invalid_range",
            "/from",
        ),
        ("/v1/usage?meter=m&from=yesterday&to=2026-11-01T00:00:00Z".to_owned(), "invalid_timestamp", "/from"),
        (format!("/v1/usage?meter=m&{range}&window=fortnight"), "invalid_choice", "/window"),
        (format!("/v1/usage?meter=m&{range}&timezone=Mars/Olympus"), "unknown_timezone", "/timezone"),
        (format!("/v1/usage?meter=m&{range}&group_by=colour"), "unknown_dimension", "/group_by"),
        (format!("/v1/usage?meter=m&{range}&filter[colour]=red"), "unknown_dimension", "/filter"),
        (format!("/v1/usage?meter=m&{range}&fill=maybe"), "invalid_choice", "/fill"),
        (format!("/v1/usage?meter=m&{range}&colour=red"), "unknown_parameter", "/colour"),
        (format!("/v1/usage?meter=m&meter=n&{range}"), "duplicate_parameter", "/meter"),
        (format!("/v1/usage?meter=m&{range}&subject={}", "s".repeat(256)), "too_long", "/subject"),
        (format!("/v1/usage?meter=m&{range}&subject=%00"), "nul_character", "/subject"),
        (format!("/v1/usage?meter=m&{range}&filter[model]=%00"), "nul_character", "/filter"),
        (
            "/v1/usage?meter=m&from=1990-01-01T00:00:00Z&to=2026-11-01T00:00:00Z&window=minute&fill=true"
                .to_owned(),
            "too_many_windows",
            "/window",
        ),
        ("/v1/events?limit=0".to_owned(), "invalid_value", "/limit"),
        ("/v1/events?limit=1001".to_owned(), "invalid_value", "/limit"),
        ("/v1/events/%00".to_owned(), "nul_character", "/id"),
        (format!("/v1/subjects/{}", "s".repeat(256)), "too_long", "/subject"),
    ];
    for (path, code, pointer) in cases {
        let answer = service.get(&path).await;
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (422, code), "{path}: {}", answer.text);
        assert_eq!(answer.json()["errors"][0]["pointer"], pointer, "{path}");
    }
    for (method, path, status, code) in [
        (Method::GET, "/v1/nothing", 404, "not_found"),
        (Method::DELETE, "/v1/events", 405, "method_not_allowed"),
        (Method::GET, "/v1/events/%ff", 400, "bad_request"),
    ] {
        let request = service.request(method, path).body(Body::empty()).unwrap();
        let answer = service.send(request).await;
        assert_eq!(
            (answer.status.as_u16(), answer.code().as_str()),
            (status, code),
            "{path}: {}",
            answer.text
        );
    }
}

async fn service_with_plan() -> TestService {
    let service = TestService::start().await;
    service
        .apply(json!({
            "default_plan": "p",
            "meters": [
                {"key": "m", "event_name": "e", "aggregation": "sum", "dimensions": ["model"]},
                {"key": "count", "event_name": "e", "aggregation": "count"},
                {"key": "max", "event_name": "g", "aggregation": "max"},
                {"key": "avg", "event_name": "g", "aggregation": "avg"}],
            "plans": [{"key": "p", "unmatched": "allow",
                       "limits": [{"key": "l", "meter": "m", "quota": 100, "period": "day"}]}],
        }))
        .await;
    service
}

fn ask(field: &str, value: Value) -> Value {
    let mut body = json!({"id": "r", "subject": "s", "meter": "m", "value": 1});
    body[field] = value;
    body
}

#[tokio::test]
async fn invalid_reservation_requests_are_rejected() {
    let service = service_with_plan().await;
    let holds = |holds: Value| json!({"id": "r", "subject": "s", "holds": holds});
    let many: Vec<Value> = (0..33).map(|n| json!({"meter": format!("m{n}"), "value": 1})).collect();
    let cases = [
        (ask("value", json!(-1)), "invalid_value", "/value"),
        (ask("value", json!("-0.000000001")), "invalid_value", "/value"),
        (ask("value", json!("1e3")), "invalid_value", "/value"),
        (ask("value", json!("10000000000000000000")), "invalid_value", "/value"),
        (ask("value", json!(0.123_456_789_1)), "invalid_value", "/value"),
        (ask("value", json!({})), "invalid_value", "/value"),
        (ask("meter", json!("none")), "unknown_meter", "/meter"),
        (ask("meter", json!("max")), "not_reservable", "/meter"),
        (ask("meter", json!("avg")), "not_reservable", "/meter"),
        (ask("ttl_seconds", json!(0)), "invalid_ttl", "/ttl_seconds"),
        (ask("ttl_seconds", json!(86_401)), "invalid_ttl", "/ttl_seconds"),
        (ask("ttl_seconds", json!("60")), "invalid_ttl", "/ttl_seconds"),
        (ask("subject", json!("")), "empty", "/subject"),
        (ask("id", json!("a\0b")), "nul_character", "/id"),
        (ask("colour", json!("red")), "unknown_field", "/colour"),
        (ask("properties", json!({"model": "\0"})), "nul_character", "/properties/model"),
        (holds(json!(many)), "too_many", "/holds"),
        (holds(json!([])), "empty", "/holds"),
        (holds(json!([{"meter": "m"}, {"meter": "m"}])), "duplicate_meter", "/holds"),
        (
            holds(json!([{"meter": "m", "value": 1}, {"meter": "count", "value": 0.5}])),
            "invalid_value",
            "/holds/1/value",
        ),
        (holds(json!([{"meter": "m", "when": "now"}])), "unknown_field", "/holds/0/when"),
        (json!({"subject": "s"}), "missing_field", "/holds"),
        (json!([]), "invalid_type", ""),
    ];
    for (body, code, pointer) in cases {
        for path in ["/v1/reservations", "/v1/check"] {
            // gauges and averages can be checked, but not reserved
            if path == "/v1/check" && code == "not_reservable" {
                continue;
            }
            let answer = service.post(path, &body).await;
            assert_eq!(
                (answer.status.as_u16(), answer.code().as_str()),
                (422, code),
                "{body}: {}",
                answer.text
            );
            assert_eq!(answer.json()["errors"][0]["pointer"], pointer, "{body}");
        }
    }
    assert_eq!(service.post("/v1/reservations", &json!({})).await.code(), "missing_field");
    nothing_is_left(&service).await;
    assert_eq!(service.get("/v1/reservations").await.json()["data"], json!([]));
}

#[tokio::test]
async fn invalid_settlement_requests_are_rejected() {
    let service = service_with_plan().await;
    assert_eq!(service.post("/v1/reservations", &ask("value", json!(5))).await.status, 201);
    assert_eq!(service.post("/v1/reservations", &ask("subject", json!("other"))).await.code(), "id_reused");
    let calls = [
        ("commit", json!({"values": [{"meter": "m", "value": -1}]}), 422, "invalid_value"),
        ("commit", json!({"values": [{"meter": "count", "value": 1}]}), 422, "meter_not_held"),
        ("commit", json!({"values": [{"meter": "m"}]}), 422, "missing_field"),
        (
            "commit",
            json!({"values": [{"meter": "m", "value": 1}, {"meter": "m", "value": 2}]}),
            422,
            "duplicate_meter",
        ),
        ("commit", json!({"properties": {"model": "x"}}), 422, "dimension_changed"),
        ("commit", json!({"final": "no"}), 422, "invalid_type"),
        ("commit", json!({"value": 1}), 422, "unknown_field"),
        ("release", json!({"reason": 5}), 422, "invalid_type"),
        ("extend", json!({"ttl_seconds": 0}), 422, "invalid_ttl"),
        ("extend", json!({"ttl_seconds": 86_401}), 422, "invalid_ttl"),
        ("extend", json!({"holds": [{"meter": "max", "value": 1}]}), 422, "meter_not_held"),
    ];
    for (call, body, status, code) in calls {
        let answer = service.post(&format!("/v1/reservations/r/{call}"), &body).await;
        assert_eq!(
            (answer.status.as_u16(), answer.code().as_str()),
            (status, code),
            "{body}: {}",
            answer.text
        );
        let unknown = service.post(&format!("/v1/reservations/none/{call}"), &json!({})).await;
        assert_eq!((unknown.status.as_u16(), unknown.code().as_str()), (404, "reservation_not_found"));
    }
    let shown = service.get("/v1/reservations/r").await.json();
    assert_eq!((&shown["status"], &shown["holds"][0]["committed"]), (&json!("held"), &json!(0)));
    assert_eq!(service.get("/v1/reservations/none").await.status, 404);
    for query in ["status=done", "limit=0", "limit=1001", "cursor=x", "colour=red", "subject="] {
        assert_eq!(service.get(&format!("/v1/reservations?{query}")).await.status, 422, "{query}");
    }
    for query in ["meter=m", "subject=s", "subject=s&meter=m&value=x", "subject=s&meter=m&deny_status=500"] {
        assert_eq!(service.get(&format!("/v1/gate?{query}")).await.status, 422, "{query}");
    }
    service.verify().await;
}

#[tokio::test]
async fn invalid_subscriptions_are_rejected() {
    let service = TestService::start().await;
    let limits = json!([{"key": "l", "meter": "m", "quota": 1, "period": "day"}]);
    let meters = json!([{"key": "m", "event_name": "e", "aggregation": "sum"}]);
    service.apply(json!({"meters": meters, "plans": [{"key": "p", "limits": limits}]})).await;
    let cases = [
        (json!({}), "missing_field"),
        (json!({"plan": "none"}), "unknown_plan"),
        (json!({"plan": "p", "status": "dead"}), "invalid_choice"),
        (json!({"plan": "p", "cycle_start": "yesterday"}), "invalid_timestamp"),
        (
            json!({"plan": "p", "cycle_start": "2026-01-02T00:00:00Z", "period_end": "2026-01-02T00:00:00Z"}),
            "invalid_range",
        ),
        (json!({"plan": "p", "overrides": {"other": 1}}), "unknown_limit"),
        (json!({"plan": "p", "overrides": {"l": -1}}), "invalid_value"),
        (json!({"plan": "p", "overrides": []}), "invalid_type"),
        (json!({"plan": "p", "colour": "red"}), "unknown_field"),
    ];
    for (body, code) in cases {
        let answer = service.put("/v1/subjects/s/subscription", &body).await;
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (422, code), "{body}: {}", answer.text);
    }
    for query in ["at=later", "fallback_plan=none", "fallback_plan=a%20b", "when=now"] {
        let path = format!("/v1/subjects/s/subscription?{query}");
        assert_eq!(service.send_json(Method::DELETE, &path, &json!({})).await.status, 422, "{query}");
    }
    let path = "/v1/subjects/s/subscription";
    assert_eq!(service.send_json(Method::DELETE, path, &json!({})).await.code(), "subscription_not_found");
    nothing_is_left(&service).await;
}
