//! Subjects and their tree.

use axum::http::StatusCode;
use serde_json::json;

use crate::support::TestService;

const NOVEMBER: &str = "from=2026-11-01T00:00:00Z&to=2026-12-01T00:00:00Z";

#[tokio::test]
async fn creates_changes_and_lists_subjects() {
    let service = TestService::start().await;
    let made = service
        .put(
            "/v1/subjects/user%2F1",
            &json!({"parent": "org", "stripe_customer_id": "cus_1", "metadata": {"a": 1}}),
        )
        .await;
    assert_eq!(made.status, StatusCode::OK);
    let view = made.json();
    assert_eq!((view["subject"].clone(), view["path"].clone()), (json!("user/1"), json!(["user/1", "org"])));
    let changed = service.put("/v1/subjects/user%2F1", &json!({"metadata": {"b": 2}})).await;
    assert_eq!(changed.status, StatusCode::OK);
    assert_eq!(changed.json()["parent"], "org", "fields that are not given must stay");
    assert_eq!(changed.json()["stripe_customer_id"], "cus_1");
    assert_eq!(changed.json()["metadata"], json!({"b": 2}));
    let taken = service.put("/v1/subjects/other", &json!({"stripe_customer_id": "cus_1"})).await;
    assert_eq!((taken.status, taken.code().as_str()), (StatusCode::CONFLICT, "customer_taken"));
    assert_eq!(
        service.get("/v1/subjects/other").await.code(),
        "subject_not_found",
        "a rejected call must create nothing"
    );
    let cleared =
        service.put("/v1/subjects/user%2F1", &json!({"parent": null, "stripe_customer_id": null})).await;
    assert_eq!(
        (cleared.json()["parent"].clone(), cleared.json()["path"].clone()),
        (json!(null), json!(["user/1"]))
    );
    assert_eq!(service.put("/v1/subjects/other", &json!({"stripe_customer_id": "cus_1"})).await.status, 200);

    for n in 0..5 {
        service.put(&format!("/v1/subjects/kid{n}"), &json!({"parent": "org"})).await;
    }
    let page = service.get("/v1/subjects?parent=org&limit=3").await.json();
    let next = service
        .get(&format!("/v1/subjects?parent=org&cursor={}", page["next_cursor"].as_str().unwrap()))
        .await;
    let names = |page: &serde_json::Value| -> Vec<String> {
        page["data"].as_array().unwrap().iter().map(|s| s["subject"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&page), ["kid0", "kid1", "kid2"]);
    assert_eq!(
        (names(&next.json()), next.json()["next_cursor"].clone()),
        (vec!["kid3".to_owned(), "kid4".to_owned()], json!(null))
    );
    let bad = service.put("/v1/subjects/x", &json!({"parent": 5, "colour": "red"})).await;
    assert_eq!((bad.status.as_u16(), bad.json()["errors"].as_array().unwrap().len()), (422, 2));
}

#[tokio::test]
async fn refuses_cycles_and_a_ninth_level() {
    let service = TestService::start().await;
    for level in 1..8 {
        let parent = json!({"parent": format!("l{level}")});
        assert!(service.put(&format!("/v1/subjects/l{}", level + 1), &parent).await.status.is_success());
    }
    let refused = async |subject: &str, parent: &str| {
        let answer = service.put(&format!("/v1/subjects/{subject}"), &json!({ "parent": parent })).await;
        assert_eq!(answer.status.as_u16(), 422, "{}", answer.text);
        answer.code()
    };
    assert_eq!(refused("l9", "l8").await, "subject_too_deep");
    assert_eq!(service.get("/v1/subjects/l9").await.status, StatusCode::NOT_FOUND);
    assert_eq!(refused("l1", "l1").await, "subject_cycle");
    assert_eq!(refused("l1", "l8").await, "subject_cycle");
    assert_eq!(refused("l3", "l5").await, "subject_cycle");
    assert_eq!(refused("l1", "top").await, "subject_too_deep", "the depth must include the whole subtree");
    assert!(service.put("/v1/subjects/l5", &json!({"parent": null})).await.status.is_success());
    assert!(service.put("/v1/subjects/l1", &json!({"parent": "top"})).await.status.is_success());
    assert_eq!(service.get("/v1/subjects/l8").await.json()["path"], json!(["l8", "l7", "l6", "l5"]));
    assert_eq!(service.get("/v1/subjects/l4").await.json()["path"], json!(["l4", "l3", "l2", "l1", "top"]));
}

#[tokio::test]
async fn usage_counts_on_the_path_at_the_time_of_recording() {
    let service =
        TestService::with_meters(json!([{"key": "m", "event_name": "e", "aggregation": "sum"}])).await;
    service.put("/v1/subjects/user", &json!({"parent": "team"})).await;
    service.put("/v1/subjects/team", &json!({"parent": "org_a"})).await;
    let event = |value: i32| json!({"event_name": "e", "subject": "user", "value": value});
    service.record(&event(1)).await;
    service.fold().await;
    // the subtree moves with the team; recorded usage keeps its old path
    service.put("/v1/subjects/team", &json!({"parent": "org_b"})).await;
    service.record(&event(2)).await;
    service.put("/v1/subjects/team", &json!({"parent": "org_a"})).await;
    service.record(&event(4)).await;
    for _ in 0..2 {
        for (subject, alone, all) in
            [("user", "7", "7"), ("team", "0", "7"), ("org_a", "0", "5"), ("org_b", "0", "2")]
        {
            let query = format!("meter=m&{NOVEMBER}&subject={subject}");
            assert_eq!(service.values(&query).await, [alone], "{subject}");
            assert_eq!(service.values(&format!("{query}&descendants=true")).await, [all], "{subject}");
            let report = service.get(&format!("/v1/subjects/{subject}/usage")).await.json();
            assert_eq!(report["meters"][0]["value"].to_string(), all, "{subject}");
        }
        // a query over all of them counts each event once
        let query = format!("meter=m&{NOVEMBER}&subject=org_a&subject=org_b&subject=user&descendants=true");
        assert_eq!(service.values(&query).await, ["7"]);
        service.fold().await;
    }
    service.verify().await;
}

#[tokio::test]
async fn the_usage_report_has_every_meter_without_any_limit() {
    let service = TestService::with_meters(json!([
        {"key": "a", "event_name": "e", "aggregation": "sum", "unit": "tokens"},
        {"key": "b", "event_name": "f", "aggregation": "max"},
    ]))
    .await;
    service
        .record(&json!({"event_name": "e", "subject": "s", "value": 5, "timestamp": "2026-10-31T23:59:59Z"}))
        .await;
    service
        .record(&json!({"event_name": "e", "subject": "s", "value": 7, "timestamp": "2026-11-01T00:00:00Z"}))
        .await;
    let mut report = service.get("/v1/subjects/s/usage").await.json();
    for apart in ["trend", "forecast"] {
        assert!(report.as_object_mut().unwrap().remove(apart).is_some());
    }
    let expected = json!({"subject": "s", "plan": null, "status": null, "limits": [],
    "period": {"start": "2026-11-01T00:00:00Z", "end": "2026-12-01T00:00:00Z"},
    "meters": [
        {"meter": "a", "unit": "tokens", "value": 7, "event_count": 1},
        {"meter": "b", "unit": null, "value": null, "event_count": 0},
    ], "cost": null});
    assert_eq!(report, expected);
    let unheard = service.get("/v1/subjects/never-heard-of/usage").await.json();
    assert_eq!(unheard["meters"][0]["value"], 0);
}
