//! Prepaid credits: grants, voids and views of them.

pub(crate) mod grants;
pub(crate) mod notice_list;
pub(crate) mod notices;
pub(crate) mod recording;
pub(crate) mod tracked;
pub(crate) mod views;
pub(crate) mod wallet_upkeep;
pub(crate) mod wallets;
