//! Recorded use of a meter, on a path.

use metergate_domain::base::{Quantity, Timestamp};
use metergate_domain::catalog::StoredMeter;
use metergate_domain::gate::Path;
use metergate_domain::usage::Properties;
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
