//! Tables of credit grants, wallets and the ledger.

pub mod grants;
pub mod ledger;
pub mod notices;
pub mod verify;
pub mod wallets;
