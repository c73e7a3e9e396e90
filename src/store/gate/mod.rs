//! Tables of counters, hold lines and reservations.

pub mod batches;
pub mod counters;
pub mod fast_path;
pub mod hold_lines;
pub mod reservations;
pub mod settlement;
