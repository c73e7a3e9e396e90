//! The gate: may this run, now? Pure: who stands where and which limits meet a use ([`standing`]),
//! the test itself ([`decision`]), what may be spent ([`budget`], [`spending`]), what a reservation goes through ([`reservation`]), and a book of
//! counters and reservations to which calls are applied one after the other ([`book`]).

pub mod applicable_cap;
#[cfg(test)]
mod cap_cases;
pub mod caps;
#[cfg(test)]
mod cases;
pub mod catalog_index;
pub mod credit_coverage;
pub mod decision;
pub mod request;
pub mod reservation;
pub mod state;
