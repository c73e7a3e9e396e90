//! Tables of exchange rates, spend caps and event fees.

pub mod exchange_rates;
pub mod spend_caps;
