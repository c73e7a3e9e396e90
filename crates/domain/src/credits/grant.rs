//! A grant: prepaid credits for a subject, with a start and an optional expiry. A grant never changes; the
//! ledger records its use.

use std::time::Duration;

use serde::Serialize;
use serde_json::Value;
use uuid::Uuid;

use super::recurrence::{Recurrence, Rollover};
use super::unit::{Unit, above_zero};
use crate::base::digest::Digest;
use crate::base::fields::{self, ObjectParser, Parsed, Violation};
use crate::base::limits::{CREDIT_LIFE_DAYS_MAX, CREDIT_PRIORITY_MAX, REASON_CHARS_MAX};
use crate::base::names::{EventId, ItemKey};
use crate::base::quantity::Quantity;
use crate::base::timestamp::Timestamp;

/// The source of credits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum GrantSource {
    Purchase,
    Grant,
    Refund,
    Manual,
    /// Granted by the plan in each period.
    Plan,
}

impl GrantSource {
    pub const WORDS: [(&'static str, Self); 5] = [
        ("purchase", Self::Purchase),
        ("grant", Self::Grant),
        ("refund", Self::Refund),
        ("manual", Self::Manual),
        ("plan", Self::Plan),
    ];

    pub fn as_str(self) -> &'static str {
        Self::WORDS.iter().find(|(_, source)| *source == self).map_or("", |(word, _)| word)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    pub id: Uuid,
    pub unit: Unit,
    /// The amount without the carried credits.
    pub amount: Quantity,
    /// The priority; the lowest number is spent first.
    pub priority: i32,
    pub effective_at: Timestamp,
    /// The expiry. None means that the grant never expires.
    pub expires_at: Option<Timestamp>,
    pub source: GrantSource,
    pub external_ref: Option<String>,
    /// The name of the recurring series that the grant belongs to.
    pub series: Option<String>,
    /// The recurrence after the first period. None for a plan's grant, because the plan defines it.
    pub recurrence: Option<Recurrence>,
    pub rollover: Rollover,
    /// The ledger id of the refunded spend.
    pub refund_of: Option<i64>,
    pub reason: Option<String>,
    pub created_at: Timestamp,
    pub voided_at: Option<Timestamp>,
}

impl Grant {
    pub fn is_expired(&self, now: Timestamp) -> bool {
        self.expires_at.is_some_and(|at| at <= now)
    }

    /// Returns whether the grant may be spent at an instant.
    pub fn is_good(&self, now: Timestamp) -> bool {
        self.effective_at <= now && !self.is_expired(now) && self.voided_at.is_none()
    }

    /// Returns the sort key of the spending order: priority, then expiry, then age.
    pub fn rank(&self) -> (i32, Timestamp, Timestamp, Uuid) {
        (self.priority, self.expires_at.unwrap_or(Timestamp::MAX), self.created_at, self.id)
    }
}

/// A request for a grant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub unit: Unit,
    pub amount: Quantity,
    pub priority: i32,
    pub effective_at: Option<Timestamp>,
    pub expires_at: Option<Timestamp>,
    pub expires_after: Option<Duration>,
    pub source: GrantSource,
    pub external_ref: Option<String>,
    pub recurrence: Option<Recurrence>,
    pub rollover: Rollover,
    pub refund_of: Option<i64>,
    pub reason: Option<String>,
}

impl Request {
    pub fn read(value: Value) -> Parsed<Self> {
        let mut fields = ObjectParser::new(value)?;
        let unit = Unit::take(&mut fields);
        let amount = fields.required("amount", above_zero);
        let priority = fields.optional("priority", priority).unwrap_or_default();
        let effective_at = fields.optional("effective_at", fields::timestamp);
        let expires_at = fields.optional("expires_at", fields::timestamp);
        let expires_after = fields.optional("expires_after", life);
        let source = fields.optional("source", |v| fields::one_of(v, &GrantSource::WORDS[..4]));
        let external_ref = fields.optional("external_ref", |v| Ok(EventId::parse(fields::text(v)?)?));
        let (recurrence, rollover) = Recurrence::take(&mut fields);
        let refund_of = fields.optional("refund_of", ledger_number);
        let reason = fields.optional("reason", reason);
        if expires_at.is_some() && expires_after.is_some() {
            let detail = "must not be given together with `expires_at`; leave one of them out";
            fields.add_error(Violation::new("ambiguous_expiry", detail).under("expires_after"));
        }
        if let (Some(from), Some(to)) = (effective_at, expires_at)
            && to <= from
        {
            let detail = "must be after `effective_at`";
            fields.add_error(Violation::new("invalid_range", detail).under("expires_at"));
        }
        if refund_of.is_some() && source != Some(GrantSource::Refund) {
            let detail = "must only be given with `source: refund`; set `source` or leave `refund_of` out";
            fields.add_error(Violation::new("not_a_refund", detail).under("refund_of"));
        }
        if refund_of.is_some() && recurrence.is_some() {
            let detail = "must not be given together with `refund_of`, because a refund is granted once; leave one of them out";
            fields.add_error(Violation::new("recurring_refund", detail).under("period"));
        }
        let (unit, amount) = fields.finish_with((unit, amount))?;
        Ok(Self {
            unit,
            amount,
            priority,
            effective_at,
            expires_at,
            expires_after,
            source: source.unwrap_or(GrantSource::Manual),
            external_ref: external_ref.map(EventId::into_string),
            recurrence,
            rollover,
            refund_of,
            reason,
        })
    }

    /// Returns a digest of the request and the subject, to recognise a repeated request.
    pub fn content(&self, subject: &str) -> Uuid {
        let (kind, key) = self.unit.kept();
        let time = |at: Option<Timestamp>| at.map_or_else(String::new, |at| at.to_string());
        let said = (
            subject,
            (kind, key),
            (self.amount, self.priority, self.source, &self.rollover),
            (time(self.effective_at), time(self.expires_at), self.expires_after.map(|life| life.as_secs())),
            (&self.recurrence, self.refund_of),
        );
        // names, numbers and words always serialise
        Digest::default().bytes(&serde_json::to_vec(&said).unwrap_or_default()).finish()
    }

    /// Builds the grant at an instant; refuses one that expires before it takes effect.
    pub fn granted(&self, id: Uuid, now: Timestamp) -> Parsed<Grant> {
        let effective_at = self.effective_at.unwrap_or(now);
        let end = self.expires_at.or_else(|| Some(effective_at.saturating_add(self.expires_after?)));
        if end.is_some_and(|end| end <= effective_at || end <= now) {
            let violation =
                Violation::new("invalid_range", "must be in the future and after the grant takes effect");
            return Err(violation.under("expires_at").into());
        }
        let recurrence = self.recurrence.clone().map(|given| given.beginning(effective_at, end));
        let turn = recurrence.as_ref().map(|given| given.period_around(effective_at, None).to);
        Ok(Grant {
            id,
            unit: self.unit.clone(),
            amount: self.amount,
            priority: self.priority,
            effective_at,
            expires_at: [turn, end].into_iter().flatten().min(),
            source: self.source,
            external_ref: self.external_ref.clone(),
            series: recurrence.as_ref().map(|_| id.to_string()),
            recurrence,
            rollover: self.rollover,
            refund_of: self.refund_of,
            reason: self.reason.clone(),
            created_at: now,
            voided_at: None,
        })
    }
}

pub fn priority(value: Value) -> Parsed<i32> {
    let given = fields::quantity(value)?;
    let units = crate::base::quantity::Total::from(given).units();
    match i32::try_from(units) {
        Ok(priority) if given.is_whole() && (0..=CREDIT_PRIORITY_MAX).contains(&priority) => Ok(priority),
        _ => Violation::only(
            "invalid_value",
            format!("must be a whole number from 0 to {CREDIT_PRIORITY_MAX}; the lowest is spent first"),
        ),
    }
}

/// Reads a duration such as `12h` or `30d`.
pub fn life(value: Value) -> Parsed<Duration> {
    let text = fields::text(value)?;
    let seconds = |unit: char| match unit {
        's' => Some(1),
        'm' => Some(60),
        'h' => Some(3_600),
        'd' => Some(86_400),
        _ => None,
    };
    let read = || {
        let unit = text.chars().last()?;
        let count: u64 = text[..text.len() - unit.len_utf8()].parse().ok()?;
        let seconds = count.checked_mul(seconds(unit)?)?;
        (1..=CREDIT_LIFE_DAYS_MAX * 86_400).contains(&seconds).then(|| Duration::from_secs(seconds))
    };
    match read() {
        Some(life) => Ok(life),
        None => Violation::only(
            "invalid_duration",
            "must be a duration such as `90d` or `12h`, at most 100 years",
        ),
    }
}

fn ledger_number(value: Value) -> Parsed<i64> {
    match value.as_i64() {
        Some(number) => Ok(number),
        None => Violation::only("invalid_type", "must be the `id` of a movement in the ledger"),
    }
}

pub fn reason(value: Value) -> Parsed<String> {
    let text = fields::text(value)?;
    if text.chars().count() > REASON_CHARS_MAX || text.contains('\0') {
        let detail =
            format!("must have at most {REASON_CHARS_MAX} characters and must not contain the NUL character");
        return Violation::only("too_long", detail);
    }
    Ok(text)
}

/// A request to void a grant, with an optional reason.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct VoidRequest {
    pub reason: Option<String>,
}

impl VoidRequest {
    pub fn read(value: Value) -> Parsed<Self> {
        let mut fields = ObjectParser::new(value)?;
        let reason = fields.optional("reason", reason);
        fields.finish()?;
        Ok(Self { reason })
    }
}

/// Returns the id of the grant of a series in a period. The id is deterministic, so concurrent writers create
/// the same grant.
pub fn series_id(subject_id: i64, series: &str, period_start: Timestamp) -> Uuid {
    let said = (subject_id, series, period_start.micros());
    let digest = Digest::default().bytes(&serde_json::to_vec(&said).unwrap_or_default()).finish();
    uuid::Builder::from_custom_bytes(digest.into_bytes()).into_uuid()
}

/// Returns the series name of a plan's grant. The prefix separates it from the series of callers, which are
/// named by a grant id.
pub fn plan_series(key: &ItemKey) -> String {
    format!("plan:{key}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn at(text: &str) -> Timestamp {
        Timestamp::parse(text).unwrap()
    }

    #[test]
    fn invalid_grants_are_refused_with_their_pointer() {
        let good = json!({"meter": "m", "amount": 5});
        let cases = [
            ("amount", json!(0), "/amount", "invalid_value"),
            ("amount", json!(-1), "/amount", "invalid_value"),
            ("amount", json!("x"), "/amount", "invalid_value"),
            ("amount", json!(null), "/amount", "missing_field"),
            ("meter", json!(null), "", "missing_field"),
            ("currency", json!("usd"), "", "ambiguous_unit"),
            ("priority", json!(-1), "/priority", "invalid_value"),
            ("priority", json!(1.5), "/priority", "invalid_value"),
            ("expires_after", json!("1y"), "/expires_after", "invalid_duration"),
            ("expires_after", json!("0d"), "/expires_after", "invalid_duration"),
            ("expires_after", json!("99999d"), "/expires_after", "invalid_duration"),
            ("source", json!("plan"), "/source", "invalid_choice"),
            ("external_ref", json!(""), "/external_ref", "empty"),
            ("refund_of", json!(5), "/refund_of", "not_a_refund"),
            ("rollover", json!({"max": 5}), "/rollover", "missing_field"),
            ("renews", json!(true), "/renews", "missing_field"),
            ("color", json!(1), "/color", "unknown_field"),
        ];
        for (field, value, pointer, code) in cases {
            let mut request = good.clone();
            request[field] = value;
            let violations = Request::read(request.clone()).unwrap_err();
            assert_eq!((violations[0].pointer.as_str(), violations[0].code), (pointer, code), "{request}");
        }
        let again = json!({"meter": "m", "amount": 5, "source": "refund", "refund_of": 5, "period": "month"});
        let violations = Request::read(again).unwrap_err();
        assert_eq!((violations[0].pointer.as_str(), violations[0].code), ("/period", "recurring_refund"));
    }

    #[test]
    fn grants_end_at_their_expiry_or_with_their_period() {
        let now = at("2026-01-31T10:00:00Z");
        let end = |more: Value| {
            let mut request = json!({"meter": "m", "amount": 5});
            request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            let granted = Request::read(request).unwrap().granted(Uuid::nil(), now);
            granted
                .map(|grant| grant.expires_at.map(|at| at.to_string()))
                .map_err(|violations| violations[0].code)
        };
        let cases = [
            (json!({}), Ok(None)),
            (json!({"expires_after": "30d"}), Ok(Some("2026-03-02T10:00:00Z"))),
            (json!({"expires_at": "2026-02-01T00:00:00Z"}), Ok(Some("2026-02-01T00:00:00Z"))),
            (json!({"expires_at": "2026-01-01T00:00:00Z"}), Err("invalid_range")),
            (json!({"period": "month"}), Ok(Some("2026-02-28T10:00:00Z"))),
            (
                json!({"period": "month", "effective_at": "2026-03-31T00:00:00Z"}),
                Ok(Some("2026-04-30T00:00:00Z")),
            ),
            (
                json!({"period": "month", "expires_at": "2026-02-10T00:00:00Z"}),
                Ok(Some("2026-02-10T00:00:00Z")),
            ),
        ];
        for (more, expected) in cases {
            assert_eq!(
                end(more.clone()).as_ref().map(Option::as_deref).map_err(|code| *code),
                expected,
                "{more}"
            );
        }
    }

    #[test]
    fn content_hash_includes_the_amount() {
        let content = |amount: i64, reason: &str| {
            let request = json!({"meter": "m", "amount": amount, "reason": reason});
            Request::read(request).unwrap().content("s")
        };
        assert_eq!(content(5, "a"), content(5, "b"));
        assert_ne!(content(5, "a"), content(6, "a"));
    }
}
