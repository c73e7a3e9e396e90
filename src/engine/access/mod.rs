//! Credentials: API keys and end-user tokens, each for exactly one environment.

pub mod gatekeeper;
pub(crate) mod key_administration;
pub mod keys;
pub mod principal;
pub(crate) mod token_minting;
pub mod tokens;

pub use principal::{Principal, Role};
