//! The state that the gate decides on: locked counters and reservations, with the changes by calls. This
//! module holds data only. [`super::limits`], [`super::credit_coverage`], [`super::caps`] and
//! [`super::calls`] have the rules.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use uuid::Uuid;

use super::catalog_index::CatalogIndex;
use super::counter::{CounterKey, CounterState};
use super::path::Path;
use super::request::OnExpiry;
use super::reservation::{Moment, Record, Reservation};
use crate::base::quantity::{Quantity, Total};
use crate::base::timestamp::Timestamp;
use crate::credits::wallet::Wallet;

/// A counter under its lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counter {
    pub level: CounterState,
    /// A lower bound of the expiry of its hold lines.
    pub next_expiry: Option<Timestamp>,
    /// The value of a checked gauge after the call.
    pub becomes: Option<Total>,
}

impl Counter {
    /// Returns whether the counter state may include an expired hold line.
    pub fn may_have_expired(&self, now: Timestamp) -> bool {
        self.next_expiry.is_some_and(|at| at <= now)
    }
}

impl CounterState {
    /// Returns the counter state without an expired hold line.
    #[must_use]
    pub fn without_expired(self, line: &HoldLine) -> Self {
        let (held, covered) = (self.held - line.quantity.into(), self.covered - line.covered);
        Self { held, covered, ..self }
    }
}

/// The identity of a hold line: one reservation on one counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HoldLineKey {
    pub counter: CounterKey,
    pub expires_at: Timestamp,
    pub reservation: Uuid,
}

/// The quantity that a reservation holds on a counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HoldLine {
    pub quantity: Quantity,
    /// The part of the quantity that credits cover.
    pub covered: Total,
    pub on_expiry: OnExpiry,
}

/// The change of a hold line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LineChange {
    pub was_there: bool,
    pub line: Option<HoldLine>,
}

/// The change of a reservation's row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReservationChange {
    Made,
    Altered,
}

/// An event to record, and the path of its subject.
#[derive(Debug, Clone)]
pub struct PathRecord {
    pub path: Arc<Path>,
    pub at: Timestamp,
    pub record: Record,
}

/// The wallets that a batch may use, and the changes of the credits held in them.
#[derive(Debug, Default)]
pub struct Credits {
    pub wallets: BTreeMap<i64, Wallet>,
    /// The credit lines to write; none deletes a line.
    pub lines: BTreeMap<CreditLineKey, Option<CreditLine>>,
    pub paid: Vec<PaidShare>,
}

/// The identity of a credit line: one reservation on one grant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct CreditLineKey {
    pub grant: Uuid,
    pub expires_at: Timestamp,
    pub reservation: Uuid,
}

/// The amount that a reservation holds of a grant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CreditLine {
    pub subject_id: i64,
    pub on_expiry: OnExpiry,
    pub amount: Total,
}

/// The part of an event's counted quantity that credits have paid for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PaidShare {
    pub subject_id: i64,
    pub definition: Uuid,
    pub at: Timestamp,
    pub event: Uuid,
    pub quantity: Total,
}

/// The state to which calls are applied one after the other. The caller loads it under locks and writes its
/// changes.
#[derive(Debug)]
pub struct GateState<'a> {
    pub terms: &'a CatalogIndex,
    pub moment: Moment<'a>,
    pub paths: HashMap<i64, Arc<Path>>,
    pub counters: BTreeMap<CounterKey, Counter>,
    pub reservations: HashMap<Uuid, Reservation>,
    pub credits: Credits,
    /// The changes of hold lines to write.
    pub lines: BTreeMap<HoldLineKey, LineChange>,
    pub changed: BTreeMap<Uuid, ReservationChange>,
    pub entries: Vec<PathRecord>,
}

impl<'a> GateState<'a> {
    /// Returns an empty state.
    pub fn open(terms: &'a CatalogIndex, moment: Moment<'a>) -> Self {
        Self {
            terms,
            moment,
            paths: HashMap::new(),
            counters: BTreeMap::new(),
            reservations: HashMap::new(),
            credits: Credits::default(),
            lines: BTreeMap::new(),
            changed: BTreeMap::new(),
            entries: Vec::new(),
        }
    }
}
