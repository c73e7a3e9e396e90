//! The life of a reservation: held, then committed, released or expired. Every transition is a function of
//! the present state, a call and a time. This module does not know counters.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::Serialize;
use uuid::Uuid;

use super::catalog_index::CatalogIndex;
use super::request::{
    Commit, Extend, HoldRequest, MeterAmount, OnExpiry, Release, Reserve, validate_amounts,
};
use crate::base::fields::{Violation, Violations};
use crate::base::names::{MeterKey, SubjectId};
use crate::base::quantity::Quantity;
use crate::base::timestamp::Timestamp;
use crate::catalog::meter::{Meter, dimension_value};
use crate::credits::coverage::CreditCoverage;
use crate::usage::event::Properties;

/// The stored status of a reservation. [`Reservation::status`] also applies an expiry that is due but not
/// written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ReservationStatus {
    Held,
    Committed,
    Released,
    Expired,
}

impl ReservationStatus {
    pub const WORDS: [(&'static str, Self); 4] = [
        ("held", Self::Held),
        ("committed", Self::Committed),
        ("released", Self::Released),
        ("expired", Self::Expired),
    ];
}

/// A quantity of one meter, held ahead of the work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hold {
    pub meter: MeterKey,
    pub value: Quantity,
    /// The quantity that commits have recorded so far.
    pub committed: Quantity,
    pub properties: Properties,
    /// The number of event ids tried so far, including ids that were taken by other events.
    pub records: u32,
    /// The credits for the quantity that is still held.
    pub covers: Vec<CreditCoverage>,
}

impl Hold {
    /// Returns the quantity that is not recorded yet.
    fn left(&self) -> Quantity {
        self.value.above(self.committed)
    }
}

/// Returns the holds of a new reservation from its requests and the granted quantities.
pub fn holds(asks: &[HoldRequest], grants: &[Quantity]) -> Vec<Hold> {
    let hold = |(ask, value): (&HoldRequest, &Quantity)| Hold {
        meter: ask.meter.clone(),
        value: *value,
        committed: Quantity::default(),
        properties: ask.properties.clone(),
        records: 0,
        covers: Vec::new(),
    };
    asks.iter().zip(grants).map(hold).collect()
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reservation {
    pub key: Uuid,
    pub id: String,
    pub path_id: i64,
    /// The fingerprint of the request.
    pub content: Uuid,
    pub created_at: Timestamp,
    pub expires_at: Timestamp,
    pub on_expiry: OnExpiry,
    pub status: ReservationStatus,
    pub holds: Vec<Hold>,
    pub over_hold: bool,
    pub late: bool,
    pub reason: Option<String>,
    pub settled_at: Option<Timestamp>,
    /// The last call that recorded use or ended the reservation.
    pub last_call: Option<LastCall>,
}

/// A new reservation, before its creation time is known.
#[derive(Debug, Clone)]
pub struct NewReservation<'a> {
    pub key: Uuid,
    pub id: &'a str,
    pub path_id: i64,
    pub content: Uuid,
    pub ttl_seconds: u32,
    pub on_expiry: OnExpiry,
    pub holds: Vec<Hold>,
}

impl<'a> NewReservation<'a> {
    pub fn of(key: Uuid, id: &'a str, path_id: i64, call: &Reserve, holds: Vec<Hold>) -> Self {
        let (content, ttl_seconds, on_expiry) = (call.content(), call.ttl_seconds, call.on_expiry);
        Self { key, id, path_id, content, ttl_seconds, on_expiry, holds }
    }

    /// Returns the reservation with its creation time.
    pub fn at(self, created_at: Timestamp) -> Reservation {
        Reservation {
            key: self.key,
            id: self.id.to_owned(),
            path_id: self.path_id,
            content: self.content,
            created_at,
            expires_at: created_at.saturating_add(Duration::from_secs(self.ttl_seconds.into())),
            on_expiry: self.on_expiry,
            status: ReservationStatus::Held,
            holds: self.holds,
            over_hold: false,
            late: false,
            reason: None,
            settled_at: None,
            last_call: None,
        }
    }
}

/// The result of the last call, kept so that a retry gets the same answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastCall {
    /// The fingerprint of a commit; nil for other calls.
    pub content: Uuid,
    pub events: Vec<Uuid>,
}

/// An event that a commit will record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub key: Uuid,
    pub meter: MeterKey,
    pub quantity: Quantity,
    pub properties: Properties,
}

/// The time and the conditions of a change.
#[derive(Debug, Clone, Copy)]
pub struct Moment<'a> {
    pub now: Timestamp,
    /// The longest time after its creation in which a reservation can be changed.
    pub age_max: Duration,
    /// The event ids that are taken.
    pub taken: &'a BTreeSet<Uuid>,
}

impl Moment<'_> {
    fn is_too_late_for(&self, reservation: &Reservation) -> bool {
        self.now > reservation.created_at.saturating_add(self.age_max)
    }
}

/// The reasons to refuse a call, other than denials and violations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refusal {
    IdReused,
    NotFound,
    AlreadyCommitted,
    AlreadyReleased,
    BelowCommitted,
    Expired,
    TooOld,
}

impl Refusal {
    pub fn code(self) -> &'static str {
        match self {
            Self::IdReused => "id_reused",
            Self::NotFound => "reservation_not_found",
            Self::AlreadyCommitted => "already_committed",
            Self::AlreadyReleased => "already_released",
            Self::BelowCommitted => "below_committed",
            Self::Expired => "reservation_expired",
            Self::TooOld => "reservation_too_old",
        }
    }

    pub fn detail(self) -> &'static str {
        match self {
            Self::IdReused => "the id is in use for a reservation with other content; use a new id",
            Self::NotFound => "no reservation has this id; check it, or make a new reservation",
            Self::AlreadyCommitted => {
                "the reservation is already committed with other values; record further use as events"
            }
            Self::AlreadyReleased => "the reservation is already released; make a new one",
            Self::BelowCommitted => {
                "the total must not be below what earlier commits recorded; commit at least that and void wrong events"
            }
            Self::Expired => "the reservation is expired; make a new one",
            Self::TooOld => "the reservation is too old to be committed; record the use as events",
        }
    }
}

/// The filter of a reservation list.
#[derive(Debug, Clone, Default)]
pub struct ReservationFilter {
    pub subject: Option<SubjectId>,
    pub status: Option<ReservationStatus>,
}

/// The reasons against a transition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Objection {
    Refused(Refusal),
    Invalid(Violations),
}

impl From<Refusal> for Objection {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<Violations> for Objection {
    fn from(violations: Violations) -> Self {
        Self::Invalid(violations)
    }
}

/// The result of a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommitResult {
    /// The changed reservation and the events to record.
    New { next: Box<Reservation>, records: Vec<Record> },
    /// A commit that was made before, with its events.
    Repeated { events: Vec<Uuid> },
}

impl Reservation {
    /// Returns the present status, including an expiry that is due but not written.
    pub fn status(&self, now: Timestamp) -> ReservationStatus {
        match (self.status, self.on_expiry) {
            (ReservationStatus::Held, OnExpiry::Release) if self.expires_at <= now => {
                ReservationStatus::Expired
            }
            (ReservationStatus::Held, OnExpiry::Commit) if self.expires_at <= now => {
                ReservationStatus::Committed
            }
            (status, _) => status,
        }
    }

    /// Returns the quantity that a hold keeps from other calls. A hold that is charged at its expiry keeps
    /// it until the charge is written.
    pub fn open(&self, hold: &Hold, now: Timestamp) -> Quantity {
        if self.is_holding(now) { hold.left() } else { Quantity::default() }
    }

    pub fn holds_credits(&self) -> bool {
        self.holds.iter().any(|hold| !hold.covers.is_empty())
    }

    pub fn is_holding(&self, now: Timestamp) -> bool {
        self.status == ReservationStatus::Held
            && (self.on_expiry == OnExpiry::Commit || now < self.expires_at)
    }

    /// Returns the reservation after its expiry, with the events that the expiry records. Returns none
    /// before the expiry, and if the reservation has ended otherwise.
    pub fn expired(&self, moment: Moment<'_>) -> Option<(Self, Vec<Record>)> {
        if self.status != ReservationStatus::Held || moment.now < self.expires_at {
            return None;
        }
        let mut next = self.clone();
        next.settled_at = Some(self.expires_at);
        match self.on_expiry {
            OnExpiry::Release => {
                next.status = ReservationStatus::Expired;
                Some((next, Vec::new()))
            }
            OnExpiry::Commit => {
                next.status = ReservationStatus::Committed;
                let totals: Vec<Quantity> =
                    self.holds.iter().map(|hold| hold.value.max(hold.committed)).collect();
                let records = next.record(&totals, moment.taken);
                let events = records.iter().map(|record| record.key).collect();
                next.last_call = Some(LastCall { content: Uuid::nil(), events });
                Some((next, records))
            }
        }
    }

    /// Decides a commit. The caller must apply a due expiry first.
    pub fn commit(
        &self,
        call: &Commit,
        terms: &CatalogIndex,
        moment: Moment<'_>,
    ) -> Result<CommitResult, Objection> {
        self.validate_amounts(&call.values, "values", terms)?;
        let merged = self.merge(call, terms)?;
        let content = call.content();
        let status = self.status(moment.now);
        if let Some(last) = &self.last_call
            && last.content == content
            && (status == ReservationStatus::Committed) == call.is_final
        {
            return Ok(CommitResult::Repeated { events: last.events.clone() });
        }
        let named = |hold: &Hold| call.values.iter().find(|amount| amount.meter == hold.meter);
        let total = |hold: &Hold| match named(hold) {
            Some(amount) if call.is_final => amount.value,
            Some(amount) => amount.value.max(hold.committed),
            None if call.is_final => hold.value.max(hold.committed),
            None => hold.committed,
        };
        let totals: Vec<Quantity> = self.holds.iter().map(total).collect();
        let same_totals = || self.holds.iter().zip(&totals).all(|(hold, total)| hold.committed == *total);
        match status {
            ReservationStatus::Released => return Err(Refusal::AlreadyReleased.into()),
            ReservationStatus::Committed if same_totals() => {
                let events =
                    self.last_call.as_ref().filter(|_| call.is_final).map(|last| last.events.clone());
                return Ok(CommitResult::Repeated { events: events.unwrap_or_default() });
            }
            ReservationStatus::Committed => return Err(Refusal::AlreadyCommitted.into()),
            ReservationStatus::Held | ReservationStatus::Expired => {}
        }
        if moment.is_too_late_for(self) {
            return Err(Refusal::TooOld.into());
        }
        if self.holds.iter().zip(&totals).any(|(hold, total)| *total < hold.committed) {
            return Err(Refusal::BelowCommitted.into());
        }
        let mut next = Self { holds: merged, ..self.clone() };
        let records = next.record(&totals, moment.taken);
        next.late |= status == ReservationStatus::Expired;
        next.over_hold = next.holds.iter().any(|hold| hold.committed > hold.value);
        if call.is_final {
            next.status = ReservationStatus::Committed;
            next.settled_at = Some(moment.now);
        } else if records.is_empty() {
            // A partial commit without new usage changes nothing.
            return Ok(CommitResult::New { next: Box::new(self.clone()), records });
        }
        let events = records.iter().map(|record| record.key).collect();
        next.last_call = Some(LastCall { content, events });
        Ok(CommitResult::New { next: Box::new(next), records })
    }

    /// Raises the committed quantities to the totals. Returns the events for the differences.
    fn record(&mut self, totals: &[Quantity], taken: &BTreeSet<Uuid>) -> Vec<Record> {
        let mut records = Vec::new();
        for (hold, total) in self.holds.iter_mut().zip(totals) {
            let quantity = total.above(hold.committed);
            if quantity.is_zero() {
                continue;
            }
            hold.committed = *total;
            let key = loop {
                hold.records += 1;
                let key = record_key(self.key, self.created_at, hold);
                if !taken.contains(&key) {
                    break key;
                }
            };
            records.push(Record {
                key,
                meter: hold.meter.clone(),
                quantity,
                properties: hold.properties.clone(),
            });
        }
        records
    }

    /// Returns the holds with the properties of a commit merged in. A dimension must keep its value from
    /// the reservation.
    fn merge(&self, call: &Commit, terms: &CatalogIndex) -> Result<Vec<Hold>, Objection> {
        if call.properties.as_map().is_empty() {
            return Ok(self.holds.clone());
        }
        let merge = |hold: &Hold| {
            if let Some(found) = terms.meter(&hold.meter) {
                validate_changed_dimension(&found.meter, hold, &call.properties)?;
            }
            let properties = hold.properties.merged(&call.properties).map_err(under_properties)?;
            Ok(Hold { properties, ..hold.clone() })
        };
        self.holds.iter().map(merge).collect()
    }

    fn validate_amounts(
        &self,
        amounts: &[MeterAmount],
        under: &str,
        terms: &CatalogIndex,
    ) -> Result<(), Objection> {
        let aggregation = |meter: &MeterKey| {
            self.holds.iter().find(|hold| hold.meter == *meter)?;
            Some(terms.meter(meter)?.meter.aggregation)
        };
        Ok(validate_amounts(amounts, under, aggregation)?)
    }

    /// Returns the released reservation. Returns none if it was released before or has expired. The caller
    /// must apply a due expiry first.
    pub fn release(&self, call: &Release, moment: Moment<'_>) -> Result<Option<Self>, Refusal> {
        match self.status(moment.now) {
            ReservationStatus::Committed => Err(Refusal::AlreadyCommitted),
            ReservationStatus::Released | ReservationStatus::Expired => Ok(None),
            ReservationStatus::Held if moment.is_too_late_for(self) => Err(Refusal::TooOld),
            ReservationStatus::Held => Ok(Some(Self {
                status: ReservationStatus::Released,
                reason: call.reason.clone(),
                settled_at: Some(moment.now),
                last_call: Some(LastCall { content: Uuid::nil(), events: Vec::new() }),
                ..self.clone()
            })),
        }
    }

    /// Returns the reservation with a new expiry and new totals. The caller must test the totals against
    /// the counters.
    pub fn extend(&self, call: &Extend, terms: &CatalogIndex, moment: Moment<'_>) -> Result<Self, Objection> {
        self.validate_amounts(&call.holds, "holds", terms)?;
        match self.status(moment.now) {
            ReservationStatus::Committed => return Err(Refusal::AlreadyCommitted.into()),
            ReservationStatus::Released => return Err(Refusal::AlreadyReleased.into()),
            ReservationStatus::Expired => return Err(Refusal::Expired.into()),
            ReservationStatus::Held if moment.is_too_late_for(self) => return Err(Refusal::TooOld.into()),
            ReservationStatus::Held => {}
        }
        let mut next = self.clone();
        if let Some(seconds) = call.ttl_seconds {
            next.expires_at = moment.now.saturating_add(Duration::from_secs(seconds.into()));
        }
        for hold in &mut next.holds {
            let Some(amount) = call.holds.iter().find(|amount| amount.meter == hold.meter) else { continue };
            if amount.value < hold.committed {
                return Err(Refusal::BelowCommitted.into());
            }
            hold.value = amount.value;
        }
        next.over_hold = next.holds.iter().any(|hold| hold.committed > hold.value);
        Ok(next)
    }
}

fn validate_changed_dimension(meter: &Meter, hold: &Hold, over: &Properties) -> Result<(), Objection> {
    let changed = meter.dimensions.iter().find(|dimension| {
        let (old, new) = (hold.properties.get(dimension.as_str()), over.get(dimension.as_str()));
        new.is_some_and(|new| dimension_value(new) != old.and_then(dimension_value))
    });
    let Some(dimension) = changed else { return Ok(()) };
    let detail =
        format!("must keep the value from the hold on `{}`; record other use as a separate event", meter.key);
    let violation = Violation::new("dimension_changed", detail).under(dimension.as_str()).under("properties");
    Err(Objection::Invalid(violation.into()))
}

fn under_properties(violations: Violations) -> Objection {
    Objection::Invalid(violations.under("properties"))
}

/// Returns the key, which is also the id, of an event that records a hold.
///
/// The key is a UUIDv7 (RFC 9562, section 5.7) with the creation time of the reservation. Its random part
/// is a digest of the reservation, the meter and a number. So the same record always gets the same id, and
/// the index keeps records in order of time.
fn record_key(reservation: Uuid, created_at: Timestamp, hold: &Hold) -> Uuid {
    let mut digest = crate::base::digest::Digest::default();
    digest.bytes(reservation.as_bytes()).text(hold.meter.as_str()).number(hold.records.into());
    let digest = digest.finish();
    let millis = u64::try_from(created_at.micros().div_euclid(1_000)).unwrap_or_default();
    let mut random = [0; 10];
    random.copy_from_slice(&digest.as_bytes()[..10]);
    uuid::Builder::from_unix_timestamp_millis(millis, &random).into_uuid()
}
