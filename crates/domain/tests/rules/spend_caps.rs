//! Decisions of spend caps, one row per call: the used quantities, the request, and the grants or the caps
//! that deny. All requests are from one subject on a plan with the prices and caps of the table.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use proptest::prelude::*;
use serde_json::{Value, json};

use metergate_domain::base::names::{MeterKey, PlanKey, SubjectId};
use metergate_domain::base::quantity::Quantity;
use metergate_domain::base::timestamp::Timestamp;
use metergate_domain::catalog::Catalog;
use metergate_domain::catalog::meter::{Meter, StoredMeter};
use metergate_domain::gate::applicable_cap::CounterSource;
use metergate_domain::gate::catalog_index::CatalogIndex;
use metergate_domain::gate::decision::Denier;
use metergate_domain::gate::path::{Path, PathSubject};
use metergate_domain::gate::request::Reserve;
use metergate_domain::gate::reservation::Moment;
use metergate_domain::gate::state::GateState;
use metergate_domain::pricing::amount::Amount;
use metergate_domain::pricing::exchange::Rates;
use metergate_domain::pricing::price::Price;
use metergate_domain::pricing::rating::RatedQuantity;
use metergate_domain::subjects::subscription::Subscription;
use metergate_domain::usage::event::Properties;

fn noon() -> Timestamp {
    Timestamp::parse("2026-11-20T12:00:00Z").unwrap()
}

fn price(meter: &str, mut fields: Value) -> Value {
    for (name, value) in [("key", meter), ("meter", meter), ("currency", "usd")] {
        fields[name] = json!(value);
    }
    fields
}

fn per_unit(meter: &str, unit_amount: i64) -> Value {
    price(meter, json!({"model": "per_unit", "unit_amount": unit_amount}))
}

struct CapFixture {
    terms: CatalogIndex,
    path: Path,
}

impl CapFixture {
    /// Returns caps of the given amounts, which are also their names.
    fn of(prices: &[Value], caps: &[i64]) -> Self {
        let cap = |amount: &i64| json!({"key": format!("of_{amount}"), "amount": amount, "currency": "usd", "period": "month"});
        let meter = |key: &str| json!({"key": key, "event_name": key, "aggregation": "sum"});
        let meters = ["calls", "tokens", "units"].map(meter);
        let catalog = Catalog::read(json!({
            "meters": meters,
            "plans": [{"key": "p", "unmatched": "allow", "prices": prices,
                       "spend_caps": caps.iter().map(cap).collect::<Vec<_>>()}],
        }))
        .unwrap();
        let stored = |(meter, id): (&Meter, i32)| StoredMeter { id, event_name_id: id, meter: meter.clone() };
        let meters = catalog.meters.iter().zip(1..).map(stored).collect();
        let terms = CatalogIndex::new(catalog, meters, &HashMap::new(), Rates::default());
        let subscription = Subscription::begin(PlanKey::parse("p").unwrap(), noon());
        let member = PathSubject {
            subscription: Some(subscription),
            ..PathSubject::new(1, SubjectId::parse("u").unwrap())
        };
        Self { terms, path: Path { id: 1, customer_id: None, members: vec![member] } }
    }

    /// Decides holds, with some units held already. Returns the grants in the order of the holds, or the
    /// caps that deny with the requested cost.
    fn decide(
        &self,
        used: &[(&str, Quantity)],
        held: &[Quantity],
        holds: &[Value],
    ) -> Result<Vec<Quantity>, Vec<String>> {
        let none = BTreeSet::new();
        let mut book =
            GateState::open(&self.terms, Moment { now: noon(), age_max: Duration::ZERO, taken: &none });
        let held = held.iter().map(|value| ("units", *value, true));
        for (meter, value, is_held) in used.iter().map(|(meter, value)| (*meter, *value, false)).chain(held) {
            let meter = MeterKey::parse(meter).unwrap();
            // Caps of one period share counters.
            let mut counted = BTreeSet::new();
            for counter_source in
                self.terms.counter_sources(&self.path, &meter, &Properties::default(), noon())
            {
                let key = counter_source.counter_at(noon()).unwrap().key;
                if counted.insert(key) && matches!(counter_source, CounterSource::PricedUsage(_)) {
                    let level = &mut book.counters.entry(key).or_default().level;
                    if is_held {
                        level.held = level.held + counter_source.measure_held(value);
                    } else {
                        level.used = level.used + counter_source.measure(value);
                    }
                }
            }
        }
        let call = Reserve::read(json!({"subject": "u", "holds": holds})).unwrap();
        book.test(&call.asks, &self.path).map_err(|denial| {
            let by = |denier: &Denier| match denier {
                Denier::Cap(cap) => format!("{} {}", cap.key, cap.requested.clone().unwrap()),
                Denier::Limit(limit) => panic!("{limit:?}"),
            };
            denial.denied_by.iter().map(by).collect()
        })
    }
}

fn quantity(text: &str) -> Quantity {
    text.parse().unwrap()
}

/// Parses `tokens=5`, or `tokens<=5` for an `up_to` hold.
fn hold(text: &str) -> Value {
    if let Some((meter, value)) = text.split_once("<=") {
        return json!({"meter": meter, "value": value, "grant": "up_to"});
    }
    let (meter, value) = text.split_once('=').unwrap();
    json!({"meter": meter, "value": value})
}

/// Checks rows of the form `holds -> grants` or `holds -> denied by caps`.
fn assert_decides(scene: &CapFixture, used: &[(&str, &str)], rows: &[(&str, &str)]) {
    let used: Vec<(&str, Quantity)> = used.iter().map(|(meter, value)| (*meter, quantity(value))).collect();
    for (holds, expected) in rows {
        let holds: Vec<Value> = holds.split(' ').map(hold).collect();
        let said = match scene.decide(&used, &[], &holds) {
            Ok(grants) => grants.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
            Err(by) => format!("denied by {}", by.join(", ")),
        };
        assert_eq!(said, *expected, "{holds:?}");
    }
}

#[test]
fn decisions_do_not_depend_on_the_order_of_holds() {
    let scene = CapFixture::of(&[per_unit("units", 1), per_unit("calls", 1)], &[10, 20]);
    assert_decides(
        &scene,
        &[("calls", "11")],
        &[
            ("units=0 calls=15", "denied by of_10 15, of_20 15"),
            ("calls=15 units=0", "denied by of_10 15, of_20 15"),
            ("calls=2 units=3", "denied by of_10 5"),
        ],
    );
    let scene = CapFixture::of(&[per_unit("units", 1), per_unit("calls", 1)], &[10]);
    assert_decides(
        &scene,
        &[],
        &[
            ("units<=18 calls=8", "2 8"),
            ("calls=8 units<=18", "8 2"),
            ("units<=18 calls=10", "denied by of_10 28"),
            ("calls=10 units<=18", "denied by of_10 28"),
            ("units<=1 calls<=2", "1 2"),
            ("calls<=8 units<=8", "8 2"),
            ("units<=8 calls<=8", "2 8"),
        ],
    );
}

#[test]
fn free_larger_holds_do_not_hide_costs_of_smaller_ones() {
    let free = json!({"model": "percentage", "rate": 10, "event_minimum": 50, "event_maximum": 60, "free_units": 10_000});
    let bounded = |caps: &[i64]| CapFixture::of(&[price("units", free.clone())], caps);
    assert_decides(&bounded(&[10]), &[], &[("units=1000", "denied by of_10 50"), ("units=0", "0")]);
    // An event of 1 costs 50 minus a tenth; another event may cost up to 50.
    let used = [("units", "1")];
    assert_decides(&bounded(&[100]), &used, &[("units=1000", "1000"), ("units=1 calls=1", "1 1")]);
    assert_decides(&bounded(&[99]), &used, &[("units=1000", "denied by of_99 50")]);
    let plain = json!({"model": "percentage", "rate": 10, "fixed_amount": 1, "free_units": 100});
    let plain = CapFixture::of(&[price("units", plain)], &[11]);
    // The event costs 1 plus a tenth of the usage above 100.
    assert_decides(
        &plain,
        &[],
        &[("units=200", "200"), ("units=200.01", "denied by of_11 11.001"), ("units<=300", "200")],
    );
    assert_decides(&plain, &[("units", "150")], &[("units=40", "40"), ("units=41", "denied by of_11 5.1")]);
}

proptest! {
    /// Any part of the held quantities, used as one event each, costs at most the cap.
    #[test]
    fn granted_holds_never_pass_the_spend_cap(
        rate in 0_u32..400, fixed in 0_u32..40, least in 0_u32..60, width in 0_u32..60, free in 0_u32..300,
        cap in 0_i64..150, used in prop::collection::vec(-50_i64..400, 0..4),
        holds in prop::collection::vec((0_i64..400, 0_i64..=100), 1..4),
    ) {
        let fields = json!({"model": "percentage", "rate": format!("{}.{}", rate / 10, rate % 10),
            "fixed_amount": fixed, "event_minimum": least, "event_maximum": least + width, "free_units": free});
        let fields = price("units", fields);
        let scene = CapFixture::of(std::slice::from_ref(&fields), &[cap]);
        let of = |value: i64| value.to_string().parse::<Quantity>().unwrap();
        let before: Vec<(&str, Quantity)> = used.iter().map(|value| ("units", of(*value))).collect();
        let (mut held, mut events) = (Vec::new(), used.clone());
        for (asked, share) in holds {
            if scene.decide(&before, &held, &[json!({"meter": "units", "value": asked})]).is_ok() {
                held.push(of(asked));
                // A share of zero records no event.
                events.extend(Some(asked * share / 100).filter(|value| *value > 0));
            }
        }
        let price = Price::read(fields).unwrap();
        let cost = price.cost(&RatedQuantity::of_values(&price, events.iter().map(|value| of(*value))));
        prop_assert!(held.is_empty() || cost <= Amount::from_minor_units(cap), "{cost} of {events:?}");
    }
}
