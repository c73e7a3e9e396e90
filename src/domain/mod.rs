//! The rules of metering, free of I/O, async and clocks: what may be said, what it means, what
//! counts where. Everything that enters is parsed here into types that cannot be wrong.

pub mod billed;
pub mod catalog;
pub mod credits;
pub mod digest;
pub mod drop_in;
pub mod environment;
pub mod event;
pub mod export;
pub mod fields;
pub mod forecast;
pub mod gate;
pub mod invoice;
pub mod limits;
pub mod meter;
pub mod names;
pub mod period;
pub mod plan;
pub mod pricing;
pub mod quantity;
pub mod reading;
pub mod statement;
pub mod subscription;
pub mod timestamp;
pub mod top;
pub mod tree;
pub mod usage;
pub mod window;
