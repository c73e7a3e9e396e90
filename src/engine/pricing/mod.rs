//! Prices, exchange rates, costs and spend caps.

pub(crate) mod costs;
pub(crate) mod priced_usage;
pub(crate) mod prices;
pub(crate) mod spend_caps;
