//! Windows of time zones across clock changes, from rollups and from events.

use serde_json::json;

use crate::support::TestService;

/// Records an event of value 1 every 15 minutes, so that the sum of a window shows its length.
async fn quarters(from: &str, hours: i64) -> TestService {
    let service =
        TestService::with_meters(json!([{"key": "m", "event_name": "e", "aggregation": "sum"}])).await;
    let start: jiff::Timestamp = from.parse().unwrap();
    let events: Vec<serde_json::Value> = (0..hours * 4)
        .map(|quarter| {
            let time = start + jiff::SignedDuration::from_mins(quarter * 15);
            json!({"event_name": "e", "subject": "s", "timestamp": time.to_string()})
        })
        .collect();
    for batch in events.chunks(1000) {
        service.record(&json!(batch)).await;
    }
    service
}

async fn check(service: &TestService, query: &str, expected: &[(&str, &str)]) {
    for folded in [false, true] {
        if folded {
            service.fold().await;
        }
        let rows = service.usage(&format!("meter=m&{query}")).await;
        let found: Vec<(String, String)> = rows
            .iter()
            .map(|row| (row["window_start"].as_str().unwrap().to_owned(), row["value"].to_string()))
            .collect();
        let expected: Vec<(String, String)> =
            expected.iter().map(|(start, value)| ((*start).to_owned(), (*value).to_owned())).collect();
        assert_eq!(found, expected, "{query}, folded: {folded}");
    }
}

#[tokio::test]
async fn windows_follow_clock_changes_in_berlin() {
    let service = quarters("2026-03-28T00:00:00Z", 72).await;
    let query = "from=2026-03-28T12:00:00Z&to=2026-03-30T12:00:00Z&window=day&timezone=Europe/Berlin";
    let days = [
        // usage outside of the range does not count; the first window still starts with its day
        ("2026-03-27T23:00:00Z", "44"),
        ("2026-03-28T23:00:00Z", "92"),
        ("2026-03-29T22:00:00Z", "56"),
    ];
    check(&service, query, &days).await;

    let service = quarters("2026-10-24T00:00:00Z", 72).await;
    let query = "from=2026-10-24T22:00:00Z&to=2026-10-25T23:00:00Z&window=day&timezone=Europe/Berlin";
    check(&service, query, &[("2026-10-24T22:00:00Z", "100")]).await;
}

#[tokio::test]
async fn windows_follow_clock_changes_in_new_york() {
    let service = quarters("2026-03-07T00:00:00Z", 72).await;
    let query = "from=2026-03-08T05:00:00Z&to=2026-03-09T04:00:00Z&window=day&timezone=America/New_York";
    check(&service, query, &[("2026-03-08T05:00:00Z", "92")]).await;

    let service = quarters("2026-10-31T00:00:00Z", 72).await;
    let query = "from=2026-11-01T04:00:00Z&to=2026-11-02T05:00:00Z&window=day&timezone=America/New_York";
    check(&service, query, &[("2026-11-01T04:00:00Z", "100")]).await;
    // the repeated hour is two windows
    let query = "from=2026-11-01T05:00:00Z&to=2026-11-01T07:00:00Z&window=hour&timezone=America/New_York";
    check(&service, query, &[("2026-11-01T05:00:00Z", "4"), ("2026-11-01T06:00:00Z", "4")]).await;
}

#[tokio::test]
async fn windows_follow_the_half_hour_offset_of_kolkata() {
    let service = quarters("2026-11-09T00:00:00Z", 72).await;
    let query = "from=2026-11-09T18:30:00Z&to=2026-11-11T18:30:00Z&window=day&timezone=Asia/Kolkata";
    check(&service, query, &[("2026-11-09T18:30:00Z", "96"), ("2026-11-10T18:30:00Z", "96")]).await;
    let query = "from=2026-11-09T18:45:00Z&to=2026-11-09T20:31:00Z&window=hour&timezone=Asia/Kolkata";
    let hours = [("2026-11-09T18:30:00Z", "3"), ("2026-11-09T19:30:00Z", "4"), ("2026-11-09T20:30:00Z", "1")];
    check(&service, query, &hours).await;
}

#[tokio::test]
async fn months_follow_the_offset_of_apia() {
    let service = quarters("2026-10-30T00:00:00Z", 72).await;
    let query = "from=2026-10-30T00:00:00Z&to=2026-11-02T00:00:00Z&window=month&timezone=Pacific/Apia";
    // Samoa is 13 hours ahead: November begins on 31 October, 11:00 UTC
    check(&service, query, &[("2026-09-30T11:00:00Z", "140"), ("2026-10-31T11:00:00Z", "148")]).await;
}
