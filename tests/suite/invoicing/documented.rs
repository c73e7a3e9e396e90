//! The documented example equals the answer of the service.

use metergate_domain::base::Environment;
use metergate_domain::catalog::Catalog;
use serde_json::{Value, json};

use super::{Books, START};
use crate::support::TestService;

const PAGE: &str = include_str!("../../../docs/concepts/invoices.md");
const SAMPLE: &str = include_str!("../../../config/catalog.yaml");

#[tokio::test]
async fn documented_draft_matches_the_service() {
    let books = Books { service: TestService::start().await };
    books.set_clock(START);
    let sample = Catalog::read_yaml(SAMPLE).unwrap();
    books.service.engine.apply_catalog(Environment::Test, sample, false).await.unwrap();
    books.enrol("acme", "pro").await;
    let event = json!({"event_name": "ai_tokens", "subject": "acme", "value": 150_000, "timestamp": START,
                       "properties": {"model": "claude-sonnet"}});
    assert_eq!(books.service.post("/v1/events", &event).await.json()["accepted"], 1);
    let example = PAGE.split("```json\n").nth(1).unwrap().split("```").next().unwrap();
    let mut expected: Value = serde_json::from_str(example).unwrap();
    let shown = books.upcoming("acme").await;
    expected["id"] = shown["id"].clone();
    assert_eq!(shown, expected);
}
