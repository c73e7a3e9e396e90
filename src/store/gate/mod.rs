//! Tables of counters, hold lines and reservations.

pub mod batches;
pub mod counters;
pub mod fast_path;
pub mod gate_writes;
pub mod hold_lines;
pub mod reservations;
