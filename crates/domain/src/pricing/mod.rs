//! Prices: the exact cost of usage, line by line. All amounts are fractions of minor units of a currency;
//! only the finished line rounds.

pub mod amount;
pub mod cap;
pub mod commitment;
pub mod cost_basis;
pub mod currency;
pub mod exchange;
pub mod forecast;
mod fraction;
pub mod line;
pub mod parts;
pub mod period_costs;
pub mod price;
pub mod price_book;
pub mod quote;
pub mod rating;

pub use amount::{Amount, MinorUnits};
pub use cap::SpendCap;
pub use commitment::Commitment;
pub use cost_basis::CostBasis;
pub use currency::Currency;
pub use exchange::{ExchangeRate, Rates};
pub use forecast::{Method, Outlook, Series};
pub use line::{Bound, LineModel, RatedLine, TierLine};
pub use parts::{MeterTotal, RatedUsage};
pub use period_costs::{Calendar, Day, Forecast, PeriodCosts};
pub use price::{Model, ModelName, Price, RateTier, Round, StripePriceId, Tier};
pub use price_book::{PriceBook, RatedSlice};
pub use quote::{Basis, Quote, QuoteRequest, QuotedUse, Unpriced};
pub use rating::RatedQuantity;
