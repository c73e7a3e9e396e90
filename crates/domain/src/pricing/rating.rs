//! Rating: usage in, a line with its tiers out. Exact until the line rounds, once.

use super::amount::Amount;
use super::line::{LineModel, RatedLine, TierLine};
use super::price::{Model, Price, Round, Tier};
use crate::base::quantity::{Quantity, Total};

/// What was used of what a price rates.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RatedQuantity {
    pub quantity: Total,
    /// What its events cost one by one; of percentages alone.
    pub event_fees: Amount,
}

impl RatedQuantity {
    /// The events of some values.
    pub fn of_values(price: &Price, values: impl Iterator<Item = Quantity>) -> Self {
        values.fold(Self::default(), |used, value| Self {
            quantity: used.quantity + value.into(),
            event_fees: used.event_fees + price.model.event_fee(&value.into()).unwrap_or_default(),
        })
    }

    /// So many events that make a sum. Where a price looks at each event by itself, this is not
    /// enough to know.
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
    /// Rates what was used.
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

    /// The exact amount alone.
    pub fn cost(&self, used: &RatedQuantity) -> Amount {
        let (rated, _) = self.rated(used);
        self.within_bounds(used, rated)
    }

    /// The highest amount that any quantity may come to from what is used up to what may yet be: a
    /// larger quantity may cost less where the tier of the whole rates it.
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

    /// The amount before the bounds of the line, and the tiers that share in it.
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
                // what is given back is not lessened, and nothing is given back for what was free
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

    /// What is charged of a quantity: the free units cost nothing. What was taken back below nothing is
    /// given back.
    fn charged(&self, quantity: Total) -> Amount {
        let charged = quantity - self.free_units.into();
        Amount::of(if quantity < Total::default() { quantity } else { charged.or_zero() })
    }
}

/// Each tier rates the part that lies in it. The first is reached by nothing at all.
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

/// The first tier whose bound is not passed rates all of it.
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
