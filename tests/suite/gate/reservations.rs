//! The gate's HTTP interface: plans, limits, reservations and their answers.

use axum::http::{Method, StatusCode};
use metergate::engine::access::keys::KeyKind;
use metergate_domain::base::Environment;
use serde_json::{Value, json};

use crate::support::cluster::sqlx_execute;
use crate::support::{TestService, at};

/// Returns the meters and plans that most tests need.
fn catalog() -> Value {
    json!({
        "default_plan": "free",
        "meters": [
            {"key": "tokens", "event_name": "ai", "aggregation": "sum", "dimensions": ["model"]},
            {"key": "requests", "event_name": "ai", "aggregation": "count"},
            {"key": "storage", "event_name": "stored", "aggregation": "max"},
            {"key": "seats", "event_name": "seat", "aggregation": "unique_count", "value_property": "user"},
        ],
        "plans": [
            {"key": "free", "name": "Free", "limits": [
                {"key": "tokens", "meter": "tokens", "quota": 10, "period": "month"},
                {"key": "gpt", "meter": "tokens", "filter": {"model": ["gpt"]}, "quota": 4, "period": "day"},
                {"key": "requests", "meter": "requests", "quota": 100, "period": "day", "enforcement": "soft"},
                {"key": "storage", "meter": "storage", "quota": 5, "period": "month"},
                {"key": "seats", "meter": "seats", "quota": 2, "period": "month"},
            ]},
            {"key": "pro", "name": "Pro", "fallback_plan": "free", "limits": [
                {"key": "tokens", "meter": "tokens", "quota": 1000, "period": "month", "anchor": "subscription"},
            ]},
        ],
    })
}

async fn service() -> TestService {
    let service = TestService::start().await;
    service.apply(catalog()).await;
    service
}

async fn reserve(service: &TestService, body: Value) -> Value {
    let answer = service.post("/v1/reservations", &body).await;
    assert!(answer.status.is_success(), "{body}: {}", answer.text);
    answer.json()
}

#[tokio::test]
async fn a_reservation_is_held_committed_and_counted() {
    let service = service().await;
    let held = service
        .post("/v1/reservations", &json!({"id": "job", "subject": "u", "meter": "tokens", "value": 8}))
        .await;
    assert_eq!(held.status, StatusCode::CREATED, "{}", held.text);
    let held = held.json();
    assert_eq!(
        held,
        json!({"id": "job", "allowed": true, "status": "held", "expires_at": "2026-11-20T12:01:00Z",
            "holds": [{"meter": "tokens", "value": 8, "properties": {}}],
            "limits": [{"subject": "u", "key": "tokens", "meter": "tokens", "quota": 10, "used": 0, "held": 8,
                        "remaining": 2, "resets_at": "2026-12-01T00:00:00Z"}]})
    );
    let denied = reserve(&service, json!({"subject": "u", "meter": "tokens", "value": 3})).await;
    assert_eq!(denied["allowed"], false);
    assert_eq!(denied["reason"], "limit_reached");
    assert_eq!(denied["denied_by"][0]["requested"], 3);
    assert_eq!(denied["denied_by"][0]["held"], 8);
    let rest =
        reserve(&service, json!({"subject": "u", "meter": "tokens", "value": 3, "grant": "up_to"})).await;
    assert_eq!(rest["holds"][0]["value"], 2);

    let commit = service
        .post("/v1/reservations/job/commit", &json!({"values": [{"meter": "tokens", "value": 5}]}))
        .await;
    assert_eq!(commit.status, StatusCode::OK, "{}", commit.text);
    let commit = commit.json();
    assert_eq!(commit["status"], "committed");
    assert_eq!(commit["committed"], json!([{"meter": "tokens", "value": 5}]));
    assert_eq!(commit["limits"][0]["used"], 5);
    assert_eq!(commit["limits"][0]["held"], 2);
    let event = commit["events"][0].as_str().unwrap();
    let trace = service.get(&format!("/v1/events/{event}")).await.json();
    assert_eq!(
        (&trace["value"], &trace["subject"], &trace["meters"][0]["meter"]),
        (&json!(5), &json!("u"), &json!("tokens"))
    );
    assert_eq!(trace["meters"].as_array().unwrap().len(), 1, "only the meter of the hold counts it");
    let again = service
        .post("/v1/reservations/job/commit", &json!({"values": [{"meter": "tokens", "value": 5}]}))
        .await;
    assert_eq!(again.headers["idempotent-replayed"], "true");
    assert_eq!(again.json()["events"], commit["events"]);
    assert_eq!(
        service
            .post("/v1/reservations/job/commit", &json!({"values": [{"meter": "tokens", "value": 6}]}))
            .await
            .code(),
        "already_committed"
    );
    assert_eq!(service.post("/v1/reservations/job/release", &json!({})).await.code(), "already_committed");
    assert_eq!(
        service.post("/v1/reservations/none/release", &json!({})).await.code(),
        "reservation_not_found"
    );
    service.verify().await;
    service.fold().await;
    service.verify().await;
    let report = service.get("/v1/subjects/u/usage").await.json();
    assert_eq!(report["plan"], json!({"key": "free", "name": "Free"}));
    assert_eq!(report["limits"][0]["used"], 5);
    assert_eq!(report["limits"][0]["state"], "ok");
    assert_eq!(report["limits"].as_array().unwrap().len(), 5);
    let usage = "meter=tokens&from=2026-11-01T00:00:00Z&to=2026-12-01T00:00:00Z";
    assert_eq!(service.values(usage).await, ["5"]);
}

#[tokio::test]
async fn recording_counts_and_returns_limit_states() {
    let service = service().await;
    let event =
        json!({"id": "e", "event_name": "ai", "subject": "u", "value": 12, "properties": {"model": "gpt"}});
    let tracked = service.post("/v1/events", &event).await.json();
    let limits = |answer: &Value| -> Vec<(String, String, String)> {
        answer["limits"]
            .as_array()
            .unwrap()
            .iter()
            .map(|l| {
                (l["key"].as_str().unwrap().to_owned(), l["used"].to_string(), l["remaining"].to_string())
            })
            .collect()
    };
    let expected = [("tokens", "12", "0"), ("gpt", "12", "0"), ("requests", "1", "99")]
        .map(|(a, b, c)| (a.to_owned(), b.to_owned(), c.to_owned()));
    assert_eq!(limits(&tracked), expected);
    assert_eq!(
        limits(&service.post("/v1/events", &event).await.json()),
        expected,
        "a duplicate must return limit states, too"
    );
    let zero = reserve(&service, json!({"subject": "u", "meter": "tokens", "value": 0})).await;
    assert_eq!(zero["reason"], "limit_reached", "a zero-value hold must be denied");
    service.post("/v1/events/e/void", &json!({})).await;
    let zero = reserve(&service, json!({"subject": "u", "meter": "tokens", "value": 0})).await;
    assert_eq!(zero["allowed"], true);
    service.verify().await;
    let batch = service.post("/v1/events?limits=true", &json!([
        {"event_name": "ai", "subject": "u", "value": 1}, {"event_name": "stored", "subject": "v", "value": 3}])).await.json();
    assert_eq!(limits(&batch).len(), 3, "{batch}");
    assert_eq!(batch["limits"][2]["used"], 3);
}

#[tokio::test]
async fn expired_holds_free_their_quota_or_are_charged() {
    let service = service().await;
    reserve(&service, json!({"id": "a", "subject": "u", "meter": "tokens", "value": 10, "ttl_seconds": 30}))
        .await;
    service.clock.set(at("2026-11-20T12:00:29Z"));
    assert_eq!(reserve(&service, json!({"subject": "u", "meter": "tokens"})).await["allowed"], false);
    service.clock.set(at("2026-11-20T12:00:30Z"));
    let taken = json!({"id": "b", "subject": "u", "meter": "tokens", "value": 6, "ttl_seconds": 30, "on_expiry": "commit"});
    assert_eq!(reserve(&service, taken).await["allowed"], true);
    let late = service
        .post("/v1/reservations/a/commit", &json!({"values": [{"meter": "tokens", "value": 1}]}))
        .await
        .json();
    assert_eq!((&late["late"], &late["status"]), (&json!(true), &json!("committed")));
    service.clock.set(at("2026-11-20T12:01:00Z"));
    let shown = service.get("/v1/reservations/b").await.json();
    assert_eq!((&shown["status"], &shown["holds"][0]["committed"]), (&json!("committed"), &json!(6)));
    let usage = "meter=tokens&from=2026-11-01T00:00:00Z&to=2026-12-01T00:00:00Z";
    assert_eq!(service.values(usage).await, ["7"]);
    service.verify().await;
    assert_eq!(service.post("/v1/reservations/b/release", &json!({})).await.code(), "already_committed");
    let report = service.get("/v1/subjects/u/usage").await.json();
    assert_eq!((&report["limits"][0]["used"], &report["limits"][0]["held"]), (&json!(7), &json!(0)));
    assert!(!service.engine.sweep(Environment::Test).await.unwrap());
    service.verify().await;
}

#[tokio::test]
async fn subscriptions_can_be_created_and_ended() {
    let service = service().await;
    let path = "/v1/subjects/u/subscription";
    let given = service.get(path).await.json();
    assert_eq!((&given["plan"], &given["status"]), (&json!("free"), &json!("active")), "the default applies");
    let put = service.put(path, &json!({"plan": "pro", "cycle_start": "2026-10-31T00:00:00Z"})).await;
    assert_eq!(put.status, StatusCode::OK, "{}", put.text);
    assert_eq!(put.json()["period"], json!({"start": "2026-10-31T00:00:00Z", "end": "2026-11-30T00:00:00Z"}));
    service.record(&json!({"event_name": "ai", "subject": "u", "value": 7})).await;
    let ended = service.send_json(Method::DELETE, &format!("{path}?at=period_end"), &json!({})).await.json();
    assert_eq!(ended["ends_at"], "2026-11-30T00:00:00Z");
    service.clock.set(at("2026-11-30T00:00:00Z"));
    let report = service.get("/v1/subjects/u/usage").await.json();
    assert_eq!((&report["plan"]["key"], &report["limits"][0]["used"]), (&json!("free"), &json!(7)));
    service.record(&json!({"event_name": "ai", "subject": "u", "value": 1})).await;
    let history = service.get(&format!("{path}?history=true")).await.json();
    let words: Vec<&str> =
        history["history"].as_array().unwrap().iter().map(|h| h["change"].as_str().unwrap()).collect();
    assert_eq!(words, ["created", "end_set", "fell_back"]);
    service.verify().await;
}

#[tokio::test]
async fn gateways_get_status_codes_and_headers() {
    let service = service().await;
    let answer = service.get("/v1/gate?subject=u&meter=tokens&value=4").await;
    assert_eq!(answer.status, StatusCode::NO_CONTENT, "{}", answer.text);
    assert_eq!(answer.headers["ratelimit"], "\"tokens\";r=10;t=907200");
    assert_eq!(answer.headers["ratelimit-policy"], "\"tokens\";q=10;w=2592000");
    let held = service.get("/v1/gate?subject=u&meter=tokens&value=9&reserve=true&id=x").await;
    assert_eq!(
        (held.status, held.headers["x-metergate-reservation-id"].to_str().unwrap()),
        (StatusCode::NO_CONTENT, "x")
    );
    let denied = service.get("/v1/gate?subject=u&meter=tokens&value=4").await;
    assert_eq!((denied.status, denied.code().as_str()), (StatusCode::TOO_MANY_REQUESTS, "limit_reached"));
    let nginx = service.get("/v1/gate?subject=u&meter=tokens&value=4&deny_status=403").await;
    assert_eq!(
        (nginx.status, nginx.headers["x-metergate-reason"].to_str().unwrap()),
        (StatusCode::FORBIDDEN, "limit_reached")
    );
    let levels = service.get("/v1/gate?subject=u&meter=storage&value=6").await;
    assert_eq!(levels.status, StatusCode::TOO_MANY_REQUESTS);
    // A gateway may clone its client's request, with method, path and credentials.
    let cloned = axum::http::Request::post("/v1/gate/app/page?subject=x&page=2")
        .header("authorization", "Bearer of-the-client")
        .header("content-encoding", "br")
        .header("x-metergate-key", &service.key)
        .header("x-metergate-subject", "u")
        .header("x-metergate-meter", "tokens")
        .header("x-metergate-value", "0")
        .header("x-metergate-allow-status", "200");
    let allowed = service.send(cloned.body(axum::body::Body::empty()).unwrap()).await;
    assert_eq!(allowed.status, StatusCode::OK, "{}", allowed.text);
    let spoofed = service
        .request(Method::GET, "/v1/gate?subject=u&meter=tokens&value=4")
        .header("x-metergate-value", "0");
    let spoofed = service.send(spoofed.body(axum::body::Body::empty()).unwrap()).await;
    assert_eq!(
        spoofed.status,
        StatusCode::TOO_MANY_REQUESTS,
        "a query must override all headers of the client"
    );
    let header = axum::http::Request::get("/v1/reservations").header("x-metergate-key", &service.key);
    let elsewhere = service.send(header.body(axum::body::Body::empty()).unwrap()).await;
    assert_eq!(elsewhere.status, StatusCode::UNAUTHORIZED, "only the gate may take its key from that header");
}

#[tokio::test]
async fn lists_reservations_of_one_environment() {
    let service = service().await;
    for (id, subject) in [("a", "u"), ("b", "u"), ("c", "v")] {
        reserve(
            &service,
            json!({"id": id, "subject": subject, "meter": "tokens", "value": 1, "ttl_seconds": 60}),
        )
        .await;
    }
    service.post("/v1/reservations/a/release", &json!({"reason": "changed my mind"})).await;
    let ids = async |query: &str| -> Vec<String> {
        let page = service.get(&format!("/v1/reservations?{query}")).await.json();
        page["data"].as_array().unwrap().iter().map(|r| r["id"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(ids("subject=u&status=held").await, ["b"]);
    assert_eq!(ids("status=released").await, ["a"]);
    let first = service.get("/v1/reservations?limit=2").await.json();
    let rest = ids(&format!("cursor={}", first["next_cursor"].as_str().unwrap())).await;
    assert_eq!((first["data"].as_array().unwrap().len(), rest.len()), (2, 1));
    service.clock.set(at("2026-11-20T12:01:00Z"));
    for _ in 0..2 {
        assert!(ids("status=held").await.is_empty());
        assert_eq!(ids("status=expired").await.len(), 2);
        service.engine.sweep(Environment::Test).await.unwrap();
    }
    let live = service.engine.create_key(Environment::Live, KeyKind::Secret, "").await.unwrap();
    assert_eq!(service.get_as(&live, "/v1/reservations/b").await.status, StatusCode::NOT_FOUND);
    let none = service.get_as(&live, "/v1/reservations").await.json();
    assert_eq!(none["data"], json!([]));
}

#[tokio::test]
async fn verify_finds_wrong_counters_and_holds() {
    let service = service().await;
    service
        .record(&json!({"event_name": "ai", "subject": "u", "value": 2, "properties": {"model": "gpt"}}))
        .await;
    let hold =
        json!({"id": "a", "subject": "u", "meter": "tokens", "value": 2, "properties": {"model": "gpt"}});
    reserve(&service, hold).await;
    service.verify().await;
    let wrongs = [
        ("update counters set used = used + 1", "update counters set used = used - 1"),
        ("update counters set held = held + 1", "update counters set held = held - 1"),
        ("update hold_lines set quantity = 1", "update hold_lines set quantity = 2"),
        (
            "update hold_lines set reservation = gen_random_uuid()",
            "update hold_lines set reservation = r.key from reservations r",
        ),
        (
            "update counters set next_expiry = next_expiry + interval '1 hour'",
            "update counters set next_expiry = next_expiry - interval '1 hour'",
        ),
        ("update reservations set status = 2", "update reservations set status = 0"),
        ("update subscriptions set plan = 'pro'", "update subscriptions set plan = 'free'"),
        (
            "update counters set definition = text_digest(definition::text)",
            "delete from counters; delete from hold_lines",
        ),
    ];
    for (wrong, right) in wrongs {
        sqlx_execute(&service.url, wrong).await;
        let verdict = service.engine.verify(Environment::Test).await.unwrap();
        assert!(verdict.differences > 0 && !verdict.shown.is_empty(), "{wrong}");
        sqlx_execute(&service.url, right).await;
        service.verify().await;
    }
}
