//! Thin events that report meter events which failed after the answer 200. A client fetches their details.

use serde_json::{Value, json};

use super::clock::rfc3339;
use super::errors::ApiError;
use super::outbox::Webhook;
use super::server::StripeFake;
use super::state::State;

const SAMPLES_MAX: usize = 5;

impl StripeFake {
    /// Removes the events from the totals, and reports them.
    pub(crate) fn report_errors(&self, event_name: &str, code: &'static str, identifiers: &[&str]) {
        let mut state = self.shared.lock();
        let meter = state.meters.by_event_name(event_name).map(|meter| meter.id.clone());
        report(&mut state, meter.as_deref(), code, identifiers);
    }

    /// Reports events without a meter.
    pub(crate) fn report_no_meter(&self, identifiers: &[&str]) {
        report(&mut self.shared.lock(), None, "no_meter", identifiers);
    }
}

pub(super) fn report(state: &mut State, meter: Option<&str>, code: &'static str, identifiers: &[&str]) {
    for identifier in identifiers {
        state.ledger.drop_events(identifier, code);
    }
    let (id, now) = (state.next_id("evt"), state.now());
    let kind = match meter {
        Some(_) => "v1.billing.meter.error_report_triggered",
        None => "v1.billing.meter.no_meter_found",
    };
    let mut event = json!({
        "id": id,
        "object": "v2.core.event",
        "type": kind,
        "created": rfc3339(now),
        "livemode": state.options.livemode,
        "context": null,
        "reason": null,
        "related_object": meter.map(|meter| json!({
            "id": meter,
            "type": "billing.meter",
            "url": format!("/v1/billing/meters/{meter}"),
        })),
    });
    state.outbox.push(Webhook {
        id: id.clone(),
        kind: kind.to_owned(),
        created: now,
        body: event.to_string(),
    });
    let sample = |identifier: &&str| json!({"error_message": format!("{code}: {identifier}"), "request": {"identifier": identifier}});
    let count = identifiers.len();
    event["data"] = json!({
        "developer_message_summary": format!("There is {count} invalid event"),
        "reason": {
            "error_count": count,
            "error_types": [{
                "code": code,
                "error_count": count,
                "sample_errors": identifiers.iter().take(SAMPLES_MAX).map(sample).collect::<Vec<_>>(),
            }],
        },
        "validation_start": rfc3339(now - 10),
        "validation_end": rfc3339(now),
    });
    state.reports.insert(id, event);
}

pub(super) fn get(state: &State, id: &str) -> Result<Value, ApiError> {
    state.reports.get(id).cloned().ok_or_else(|| ApiError::not_found("event", id))
}
