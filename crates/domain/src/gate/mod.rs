//! The gate: may this run, now? Pure functions over subjects ([`path`]), counters ([`counter`]) and the terms of
//! their plans ([`catalog_index`]): the test itself ([`decision`]), spend caps ([`applicable_cap`]) and the life of
//! a reservation ([`reservation`]). [`state`] has the data that calls are applied to, `limits`,
//! [`credit_coverage`] and `caps` the tests on it, `changes` and [`calls`] the changes of it.

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

#[cfg(test)]
mod cap_cases;
#[cfg(test)]
mod cases;
