//! Prepaid credits: grants of a subject that are spent in a fixed order. Every movement is a transfer between
//! two accounts. This module is independent of storage.

pub mod accounts;
pub mod catalog;
pub mod cost;
pub mod coverage;
pub mod grant;
pub mod grant_lifecycle;
pub mod notice;
pub mod offers;
pub mod recurrence;
pub mod unit;
pub mod wallet;

pub use accounts::{Cause, LedgerAccount, Movement, MovementKind};
pub use cost::{CostedUse, CountedLimit, RateStep, UnitRate};
pub use coverage::{CoverageShare, CreditCoverage};
pub use grant::{Grant, GrantSource, Request, VoidRequest};
pub use grant_lifecycle::GrantSchedule;
pub use notice::{NoticeFilter, NoticeKind};
pub use offers::{CreditAlert, CreditPack, PlanCredits};
pub use recurrence::{Recurrence, Rollover};
pub use unit::{Cost, CreditUnit, Unit};
