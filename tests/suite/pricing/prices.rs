//! What usage costs: quotes, exchange rates, the cost in the usage report.

mod ahead;
mod catalog;
mod commitments;
mod costs;
mod quotes;
mod ranking;
mod rates;
