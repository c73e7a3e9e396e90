//! Recorded use of a meter, on a path.

use super::wallets::{HolderSubscriptions, LockedWallets, WalletLoader, add_holder};
use crate::engine::gate::counters::Additions;
use crate::store::Scope;
use crate::store::credits::wallets::Changes;
use crate::store::credits::{grants, ledger};
use crate::store::gate::counters::CounterRow;
use crate::store::{self, StoreError};
use metergate_domain::base::names::MeterKey;
use metergate_domain::base::quantity::{Quantity, Total};
use metergate_domain::base::timestamp::Timestamp;
use metergate_domain::catalog::meter::StoredMeter;
use metergate_domain::credits::accounts::Cause;
use metergate_domain::credits::cost::share;
use metergate_domain::gate::counter::CounterKey;
use metergate_domain::gate::credit_coverage::{Recorder, RequestedUse};
use metergate_domain::gate::path::Path;
use metergate_domain::gate::request::OnExpiry;
use metergate_domain::gate::reservation::Moment;
use metergate_domain::gate::state::{Counter, GateState, PaidShare};
use metergate_domain::pricing::amount::Amount;
use metergate_domain::usage::event::Properties;
use sqlx::PgConnection;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use uuid::Uuid;

/// An event as counted by one meter.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tracked<'a> {
    pub(crate) path: &'a Path,
    pub(crate) stored: &'a StoredMeter,
    pub(crate) properties: &'a Properties,
    pub(crate) quantity: Quantity,
    pub(crate) at: Timestamp,
    pub(crate) event: Uuid,
}
