//! The rules of metering, free of I/O, async and clocks: what may be said, what it means, what
//! counts where. Everything that enters is parsed here into types that cannot be wrong.

pub mod catalog;
pub mod environment;
pub mod event;
pub mod fields;
pub mod limits;
pub mod meter;
pub mod names;
pub mod plan;
pub mod quantity;
pub mod timestamp;
pub mod tree;
pub mod usage;
pub mod window;
