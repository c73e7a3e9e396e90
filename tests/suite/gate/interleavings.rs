//! Calls of two processes that interleave at the worst moment, and other corner cases that once were bugs.

mod everything;

use std::pin::pin;
use std::time::Duration;

use axum::http::{Method, StatusCode};
use futures::future::join_all;
use metergate_domain::base::Environment;
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};

use crate::support::cluster::{database_url, sqlx_execute};
use crate::support::proxy::Proxy;
use crate::support::service::{Answer, TEST_SECRET, engine_settings};
use crate::support::{TestService, at};

const NOVEMBER: &str = "from=2026-11-01T00:00:00Z&to=2026-12-01T00:00:00Z";

fn catalog() -> Value {
    json!({
        "default_plan": "free",
        "meters": [
            {"key": "m", "event_name": "e", "aggregation": "sum", "dimensions": ["model"]},
            {"key": "n", "event_name": "e2", "aggregation": "count"},
        ],
        "plans": [
            {"key": "free", "unmatched": "allow", "limits": [
                {"key": "l", "meter": "m", "quota": 10, "period": "month"}]},
            {"key": "pro", "fallback_plan": "free", "limits": [
                {"key": "l", "meter": "m", "quota": 1000, "period": "day"}]},
        ],
    })
}

/// Returns the catalog without its default plan.
fn catalog_without_default() -> Value {
    let mut catalog = catalog();
    catalog["default_plan"] = Value::Null;
    catalog
}

/// Returns the catalog with another limit on the default plan.
fn catalog_with(limit: Value) -> Value {
    let mut catalog = catalog();
    catalog["plans"][0]["limits"].as_array_mut().unwrap().push(limit);
    catalog
}

/// Starts two independent engines on one database.
async fn pair() -> (TestService, TestService) {
    let url = database_url().await;
    let one = TestService::at_url(&url, engine_settings()).await;
    let other = TestService::at_url(&url, engine_settings()).await;
    one.apply(catalog()).await;
    (one, other)
}

async fn single() -> TestService {
    let service = TestService::start().await;
    service.apply(catalog()).await;
    service
}

fn well(answer: Answer) -> Value {
    assert!(answer.status.is_success(), "{} {}", answer.status, answer.text);
    answer.json()
}

async fn track(service: &TestService, id: &str, subject: &str, value: i64) -> Value {
    let event = json!({"id": id, "event_name": "e", "subject": subject, "value": value});
    well(service.post("/v1/events", &event).await)
}

async fn reserve(service: &TestService, body: Value) -> Value {
    well(service.post("/v1/reservations", &body).await)
}

/// Returns the used quantity of a subject's first limit.
async fn used(service: &TestService, subject: &str) -> Value {
    let report = service.get(&format!("/v1/subjects/{subject}/usage")).await.json();
    report["limits"][0]["used"].clone()
}

/// Creates two seats below an org without its own contact. One seat has its own plan.
async fn seats(service: &TestService) {
    for seat in ["u", "v"] {
        well(service.put(&format!("/v1/subjects/{seat}"), &json!({"parent": "org"})).await);
    }
    well(service.put("/v1/subjects/u/subscription", &json!({"plan": "pro"})).await);
}

/// A trigger that stops transactions at a given place until they are released.
struct Halt {
    connection: PgConnection,
}

impl Halt {
    /// Creates the trigger. `place` gives its time, table and condition in SQL.
    async fn at(url: &str, place: &str) -> Self {
        let function = "create function halt() returns trigger language plpgsql as
             $$ begin perform pg_advisory_xact_lock_shared(1); return new; end $$";
        sqlx_execute(url, function).await;
        let (kind, place) = place.split_once(' ').unwrap();
        let kind = if place.contains("deferrable") {
            format!("constraint trigger halt {kind}")
        } else {
            format!("trigger halt {kind}")
        };
        sqlx_execute(url, &format!("create {kind} {place} execute function halt()")).await;
        let mut connection = PgConnection::connect(url).await.unwrap();
        sqlx::raw_sql("select pg_advisory_lock(1)").execute(&mut connection).await.unwrap();
        Self { connection }
    }

    /// Waits until `count` transactions wait for this lock or for each other.
    async fn wait_for(&mut self, count: i64) {
        wait_for_waiters(&mut self.connection, count).await;
    }

    async fn let_go(&mut self) {
        sqlx::raw_sql("select pg_advisory_unlock(1)").execute(&mut self.connection).await.unwrap();
    }

    /// Makes the second call while the first is stopped. Releases both when the second call waits, too, or
    /// has finished.
    async fn cross<A, B>(
        &mut self,
        first: impl Future<Output = A>,
        second: impl Future<Output = B>,
    ) -> (A, B) {
        let crossing = async {
            self.wait_for(1).await;
            let mut second = pin!(second);
            let done = tokio::select! {
                done = &mut second => Some(done),
                () = self.wait_for(2) => None,
            };
            self.let_go().await;
            match done {
                Some(done) => done,
                None => second.await,
            }
        };
        tokio::join!(first, crossing)
    }
}

/// Waits until `count` transactions wait for locks, for a limited time.
async fn wait_for_waiters(connection: &mut PgConnection, count: i64) {
    let waiting = "select count(*) from pg_stat_activity
         where datname = current_database() and wait_event_type = 'Lock'";
    for _ in 0..300 {
        if sqlx::query_scalar::<_, i64>(waiting).fetch_one(&mut *connection).await.unwrap() >= count {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn default_plans_of_roots_limit_descendants_at_once() {
    let service = single().await;
    seats(&service).await;
    // The path of a seat with its own plan is cached before its root gets a plan.
    track(&service, "1", "u", 1).await;
    track(&service, "2", "v", 1).await;
    assert_eq!(used(&service, "org").await, 2);
    let held = reserve(&service, json!({"subject": "u", "meter": "m", "value": 900})).await;
    assert_eq!((&held["allowed"], &held["denied_by"][0]["subject"]), (&json!(false), &json!("org")));
    track(&service, "3", "u", 9).await;
    assert_eq!(used(&service, "org").await, 11);
    service.verify().await;
}

#[tokio::test]
async fn default_plans_of_roots_count_events_in_flight() {
    let (one, other) = pair().await;
    seats(&one).await;
    let mut halt = Halt::at(&one.url, "before insert on events for each row when (new.value = 9)").await;
    halt.cross(track(&one, "1", "u", 9), track(&other, "2", "v", 1)).await;
    assert_eq!(used(&one, "org").await, 10);
    one.verify().await;
}

#[tokio::test]
async fn voids_reach_counters_made_by_another_process() {
    let (one, other) = pair().await;
    one.apply(catalog_without_default()).await;
    track(&one, "1", "v", 3).await;
    track(&one, "2", "v", 4).await;
    one.apply(catalog()).await;
    // Now the other process has cached the path without a subscription.
    well(other.post("/v1/events/1/void", &json!({})).await);
    track(&one, "3", "v", 1).await;
    well(other.post("/v1/events/2/void", &json!({})).await);
    assert_eq!(used(&one, "v").await, 1);
    one.verify().await;
}

#[tokio::test]
async fn concurrent_duplicate_reservations_do_not_deny_each_other() {
    let (one, other) = pair().await;
    track(&one, "1", "u", 0).await;
    let mut halt = Halt::at(&one.url, "before insert on reservations for each row").await;
    // One of these holds takes the whole quota.
    let body = json!({"id": "job", "subject": "u", "meter": "m", "value": 10});
    let (first, again) =
        halt.cross(one.post("/v1/reservations", &body), other.post("/v1/reservations", &body)).await;
    for answer in [&first, &again] {
        assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.text);
        assert_eq!(answer.json()["allowed"], true, "{}", answer.text);
    }
    assert_eq!((first.is_replay(), again.is_replay()), (false, true));
    one.verify().await;
}

#[tokio::test]
async fn a_running_commit_does_not_deny_its_own_retry() {
    let url = database_url().await;
    let proxy = Proxy::start(&url);
    let service = TestService::at_url(&proxy.url(&url), engine_settings()).await;
    service.apply(catalog()).await;
    track(&service, "1", "u", 0).await;
    let place = "after insert on reservations deferrable initially deferred for each row";
    let mut halt = Halt::at(&url, place).await;
    let body = json!({"id": "job", "subject": "u", "meter": "m", "value": 10});
    let mut watching = PgConnection::connect(&url).await.unwrap();
    let losing = async {
        proxy.cut();
        // Every connection has to notice the lost answer.
        tokio::time::sleep(Duration::from_millis(50)).await;
        proxy.mend();
        // The second attempt waits for the result of the first.
        wait_for_waiters(&mut watching, 2).await;
    };
    let (answer, ()) = halt.cross(service.post("/v1/reservations", &body), losing).await;
    assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.text);
    assert_eq!((&answer.json()["allowed"], answer.is_replay()), (&json!(true), false));
    service.verify().await;
}

#[tokio::test]
async fn calls_with_lost_commit_answers_keep_their_answers() {
    let url = database_url().await;
    let proxy = Proxy::start(&url);
    let service = TestService::at_url(&proxy.url(&url), engine_settings()).await;
    service.apply(catalog()).await;
    well(service.put("/v1/subjects/u/subscription", &json!({"plan": "pro"})).await);
    let values = |value: i64| json!([{"meter": "m", "value": value}]);
    for (round, delivered) in [true, false, true, false].into_iter().enumerate() {
        let id = format!("job{round}");
        let create = json!({"id": id, "subject": "u", "meter": "m", "value": 10});
        let of = |what: &str| format!("/v1/reservations/{id}/{what}");
        let calls = [
            ("/v1/reservations".to_owned(), create.clone(), 201, false),
            (of("extend"), json!({"holds": values(15)}), 200, false),
            (of("commit"), json!({"values": values(4), "final": false}), 200, false),
            (of("commit"), json!({"values": values(6)}), 200, false),
            (of("release"), json!({}), 409, false),
            ("/v1/reservations".to_owned(), create, 201, true),
        ];
        // Sent at once, the calls form one batch.
        let before = proxy.swallowed();
        proxy.swallow_commits(1, delivered);
        let answers = join_all(calls.iter().map(|(path, body, ..)| service.post(path, body))).await;
        assert_eq!(proxy.swallowed(), before + 1, "the proxy must have swallowed the commit");
        for ((path, _, status, is_replay), answer) in calls.iter().zip(&answers) {
            assert_eq!(
                (answer.status.as_u16(), answer.is_replay()),
                (*status, *is_replay),
                "{path} {}",
                answer.text
            );
        }
        assert_eq!(answers[2].json()["committed"], values(4));
        assert_eq!(answers[3].json()["committed"], values(6));
    }
    assert_eq!(used(&service, "u").await, 24);
    service.verify().await;
}

#[tokio::test]
async fn reads_include_charges_that_another_process_is_sweeping() {
    let (one, other) = pair().await;
    let charge = |n: usize| {
        json!({"id": format!("r{n}"), "subject": "u", "meter": "n", "value": 1, "ttl_seconds": 30,
            "on_expiry": "commit"})
    };
    // These are more than one sweep takes.
    for hundred in 0..6 {
        join_all((0..100).map(|n| reserve(&one, charge(hundred * 100 + n)))).await;
    }
    let mut halt = Halt::at(&one.url, "after update on reservations for each statement").await;
    for service in [&one, &other] {
        service.clock.set(at("2026-11-20T12:01:00Z"));
    }
    let question = format!("meter=n&{NOVEMBER}");
    let (swept, read) = halt.cross(one.engine.sweep(Environment::Test), other.values(&question)).await;
    swept.unwrap();
    assert_eq!(read, ["600"]);
    one.verify().await;
}

#[tokio::test]
async fn charges_that_expire_during_a_read_are_held_or_used() {
    let (one, other) = pair().await;
    let hold = json!({"id": "a", "subject": "u", "meter": "m", "value": 10, "ttl_seconds": 30,
        "on_expiry": "commit"});
    reserve(&one, hold).await;
    let mut connection = PgConnection::connect(&one.url).await.unwrap();
    // The reader waits for the catalog after its check for charges and before its decision.
    let lock = "begin; lock table environments in access exclusive mode";
    sqlx::raw_sql(lock).execute(&mut connection).await.unwrap();
    let expiring = async {
        let mut watching = PgConnection::connect(&one.url).await.unwrap();
        wait_for_waiters(&mut watching, 1).await;
        other.clock.set(at("2026-11-20T12:01:00Z"));
        sqlx::raw_sql("commit").execute(&mut connection).await.unwrap();
    };
    let question = json!({"subject": "u", "meter": "m", "value": 5});
    let (check, ()) = tokio::join!(other.post("/v1/check", &question), expiring);
    assert_eq!(well(check)["allowed"], false);
    other.verify().await;
}

#[tokio::test]
async fn counters_created_while_their_period_closes_count_everything() {
    let (one, other) = pair().await;
    let mut minutes = catalog();
    minutes["plans"][0]["limits"][0]["period"] = json!("minute");
    one.apply(minutes).await;
    track(&one, "0", "u", 1).await;
    // One call begins just before the minute of 12:10 closes, the other just after.
    one.clock.set(at("2026-11-20T12:15:59.999Z"));
    other.clock.set(at("2026-11-20T12:16:00.001Z"));
    let mut halt = Halt::at(&one.url, "before insert on events for each row when (new.value = 5)").await;
    let event = |value: i64| json!({"event_name": "e", "subject": "u", "value": value, "timestamp": "2026-11-20T12:10:30Z"});
    let events = [event(5), event(7)];
    let (first, second) =
        halt.cross(one.post("/v1/events", &events[0]), other.post("/v1/events", &events[1])).await;
    well(first);
    well(second);
    one.verify().await;
}

#[tokio::test]
async fn new_limits_count_all_subjects_of_one_batch() {
    const MANY: usize = 1_000;
    let service = single().await;
    let lines: Vec<String> = (0..MANY)
        .map(|n| json!({"event_name": "e", "subject": format!("s{n}"), "value": 1}).to_string())
        .collect();
    let body = lines.join("\n").into_bytes();
    let record = async || {
        let sent = service.send_typed(Method::POST, "/v1/events", "application/x-ndjson", body.clone());
        assert_eq!(well(sent.await)["accepted"], MANY);
    };
    record().await;
    record().await;
    service.clock.set(at("2026-11-20T12:00:01Z"));
    service.apply(catalog_with(json!({"key": "y", "meter": "m", "quota": 10, "period": "year"}))).await;
    record().await;
    for n in [0, MANY / 2, MANY - 1] {
        let report = service.get(&format!("/v1/subjects/s{n}/usage")).await.json();
        assert_eq!((&report["limits"][0]["used"], &report["limits"][1]["used"]), (&json!(3), &json!(3)));
    }
    service.verify().await;
}

#[tokio::test]
async fn limits_added_after_a_clock_step_back_count_earlier_usage() {
    let service = single().await;
    track(&service, "1", "u", 4).await;
    service.clock.set(at("2026-11-20T11:59:59Z"));
    service.apply(catalog_with(json!({"key": "y", "meter": "m", "quota": 10, "period": "year"}))).await;
    service.clock.set(at("2026-11-20T12:00:01Z"));
    let held = reserve(&service, json!({"subject": "u", "meter": "m", "value": 0})).await;
    assert_eq!(held["limits"][1]["used"], 4, "{held}");
    service.verify().await;
}

#[tokio::test]
async fn meters_with_open_holds_cannot_be_removed() {
    let service = single().await;
    let hold = |id: &str, on_expiry: &str| json!({"id": id, "subject": "u", "meter": "n", "value": 3, "ttl_seconds": 30, "on_expiry": on_expiry});
    reserve(&service, hold("charged", "commit")).await;
    reserve(&service, hold("settled", "release")).await;
    let mut less = catalog();
    less["meters"].as_array_mut().unwrap().pop();
    let refused = service.put("/v1/catalog", &less).await;
    assert_eq!((refused.status.as_u16(), refused.code().as_str()), (422, "meter_in_use"), "{}", refused.text);
    well(service.post("/v1/reservations/settled/commit", &json!({})).await);
    service.clock.set(at("2026-11-20T12:00:40Z"));
    while service.engine.sweep(Environment::Test).await.unwrap() {}
    assert_eq!(service.get("/v1/reservations/charged").await.json()["status"], "committed");
    assert_eq!(service.values(&format!("meter=n&{NOVEMBER}")).await, ["6"]);
    service.verify().await;
}

#[tokio::test]
async fn taken_ids_are_refused_without_creating_subjects() {
    let service = single().await;
    reserve(&service, json!({"id": "a", "subject": "u", "meter": "m"})).await;
    let nobody = json!({"id": "a", "subject": "nobody", "meter": "m"});
    // The unknown subject would get a plan from one catalog, but not from the other.
    for catalog in [catalog(), catalog_without_default()] {
        service.apply(catalog).await;
        let other = service.post("/v1/reservations", &nobody).await;
        assert_eq!((other.status.as_u16(), other.code().as_str()), (409, "id_reused"), "{}", other.text);
        assert_eq!(service.get("/v1/subjects/nobody").await.status, StatusCode::NOT_FOUND);
    }
}

#[tokio::test]
async fn period_ends_before_the_start_are_refused() {
    let service = single().await;
    let path = "/v1/subjects/u/subscription";
    let given =
        json!({"plan": "pro", "cycle_start": "2026-11-10T00:00:00Z", "period_end": "2026-11-24T00:00:00Z"});
    well(service.put(path, &given).await);
    // Without a given start, the known start counts.
    let put = service.put(path, &json!({"plan": "pro", "period_end": "2026-11-01T00:00:00Z"})).await;
    assert_eq!((put.status.as_u16(), put.code().as_str()), (422, "invalid_range"), "{}", put.text);
}

#[tokio::test]
async fn subscriptions_at_the_limits_of_time_cause_no_server_error() {
    const TIMES: [&str; 4] = [
        "0000-01-01T00:00:00Z",
        "0001-01-01T00:00:00Z",
        "1969-12-31T23:59:59.999999Z",
        "9999-12-31T23:59:59.999999Z",
    ];
    let service = single().await;
    let starts_and_ends = TIMES.iter().enumerate().flat_map(|(n, start)| TIMES.map(|end| (n, start, end)));
    for (k, (n, start, end)) in starts_and_ends.enumerate() {
        for field in ["period_end", "ends_at"] {
            let subject = format!("s{n}_{k}_{field}");
            let path = format!("/v1/subjects/{subject}/subscription");
            let put = service.put(&path, &json!({"plan": "pro", "cycle_start": start, field: end})).await;
            assert!(!put.status.is_server_error(), "{start} {field} {end}: {}", put.text);
            if !put.status.is_success() {
                continue;
            }
            for answer in [
                service.get(&path).await,
                service.get(&format!("/v1/subjects/{subject}/usage")).await,
                service.post("/v1/reservations", &json!({"subject": subject, "meter": "m"})).await,
                service.post("/v1/events", &json!({"event_name": "e", "subject": subject})).await,
                service.send_json(Method::DELETE, &format!("{path}?at=period_end"), &json!({})).await,
                service.get(&format!("/v1/gate?subject={subject}&meter=m")).await,
            ] {
                assert!(!answer.status.is_server_error(), "{start} {field} {end}: {}", answer.text);
            }
        }
    }
    service.verify().await;
}

#[tokio::test]
async fn periods_ending_within_a_second_count_each_event_once() {
    let service = single().await;
    let mut billed = catalog();
    billed["plans"][1]["limits"][0]["period"] = json!("billing");
    service.apply(billed).await;
    let given = json!({"plan": "pro", "cycle_start": "2026-11-20T11:00:00Z",
        "period_end": "2026-11-21T11:00:00.900Z"});
    well(service.put("/v1/subjects/u/subscription", &given).await);
    service.clock.set(at("2026-11-21T11:00:00.500Z"));
    track(&service, "1", "u", 3).await;
    assert_eq!(used(&service, "u").await, 3);
    service.clock.set(at("2026-11-21T11:00:01Z"));
    assert_eq!(used(&service, "u").await, 0);
    track(&service, "2", "u", 4).await;
    assert_eq!(used(&service, "u").await, 4);
    service.verify().await;
}

/// The event id of a commit is derived from its reservation, so a caller may have taken the id before.
#[tokio::test]
async fn charges_with_taken_event_ids_do_not_block_other_calls() {
    let service = single().await;
    let hold = json!({"id": "a", "subject": "u", "meter": "n", "value": 1, "ttl_seconds": 30,
        "on_expiry": "commit"});
    reserve(&service, hold.clone()).await;
    // The same reservation in another database shows the derived id.
    let elsewhere = single().await;
    reserve(&elsewhere, hold).await;
    let settled = well(elsewhere.post("/v1/reservations/a/commit", &json!({})).await);
    well(
        service
            .post("/v1/events", &json!({"id": settled["events"][0], "event_name": "x", "subject": "w"}))
            .await,
    );
    service.clock.set(at("2026-11-20T12:01:00Z"));
    assert_eq!(service.values(&format!("meter=n&{NOVEMBER}")).await, ["1"]);
    assert_eq!(reserve(&service, json!({"subject": "z", "meter": "m"})).await["allowed"], true);
    assert_eq!(service.get("/v1/reservations/a").await.json()["status"], "committed");
    service.verify().await;
}

#[tokio::test]
async fn recording_succeeds_when_limits_cannot_be_read() {
    let service = single().await;
    track(&service, "1", "u", 1).await;
    // Without this table, due charges cannot be read.
    sqlx_execute(&service.url, "alter table reservations rename to hidden").await;
    let event = |id: &str| json!({"id": id, "event_name": "e", "subject": "u", "value": 1});
    let again = well(service.post("/v1/events", &event("1")).await);
    assert_eq!((&again["duplicates"], &again["limits"]), (&json!(1), &Value::Null));
    let batch = json!([event("2"), event("3")]);
    let recorded = well(service.post("/v1/events?limits=true", &batch).await);
    assert_eq!((&recorded["accepted"], &recorded["limits"]), (&json!(2), &Value::Null));
    sqlx_execute(&service.url, "alter table hidden rename to reservations").await;
    assert_eq!(used(&service, "u").await, 3);
    service.verify().await;
}

/// The counter of an old period is dropped, but its quota must still apply.
#[tokio::test]
async fn extensions_of_old_holds_pass_no_quota() {
    let service = single().await;
    let mut hourly = catalog();
    hourly["plans"][0]["limits"][0]["period"] = json!("hour");
    service.apply(hourly).await;
    let hold = json!({"id": "a", "subject": "u", "meter": "m", "value": 5, "ttl_seconds": 86_400});
    reserve(&service, hold).await;
    let step = json!({"values": [{"meter": "m", "value": 5}], "final": false});
    well(service.post("/v1/reservations/a/commit", &step).await);
    for day in ["21T11:59:00Z", "22T11:58:00Z", "23T11:57:00Z", "24T11:56:00Z"] {
        service.clock.set(at(&format!("2026-11-{day}")));
        well(service.post("/v1/reservations/a/extend", &json!({"ttl_seconds": 86_400})).await);
    }
    while service.engine.drop_old_counters(Environment::Test).await.unwrap() {}
    let more = json!({"holds": [{"meter": "m", "value": 500}]});
    let more = well(service.post("/v1/reservations/a/extend", &more).await);
    assert_eq!(more["allowed"], false, "{more}");
    service.verify().await;
}

#[tokio::test]
async fn steps_after_the_final_commit_change_nothing() {
    let service = single().await;
    reserve(&service, json!({"id": "a", "subject": "u", "meter": "m", "value": 8})).await;
    let commit = async |value: i64, is_final: bool| {
        let body = json!({"values": [{"meter": "m", "value": value}], "final": is_final});
        service.post("/v1/reservations/a/commit", &body).await
    };
    commit(3, false).await;
    commit(5, true).await;
    for value in [3, 5] {
        let late = commit(value, false).await;
        assert_eq!((late.status, late.is_replay()), (StatusCode::OK, true), "{}", late.text);
        let late = late.json();
        assert_eq!((&late["committed"][0]["value"], &late["events"]), (&json!(5), &json!([])));
    }
    assert_eq!(used(&service, "u").await, 5);
    service.verify().await;
}

#[tokio::test]
async fn gateways_see_replays_and_rejected_events_show_no_limits() {
    let service = single().await;
    let hold = "/v1/gate?subject=u&meter=m&reserve=true&id=x";
    let (first, again) = (service.get(hold).await, service.get(hold).await);
    assert_eq!((first.is_replay(), again.is_replay()), (false, true));
    for name in ["x-metergate-reservation-id", "x-metergate-expires-at", "ratelimit"] {
        assert_eq!(first.headers[name], again.headers[name], "{name}");
    }
    let batch = json!([
        {"event_name": "e", "subject": "good", "value": 1},
        {"event_name": "e", "subject": "bad", "value": 1, "timestamp": "2020-01-01T00:00:00Z"},
    ]);
    let batch = service.post("/v1/events?limits=true", &batch).await.json();
    assert_eq!(batch["rejected"][0]["index"], 1);
    let limits = batch["limits"].as_array().unwrap();
    assert_eq!((limits.len(), &limits[0]["subject"]), (1, &json!("good")), "{batch}");
}

#[tokio::test]
async fn tokens_show_own_limits_but_none_of_ancestors() {
    let service = single().await;
    seats(&service).await;
    well(service.put("/v1/subjects/kid", &json!({"parent": "u"})).await);
    for (id, subject, value) in [("1", "v", 3), ("2", "u", 4), ("3", "kid", 2)] {
        track(&service, id, subject, value).await;
    }
    let token = |subject: &str| {
        let claims =
            json!({"sub": subject, "scope": "usage:read", "aud": "metergate", "exp": 4_000_000_000_u64});
        let key = jsonwebtoken::EncodingKey::from_secret(TEST_SECRET.as_bytes());
        jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &key).unwrap()
    };
    // This seat has no plan of its own, only the org's plan above it.
    let report = service.get_as(&token("v"), "/v1/subjects/v/usage").await.json();
    assert_eq!((&report["limits"], &report["meters"][0]["value"]), (&json!([]), &json!(3)));
    // A limit counts all descendants; the meters count only the subject itself.
    let report = service.get_as(&token("u"), "/v1/subjects/u/usage").await.json();
    assert_eq!((&report["limits"][0]["used"], &report["limits"][1]), (&json!(6), &Value::Null));
    assert_eq!(report["meters"][0]["value"], 4);
    for path in [
        "/v1/subjects/u/subscription",
        "/v1/subjects/org/usage",
        "/v1/reservations",
        "/v1/reservations/x",
        "/v1/gate?subject=v&meter=m",
        "/v1/plans",
    ] {
        assert_eq!(service.get_as(&token("v"), path).await.status, StatusCode::FORBIDDEN, "{path}");
    }
}

#[tokio::test]
async fn sums_of_the_largest_quantities_are_exact() {
    const LARGEST: &str = "9999999999999999999";
    let service = single().await;
    service.apply(catalog_with(json!({"key": "n", "meter": "n", "quota": null, "period": "lifetime"}))).await;
    for n in 0..4 {
        let hold = json!({"id": format!("r{n}"), "subject": "u", "meter": "n", "value": LARGEST});
        assert_eq!(reserve(&service, hold).await["allowed"], true);
        let values = json!({"values": [{"meter": "n", "value": LARGEST}]});
        well(service.post(&format!("/v1/reservations/r{n}/commit"), &values).await);
    }
    for _ in 0..2 {
        let report = service.get("/v1/subjects/u/usage").await.json();
        assert_eq!(report["limits"][1]["used"].to_string(), "39999999999999999996", "{report}");
        service.verify().await;
        service.fold().await;
    }
}
