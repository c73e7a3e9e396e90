//! The gate: may this run, now? Pure functions over subjects ([`path`]), counters ([`counter`]) and the terms of
//! their plans ([`catalog_index`]): the test itself ([`decision`]), spend caps ([`applicable_cap`], [`spending`]),
//! the life of a reservation ([`reservation`]), and the state to which calls are applied in turn ([`book`]).

pub mod applicable_cap;
#[cfg(test)]
mod cap_cases;
pub mod caps;
#[cfg(test)]
mod cases;
pub mod catalog_index;
pub mod counted_prices;
pub mod counter;
pub mod credit_coverage;
pub mod decision;
pub mod path;
pub mod request;
pub mod reservation;
pub mod state;
