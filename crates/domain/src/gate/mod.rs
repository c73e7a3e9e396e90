//! The gate: may this run, now? Pure. [`standing`] has paths and their limits, [`decision`] the test itself,
//! [`reservation`] the life of a reservation. [`state`] has the data that calls are applied to, [`limits`],
//! [`credit_coverage`] and [`caps`] the tests on it, [`changes`] and [`calls`] the changes of it.

pub mod applicable_cap;
pub mod calls;
#[cfg(test)]
mod cap_cases;
mod caps;
#[cfg(test)]
mod cases;
pub mod catalog_index;
mod changes;
pub mod credit_coverage;
pub mod decision;
mod limits;
pub mod request;
pub mod reservation;
pub mod state;
