//! Costs by price: expected values of other billing systems, and properties that hold for every price.

use proptest::prelude::*;
use serde_json::{Value, json};

use metergate_domain::base::quantity::{Quantity, Total};
use metergate_domain::pricing::amount::{Amount, MinorUnits};
use metergate_domain::pricing::line::RatedLine;
use metergate_domain::pricing::price::Price;
use metergate_domain::pricing::rating::RatedQuantity;

fn price(mut fields: Value) -> Price {
    for (name, value) in [("key", "p"), ("meter", "m"), ("currency", "usd")] {
        if fields.get(name).is_none() {
            fields[name] = json!(value);
        }
    }
    Price::read(fields.clone()).unwrap_or_else(|violations| panic!("{fields}: {violations:?}"))
}

fn used(quantity: &str) -> RatedQuantity {
    RatedQuantity { quantity: Total::from_decimal(quantity).unwrap(), event_fees: Amount::default() }
}

fn tier(up_to: Value, unit_amount: impl Into<Value>, flat_amount: impl Into<Value>) -> Value {
    json!({"up_to": up_to, "unit_amount": unit_amount.into(), "flat_amount": flat_amount.into()})
}

/// Asserts the costs of some quantities in minor units.
fn assert_costs(price: &Price, cases: &[(&str, &str)]) {
    for (quantity, expected) in cases {
        let line = price.rate(&used(quantity));
        assert_eq!(line.amount, Amount::from_decimal(expected).unwrap(), "{quantity} by {price:?}");
    }
}

/// The expected values are in minor or major units as in their source; only the last rounding depends on the
/// unit.
#[test]
fn prices_cost_what_other_billing_systems_expect() {
    let graduated = |tiers: Value| price(json!({"model": "graduated", "tiers": tiers}));
    let volume = |tiers: Value| price(json!({"model": "volume", "tiers": tiers}));
    let package = |unit_amount: Value, per_units: i64, free_units: i64| {
        price(
            json!({"model": "package", "unit_amount": unit_amount, "per_units": per_units, "free_units": free_units}),
        )
    };
    assert_costs(
        &graduated(json!([tier(json!(10), 10, 2), tier(json!(20), 5, 3), tier(json!(null), 5, 3)])),
        &[("0", "2"), ("1", "12"), ("10", "102"), ("11", "110"), ("12", "115"), ("21", "163")],
    );
    assert_costs(&package(json!(100), 10, 0), &[("121", "1300"), ("120", "1200"), ("0", "0")]);
    assert_costs(&package(json!(100), 10, 10), &[("121", "1200")]);
    assert_costs(&package(json!(100), 10, 200), &[("121", "0")]);
    assert_costs(
        &volume(json!([tier(json!(100), 2, 10), tier(json!(200), 1, 0), tier(json!(null), 0.5, 50)])),
        &[
            ("0", "10"),
            ("1", "12"),
            ("100", "210"),
            ("100.5", "100.5"),
            ("101", "101"),
            ("200", "200"),
            ("300", "200"),
        ],
    );
    let thirds = json!([tier(json!(100), 1, 0), tier(json!(200), 0.5, 0), tier(json!(null), 0.25, 0)]);
    assert_costs(&graduated(thirds.clone()), &[("150", "125")]);
    assert_costs(&volume(thirds), &[("150", "75")]);
    assert_costs(
        &graduated(json!([tier(json!(1), 10, 0), tier(json!(2), 20, 0), tier(json!(null), 30, 0)])),
        &[("2.5", "45")],
    );
    assert_costs(
        &graduated(json!([tier(json!(10), 20000, 0), tier(json!(null), 6000, 0)])),
        &[("15", "230000")],
    );
    assert_costs(
        &graduated(json!([
            tier(json!(100_000), 0, 0),
            tier(json!(1_000_000), "0.00001", 0),
            tier(json!(null), "0.000008", 0)
        ])),
        &[("100000", "0"), ("100001", "0.00001"), ("1000000", "9"), ("1500000", "13")],
    );
    assert_costs(
        &package(json!("0.05"), 1000, 0),
        &[("0", "0"), ("1", "0.05"), ("1000", "0.05"), ("1001", "0.10")],
    );
    assert_costs(&package(json!("0.5"), 15000, 0), &[("15001", "1.0")]);
    assert_costs(&package(json!(5), 200_000, 0), &[("200001", "10")]);
    assert_costs(
        &volume(json!([tier(json!(99), 1, 0), tier(json!(null), 0.5, 0)])),
        &[("99", "99"), ("99.5", "49.75"), ("100", "50")],
    );
}

#[test]
fn lines_round_once_half_away_from_zero_in_units_of_the_currency() {
    let rounded = |currency: &str, unit_amount: &str, quantity: &str| {
        let price = price(json!({"model": "per_unit", "unit_amount": unit_amount, "currency": currency}));
        let line = price.rate(&used(quantity));
        line.rounded_amount.in_major_units(price.currency.digits())
    };
    assert_eq!(rounded("usd", "0.5", "1"), "0.01", "0.005 usd");
    assert_eq!(rounded("usd", "0.5", "-1"), "-0.01", "-0.005 usd");
    assert_eq!(rounded("usd", "267.5", "1"), "2.68", "2.675 usd, which no binary float represents");
    assert_eq!(rounded("jpy", "0.5", "1"), "1");
    assert_eq!(rounded("jpy", "149.4", "1"), "149");
    assert_eq!(rounded("kwd", "1234.5", "1"), "1.235");
    // three times a third of a cent is one cent
    let third = price(json!({"model": "per_unit", "unit_amount": "1", "per_units": 3}));
    assert_eq!(third.rate(&used("3")).amount.to_string(), "1");
    assert_eq!(third.rate(&used("1.5")).rounded_amount, MinorUnits::from(1));
}

#[test]
fn unused_prices_charge_minimum_and_flat_fees_unless_switched_off() {
    let flat_tier = json!([tier(json!(10), 10, 2), tier(json!(null), 5, 3)]);
    let cases = [
        (json!({"model": "graduated", "tiers": flat_tier}), "2"),
        (json!({"model": "graduated", "tiers": flat_tier, "charge_when_unused": false}), "0"),
        (json!({"model": "volume", "tiers": flat_tier}), "2"),
        (json!({"model": "volume", "tiers": flat_tier, "charge_when_unused": false}), "0"),
        (json!({"model": "per_unit", "unit_amount": 5, "minimum_amount": 100}), "100"),
        (
            json!({"model": "per_unit", "unit_amount": 5, "minimum_amount": 100, "charge_when_unused": false}),
            "0",
        ),
        (json!({"model": "flat", "amount": 2000}), "2000"),
        (json!({"model": "flat", "amount": 2000, "charge_when_unused": false}), "0"),
        (json!({"model": "percentage", "rate": 3, "fixed_amount": 30}), "0"),
    ];
    for (fields, expected) in cases {
        assert_costs(&price(fields), &[("0", expected)]);
    }
}

#[test]
fn lines_show_the_adjustment_to_their_minimum_or_maximum() {
    let bounded =
        price(json!({"model": "per_unit", "unit_amount": 2, "minimum_amount": 10, "maximum_amount": 100}));
    assert_costs(&bounded, &[("1", "10"), ("5", "10"), ("6", "12"), ("50", "100"), ("51", "100")]);
    assert_eq!(bounded.rate(&used("1")).adjustment.to_string(), "8");
    assert_eq!(bounded.rate(&used("51")).adjustment.to_string(), "-2");
    assert!(bounded.rate(&used("6")).adjustment.is_zero());
}

#[test]
fn percentage_prices_charge_a_share_of_the_value() {
    let of = |fields: Value, values: &[i64]| {
        let price = price(fields);
        let values = values.iter().map(|value| value.to_string().parse::<Quantity>().unwrap());
        price.rate(&RatedQuantity::of_values(&price, values)).amount.to_string()
    };
    let bounded =
        json!({"model": "percentage", "rate": 10, "fixed_amount": 1, "event_minimum": 3, "event_maximum": 8});
    assert_eq!(of(json!({"model": "percentage", "rate": 2.9, "fixed_amount": 30}), &[10_000]), "320");
    assert_eq!(of(json!({"model": "percentage", "rate": 2.9, "fixed_amount": 30}), &[5_000, 5_000]), "350");
    assert_eq!(of(bounded.clone(), &[10, 80]), "11", "bounds apply per event: 3 and 8, not 2 and 9");
    assert_eq!(of(bounded, &[]), "0");
    assert_eq!(of(json!({"model": "percentage", "rate": 10, "free_units": 100}), &[80, 70]), "5");
    let free = json!({"model": "percentage", "rate": 10, "event_maximum": 5, "free_units": 1000});
    assert_eq!(of(free.clone(), &[10_000, -60]), "-1", "5 less 6; free units are not refunded");
    assert_eq!(of(free, &[10_000, -40]), "0");
    let tiers =
        json!([{"up_to": 1000, "rate": 3, "flat_amount": 5}, {"up_to": null, "rate": 1, "flat_amount": 7}]);
    let graduated = json!({"model": "graduated_percentage", "tiers": tiers});
    assert_eq!(of(graduated.clone(), &[]), "5");
    assert_eq!(of(graduated.clone(), &[600, 400]), "35");
    assert_eq!(of(graduated, &[600, 600]), "44", "30 + 5 for the first thousand, 2 + 7 for the rest");
}

#[test]
fn packages_round_down_if_the_price_asks_for_it() {
    let down = price(json!({"model": "package", "unit_amount": 100, "per_units": 10, "round": "down"}));
    assert_costs(&down, &[("0", "0"), ("9.9", "0"), ("10", "100"), ("121", "1200")]);
}

#[test]
fn tier_lines_show_the_quantity_and_amount_of_each_reached_tier() {
    let price = price(json!({"model": "graduated", "free_units": 5,
        "tiers": [tier(json!(10), 10, 2), tier(json!(20), 5, 3), tier(json!(null), 1, 0)]}));
    let RatedLine { tiers, amount, quantity, .. } = price.rate(&used("16.5"));
    let shown: Vec<(String, String)> =
        tiers.iter().map(|tier| (tier.quantity.to_string(), tier.amount.to_string())).collect();
    let expected = [("10", "102"), ("1.5", "10.5")];
    assert_eq!(shown, expected.map(|(q, a)| (q.to_owned(), a.to_owned())));
    assert_eq!((quantity.to_string(), amount.to_string()), ("16.5".to_owned(), "112.5".to_owned()));
}

#[test]
fn highest_volume_cost_may_lie_at_the_end_of_a_tier() {
    let price = price(json!({"model": "volume",
        "tiers": [tier(json!(100), 2, 10), tier(json!(200), 1, 0), tier(json!(null), 0.5, 50)]}));
    let highest = |from: &str, to: &str| price.highest_cost(&used(from), &used(to)).to_string();
    assert_eq!(highest("50", "60"), "130");
    assert_eq!(highest("50", "150"), "210", "highest at 100");
    assert_eq!(highest("100", "150"), "210", "already used");
    assert_eq!(highest("101", "300"), "200", "highest at 200 and at 300");
    assert_eq!(highest("0", "1000"), "550");
}

fn tiers() -> impl Strategy<Value = Vec<(u32, u32, u32)>> {
    // width, price per thousand units, flat amount of each tier
    prop::collection::vec((1_u32..500, 0_u32..5_000, 0_u32..100), 1..6)
}

fn tiered(model: &str, tiers: &[(u32, u32, u32)], flat: bool) -> Price {
    let mut bound = 0;
    let last = tiers.len() - 1;
    let rows: Vec<Value> = tiers
        .iter()
        .enumerate()
        .map(|(index, (width, millis, flat_amount))| {
            bound += width;
            let up_to = if index == last { Value::Null } else { json!(bound) };
            let unit_amount = format!("{}.{:03}", millis / 1000, millis % 1000);
            tier(up_to, unit_amount, if flat { *flat_amount } else { 0 })
        })
        .collect();
    price(json!({"model": model, "tiers": rows}))
}

fn quantity(millis: u32) -> RatedQuantity {
    RatedQuantity {
        quantity: Total::from_nanos(i128::from(millis) * 1_000_000),
        event_fees: Amount::default(),
    }
}

proptest! {
    #[test]
    fn graduated_cost_never_falls(tiers in tiers(), flat: bool, a in 0_u32..3_000_000, b in 0_u32..3_000_000) {
        let price = tiered("graduated", &tiers, flat);
        prop_assert!(price.cost(&quantity(a.min(b))) <= price.cost(&quantity(a.max(b))));
    }

    /// A small step costs at most the step times the highest unit price.
    #[test]
    fn graduated_cost_is_continuous_apart_from_flat_fees(tiers in tiers(), at in 0_u32..3_000_000) {
        let price = tiered("graduated", &tiers, false);
        let nano = Total::from_nanos(1);
        let below = quantity(at);
        let above = RatedQuantity { quantity: below.quantity + nano, event_fees: Amount::default() };
        let steepest = tiers.iter().map(|(_, millis, _)| *millis).max().unwrap_or_default();
        let most = Amount::from_minor_units(steepest.into()).shifted(-3) ;
        prop_assert!(price.cost(&above) - price.cost(&below) <= &most * &Amount::of(nano));
    }

    #[test]
    fn tiers_sum_to_the_amount(tiers in tiers(), volume: bool, at in 0_u32..3_000_000) {
        let price = tiered(if volume { "volume" } else { "graduated" }, &tiers, true);
        let line = price.rate(&quantity(at));
        prop_assert_eq!(line.tiers.iter().map(|tier| tier.amount.clone()).sum::<Amount>(), line.amount);
        let quantities: Amount = line.tiers.iter().map(|tier| tier.quantity.clone()).sum();
        prop_assert_eq!(quantities, Amount::of(line.quantity));
    }

    /// The costs of consecutive parts sum to the cost of the whole.
    #[test]
    fn marginal_costs_sum_to_the_total(
        tiers in tiers(), volume: bool, parts in prop::collection::vec(0_u32..200_000, 1..20),
    ) {
        let price = tiered(if volume { "volume" } else { "graduated" }, &tiers, true);
        let (mut at, mut sum) = (0, price.cost(&quantity(0)));
        for part in &parts {
            sum = sum + (price.cost(&quantity(at + part)) - price.cost(&quantity(at)));
            at += part;
        }
        prop_assert_eq!(sum, price.cost(&quantity(at)));
    }

    #[test]
    fn order_and_batching_of_events_do_not_change_the_cost(
        values in prop::collection::vec(0_i64..100_000, 0..20), cut in 0_usize..20, percentage: bool,
    ) {
        let fields = if percentage {
            json!({"model": "percentage", "rate": "2.9", "fixed_amount": 30, "event_minimum": 50, "event_maximum": 900})
        } else {
            json!({"model": "graduated", "tiers": [tier(json!(1000), "0.013", 2), tier(json!(null), "0.007", 3)]})
        };
        let price = price(fields);
        let of = |values: &[i64]| {
            RatedQuantity::of_values(&price, values.iter().map(|value| value.to_string().parse().unwrap()))
        };
        let (first, second) = values.split_at(cut.min(values.len()));
        let mut reversed = values.clone();
        reversed.reverse();
        prop_assert_eq!(price.cost(&of(&values)), price.cost(&of(&reversed)));
        prop_assert_eq!(price.cost(&of(&values)), price.cost(&(of(second) + of(first))));
    }

    #[test]
    fn packages_cost_at_least_their_units(units in 1_i64..1_000, cents in 0_i64..100_000, at in 0_u32..3_000_000) {
        let package = price(json!({"model": "package", "unit_amount": cents, "per_units": units}));
        let per_unit = price(json!({"model": "per_unit", "unit_amount": cents, "per_units": units}));
        prop_assert!(package.cost(&quantity(at)) >= per_unit.cost(&quantity(at)));
    }

    /// No quantity of a range costs more than `highest_cost` of that range.
    #[test]
    fn highest_cost_is_an_upper_bound(
        tiers in tiers(), volume: bool, from in 0_u32..2_000_000, width in 0_u32..1_000_000, share in 0_u32..1000,
    ) {
        let price = tiered(if volume { "volume" } else { "graduated" }, &tiers, true);
        let within = from + u32::try_from(u64::from(width) * u64::from(share) / 1000).unwrap();
        let highest = price.highest_cost(&quantity(from), &quantity(from + width));
        prop_assert!(price.cost(&quantity(within)) <= highest);
    }
}
