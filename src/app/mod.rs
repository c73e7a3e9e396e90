//! Command line, settings, start and stop: the one place where everything is put together.

pub mod cli;
mod commands;
mod database;
pub mod logging;
mod serve;
pub mod settings;

pub use serve::{Service, serve};

/// Calls make and drop many small things, on one thread and the other: glibc spends a tenth of their
/// time on that.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
