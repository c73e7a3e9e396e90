//! Rating: turns usage into a line with its tiers. Amounts are exact until the line rounds, once.

use super::amount::Amount;
use super::line::{LineModel, RatedLine, TierLine};
use super::price::{Model, Price, Round, Tier};
use crate::base::quantity::{Quantity, Total};

/// The quantity used of the slice that a price rates.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RatedQuantity {
    pub quantity: Total,
    /// The sum of the fees of single events; only for percentage prices.
    pub event_fees: Amount,
}

impl RatedQuantity {
    /// Returns the quantity of events with some values.
    pub fn of_values(price: &Price, values: impl Iterator<Item = Quantity>) -> Self {
        values.fold(Self::default(), |used, value| Self {
            quantity: used.quantity + value.into(),
            event_fees: used.event_fees + price.model.event_fee(&value.into()).unwrap_or_default(),
        })
    }

    /// Returns the quantity of `events` events that sum to `quantity`. This is not enough for a price that
    /// bounds the fee of each event.
    pub fn of_sum(price: &Price, quantity: Total, events: i64) -> Self {
        let event_fees = match &price.model {
            Model::Percentage { rate, fixed_amount, .. } => {
                rate.percent_of(&Amount::of(quantity)) + fixed_amount * &Amount::from_minor_units(events)
            }
            _ => Amount::default(),
        };
        Self { quantity, event_fees }
    }
}

impl std::ops::Add for RatedQuantity {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { quantity: self.quantity + other.quantity, event_fees: self.event_fees + other.event_fees }
    }
}

impl Price {
    /// Rates a used quantity.
    pub fn rate(&self, used: &RatedQuantity) -> RatedLine {
        let (rated, tiers) = self.rated(used);
        let amount = self.within_bounds(used, rated.clone());
        RatedLine {
            price: Some(self.key.clone()),
            meter: self.meter.clone(),
            filter: self.filter.clone(),
            model: LineModel::Price(self.model.name()),
            quantity: used.quantity,
            rounded_amount: amount.rounded(),
            adjustment: amount.clone() - rated,
            amount,
            tiers,
            bound: None,
        }
    }

    /// Returns the exact amount without a line.
    pub fn cost(&self, used: &RatedQuantity) -> Amount {
        let (rated, _) = self.rated(used);
        self.within_bounds(used, rated)
    }

    /// Returns the highest cost of any quantity between two quantities. Tries the end of each tier,
    /// because a larger quantity of a volume price may cost less.
    pub fn highest_cost(&self, used: &RatedQuantity, at_most: &RatedQuantity) -> Amount {
        let mut highest = self.cost(used).max(self.cost(at_most));
        if let Model::Volume { tiers } = &self.model {
            for up_to in tiers.iter().filter_map(|tier| tier.up_to) {
                let quantity = Total::from(up_to) + self.free_units.into();
                if used.quantity < quantity && quantity < at_most.quantity {
                    highest =
                        highest.max(self.cost(&RatedQuantity { quantity, event_fees: Amount::default() }));
                }
            }
        }
        highest
    }

    fn is_unused(used: &RatedQuantity) -> bool {
        used.quantity == Total::default() && used.event_fees.is_zero()
    }

    fn within_bounds(&self, used: &RatedQuantity, amount: Amount) -> Amount {
        if !self.charge_when_unused && Self::is_unused(used) {
            return amount;
        }
        let amount = self.minimum_amount.clone().map_or(amount.clone(), |least| amount.max(least));
        self.maximum_amount.clone().map_or(amount.clone(), |most| amount.min(most))
    }

    /// Returns the amount before the minimum and maximum of the line, and its tiers.
    fn rated(&self, used: &RatedQuantity) -> (Amount, Vec<TierLine>) {
        if !self.charge_when_unused && Self::is_unused(used) {
            return (Amount::default(), Vec::new());
        }
        let quantity = self.charged(used.quantity);
        match &self.model {
            Model::PerUnit { unit_amount, per_units } => {
                ((unit_amount * &quantity).divided_by(&(*per_units).into()), Vec::new())
            }
            Model::Package { unit_amount, per_units, round } => {
                let packages = quantity.divided_by(&(*per_units).into());
                let packages = match round {
                    Round::Up => packages.ceil(),
                    Round::Down => packages.floor(),
                };
                (unit_amount * &packages, Vec::new())
            }
            Model::Graduated { tiers } => graduated(tiers, &quantity),
            Model::Volume { tiers } => volume(tiers, &quantity),
            Model::Percentage { rate, .. } => {
                let free = Amount::of(used.quantity.or_zero()).min(self.free_units.into());
                let fees = used.event_fees.clone();
                // a negative sum is given back in full, and free units reduce only a positive one
                let amount = if fees.is_negative() {
                    fees
                } else {
                    (fees - rate.percent_of(&free)).max(Amount::default())
                };
                (amount, Vec::new())
            }
            Model::GraduatedPercentage { tiers } => {
                let tiers: Vec<Tier> = tiers.iter().map(super::price::RateTier::as_tier).collect();
                graduated(&tiers, &quantity)
            }
            Model::Flat { amount } => (amount.clone(), Vec::new()),
        }
    }

    /// Returns the quantity to charge, without the free units. A negative quantity is credited in full.
    fn charged(&self, quantity: Total) -> Amount {
        let charged = quantity - self.free_units.into();
        Amount::of(if quantity < Total::default() { quantity } else { charged.or_zero() })
    }
}

/// Rates each tier's own part of the quantity. Even a quantity of zero reaches the first tier.
fn graduated(tiers: &[Tier], quantity: &Amount) -> (Amount, Vec<TierLine>) {
    let (mut lines, mut below) = (Vec::new(), Amount::default());
    for (index, tier) in tiers.iter().enumerate() {
        if index > 0 && *quantity <= below {
            break;
        }
        let top = tier.up_to.map(Amount::from);
        let reached = top.clone().map_or(quantity.clone(), |top| top.min(quantity.clone()));
        lines.push(line(tier, reached - below));
        let Some(top) = top else { break };
        below = top;
    }
    (lines.iter().map(|line| line.amount.clone()).sum(), lines)
}

/// Rates the whole quantity by the first tier that contains it.
fn volume(tiers: &[Tier], quantity: &Amount) -> (Amount, Vec<TierLine>) {
    let admits = |tier: &&Tier| tier.up_to.is_none_or(|up_to| *quantity <= up_to.into());
    let lines: Vec<TierLine> =
        tiers.iter().find(admits).map(|tier| line(tier, quantity.clone())).into_iter().collect();
    (lines.iter().map(|line| line.amount.clone()).sum(), lines)
}

fn line(tier: &Tier, quantity: Amount) -> TierLine {
    TierLine {
        up_to: tier.up_to,
        unit_amount: tier.unit_amount.clone(),
        flat_amount: tier.flat_amount.clone(),
        amount: tier.amount_of(&quantity),
        quantity,
    }
}
