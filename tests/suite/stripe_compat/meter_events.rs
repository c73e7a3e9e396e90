//! Stripe's interface for usage: accepted events, Stripe's form of refusals, and events that count once.

use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use metergate::engine::access::keys::KeyKind;
use metergate_domain::base::Environment;
use metergate_domain::catalog::Catalog;
use serde_json::{Value, json};

use crate::support::service::Answer;
use crate::support::{TestService, at};

const EVENTS: &str = "/v1/billing/meter_events";
const ADJUSTMENTS: &str = "/v1/billing/meter_event_adjustments";
const RANGE: &str = "from=2026-10-01T00:00:00Z&to=2026-12-01T00:00:00Z";
/// A field of a form.
type Field<'a> = (&'a str, &'a str);
/// Fields, and the code and param of the expected refusal.
type Refused<'a> = (Vec<Field<'a>>, &'static str, &'static str);
/// The Unix time of the test clock.
const NOON_SECONDS: i64 = 1_795_176_000;

fn catalog() -> Value {
    json!({
        "default_plan": "free",
        "meters": [
            {"key": "tokens", "event_name": "ai", "aggregation": "sum", "dimensions": ["model"],
             "stripe": {"event_name": "ai_tokens"}},
            {"key": "calls", "event_name": "call", "aggregation": "count"},
            {"key": "gigabytes", "event_name": "storage", "aggregation": "sum", "value_property": "size",
             "stripe": {"event_name": "storage_mb", "customer_key": "customer", "value_key": "megabytes",
                        "scale": 1000}},
        ],
        "plans": [{"key": "free", "limits": [
            {"key": "tokens", "meter": "tokens", "quota": 10, "period": "month"}]}],
    })
}

async fn service() -> TestService {
    let service = TestService::start().await;
    service.apply(catalog()).await;
    service
}

fn form(fields: &[(&str, &str)]) -> String {
    form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish()
}

async fn send(service: &TestService, path: &str, fields: &[(&str, &str)], key: Option<&str>) -> Answer {
    let mut request = service
        .request(Method::POST, path)
        .header("content-type", "application/x-www-form-urlencoded")
        .header("stripe-version", "2026-07-29.dahlia");
    if let Some(key) = key {
        request = request.header("idempotency-key", key);
    }
    service.send(request.body(Body::from(form(fields))).unwrap()).await
}

/// Sends an event of `ai_tokens` with additional fields.
async fn tokens(service: &TestService, more: &[(&str, &str)], key: Option<&str>) -> Answer {
    let mut fields = vec![("event_name", "ai_tokens"), ("payload[stripe_customer_id]", "cus_1")];
    fields.extend_from_slice(more);
    send(service, EVENTS, &fields, key).await
}

async fn used(service: &TestService, query: &str) -> Vec<String> {
    service.values(&format!("meter=tokens&{RANGE}{query}")).await
}

/// Returns status, type, code and param of an error.
fn error(answer: &Answer) -> (u16, String, String, String) {
    assert_eq!(answer.headers["content-type"], "application/json", "{}", answer.text);
    assert_eq!(answer.headers["request-id"], answer.headers["x-request-id"]);
    let error = &answer.json()["error"];
    assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{}", answer.text);
    let word = |name: &str| error[name].as_str().unwrap_or_default().to_owned();
    (answer.status.as_u16(), word("type"), word("code"), word("param"))
}

fn refusal(code: &str, param: &str) -> (u16, String, String, String) {
    (400, "invalid_request_error".to_owned(), code.to_owned(), param.to_owned())
}

#[tokio::test]
async fn an_event_counts_for_the_customer_and_gets_stripes_answer() {
    let service = service().await;
    let answer = tokens(
        &service,
        &[
            ("payload[value]", "2.5"),
            ("payload[model]", "gpt-4o"),
            ("identifier", "evt_1"),
            ("timestamp", "1795172400"),
            ("expand[]", "payload"),
            ("expand[1]", "x"),
        ],
        None,
    )
    .await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
    assert_eq!(
        answer.json(),
        json!({"object": "billing.meter_event", "created": NOON_SECONDS, "event_name": "ai_tokens",
               "identifier": "evt_1", "livemode": false, "timestamp": 1_795_172_400,
               "payload": {"stripe_customer_id": "cus_1", "value": "2.5", "model": "gpt-4o"}})
    );
    assert_eq!(answer.headers["request-id"], answer.headers["x-request-id"]);
    assert!(!answer.is_replay());

    // an unmapped customer gets a subject of its own name
    let subject = service.get("/v1/subjects/cus_1").await.json();
    assert_eq!(subject["stripe_customer_id"], "cus_1");
    let event = service.get("/v1/events/evt_1?source=stripe").await.json();
    assert_eq!((&event["event_name"], &event["subject"]), (&json!("ai"), &json!("cus_1")));
    assert_eq!(event["properties"], json!({"model": "gpt-4o"}));
    assert_eq!(used(&service, "&subject=cus_1&filter[model]=gpt-4o").await, ["2.5"]);

    // a missing identifier and time are generated
    let made = tokens(&service, &[("payload[value]", "1")], None).await.json();
    assert_eq!((&made["created"], &made["timestamp"]), (&json!(NOON_SECONDS), &json!(NOON_SECONDS)));
    let identifier = made["identifier"].as_str().unwrap();
    assert_eq!(identifier.len(), 36);
    let found = service.get(&format!("/v1/events/{identifier}?source=stripe")).await;
    assert_eq!(found.json()["value"], 1);
    service.verify().await;
}

#[tokio::test]
async fn events_use_the_names_keys_and_units_of_the_stripe_meter() {
    let service = service().await;
    let fields =
        [("event_name", "storage_mb"), ("payload[customer]", "cus_2"), ("payload[megabytes]", "1500")];
    let answer = send(&service, EVENTS, &fields, None).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
    assert_eq!(answer.json()["payload"]["megabytes"], "1500");
    assert_eq!(service.values(&format!("meter=gigabytes&{RANGE}&subject=cus_2")).await, ["1.5"]);

    // the meter's own event name works too, and a count needs no value
    let fields = [("event_name", "call"), ("payload[stripe_customer_id]", "cus_2")];
    assert_eq!(send(&service, EVENTS, &fields, None).await.status, StatusCode::OK);
    assert_eq!(service.values(&format!("meter=calls&{RANGE}&subject=cus_2")).await, ["1"]);
    service.verify().await;
}

#[tokio::test]
async fn events_of_a_mapped_customer_count_for_its_subject_and_users() {
    let service = service().await;
    service.put("/v1/subjects/org_7", &json!({"stripe_customer_id": "cus_1"})).await;
    assert_eq!(tokens(&service, &[("payload[value]", "1")], None).await.status, StatusCode::OK);
    assert_eq!(service.get("/v1/subjects/cus_1").await.status, StatusCode::NOT_FOUND);
    let user = [("payload[value]", "2"), ("payload[subject]", "user_42")];
    assert_eq!(tokens(&service, &user, None).await.status, StatusCode::OK);
    assert_eq!(service.get("/v1/subjects/user_42").await.json()["path"], json!(["user_42", "org_7"]));
    assert_eq!(used(&service, "&subject=user_42").await, ["2"]);
    assert_eq!(used(&service, "&subject=org_7").await, ["1"]);
    assert_eq!(used(&service, "&subject=org_7&descendants=true").await, ["3"]);
    // an event may name the customer's own subject or a deeper descendant
    service.put("/v1/subjects/device", &json!({"parent": "user_42"})).await;
    for subject in ["org_7", "device"] {
        let named = [("payload[value]", "1"), ("payload[subject]", subject)];
        assert_eq!(tokens(&service, &named, None).await.status, StatusCode::OK, "{subject}");
    }
    // no other customer's subject can be charged
    service.put("/v1/subjects/org_8", &json!({"stripe_customer_id": "cus_8"})).await;
    service.put("/v1/subjects/user_8", &json!({"parent": "org_8"})).await;
    service.put("/v1/subjects/guest", &json!({"parent": "lobby"})).await;
    service.put("/v1/subjects/org_7", &json!({"parent": "group"})).await;
    for subject in ["org_8", "user_8", "guest", "group"] {
        let named = [("payload[value]", "1"), ("payload[subject]", subject)];
        let answer = tokens(&service, &named, None).await;
        assert_eq!(error(&answer), refusal("subject_not_of_customer", "payload[subject]"), "{subject}");
    }
    // the subject of this name belongs to another customer
    service.put("/v1/subjects/cus_9", &json!({"stripe_customer_id": "cus_10"})).await;
    let fields = [("event_name", "call"), ("payload[stripe_customer_id]", "cus_9")];
    assert_eq!(error(&send(&service, EVENTS, &fields, None).await), refusal("customer_unmapped", "payload"));
    assert_eq!(used(&service, "").await, ["5"]);
    service.verify().await;
}

#[tokio::test]
async fn an_identifier_counts_once_and_a_retry_gets_the_first_answer() {
    let service = service().await;
    let event = [("payload[value]", "3"), ("identifier", "evt_1")];
    let first = tokens(&service, &event, Some("key_1")).await;
    assert_eq!((first.status, first.is_replay()), (StatusCode::OK, false), "{}", first.text);

    // the answer was lost; the same call comes again, later, and after the customer was mapped to another
    // subject
    service.clock.set(at("2026-11-20T12:00:30Z"));
    service.put("/v1/subjects/cus_1", &json!({"stripe_customer_id": null})).await;
    service.put("/v1/subjects/org_7", &json!({"stripe_customer_id": "cus_1"})).await;
    let retry = tokens(&service, &event, Some("key_1")).await;
    assert_eq!((retry.status, retry.is_replay()), (StatusCode::OK, true), "{}", retry.text);
    assert_eq!(retry.json(), first.json());

    // any other call with the identifier is a duplicate, even with the same content
    let other = [("payload[value]", "4"), ("identifier", "evt_1")];
    for (fields, key) in [(&event, None), (&event, Some("key_2")), (&other, Some("key_1")), (&other, None)] {
        let answer = tokens(&service, fields, key).await;
        assert_eq!(error(&answer), refusal("", ""), "{fields:?} {key:?}");
        let message = answer.json()["error"]["message"].as_str().unwrap().to_owned();
        assert!(message.starts_with("An event already exists with identifier evt_1"), "{message}");
        assert_eq!(answer.headers["stripe-should-retry"], "false");
    }
    // an identifier recorded without a key is in use as well
    let unkeyed = [("payload[value]", "3"), ("identifier", "evt_2")];
    assert_eq!(tokens(&service, &unkeyed, None).await.status, StatusCode::OK);
    for key in [None, Some("key_1")] {
        assert_eq!(error(&tokens(&service, &unkeyed, key).await), refusal("", ""));
    }
    // the same id in another source is a different event
    service.record(&json!({"id": "evt_1", "event_name": "ai", "subject": "cus_1", "value": 1})).await;
    assert_eq!(used(&service, "").await, ["7"]);
    service.verify().await;
}

#[tokio::test]
async fn an_idempotency_key_alone_makes_a_retry_count_once() {
    let service = service().await;
    let event = [("payload[value]", "3")];
    let first = tokens(&service, &event, Some("key_1")).await;
    let retry = tokens(&service, &event, Some("key_1")).await;
    assert_eq!((first.status, retry.status), (StatusCode::OK, StatusCode::OK));
    assert!(!first.is_replay() && retry.is_replay());
    assert_eq!(first.json(), retry.json());
    let other = tokens(&service, &event, Some("key_2")).await;
    assert_ne!(other.json()["identifier"], first.json()["identifier"]);
    // a key does not match a call with other parameters
    let answer = tokens(&service, &[("payload[value]", "4")], Some("key_1")).await;
    let expected = (400, "idempotency_error".to_owned(), String::new(), String::new());
    assert_eq!(error(&answer), expected);
    let answer = tokens(&service, &event, Some(&"k".repeat(256))).await;
    assert_eq!(error(&answer).1, "idempotency_error");

    // of concurrent calls one records, and the others get the same answer
    let calls = (0..8).map(|_| tokens(&service, &event, Some("key_3")));
    let answers = futures::future::join_all(calls).await;
    assert!(answers.iter().all(|answer| answer.status == StatusCode::OK));
    assert_eq!(answers.iter().filter(|answer| !answer.is_replay()).count(), 1);
    assert_eq!(used(&service, "").await, ["9"]);
}

#[tokio::test]
async fn an_adjustment_voids_an_event() {
    let service = service().await;
    let keep = [("payload[value]", "1"), ("identifier", "keep")];
    let wrong = [("payload[value]", "8"), ("identifier", "wrong")];
    for event in [keep, wrong] {
        assert_eq!(tokens(&service, &event, None).await.status, StatusCode::OK);
    }
    let cancel = async |event_name: &str, identifier: &str| {
        let fields = [
            ("event_name", event_name),
            ("type", "cancel"),
            ("cancel[identifier]", identifier),
            ("expand[]", "x"),
        ];
        send(&service, ADJUSTMENTS, &fields, None).await
    };
    let first = cancel("ai_tokens", "wrong").await;
    assert_eq!(first.status, StatusCode::OK, "{}", first.text);
    assert_eq!(
        first.json(),
        json!({"object": "billing.meter_event_adjustment", "cancel": {"identifier": "wrong"},
               "event_name": "ai_tokens", "livemode": false, "status": "complete", "type": "cancel"})
    );
    assert_eq!(used(&service, "").await, ["1"]);
    let again = cancel("ai_tokens", "wrong").await;
    assert_eq!((again.status, again.is_replay(), again.json()), (StatusCode::OK, true, first.json()));
    // the identifier of a voided event stays in use
    assert_eq!(error(&tokens(&service, &wrong, None).await), refusal("", ""));

    // events of other sources cannot be cancelled here
    service.record(&json!({"id": "ours", "event_name": "ai", "subject": "s", "value": 1})).await;
    let missing = refusal("resource_missing", "cancel[identifier]");
    for (event_name, identifier) in [("ai_tokens", "unknown"), ("call", "keep"), ("ai_tokens", "ours")] {
        assert_eq!(error(&cancel(event_name, identifier).await), missing, "{event_name} {identifier}");
    }
    assert_eq!(error(&cancel("nothing", "keep").await), refusal("no_meter", "event_name"));
    let cases: [(&[Field<'_>], &str, &str); 6] = [
        (&[], "parameter_missing", "event_name"),
        (&[("event_name", "ai_tokens"), ("cancel[identifier]", "keep")], "parameter_missing", "type"),
        (&[("event_name", "ai_tokens"), ("type", "cancel")], "parameter_missing", "cancel"),
        (
            &[("event_name", "ai_tokens"), ("type", "void"), ("cancel[identifier]", "keep")],
            "invalid_choice",
            "type",
        ),
        (
            &[("event_name", "ai_tokens"), ("type", "cancel"), ("cancel[id]", "keep")],
            "parameter_missing",
            "cancel[identifier]",
        ),
        (
            &[
                ("event_name", "ai_tokens"),
                ("type", "cancel"),
                ("cancel[identifier]", "keep"),
                ("reason", "x"),
            ],
            "parameter_unknown",
            "reason",
        ),
    ];
    for (fields, code, param) in cases {
        assert_eq!(
            error(&send(&service, ADJUSTMENTS, fields, None).await),
            refusal(code, param),
            "{fields:?}"
        );
    }
    assert_eq!(used(&service, "").await, ["2"]);
    service.verify().await;
}

#[tokio::test]
async fn rejected_meter_events_use_stripe_errors_and_write_nothing() {
    let service = service().await;
    let name = ("event_name", "ai_tokens");
    let customer = ("payload[stripe_customer_id]", "cus_1");
    let value = ("payload[value]", "1");
    let (long, longer) = ("x".repeat(101), "x".repeat(256));
    let cases: Vec<Refused<'_>> = vec![
        (vec![], "parameter_missing", "event_name"),
        (vec![customer, value], "parameter_missing", "event_name"),
        (vec![name], "parameter_missing", "payload"),
        (vec![name, ("payload", "x")], "invalid_type", "payload"),
        (vec![name, customer, value, ("payload[a][b]", "1")], "invalid_type", "payload[a]"),
        (vec![name, customer, value, value], "duplicate_parameter", "payload[value]"),
        (vec![("event_name", ""), customer, value], "parameter_invalid_empty", "event_name"),
        (vec![("event_name", &long), customer, value], "too_long", "event_name"),
        (vec![("event_name", "nothing"), customer, value], "no_meter", "event_name"),
        (vec![name, value], "payload_no_customer_defined", "payload[stripe_customer_id]"),
        (vec![name, customer], "payload_no_value_defined", "payload[value]"),
        (
            vec![name, value, ("payload[stripe_customer_id]", "")],
            "parameter_invalid_empty",
            "payload[stripe_customer_id]",
        ),
        (
            vec![name, value, ("payload[stripe_customer_id]", &longer)],
            "too_long",
            "payload[stripe_customer_id]",
        ),
        (vec![name, customer, ("payload[value]", "many")], "payload_invalid_value", "payload[value]"),
        (vec![name, customer, ("payload[value]", "")], "payload_invalid_value", "payload[value]"),
        (vec![name, customer, ("payload[value]", "1e3")], "payload_invalid_value", "payload[value]"),
        (vec![name, customer, ("payload[value]", "0.1234567891")], "payload_invalid_value", "payload[value]"),
        (
            vec![
                ("event_name", "storage_mb"),
                ("payload[customer]", "cus_1"),
                ("payload[megabytes]", "0.0000001"),
            ],
            "payload_invalid_value",
            "payload[megabytes]",
        ),
        (
            vec![name, customer, value, ("payload[subject]", "")],
            "parameter_invalid_empty",
            "payload[subject]",
        ),
        (vec![name, customer, value, ("payload[a]", "\0")], "nul_character", "payload[a]"),
        (vec![name, customer, value, ("identifier", "")], "parameter_invalid_empty", "identifier"),
        (vec![name, customer, value, ("identifier", &long)], "too_long", "identifier"),
        (vec![name, customer, value, ("timestamp", "now")], "parameter_invalid_integer", "timestamp"),
        (
            vec![name, customer, value, ("timestamp", "1795176000.5")],
            "parameter_invalid_integer",
            "timestamp",
        ),
        (
            vec![name, customer, value, ("timestamp", "9999999999999999")],
            "parameter_invalid_integer",
            "timestamp",
        ),
        (vec![name, customer, value, ("timestamp", "1795176301")], "timestamp_in_future", "timestamp"),
        (vec![name, customer, value, ("timestamp", "1792583999")], "timestamp_too_far_in_past", "timestamp"),
        (vec![name, customer, value, ("bogus", "1")], "parameter_unknown", "bogus"),
        (vec![name, customer, value, ("payload[a", "1")], "parameter_unknown", "payload[a"),
    ];
    for (fields, code, param) in cases {
        assert_eq!(
            error(&send(&service, EVENTS, &fields, Some("key")).await),
            refusal(code, param),
            "{fields:?}"
        );
    }
    // a known customer does not change the check of the time
    assert_eq!(service.get("/v1/events").await.json()["data"], json!([]));
    assert_eq!(service.get("/v1/subjects").await.json()["data"], json!([]));
    assert_eq!(tokens(&service, &[value], None).await.status, StatusCode::OK);
    let late = tokens(&service, &[value, ("timestamp", "1792583999")], None).await;
    assert_eq!(error(&late), refusal("timestamp_too_far_in_past", "timestamp"));
    // the bounds themselves are accepted
    for timestamp in ["1795176300", "1792584000"] {
        assert_eq!(tokens(&service, &[value, ("timestamp", timestamp)], None).await.status, StatusCode::OK);
    }
    service.verify().await;
}

#[tokio::test]
async fn errors_of_every_layer_have_stripes_form() {
    let service = service().await;
    let publishable = service.engine.create_key(Environment::Test, KeyKind::Publishable, "").await.unwrap();
    let call = async |method: Method, path: &str, headers: &[(&str, &str)], body: Vec<u8>| {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        service.send(request.body(Body::from(body)).unwrap()).await
    };
    let bearer = format!("Bearer {}", service.key);
    let (ours, page) = (("authorization", bearer.as_str()), format!("Bearer {publishable}"));
    let form = ("content-type", "application/x-www-form-urlencoded");
    let wrong = ("authorization", "Bearer mg_sk_test_wrong");
    let cases = [
        (call(Method::POST, EVENTS, &[form], vec![]).await, 401, ""),
        (call(Method::POST, EVENTS, &[form, wrong], vec![]).await, 401, ""),
        (call(Method::POST, EVENTS, &[form, ("authorization", "Basic !")], vec![]).await, 401, ""),
        (
            call(Method::POST, EVENTS, &[form, ("authorization", &page)], vec![]).await,
            403,
            "secret_key_required",
        ),
        (
            call(Method::POST, EVENTS, &[ours, ("content-type", "application/json")], b"{}".to_vec()).await,
            400,
            "unsupported_media_type",
        ),
        (
            call(Method::POST, EVENTS, &[ours, form, ("content-encoding", "br")], b"a=1".to_vec()).await,
            400,
            "unsupported_encoding",
        ),
        (
            call(Method::POST, EVENTS, &[ours, form, ("content-encoding", "gzip")], b"a=1".to_vec()).await,
            400,
            "malformed_body",
        ),
        (call(Method::POST, EVENTS, &[ours, form], vec![b'a'; 9 * 1024 * 1024]).await, 413, "body_too_large"),
        (call(Method::POST, EVENTS, &[ours, form], b"a=1&".repeat(1_001)).await, 400, "duplicate_parameter"),
        (call(Method::POST, &format!("{EVENTS}?a=1"), &[ours, form], vec![]).await, 400, "parameter_unknown"),
        (call(Method::GET, EVENTS, &[ours], vec![]).await, 405, "method_not_allowed"),
        (call(Method::POST, "/v1/billing/meters", &[ours], vec![]).await, 404, ""),
        // an SDK on an unknown path: it takes any answer without an error for a result
        (call(Method::POST, "/v1/customers", &[ours, ("stripe-version", "x")], vec![]).await, 404, ""),
    ];
    for (answer, status, code) in cases {
        let (found, kind, word, _) = error(&answer);
        assert_eq!(
            (found, kind.as_str(), word.as_str()),
            (status, "invalid_request_error", code),
            "{}",
            answer.text
        );
    }
    // other clients still get problems
    let answer = call(Method::POST, "/v1/customers", &[ours], vec![]).await;
    assert_eq!(answer.headers["content-type"], "application/problem+json");
    let answer = call(Method::GET, "/v1/usage", &[ours, ("stripe-version", "x")], vec![]).await;
    assert_eq!(answer.headers["content-type"], "application/problem+json");

    // only these routes accept the key as the user name of basic credentials
    let basic = format!("Basic {}", STANDARD.encode(format!("{}:", service.key)));
    let basic = ("authorization", basic.as_str());
    let event = b"event_name=call&payload[stripe_customer_id]=cus_1".to_vec();
    assert_eq!(call(Method::POST, EVENTS, &[form, basic], event).await.status, StatusCode::OK);
    assert_eq!(call(Method::GET, "/v1/meters", &[basic], vec![]).await.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn an_unavailable_service_answers_with_stripes_error() {
    let (service, proxy) = TestService::behind_proxy(catalog()).await;
    let event = [("payload[value]", "1")];
    assert_eq!(tokens(&service, &event, Some("key_1")).await.status, StatusCode::OK);
    proxy.cut();
    let answer = tokens(&service, &event, Some("key_2")).await;
    let (status, kind, _, _) = error(&answer);
    assert_eq!((status, kind.as_str()), (503, "api_error"), "{}", answer.text);
    assert!(answer.headers.contains_key("retry-after"));
    assert!(!answer.headers.contains_key("stripe-should-retry"));
}

#[tokio::test]
async fn meter_events_beyond_a_limit_are_recorded_and_shown() {
    let service = service().await;
    for value in ["9", "9"] {
        assert_eq!(tokens(&service, &[("payload[value]", value)], None).await.status, StatusCode::OK);
    }
    let limit = service.get("/v1/subjects/cus_1/usage").await.json()["limits"][0].clone();
    assert_eq!(
        (&limit["used"], &limit["remaining"], &limit["state"]),
        (&json!(18), &json!(0), &json!("exceeded"))
    );
    let check =
        service.post("/v1/check", &json!({"subject": "cus_1", "meter": "tokens", "value": 1})).await.json();
    assert_eq!((&check["allowed"], &check["reason"]), (&json!(false), &json!("limit_reached")));
    service.verify().await;
}

#[tokio::test]
async fn concurrent_first_events_create_one_subject_and_one_mapping() {
    let service = service().await;
    let calls = (0..16).map(|n| {
        let service = &service;
        async move {
            let user = format!("user_{}", n % 4);
            let mut fields = vec![("payload[value]", "1")];
            if n % 2 == 0 {
                fields.push(("payload[subject]", &user));
            }
            tokens(service, &fields, None).await
        }
    });
    for answer in futures::future::join_all(calls).await {
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
    }
    let subjects = service.get("/v1/subjects").await.json()["data"].as_array().unwrap().clone();
    let mapped: Vec<_> = subjects.iter().filter(|subject| !subject["stripe_customer_id"].is_null()).collect();
    assert_eq!((subjects.len(), mapped.len()), (3, 1), "{subjects:?}");
    assert_eq!(mapped[0]["subject"], "cus_1");
    assert_eq!(used(&service, "&subject=cus_1&descendants=true").await, ["16"]);
    service.verify().await;
}

#[tokio::test]
async fn environments_share_no_events_or_customers() {
    let service = service().await;
    let live = service.engine.create_key(Environment::Live, KeyKind::Secret, "").await.unwrap();
    let send_live = async |path: &str, fields: &[(&str, &str)]| {
        let request = Request::builder().method(Method::POST).uri(path);
        let request = request.header("authorization", format!("Bearer {live}"));
        let request = request.header("content-type", "application/x-www-form-urlencoded");
        service.send(request.body(Body::from(form(fields))).unwrap()).await
    };
    let event = [
        ("event_name", "ai_tokens"),
        ("payload[stripe_customer_id]", "cus_1"),
        ("payload[value]", "4"),
        ("identifier", "evt_1"),
    ];
    assert_eq!(error(&send_live(EVENTS, &event).await), refusal("no_meter", "event_name"));
    let catalog = Catalog::read(catalog()).unwrap();
    service.engine.apply_catalog(Environment::Live, catalog, false).await.unwrap();
    assert_eq!(send(&service, EVENTS, &event, None).await.json()["livemode"], false);
    let cancel = [("event_name", "ai_tokens"), ("type", "cancel"), ("cancel[identifier]", "evt_1")];
    assert_eq!(error(&send_live(ADJUSTMENTS, &cancel).await).2, "resource_missing");
    assert_eq!(service.get_as(&live, "/v1/subjects").await.json()["data"], json!([]));
    // the same identifier and the same customer can exist in both
    assert_eq!(send_live(EVENTS, &event).await.json()["livemode"], true);
    assert_eq!(send_live(ADJUSTMENTS, &cancel).await.json()["livemode"], true);
    assert_eq!(used(&service, "").await, ["4"]);
}
