//! Command line, settings, start and stop. This layer assembles all others.

pub mod cli;
mod commands;
mod database;
mod first_run;
pub mod logging;
mod output;
mod serve;
pub mod settings;

pub use serve::{Service, serve};

/// The allocator. Requests allocate and free many small values across threads, which costs a tenth of their
/// time with glibc's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
