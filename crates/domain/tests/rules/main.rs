//! The rules of the domain as tables of cases: reservations, spend caps, prices.

#![expect(clippy::unwrap_used, reason = "a test ends at the first unexpected value")]

mod prices;
mod reservations;
mod spend_caps;
