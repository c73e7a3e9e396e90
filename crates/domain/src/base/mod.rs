//! The values that everything else is made of: names, quantities, times, windows, limits, parsing.

pub mod digest;
pub mod environment;
pub mod fields;
pub mod limits;
pub mod names;
pub mod period;
pub mod quantity;
pub mod timestamp;
pub mod window;
