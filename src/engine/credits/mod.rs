//! Prepaid credits: granting, voiding and showing them.

pub(crate) mod grants;
pub(crate) mod notices;
pub(crate) mod recording;
pub(crate) mod views;
pub(crate) mod wallets;
