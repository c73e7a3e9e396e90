//! Command line, settings, start and stop: the one place where everything is put together.

pub mod cli;
mod commands;
mod database;
pub mod logging;
mod serve;
pub mod settings;

pub use serve::{Service, serve};
