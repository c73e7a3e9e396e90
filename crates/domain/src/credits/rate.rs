//! What a unit of a meter costs in the unit of a grant. What a grant bears of a use is a fraction, and exact;
//! amounts are kept to nine digits: a part of the last one is charged as a whole one, once for a use.

use super::money::{CountedLimit, RateStep};
use super::unit::Unit;
use crate::base::names::MeterKey;
use crate::base::quantity::Total;
use crate::base::timestamp::Timestamp;
use crate::catalog::Catalog;
use crate::pricing::amount::Amount;
use crate::pricing::list::PriceList;
use crate::pricing::price::Price;
use crate::usage::event::Properties;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UnitRate {
    /// A grant in the meter's own units.
    One,
    /// Above zero.
    Of(Amount),
}

/// A use of a meter by the holder of grants.
#[derive(Debug, Clone, Copy)]
pub struct CostedUse<'a> {
    pub catalog: &'a Catalog,
    /// Those of the holder's own subscription.
    pub prices: &'a [Price],
    pub meter: &'a MeterKey,
    pub properties: &'a Properties,
    /// What the limits that it passes have counted before what is to be paid for.
    pub counted: &'a [CountedLimit<'a>],
    pub at: Timestamp,
}

impl CostedUse<'_> {
    /// What the next units cost, after some `further` ones that grants bear already. None where a grant in that
    /// unit does not pay for them.
    pub fn step(&self, unit: &Unit, further: &Amount) -> Option<RateStep> {
        let rate = match unit {
            Unit::Meter(meter) => (meter == self.meter).then_some(UnitRate::One)?,
            Unit::CreditUnit(key) => {
                UnitRate::Of(self.catalog.credit_unit(key)?.cost_of(self.meter, self.properties)?.into())
            }
            Unit::Currency(currency) => {
                let list = PriceList::of(self.prices, *currency);
                let price = list.rating(self.meter, self.properties, self.at)?;
                return RateStep::at(price, &list, self.counted, further);
            }
        };
        Some(RateStep { rate, units: None })
    }
}

impl UnitRate {
    /// What a quantity costs.
    pub fn amount_of(&self, quantity: &Amount) -> Total {
        match self {
            Self::One => quantity.quantity_above(),
            Self::Of(rate) => (rate * quantity).quantity_above(),
        }
    }

    /// What an amount pays for.
    pub fn quantity_for(&self, amount: Total) -> Amount {
        match self {
            Self::One => Amount::of(amount),
            Self::Of(rate) => Amount::of(amount).divided_by(rate),
        }
    }
}

/// The part of an amount that goes with a part of the quantity that it paid for.
pub fn share(amount: Total, part: &Amount, whole: &Amount) -> Total {
    if part >= whole {
        return amount;
    }
    (&Amount::of(amount) * part).divided_by(whole).quantity_above()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pricing::amount::one;
    use proptest::prelude::*;

    #[test]
    fn costs_finer_than_the_balance_precision_round_up() {
        let rate = UnitRate::Of(Amount::from_decimal("0.000000000001").unwrap());
        assert_eq!(rate.amount_of(&one()).to_string(), "0.000000001");
        let third = UnitRate::Of(Amount::from_decimal("1").unwrap().divided_by(&Amount::from_minor_units(3)));
        assert_eq!(third.amount_of(&one()).to_string(), "0.333333334");
        assert_eq!(third.quantity_for(Total::from(1)).to_string(), "3");
    }

    proptest! {
        #[test]
        fn quantity_for_an_amount_costs_at_most_that_amount(
            nanos in 1_i64..10_000_000_000_000, cost in 1_i64..1_000_000_000_000, parts in 1_i64..50,
        ) {
            let rate = Amount::of(Total::from_nanos(cost.into())).divided_by(&Amount::from_minor_units(parts));
            let (rate, balance) = (UnitRate::Of(rate), Total::from_nanos(nanos.into()));
            let quantity = rate.quantity_for(balance);
            prop_assert_eq!(rate.amount_of(&quantity), balance);
            prop_assert!(rate.amount_of(&(quantity.clone() + Amount::of(Total::from_nanos(1)))) > balance);
            // what one part does not take is left to the other
            let part = quantity.divided_by(&Amount::from_minor_units(3));
            prop_assert_eq!(share(balance, &part, &quantity), rate.amount_of(&part));
        }
    }
}
