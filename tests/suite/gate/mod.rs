//! Tests of reservations and the gate.

mod interleavings;
mod model;
mod outages;
mod races;
mod reservations;
