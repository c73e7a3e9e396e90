//! The gate: may this run, now? Pure: who stands where and which limits meet a use ([`standing`]),
//! the test itself ([`decision`]), what may be spent ([`budget`], [`spending`]), what a reservation goes through ([`reservation`]), and a book of
//! counters and reservations to which calls are applied one after the other ([`book`]).

pub mod book;
pub mod budget;
#[cfg(test)]
mod cap_cases;
#[cfg(test)]
mod cases;
pub mod covering;
pub mod decision;
pub mod request;
pub mod reservation;
pub mod spending;
pub mod standing;
