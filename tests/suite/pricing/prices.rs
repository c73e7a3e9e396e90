//! The cost of usage: quotes, exchange rates, rankings, and the cost in the usage report.

mod ahead;
mod catalog;
mod commitments;
mod costs;
mod quotes;
mod ranking;
mod rates;
