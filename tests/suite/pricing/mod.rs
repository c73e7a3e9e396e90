//! Prices, costs and spend caps.

mod prices;
mod spend_caps;
