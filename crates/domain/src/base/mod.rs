//! Basic values: names, quantities, times, windows, limits, and the parser of input.

pub mod digest;
pub mod environment;
pub mod fields;
pub mod limits;
pub mod names;
pub mod period;
pub mod quantity;
pub mod timestamp;
pub mod window;
