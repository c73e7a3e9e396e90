//! Selects the latest of several payloads of one object. Stripe's times have a resolution of one
//! second, and deliveries come in any order. The selection depends on the payloads only.

use serde_json::Value;

use super::webhook::{SUBSCRIPTION_DELETED, subscription_of};
use metergate_domain::base::Timestamp;

/// The most events of one second for which all orders are tried.
const CHAINED_MAX: usize = 12;

/// Returns the event with the latest state of one subscription.
pub fn last(events: &[Value]) -> Option<&Value> {
    let over: Vec<&Value> = events.iter().filter(|event| is_over(event)).collect();
    // no state follows an end
    let candidates = if over.is_empty() { events.iter().collect() } else { over };
    let newest = candidates.iter().filter_map(|event| event["created"].as_i64()).max()?;
    let tied: Vec<&Value> =
        candidates.into_iter().filter(|event| event["created"].as_i64() == Some(newest)).collect();
    let mut ends = ends_of_chains(&tied);
    if ends.is_empty() {
        ends = least_followed(&tied);
    }
    ends.into_iter().max_by_key(|event| {
        let period = subscription_of(event).and_then(|billed| billed.period);
        let id = event["id"].as_str().unwrap_or_default();
        // usually, later events have greater ids
        (period.map_or(Timestamp::MIN, |period| period.from), id.len(), id)
    })
}

/// Returns the possible last events: an order must exist in which each event shows the state before it.
fn ends_of_chains<'a>(events: &[&'a Value]) -> Vec<&'a Value> {
    let count = events.len();
    if count > CHAINED_MAX {
        return Vec::new();
    }
    let next: Vec<Vec<usize>> = (0..count)
        .map(|one| (0..count).filter(|other| follows(events[*other], events[one])).collect())
        .collect();
    let first: Vec<usize> = (0..count).filter(|one| is_first(events[*one])).collect();
    let first = if first.is_empty() { (0..count).collect() } else { first };
    // by set of past events: the events that can be the last one of the set
    let mut ended = vec![vec![false; count]; 1 << count];
    for one in first {
        ended[1 << one][one] = true;
    }
    for been in 0..ended.len() {
        for one in (0..count).filter(|one| ended[been][*one]).collect::<Vec<_>>() {
            for other in next[one].iter().filter(|other| been & (1 << **other) == 0) {
                ended[been | (1 << *other)][*other] = true;
            }
        }
    }
    let all = ended.pop().unwrap_or_default();
    events.iter().zip(all).filter(|(_, ends)| *ends).map(|(event, _)| *event).collect()
}

/// Returns the events with the fewest followers, if no order explains all events.
fn least_followed<'a>(events: &[&'a Value]) -> Vec<&'a Value> {
    let followers = |event: &Value| {
        events.iter().filter(|other| !std::ptr::eq(**other, event) && follows(other, event)).count()
    };
    let least = events.iter().map(|event| followers(event)).min();
    events.iter().filter(|event| Some(followers(event)) == least).copied().collect()
}

fn is_first(event: &Value) -> bool {
    event["type"] == "customer.subscription.created"
}

fn is_over(event: &Value) -> bool {
    event["type"] == SUBSCRIPTION_DELETED || subscription_of(event).is_some_and(|billed| billed.is_over())
}

/// Returns whether an event can directly follow another: its previous attributes must match the other's
/// state.
fn follows(event: &Value, other: &Value) -> bool {
    let (shown, before) = (&other["data"]["object"], event["data"]["previous_attributes"].as_object());
    match before {
        _ if is_first(event) => false,
        Some(before) if !before.is_empty() => {
            before.iter().all(|(name, before)| contains(&shown[name], before))
        }
        _ => *shown == event["data"]["object"],
    }
}

/// Returns whether a value contains another one. Previous attributes list only a part of the state.
fn contains(whole: &Value, part: &Value) -> bool {
    match (whole, part) {
        (Value::Object(whole), Value::Object(part)) => {
            part.iter().all(|(name, part)| whole.get(name).is_some_and(|whole| contains(whole, part)))
        }
        (Value::Array(whole), Value::Array(part)) => {
            whole.len() == part.len() && whole.iter().zip(part).all(|(whole, part)| contains(whole, part))
        }
        _ => whole == part,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn event(id: &str, kind: &str, created: i64, status: &str, previous: Value) -> Value {
        json!({"id": id, "type": format!("customer.subscription.{kind}"), "created": created,
            "data": {"object": {"id": "sub", "customer": "cus", "status": status, "created": 1,
                "items": {"data": [{"price": {"id": "p"}, "quantity": 1}]}},
                "previous_attributes": previous}})
    }

    #[test]
    fn event_ties_are_ordered_by_previous_attributes() {
        let was = |status: &str| json!({"status": status});
        let cases = [
            // a usual checkout, all within one second
            (
                vec![
                    event("e9", "created", 5, "incomplete", Value::Null),
                    event("e5", "updated", 5, "incomplete", json!({"metadata": {}})),
                    event("e1", "updated", 5, "active", was("incomplete")),
                ],
                "e1",
            ),
            (
                vec![
                    event("e3", "updated", 5, "past_due", was("active")),
                    event("e2", "updated", 5, "unpaid", was("past_due")),
                    event("e1", "updated", 5, "paused", was("unpaid")),
                    event("e0", "updated", 4, "active", was("trialing")),
                ],
                "e1",
            ),
            // an end counts, regardless of its time
            (
                vec![
                    event("e1", "updated", 9, "active", was("past_due")),
                    event("e2", "deleted", 8, "canceled", Value::Null),
                ],
                "e2",
            ),
            // a state that changes back
            (
                vec![
                    event("e9", "created", 5, "active", Value::Null),
                    event("e8", "updated", 5, "past_due", was("active")),
                    event("e7", "paused", 5, "past_due", Value::Null),
                    event("e6", "updated", 5, "unpaid", was("past_due")),
                    event("e2", "updated", 5, "active", was("unpaid")),
                ],
                "e2",
            ),
            // without a first event the order is unknown, so the greatest id wins
            (
                vec![
                    event("e9", "updated", 5, "past_due", was("active")),
                    event("e10", "updated", 5, "active", was("past_due")),
                ],
                "e10",
            ),
            (
                vec![
                    event("e1", "updated", 4, "active", Value::Null),
                    event("e2", "updated", 5, "paused", Value::Null),
                ],
                "e2",
            ),
        ];
        for (mut events, expected) in cases {
            for _ in 0..events.len() {
                for _ in 0..events.len() {
                    events.rotate_left(1);
                    let last = last(&events).unwrap();
                    assert_eq!(last["id"], expected, "{events:?}");
                }
                events.swap(0, 1);
            }
        }
        assert_eq!(last(&[]), None);
    }

    #[test]
    fn previous_attributes_may_be_partial() {
        let whole =
            json!({"data": [{"price": {"id": "p", "active": true}, "quantity": 1}], "has_more": false});
        let cases = [
            (json!({"data": [{"price": {"id": "p"}}]}), true),
            (json!({"data": [{"price": {"id": "q"}}]}), false),
            (json!({"data": []}), false),
            (json!({"gone": 1}), false),
        ];
        for (part, expected) in cases {
            assert_eq!(contains(&whole, &part), expected, "{part}");
        }
    }
}
