//! Prepaid credits: giving them, taking them back, and showing what became of them.

mod grants;
mod notices;
pub(crate) mod recording;
mod views;
pub(crate) mod wallets;

pub use grants::GrantView;
pub use views::{CreditsView, MovementView};
