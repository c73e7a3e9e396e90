//! Recording events once, and listing, tracing and voiding them.

use axum::body::Body;
use axum::http::{Method, StatusCode};
use futures::future::join_all;
use serde_json::{Value, json};

use crate::support::{TestService, at};

async fn service() -> TestService {
    TestService::with_meters(json!([
        {"key": "m", "event_name": "e", "aggregation": "sum", "dimensions": ["model"]},
        {"key": "n", "event_name": "e", "aggregation": "count"},
    ]))
    .await
}

const NOVEMBER: &str = "from=2026-11-01T00:00:00Z&to=2026-12-01T00:00:00Z";

#[tokio::test]
async fn a_thousand_concurrent_events_with_one_id_count_once() {
    let service = service().await;
    let event = json!({"id": "once", "event_name": "e", "subject": "s", "value": 7});
    let batch = json!([event, event, event]);
    let calls = (0..1000).map(|n| {
        let body = if n % 10 == 0 { &batch } else { &event };
        service.post("/v1/events", body)
    });
    let answers = join_all(calls).await;
    let count =
        |field: &str| -> u64 { answers.iter().map(|answer| answer.json()[field].as_u64().unwrap()).sum() };
    assert_eq!((count("accepted"), count("duplicates")), (1, 900 + 300 - 1));
    assert_eq!(service.values(&format!("meter=m&{NOVEMBER}")).await, ["7"]);
    service.fold().await;
    assert_eq!(service.values(&format!("meter=m&{NOVEMBER}")).await, ["7"]);
    service.verify().await;
}

#[tokio::test]
async fn events_are_identified_by_environment_source_and_id() {
    let service = service().await;
    let first = json!({"id": "x", "source": "a", "event_name": "e", "subject": "s", "value": 1,
        "properties": {"model": "m1"}, "timestamp": "2026-11-20T10:00:00Z"});
    let changed = |field: &str, value: Value| {
        let mut event = first.clone();
        event[field] = value;
        event
    };
    let without_time = {
        let mut event = first.clone();
        event.as_object_mut().unwrap().remove("timestamp");
        event
    };
    let cases = [
        (first.clone(), "accepted"),
        (first.clone(), "duplicates"),
        (changed("value", json!("1.000")), "duplicates"),
        (without_time.clone(), "duplicates"),
        (changed("timestamp", json!("2026-11-20T11:00:00+01:00")), "duplicates"),
        (changed("timestamp", json!("2026-11-20T10:00:01Z")), "id_reused"),
        (changed("value", json!(2)), "id_reused"),
        (changed("subject", json!("t")), "id_reused"),
        (changed("event_name", json!("f")), "id_reused"),
        (changed("properties", json!({})), "id_reused"),
        (changed("source", json!("b")), "accepted"),
        (changed("id", json!("y")), "accepted"),
        // too old to record, but it is a repeat of a recorded event
        (changed("source", json!("c")), "accepted"),
    ];
    for (event, expected) in &cases {
        let answer = service.post("/v1/events", event).await;
        if *expected == "id_reused" {
            assert_eq!(
                (answer.status, answer.code().as_str()),
                (StatusCode::CONFLICT, "id_reused"),
                "{event}"
            );
        } else {
            assert_eq!(answer.json()[*expected], 1, "{event}: {}", answer.text);
        }
    }
    let conflicts =
        service.post("/v1/events", &json!([changed("value", json!(3)), changed("id", json!("z"))])).await;
    assert_eq!(conflicts.json()["accepted"], 1);
    assert_eq!(conflicts.json()["rejected"][0]["code"], "id_reused");
    assert_eq!(conflicts.json()["rejected"][0]["id"], "x");
    // rejected events leave nothing behind
    assert_eq!(service.get("/v1/subjects/t").await.status, StatusCode::NOT_FOUND);
    // a retry is still recognised long after
    service.clock.set(at("2027-03-01T00:00:00Z"));
    assert_eq!(service.post("/v1/events", &first).await.json()["duplicates"], 1);
    let late = service.post("/v1/events", &changed("id", json!("late"))).await;
    assert_eq!((late.status.as_u16(), late.code().as_str()), (422, "timestamp_too_old"));
    service.verify().await;
}

#[tokio::test]
async fn a_retry_without_timestamp_in_the_next_month_counts_once() {
    let service = service().await;
    let event = json!({"id": "midnight", "event_name": "e", "subject": "s", "value": 5});
    service.clock.set(at("2026-11-30T23:59:59.999999Z"));
    assert_eq!(service.post("/v1/events", &event).await.json()["accepted"], 1);
    service.clock.set(at("2026-12-01T00:00:00.000001Z"));
    assert_eq!(service.post("/v1/events", &event).await.json()["duplicates"], 1);
    for _ in 0..2 {
        assert_eq!(service.values(&format!("meter=m&{NOVEMBER}")).await, ["5"]);
        let december = "from=2026-12-01T00:00:00Z&to=2027-01-01T00:00:00Z";
        assert_eq!(service.values(&format!("meter=m&{december}")).await, ["0"]);
        service.fold().await;
    }
    service.verify().await;
}

#[tokio::test]
async fn idempotency_keys_are_the_default_ids_of_single_events() {
    let service = service().await;
    let send = |key: &'static str, value: i32| {
        let body = json!({"event_name": "e", "subject": "s", "value": value}).to_string();
        let request = service.request(Method::POST, "/v1/events").header("content-type", "application/json");
        service.send(request.header("idempotency-key", key).body(Body::from(body)).unwrap())
    };
    assert_eq!(send("k1", 1).await.json()["accepted"], 1);
    assert_eq!(send("k1", 1).await.json()["duplicates"], 1);
    assert_eq!(send("k1", 2).await.status, StatusCode::CONFLICT);
    assert_eq!(send("k2", 1).await.json()["accepted"], 1);
    assert_eq!(service.get("/v1/events/k1").await.json()["value"], 1);
    let without = json!({"event_name": "e", "subject": "s"});
    service.post("/v1/events", &without).await;
    service.post("/v1/events", &without).await;
    assert_eq!(
        service.values(&format!("meter=n&{NOVEMBER}")).await,
        ["4"],
        "without an id, every call is an event"
    );
}

#[tokio::test]
async fn events_are_recorded_from_all_media_types_and_encodings() {
    use std::io::Write;
    let service = service().await;
    let event = |id: &str| json!({"id": id, "event_name": "e", "subject": "s"}).to_string();
    let cloud = |id: &str| {
        json!({"specversion": "1.0", "id": id, "source": "gw", "type": "e", "subject": "s", "extension": "x",
            "time": "2026-11-20T10:00:00Z", "data": {"value": 2, "model": "m"}})
    };
    let lines = format!("{}\n\n{}\r\n{}", event("l1"), event("l2"), event("l3"));
    let cases = [
        ("application/json; charset=utf-8", event("j1"), 1),
        ("application/json", format!("[{},{}]", event("a1"), event("a2")), 2),
        ("application/x-ndjson", lines, 3),
        ("application/cloudevents+json", cloud("c1").to_string(), 1),
        (
            "application/cloudevents-batch+json; charset=utf-8",
            json!([cloud("c2"), cloud("c3")]).to_string(),
            2,
        ),
    ];
    for (media_type, body, count) in cases {
        let answer = service.send_typed(Method::POST, "/v1/events", media_type, body.into_bytes()).await;
        assert_eq!(answer.json()["accepted"], count, "{media_type}: {}", answer.text);
    }
    let traced = service.get("/v1/events/c1?source=gw").await.json();
    assert_eq!((traced["value"].clone(), traced["properties"].clone()), (json!(2), json!({"model": "m"})));

    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(event("z1").as_bytes()).unwrap();
    let encoded =
        [("gzip", gzip.finish().unwrap()), ("zstd", zstd::encode_all(event("z2").as_bytes(), 1).unwrap())];
    for (encoding, body) in encoded {
        let request = service.request(Method::POST, "/v1/events").header("content-type", "application/json");
        let answer =
            service.send(request.header("content-encoding", encoding).body(Body::from(body)).unwrap()).await;
        assert_eq!(answer.json()["accepted"], 1, "{encoding}: {}", answer.text);
    }
    service.verify().await;
}

#[tokio::test]
async fn event_lists_page_and_filter() {
    let service = service().await;
    service.put("/v1/subjects/team", &json!({})).await;
    service.put("/v1/subjects/kid", &json!({"parent": "team"})).await;
    let events: Vec<Value> = (0..25)
        .map(|n| {
            json!({"id": format!("id{n:02}"), "event_name": if n % 2 == 0 { "e" } else { "other" },
            "subject": if n < 20 { "s" } else { "kid" }, "source": if n % 5 == 0 { "five" } else { "" },
            "timestamp": format!("2026-11-10T{:02}:00:00Z", n / 2)})
        })
        .collect();
    service.record(&json!(events)).await;
    service.post("/v1/events/id03/void", &json!({})).await;
    let ids = async |query: &str| {
        let (mut ids, mut cursor) = (Vec::new(), String::new());
        loop {
            let page = service.get(&format!("/v1/events?limit=4&{query}{cursor}")).await.json();
            ids.extend(page["data"].as_array().unwrap().iter().map(|e| e["id"].as_str().unwrap().to_owned()));
            match page["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => return ids,
            }
        }
    };
    let expect = |numbers: &mut dyn Iterator<Item = i32>| -> Vec<String> {
        let mut ids: Vec<String> = numbers.map(|n| format!("id{n:02}")).collect();
        ids.reverse();
        ids
    };
    assert_eq!(ids("").await, expect(&mut (0..25)));
    assert_eq!(ids("subject=kid").await, expect(&mut (20..25)));
    assert_eq!(ids("subject=team").await, expect(&mut (0..0)));
    assert_eq!(ids("subject=team&descendants=true").await, expect(&mut (20..25)));
    assert_eq!(ids("event_name=e").await, expect(&mut (0..25).filter(|n| n % 2 == 0)));
    assert_eq!(ids("source=five").await, expect(&mut (0..25).filter(|n| n % 5 == 0)));
    assert_eq!(ids("source=").await, expect(&mut (0..25).filter(|n| n % 5 != 0)));
    assert_eq!(ids("from=2026-11-10T02:00:00Z&to=2026-11-10T03:00:00Z").await, ["id05", "id04"]);
    assert_eq!(ids("voided=true").await, ["id03"]);
    let bad = service.get("/v1/events?cursor=zzz").await;
    assert_eq!((bad.status.as_u16(), bad.code().as_str()), (422, "invalid_cursor"));
}

#[tokio::test]
async fn an_event_is_traced_to_its_meters_and_voided_once() {
    let service = service().await;
    service
        .record(
            &json!({"id": "t", "event_name": "e", "subject": "s", "value": 3, "properties": {"model": "x"},
            "timestamp": "2026-11-10T05:30:00Z"}),
        )
        .await;
    let trace = service.get("/v1/events/t").await.json();
    let meters = trace["meters"].as_array().unwrap();
    assert_eq!(meters[0]["meter"], "m");
    assert_eq!(meters[0]["value"], 3);
    assert_eq!(meters[0]["group"], json!({"model": "x"}));
    assert_eq!(meters[0]["hour"], "2026-11-10T05:00:00Z");
    assert_eq!((meters[0]["folded"].clone(), meters[1]["value"].clone()), (json!(false), json!(1)));
    service.fold().await;
    assert_eq!(service.get("/v1/events/t").await.json()["meters"][0]["folded"], true);

    let reasons: Vec<Value> = (0..20).map(|n| json!({"reason": n.to_string()})).collect();
    let voids = join_all(reasons.iter().map(|reason| service.post("/v1/events/t/void", reason))).await;
    assert!(voids.iter().all(|answer| answer.status == StatusCode::OK));
    let replayed = voids.iter().filter(|answer| answer.headers.contains_key("idempotent-replayed")).count();
    assert_eq!(replayed, 19, "exactly one call made the void");
    let reasons: std::collections::HashSet<String> =
        voids.iter().map(|a| a.json()["reason"].to_string()).collect();
    assert_eq!(reasons.len(), 1, "every answer contains the same void");
    assert_eq!(service.values(&format!("meter=m&{NOVEMBER}")).await, ["0"]);
    // the id of a voided event stays used
    let again =
        json!({"id": "t", "event_name": "e", "subject": "s", "value": 3, "properties": {"model": "x"}});
    assert_eq!(service.post("/v1/events", &again).await.json()["duplicates"], 1);
    assert_eq!(service.get("/v1/events/none").await.code(), "event_not_found");
    assert_eq!(service.post("/v1/events/none/void", &json!({})).await.code(), "event_not_found");
    service.verify().await;
}

#[tokio::test]
async fn a_new_meter_counts_earlier_events() {
    let service = TestService::start().await;
    let event = |value: Value| {
        json!({"event_name": "early", "subject": "s", "properties": {"n": value, "model": "x"},
            "timestamp": "2026-11-10T05:00:00Z"})
    };
    // a later meter cannot count this value, so it does not
    service
        .record(&json!([event(json!(2)), event(json!("3")), event(json!("many")), event(json!([1]))]))
        .await;
    service.fold().await;
    let meter = json!({"key": "m", "event_name": "early", "aggregation": "sum", "value_property": "n"});
    service.apply(json!({"meters": [meter]})).await;
    assert_eq!(service.values(&format!("meter=m&{NOVEMBER}")).await, ["5"]);
    service.verify().await;
    service.fold().await;
    assert_eq!(service.values(&format!("meter=m&{NOVEMBER}")).await, ["5"]);
    service.verify().await;
    // a new dimension also applies to earlier events
    let mut wider = meter.clone();
    wider["dimensions"] = json!(["model"]);
    service.apply(json!({"meters": [wider]})).await;
    for _ in 0..2 {
        assert_eq!(service.values(&format!("meter=m&{NOVEMBER}&filter[model]=x")).await, ["5"]);
        service.fold().await;
        service.verify().await;
    }
    // with a meter in place, a value that is not a number is refused
    let refused = service.post("/v1/events?backfill=true", &event(json!("many"))).await;
    assert_eq!((refused.status.as_u16(), refused.code().as_str()), (422, "invalid_value"));
    assert_eq!(refused.json()["errors"][0]["pointer"], "/properties/n");
}
