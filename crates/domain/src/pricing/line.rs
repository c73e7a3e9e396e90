//! Lines of a cost or a bill. Each line rounds once.

use serde::Serialize;

use super::amount::{Amount, MinorUnits};
use super::exchange::ExchangeRate;
use super::price::ModelName;
use crate::base::names::{ItemKey, MeterKey};
use crate::base::quantity::{Quantity, Total};
use crate::catalog::meter::Filter;

/// The amount of a price, or the amount that a bound adds to the other lines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RatedLine {
    /// The key of the price; none for a bound.
    pub price: Option<ItemKey>,
    pub meter: Option<MeterKey>,
    #[serde(skip_serializing_if = "Filter::is_empty")]
    pub filter: Filter,
    pub model: LineModel,
    pub quantity: Total,
    /// The exact amount in minor units.
    pub amount: Amount,
    pub rounded_amount: MinorUnits,
    /// The parts of the tiers of a tiered price. None for other prices.
    pub tiers: Vec<TierLine>,
    /// The amount that a minimum or a maximum of the price adds or takes off.
    #[serde(skip_serializing_if = "Amount::is_zero")]
    pub adjustment: Amount,
    /// The minimum or maximum for the sum of all lines; only for a bound.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bound: Option<MinorUnits>,
}

/// The source of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum LineModel {
    Price(ModelName),
    Bound(Bound),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TierLine {
    pub up_to: Option<Quantity>,
    pub quantity: Amount,
    pub unit_amount: Amount,
    pub flat_amount: Amount,
    pub amount: Amount,
}

/// A bound on the sum of all lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    Minimum,
    Maximum,
}

impl RatedLine {
    /// Returns the line in another currency, rounded in the minor units of that currency.
    #[must_use]
    pub fn converted(&self, rate: &ExchangeRate) -> Self {
        let mut line = self.clone();
        line.amount = rate.converted(&line.amount);
        line.adjustment = rate.converted(&line.adjustment);
        line.rounded_amount = line.amount.rounded();
        for tier in &mut line.tiers {
            tier.unit_amount = rate.converted(&tier.unit_amount);
            tier.flat_amount = rate.converted(&tier.flat_amount);
            tier.amount = rate.converted(&tier.amount);
        }
        line
    }
}
