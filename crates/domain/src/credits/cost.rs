//! The cost of usage in the unit of a grant. Shares of a use are exact fractions; amounts have nine digits
//! and round up once per use. Tiered prices take the earlier usage from the counter of a limit.

use super::unit::{CreditUnit, Unit};
use crate::base::fields::Violation;
use crate::base::names::MeterKey;
use crate::base::period::Period;
use crate::base::quantity::Total;
use crate::base::timestamp::Timestamp;
use crate::catalog::plan::{Limit, Overage};
use crate::pricing::amount::Amount;
use crate::pricing::currency::Currency;
use crate::pricing::price::{Model, Price, Tier};
use crate::pricing::price_book::PriceBook;
use crate::usage::event::Properties;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UnitRate {
    /// The grant is in the meter's own units.
    One,
    /// The cost per unit, above zero.
    Of(Amount),
}

/// A use of a meter by a subject with grants.
#[derive(Debug, Clone, Copy)]
pub struct CostedUse<'a> {
    pub credit_units: &'a [CreditUnit],
    /// The price books of the subject's own subscription.
    pub books: &'a [&'a PriceBook],
    pub meter: &'a MeterKey,
    pub properties: &'a Properties,
    /// The usage that each exceeded limit has counted before the first unit that credits cover.
    pub counted: &'a [CountedLimit<'a>],
    pub at: Timestamp,
}

impl CostedUse<'_> {
    /// Returns the cost of the next units, after `further` units that grants already cover. Returns none
    /// if a grant in the unit does not pay for them.
    pub fn step(&self, unit: &Unit, further: &Amount) -> Option<RateStep> {
        let rate = match unit {
            Unit::Meter(meter) => (meter == self.meter).then_some(UnitRate::One)?,
            Unit::CreditUnit(key) => {
                let known = self.credit_units.iter().find(|unit| unit.key == *key)?;
                UnitRate::Of(known.cost_of(self.meter, self.properties)?.into())
            }
            Unit::Currency(currency) => {
                let book = self.books.iter().find(|book| book.currency == *currency)?;
                let price = book.rating(self.meter, self.properties, self.at)?;
                return RateStep::at(price, book, self.counted, further);
            }
        };
        Some(RateStep { rate, units: None })
    }
}

impl UnitRate {
    /// Returns the cost of a quantity.
    pub fn amount_of(&self, quantity: &Amount) -> Total {
        match self {
            Self::One => quantity.quantity_above(),
            Self::Of(rate) => (rate * quantity).quantity_above(),
        }
    }

    /// Returns the quantity that an amount pays for.
    pub fn quantity_for(&self, amount: Total) -> Amount {
        match self {
            Self::One => Amount::of(amount),
            Self::Of(rate) => Amount::of(amount).divided_by(rate),
        }
    }
}

/// Returns the part of an amount for a part of the quantity that the amount paid for.
pub fn share(amount: Total, part: &Amount, whole: &Amount) -> Total {
    if part >= whole {
        return amount;
    }
    (&Amount::of(amount) * part).divided_by(whole).quantity_above()
}

/// The usage that a limit has counted before the first unit that credits cover.
#[derive(Debug, Clone, Copy)]
pub struct CountedLimit<'a> {
    pub limit: &'a Limit,
    pub before: Total,
}

/// The cost per unit of the next units.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RateStep {
    pub rate: UnitRate,
    /// The number of units at this rate. None means all further units.
    pub units: Option<Amount>,
}

/// Returns the price per unit, if it does not depend on earlier usage.
fn unit_price(price: &Price) -> Option<Amount> {
    match &price.model {
        Model::PerUnit { unit_amount, per_units } if price.free_units.is_zero() && !is_bounded(price) => {
            Some(unit_amount.divided_by(&(*per_units).into()))
        }
        _ => None,
    }
}

fn is_bounded(price: &Price) -> bool {
    price.minimum_amount.is_some() || price.maximum_amount.is_some()
}

/// Returns the tiers of a price in which the cost of a unit depends only on its position.
fn tiers(price: &Price) -> Option<&[Tier]> {
    match &price.model {
        Model::Graduated { tiers }
            if !is_bounded(price) && tiers.iter().all(|tier| tier.flat_amount.is_zero()) =>
        {
            Some(tiers)
        }
        _ => None,
    }
}

/// Returns whether a limit counts exactly the usage that a price rates, from the start of a billing period.
fn counts_along(limit: &Limit, price: &Price, book: &PriceBook) -> bool {
    let is_always = price.effective_from.is_none() && price.effective_to.is_none();
    let mut before = book.of_meter(&limit.meter).take_while(|other| other.key != price.key);
    limit.period == Period::Billing
        && limit.overage == Overage::Credits
        && price.meter.as_ref() == Some(&limit.meter)
        && price.filter == limit.filter
        && is_always
        && before.all(|other| other.filter.excludes(&price.filter))
}

impl RateStep {
    /// Returns the cost of the next units at a price, after `further` units that grants already cover.
    /// Returns none if the units are free, or if their cost depends on usage that no limit counts.
    pub fn at(
        price: &Price,
        book: &PriceBook,
        counted: &[CountedLimit<'_>],
        further: &Amount,
    ) -> Option<Self> {
        let (amount, units) = if let Some(amount) = unit_price(price) {
            (amount, None)
        } else {
            let tiers = tiers(price)?;
            let counted = counted.iter().find(|counted| counts_along(counted.limit, price, book))?;
            let place = Amount::of(counted.before.or_zero()) + further.clone() - price.free_units.into();
            if place.is_negative() {
                return None;
            }
            let tier = tiers.iter().find(|tier| tier.up_to.is_none_or(|up_to| place < up_to.into()))?;
            (tier.unit_amount.clone(), tier.up_to.map(|up_to| Amount::from(up_to) - place))
        };
        (amount > Amount::default()).then_some(Self { rate: UnitRate::Of(amount), units })
    }
}

/// Returns the first price of the book that rates covered usage and that money cannot pay for.
fn uncoverable<'p>(limits: &[Limit], book: &'p PriceBook) -> Option<&'p Price> {
    book.prices().find(|price| {
        let meets = |limit: &&Limit| {
            limit.overage == Overage::Credits
                && price.meter.as_ref() == Some(&limit.meter)
                && !price.filter.excludes(&limit.filter)
        };
        let mut met = limits.iter().filter(meets).peekable();
        met.peek().is_some()
            && unit_price(price).is_none()
            && (tiers(price).is_none() || !met.any(|limit| counts_along(limit, price, book)))
    })
}

/// Returns a violation if a limit with credit overage has a price that money cannot pay for.
pub fn validate_money_limits(limits: &[Limit], prices: &[Price], currency: Currency) -> Option<Violation> {
    let book = PriceBook::new(prices, currency);
    let price = uncoverable(limits, &book)?;
    let meter = price.meter.as_ref()?;
    let detail = format!(
        "must not be a currency while `{}` has its present price: money pays only for prices without minimum \
         and maximum. They must be `per_unit` without free units, or `graduated` without flat amounts and with \
         a limit of the same filter and `period: billing`. Grant units of `{meter}` or of a credit unit",
        price.key
    );
    Some(Violation::new("uncoverable_price", detail).under("currency"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use crate::catalog::plan::Plan;
    use crate::pricing::amount::one;
    use crate::pricing::rating::RatedQuantity;

    fn plan(limits: &Value, prices: &Value) -> Plan {
        Plan::read(json!({"key": "p", "limits": limits, "prices": prices})).unwrap()
    }

    fn limit(more: &Value) -> Value {
        merged(json!({"key": "l", "meter": "m", "quota": 5, "period": "billing", "overage": "credits"}), more)
    }

    fn merged(mut fields: Value, more: &Value) -> Value {
        fields.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        fields
    }

    fn graduated(more: &Value) -> Value {
        let tiers = json!([{"up_to": 10, "unit_amount": 5}, {"up_to": 20, "unit_amount": 0}, {"up_to": null, "unit_amount": 2}]);
        merged(
            json!({"key": "t", "meter": "m", "model": "graduated", "currency": "usd", "tiers": tiers}),
            more,
        )
    }

    #[test]
    fn money_credits_cover_only_units_with_a_plain_price() {
        let per_unit = |more: &Value| {
            merged(
                json!({"key": "u", "meter": "m", "model": "per_unit", "currency": "usd", "unit_amount": 1}),
                more,
            )
        };
        let tier = |flat: i64| json!({"tiers": [{"up_to": null, "unit_amount": 1, "flat_amount": flat}]});
        let (along, a) = (limit(&json!({})), json!({"filter": {"model": ["a"]}}));
        let cases = [
            (json!([along]), json!([per_unit(&json!({}))]), None),
            (json!([along]), json!([per_unit(&json!({"free_units": 1}))]), Some("u")),
            (json!([along]), json!([per_unit(&json!({"maximum_amount": 1}))]), Some("u")),
            (json!([along]), json!([graduated(&json!({}))]), None),
            (json!([along]), json!([graduated(&json!({"free_units": 3}))]), None),
            (json!([along]), json!([graduated(&json!({"minimum_amount": 3}))]), Some("t")),
            (json!([along]), json!([graduated(&tier(0))]), None),
            (json!([along]), json!([graduated(&tier(1))]), Some("t")),
            (json!([along]), json!([graduated(&json!({"model": "volume"}))]), Some("t")),
            (
                json!([along]),
                json!([graduated(&json!({"effective_from": "2026-01-01T00:00:00Z"}))]),
                Some("t"),
            ),
            // no limit counts the usage that selects the tiers
            (json!([limit(&json!({"period": "month"}))]), json!([graduated(&json!({}))]), Some("t")),
            (json!([limit(&a)]), json!([graduated(&json!({}))]), Some("t")),
            (json!([along]), json!([graduated(&a)]), Some("t")),
            (
                json!([limit(&json!({"period": "month"})), limit(&json!({"key": "k"}))]),
                json!([graduated(&json!({}))]),
                None,
            ),
            (json!([limit(&a)]), json!([graduated(&a)]), None),
            // a price with more dimensions rates part of the usage
            (json!([along]), json!([graduated(&json!({})), per_unit(&a)]), Some("t")),
            (json!([limit(&a)]), json!([graduated(&a), per_unit(&json!({}))]), None),
            (
                json!([limit(&a)]),
                json!([graduated(&a), per_unit(&json!({"filter": {"model": ["b"]}}))]),
                None,
            ),
            // not covered, another currency, another meter, another slice
            (json!([limit(&json!({"overage": "none"}))]), json!([graduated(&tier(1))]), None),
            (json!([along]), json!([graduated(&json!({"currency": "eur", "model": "volume"}))]), None),
            (json!([along]), json!([graduated(&json!({"meter": "n", "model": "volume"}))]), None),
            (
                json!([limit(&a)]),
                json!([graduated(&json!({"model": "volume", "filter": {"model": ["b"]}}))]),
                None,
            ),
        ];
        let usd = Currency::parse("usd").unwrap();
        for (limits, prices, expected) in cases {
            let plan = plan(&limits, &prices);
            let book = PriceBook::new(&plan.prices, usd);
            let found = uncoverable(&plan.limits, &book).map(|price| price.key.as_str());
            assert_eq!(found, expected, "{limits} {prices}");
        }
    }

    #[test]
    fn units_cost_the_price_of_their_tier() {
        let shown = |free: i64, before: &str, further: i64| {
            let plan = plan(&json!([limit(&json!({}))]), &json!([graduated(&json!({"free_units": free}))]));
            let book = PriceBook::new(&plan.prices, plan.prices[0].currency);
            let counted =
                [CountedLimit { limit: &plan.limits[0], before: Total::from_decimal(before).unwrap() }];
            let step = RateStep::at(&plan.prices[0], &book, &counted, &Amount::of(further.into()))?;
            let UnitRate::Of(amount) = step.rate else { return None };
            Some(format!("{} at {amount}", step.units.map_or("all".to_owned(), |units| units.to_string())))
        };
        let cases = [
            (0, "0", 0, Some("10 at 5")),
            (0, "-3", 0, Some("10 at 5")),
            (0, "4.5", 3, Some("2.5 at 5")),
            // the second tier is free
            (0, "4", 6, None),
            (0, "19.9", 0, None),
            (0, "4", 16, Some("all at 2")),
            (3, "2", 0, None),
            (3, "2", 1, Some("10 at 5")),
            (3, "23", 0, Some("all at 2")),
        ];
        for (free, before, further, expected) in cases {
            assert_eq!(shown(free, before, further).as_deref(), expected, "{free} {before} {further}");
        }
    }

    proptest! {
        /// The costs of single units sum to the price of all of them.
        #[test]
        fn steps_sum_to_the_cost(
            tiers in prop::collection::vec((1_i64..50, 1_i64..5_000), 1..6), before in 0_i64..200, units in 1_i64..200,
        ) {
            let last = tiers.len() - 1;
            let mut bound = 0;
            let rows = tiers.iter().enumerate().map(|(index, (width, millis))| {
                bound += width;
                let unit_amount = format!("{}.{:03}", millis / 1_000, millis % 1_000);
                json!({"up_to": if index == last { Value::Null } else { json!(bound) }, "unit_amount": unit_amount})
            });
            let prices = json!([graduated(&json!({"tiers": rows.collect::<Vec<_>>()}))]);
            let plan = plan(&json!([limit(&json!({}))]), &prices);
            let price = &plan.prices[0];
            let book = PriceBook::new(&plan.prices, price.currency);
            let counted = [CountedLimit { limit: &plan.limits[0], before: before.into() }];
            let (mut sum, mut further, all) = (Total::default(), Amount::default(), Amount::of(units.into()));
            while further < all {
                let step = RateStep::at(price, &book, &counted, &further).unwrap();
                let left = all.clone() - further.clone();
                let taken = step.units.map_or(left.clone(), |units| units.min(left));
                sum = sum + step.rate.amount_of(&taken);
                further = further + taken;
            }
            let cost = |quantity: i64| price.cost(&RatedQuantity { quantity: quantity.into(), ..RatedQuantity::default() });
            prop_assert_eq!(Amount::of(sum), cost(before + units) - cost(before));
        }
    }

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
            // the amounts of the two parts sum to the amount of the whole
            let part = quantity.divided_by(&Amount::from_minor_units(3));
            prop_assert_eq!(share(balance, &part, &quantity), rate.amount_of(&part));
        }
    }
}
