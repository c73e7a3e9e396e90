//! The gate: decides whether a use may run now.
//!
//! Pure functions over subjects ([`path`]), counters ([`counter`]) and the indexed catalog
//! ([`catalog_index`]). [`decision`] has the results of a decision, [`applicable_cap`] the spend caps and
//! [`reservation`] the life of a reservation. [`state`] has the data that calls are applied to. `limits`,
//! [`credit_coverage`] and `caps` test that data; `changes` and [`calls`] change it.

pub mod applicable_cap;
pub mod calls;
mod caps;
pub mod catalog_index;
mod changes;
pub mod counted_prices;
pub mod counter;
pub mod credit_coverage;
pub mod decision;
mod limits;
pub mod path;
pub mod request;
pub mod reservation;
pub mod state;

pub use applicable_cap::{ApplicableCap, CounterSource, PricedUsage};
pub use calls::{CallOutcome, GateAnswer};
pub use catalog_index::{ApplicableLimit, CatalogIndex, LimitTerms};
pub use counted_prices::{CapMeasure, CountedPrices, CountedSlice};
pub use counter::{CounterKey, CounterPeriod, CounterState, EffectiveFrom};
pub use credit_coverage::{Recorder, RequestedUse};
pub use decision::{CapDenier, Denial, Denier, GrantMode, LimitDenier, LimitState, Reason};
pub use path::{CapTerms, Path, PathSubject};
pub use request::{Commit, Extend, HoldRequest, MeterAmount, OnExpiry, Release, RequestedValue, Reserve};
pub use reservation::{
    CommitResult, Hold, LastCall, Moment, NewReservation, Objection, Record, Refusal, Reservation,
    ReservationFilter, ReservationStatus,
};
pub use state::{
    Counter, CreditLine, CreditLineKey, Credits, GateState, HoldLine, HoldLineKey, LineChange, PaidShare,
    PathRecord, ReservationChange,
};
