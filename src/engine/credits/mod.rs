//! Prepaid credits: granting, voiding and showing them.

mod grants;
mod notices;
pub(crate) mod recording;
mod views;
pub(crate) mod wallets;

pub use grants::GrantView;
pub use views::{CreditsView, MovementView};
