//! Prices: the exact cost of usage, line by line. All amounts are fractions of minor units of a currency;
//! only the finished line rounds.

pub mod amount;
pub mod cap;
#[cfg(test)]
mod cases;
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
