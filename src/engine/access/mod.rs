//! Credentials: API keys and end-user tokens, each for exactly one environment.

pub mod gatekeeper;
pub mod keys;
pub mod tokens;

pub use gatekeeper::{Principal, Role};
