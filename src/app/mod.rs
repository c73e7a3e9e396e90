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

/// The allocator. Calls allocate and free many small values across threads, on which glibc's allocator spends
/// a tenth of their time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
