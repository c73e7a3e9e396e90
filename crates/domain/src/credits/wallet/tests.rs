use super::*;
use crate::base::names::PlanKey;
use crate::catalog::Catalog;
use crate::credits::grant::Request;
use crate::credits::grant_lifecycle::GrantSchedule;
use crate::pricing::price_book::PriceBook;
use crate::subjects::subscription::Subscription;
use crate::usage::event::Properties;
use proptest::prelude::*;
use serde_json::{Value, json};

fn at(text: &str) -> Timestamp {
    let full = if text.len() == 10 { format!("{text}T00:00:00Z") } else { text.to_owned() };
    Timestamp::parse(&full).unwrap()
}

fn catalog(plan_credits: &Value) -> Catalog {
    Catalog::read(json!({
        "meters": [{"key": "m", "event_name": "e", "aggregation": "sum", "dimensions": ["model"]},
                   {"key": "n", "event_name": "f", "aggregation": "count"}],
        "credit_units": [{"key": "u", "costs": [{"meter": "m", "cost": 2},
                                                {"meter": "m", "filter": {"model": ["big"]}, "cost": 20}]}],
        "plans": [{"key": "p", "credit_grants": plan_credits, "prices": [
            {"key": "x", "meter": "m", "model": "per_unit", "currency": "usd", "unit_amount": 1, "per_units": 3},
            {"key": "y", "meter": "n", "model": "package", "currency": "usd", "unit_amount": 1, "per_units": 3}]}],
    }))
    .unwrap()
}

/// A wallet of one subject, with a clock.
struct WalletRig {
    wallet: Wallet,
    catalog: Catalog,
    now: Timestamp,
    grants: u128,
}

impl WalletRig {
    fn at(now: &str) -> Self {
        Self {
            wallet: Wallet::new(7, None, Vec::new()),
            catalog: catalog(&json!([])),
            now: at(now),
            grants: 0,
        }
    }

    fn give(&mut self, request: Value) -> Uuid {
        self.grants += 1;
        let id = Uuid::from_u128(self.grants);
        let grant = Request::read(request).unwrap().granted(id, self.now).unwrap();
        self.wallet.give(grant, self.now);
        id
    }

    fn parts(&self, meter: &str, quantity: &str, properties: Value) -> GrantShares {
        let (meter, plan) = (MeterKey::parse(meter).unwrap(), &self.catalog.plans[0]);
        let properties = Properties::stored(Some(properties));
        let quantity = Quantity::from_decimal(quantity).unwrap();
        let books = PriceBook::of_each_currency(&plan.prices);
        let of = CostedUse {
            credit_units: &self.catalog.credit_units,
            books: &books.iter().collect::<Vec<_>>(),
            meter: &meter,
            properties: &properties,
            counted: &[],
            at: self.now,
        };
        self.wallet.parts(quantity, &of, &TentativeAmounts::new(), self.now)
    }

    /// Spends up to a quantity, as far as the grants go, and returns the spent quantity.
    fn burn(&mut self, quantity: &str) -> String {
        let parts = self.parts("m", quantity, json!({}));
        self.wallet.spend(&parts, &MeterKey::parse("m").unwrap(), (None, Uuid::nil()), self.now);
        quantity_of(&parts).to_string()
    }

    fn turn(&mut self, to: &str) {
        self.now = at(to);
        self.wallet.advance(Vec::new(), &[], self.now);
    }

    fn left(&self, grant: Uuid) -> String {
        self.wallet.grant_balance(grant).unwrap().available.to_string()
    }

    fn balance(&self) -> String {
        self.wallet.balance(&Unit::Meter(MeterKey::parse("m").unwrap())).to_string()
    }

    fn said(&self) -> Vec<String> {
        let said = |m: &Movement| format!("{} {} {}", m.kind.as_str(), m.amount, m.balance);
        self.wallet.movements().iter().map(said).collect()
    }
}

#[test]
fn grants_burn_by_priority_then_expiry_then_age() {
    // `CASES.md`: grants of 100 and 100, usage of 120
    let cases = [
        (json!({"priority": 1}), json!({"priority": 2}), ["0", "80"]),
        (json!({"priority": 2}), json!({"priority": 1}), ["80", "0"]),
        (
            json!({"expires_at": "2026-03-01T00:00:00Z"}),
            json!({"expires_at": "2026-04-01T00:00:00Z"}),
            ["0", "80"],
        ),
        (
            json!({"expires_at": "2026-04-01T00:00:00Z"}),
            json!({"expires_at": "2026-03-01T00:00:00Z"}),
            ["80", "0"],
        ),
        (json!({}), json!({"expires_at": "2026-03-01T00:00:00Z"}), ["80", "0"]),
        (json!({"priority": 1}), json!({"priority": 2, "expires_at": "2026-03-01T00:00:00Z"}), ["0", "80"]),
        (json!({}), json!({}), ["0", "80"]),
    ];
    for (one, two, expected) in cases {
        let mut rig = WalletRig::at("2026-02-01");
        let mut grant = |more: &Value| {
            let mut request = json!({"meter": "m", "amount": 100});
            request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            let id = rig.give(request);
            rig.now = rig.now.saturating_add(std::time::Duration::from_secs(1));
            id
        };
        let ids = [grant(&one), grant(&two)];
        assert_eq!(rig.burn("120"), "120");
        assert_eq!(ids.map(|id| rig.left(id)), expected, "{one} {two}");
        assert_eq!(rig.burn("100"), "80");
        assert_eq!(rig.burn("1"), "0");
    }
    let mut rig = WalletRig::at("2026-02-01");
    rig.give(json!({"meter": "m", "amount": 100}));
    rig.burn("50");
    assert_eq!(rig.balance(), "50");
}

#[test]
fn credit_units_charge_their_cost_per_meter_and_filter() {
    let mut rig = WalletRig::at("2026-02-01");
    rig.give(json!({"credit_unit": "u", "amount": 100}));
    rig.give(json!({"currency": "usd", "amount": 10, "priority": 1}));
    let parts = |meter: &str, quantity: &str, properties: Value| -> Vec<String> {
        let parts = rig.parts(meter, quantity, properties);
        parts.iter().map(|part| format!("{} for {}", part.amount, part.quantity)).collect()
    };
    assert_eq!(parts("m", "10", json!({})), ["20 for 10"]);
    assert_eq!(parts("m", "60", json!({})), ["100 for 50", "3.333333334 for 10"]);
    assert_eq!(parts("m", "6", json!({"model": "big"})), ["100 for 5", "0.333333334 for 1"]);
    assert_eq!(parts("m", "1000", json!({})), ["100 for 50", "10 for 30"]);
    // the cost of a package price depends on earlier usage
    assert_eq!(parts("n", "5", json!({})), [] as [&str; 0]);
}

/// Returns a wallet in which one unit of `m` has the given cost in a credit unit.
fn costing(cost: &str) -> WalletRig {
    let mut rig = WalletRig::at("2026-02-01");
    let unit = json!({"key": "u", "costs": [{"meter": "m", "cost": cost}]});
    rig.catalog.credit_units = vec![crate::credits::unit::CreditUnit::read(unit).unwrap()];
    rig
}

#[test]
fn uses_cost_the_same_over_one_grant_and_over_several() {
    /// The cost of a unit; the grants, in credits or units; the uses with their covered quantities; the
    /// remainders.
    type Case<'a> = (&'a str, &'a [&'a str], &'a [(&'a str, &'a str)], &'a [&'a str]);
    let cases: [Case<'_>; 9] = [
        ("3", &["1", "1", "1"], &[("1", "1"), ("1", "0")], &["0", "0", "0"]),
        ("3", &["4", "4", "4"], &[("1", "1"), ("1", "1"), ("2", "2"), ("1", "0")], &["0", "0", "0"]),
        ("3", &["50", "50", "50"], &[("16", "16"), ("33", "33"), ("1", "1"), ("1", "0")], &["0", "0", "0"]),
        ("7", &["10", "10", "10"], &[("4", "4"), ("1", "0.285714285")], &["0", "0", "0"]),
        // a use beyond the grants spends them fully, and is covered in part
        ("3", &["1"], &[("1", "0.333333333")], &["0"]),
        ("3", &["1", "1"], &[("1", "0.666666666")], &["0", "0"]),
        // with grants in units between: only the last share of a use is rounded
        ("3", &["1", "m 1", "2"], &[("2", "2"), ("1", "0")], &["0", "0", "0"]),
        ("3", &["1", "m 1"], &[("1", "1"), ("1", "0.333333333")], &["0", "0"]),
        // an amount below one nano-unit stays and is spent with the next grant
        ("3", &["0.000000002", "0.000000001"], &[("1", "0.000000001")], &["0", "0"]),
    ];
    for (cost, grants, uses, left) in cases {
        let mut rig = costing(cost);
        let give = |(priority, grant): (usize, &&str)| {
            let mut request = json!({"credit_unit": "u", "amount": grant, "priority": priority});
            if let Some(units) = grant.strip_prefix("m ") {
                request = json!({"meter": "m", "amount": units, "priority": priority});
            }
            rig.give(request)
        };
        let ids: Vec<Uuid> = grants.iter().enumerate().map(give).collect();
        for (quantity, covered) in uses {
            assert_eq!(rig.burn(quantity), *covered, "{cost} {grants:?} {quantity}");
        }
        let remain: Vec<String> = ids.iter().map(|id| rig.left(*id)).collect();
        assert_eq!(remain, *left, "{cost} {grants:?}");
        // the quantities of the movements sum to the covered quantities
        let told = rig.wallet.movements().iter().filter_map(|moved| moved.cause.used.as_ref());
        let told = told.fold(Total::default(), |sum, (_, quantity)| sum + (*quantity).into());
        let covered = uses.iter().map(|(_, covered)| Total::from_decimal(covered).unwrap());
        assert_eq!(told, covered.fold(Total::default(), |sum, covered| sum + covered), "{cost} {grants:?}");
    }
    let mut rig = costing("3");
    let id = rig.give(json!({"credit_unit": "u", "amount": "0.000000002"}));
    assert_eq!((rig.burn("1").as_str(), rig.left(id).as_str()), ("0", "0.000000002"));
}

#[test]
fn recurring_grants_carry_over_what_their_rollover_allows() {
    // `CASES.md`: a grant of 100 with a rollover of at most 50, usage of 10, end of the period
    let grant = |renews: bool, rollover: Value| json!({"meter": "m", "amount": 100, "period": "month", "renews": renews, "rollover": rollover});
    let cases = [
        (grant(false, json!({"max": 50})), "10", "50"),
        (grant(false, json!({"max": 50})), "70", "30"),
        (grant(false, json!({"max": 50, "min": 40})), "90", "40"),
        (grant(false, json!({"max": 0})), "10", "0"),
        (grant(true, json!({"max": 50})), "10", "150"),
        (grant(true, json!({"max": 0})), "10", "100"),
        (grant(true, json!({"max": 50})), "100", "100"),
    ];
    for (request, used, expected) in cases {
        let mut rig = WalletRig::at("2026-01-31");
        rig.give(request.clone());
        rig.burn(used);
        rig.turn("2026-02-27T23:59:59Z");
        assert_eq!(rig.said().len(), 2, "the period has not ended yet: {request}");
        rig.turn("2026-02-28");
        assert_eq!(rig.balance(), expected, "{request}");
    }
    // a wallet without readers for months equals one that was read each month
    let mut rig = WalletRig::at("2026-01-31");
    rig.give(json!({"meter": "m", "amount": 100, "period": "month", "rollover": {"max": 250},
                    "expires_at": "2026-12-01T00:00:00Z"}));
    let mut seen =
        WalletRig { wallet: rig.wallet.clone(), catalog: catalog(&json!([])), ..WalletRig::at("2026-01-31") };
    for month in ["2026-02-28", "2026-03-31", "2026-04-30", "2026-05-30"] {
        seen.turn(month);
    }
    rig.turn("2026-05-30");
    assert_eq!((rig.balance().as_str(), rig.said()), ("350", seen.said()));
    rig.turn("2026-12-01");
    assert_eq!(rig.balance(), "0");
    assert_eq!(rig.wallet.next_due(), None);
}

#[test]
fn wallets_untouched_for_years_advance_through_all_periods() {
    let mut rig = WalletRig::at("2020-01-31");
    for _ in 0..2 {
        rig.give(json!({"meter": "m", "amount": 100, "period": "day", "rollover": {"max": 50}}));
    }
    rig.turn("2026-05-30");
    assert_eq!(rig.balance(), "300");
    rig.burn("250");
    rig.turn("2026-05-31");
    assert_eq!(rig.balance(), "250");
    assert!(rig.wallet.movements().is_sorted_by_key(|movement| movement.at));
}

#[test]
fn plan_grants_are_issued_once_per_period() {
    let catalog = catalog(&json!([{"key": "c", "meter": "m", "amount": 100, "rollover": {"max": 50}}]));
    let mut subscription = Subscription::begin(PlanKey::parse("p").unwrap(), at("2026-01-31"));
    let mut wallet = Wallet::new(7, None, Vec::new());
    let unit = Unit::Meter(MeterKey::parse("m").unwrap());
    let credits = &catalog.plans[0].credit_grants[0];
    let mut balance = |subscription: &Subscription, now: &str| {
        wallet.advance(Vec::new(), &[GrantSchedule { credits, subscription }], at(now));
        wallet.balance(&unit).to_string()
    };
    let cases = [
        ("2026-02-03", "100"),
        ("2026-02-20", "100"),
        ("2026-02-28", "150"),
        ("2026-03-30", "150"),
        ("2026-03-31", "150"),
    ];
    for (now, expected) in cases {
        assert_eq!(balance(&subscription, now), expected, "{now}");
    }
    // the biller starts a period early: the unused credits carry over as at any period end
    subscription.cycle.anchor = at("2026-04-10");
    assert_eq!(balance(&subscription, "2026-04-10"), "150");
    assert_eq!(balance(&subscription, "2026-04-11"), "150");
    // a paused subscription receives nothing and carries nothing over
    subscription.terms_since = at("2026-07-15");
    assert_eq!(balance(&subscription, "2026-07-16"), "100");
}

#[test]
fn held_credits_outlive_their_grant() {
    let mut rig = WalletRig::at("2026-02-01");
    rig.give(json!({"meter": "m", "amount": 10, "expires_at": "2026-02-02T00:00:00Z"}));
    let meter = MeterKey::parse("m").unwrap();
    let parts = rig.parts("m", "4", json!({}));
    rig.wallet.hold(&parts, &meter, Uuid::from_u128(1), rig.now);
    rig.turn("2026-02-03");
    assert_eq!(rig.balance(), "0");
    let (spent, back) = split(&parts, Quantity::from_decimal("3").unwrap());
    rig.wallet.settle(&spent, &meter, (Uuid::from_u128(1), Uuid::from_u128(2)), rig.now);
    rig.wallet.release(&back, &meter, Uuid::from_u128(1), rig.now);
    assert_eq!(
        rig.said(),
        ["grant 10 10", "hold 4 6", "expire 6 0", "settle 3 0", "release 1 1", "expire 1 0"]
    );
}

#[test]
fn refunds_refer_to_their_spend_and_voids_take_the_remainder() {
    let mut rig = WalletRig::at("2026-02-01");
    let id = rig.give(json!({"meter": "m", "amount": 10}));
    rig.burn("4");
    let of_spend = || Cause { refunds: Some(77), ..Cause::default() };
    rig.wallet.refund(id, Total::from(1), of_spend(), rig.now);
    assert_eq!(rig.wallet.movements().last().unwrap().cause.refunds, Some(77));
    assert!(rig.wallet.void(id, Some("oops".to_owned()), rig.now));
    assert!(!rig.wallet.void(id, None, rig.now));
    rig.wallet.refund(id, Total::from(1), of_spend(), rig.now);
    assert_eq!(rig.said(), ["grant 10 10", "spend 4 6", "refund 1 7", "void 7 0", "refund 1 1", "void 1 0"]);
    assert_eq!(rig.burn("1"), "0");
}

#[test]
fn grants_take_effect_at_their_effective_time() {
    let mut rig = WalletRig::at("2026-02-01");
    let id = rig.give(json!({"meter": "m", "amount": 10, "effective_at": "2026-02-05T00:00:00Z"}));
    assert_eq!((rig.balance().as_str(), rig.burn("1").as_str()), ("0", "0"));
    assert_eq!(rig.wallet.next_due(), Some(at("2026-02-05")));
    rig.turn("2026-02-05");
    assert_eq!(rig.balance(), "10");
    assert_eq!(rig.wallet.grant_balance(id).unwrap().state, GrantState::Open);
}

#[derive(Debug, Clone)]
enum WalletStep {
    Give { amount: i64, priority: i64, life: Option<i64>, period: Option<(bool, i64)> },
    Hold(i64),
    Settle { hold: usize, part: i64 },
    Spend(i64),
    Void(usize),
    Wait(i64),
}

fn steps() -> impl Strategy<Value = Vec<WalletStep>> {
    let give =
        (1_i64..50, 0_i64..3, prop::option::of(1_i64..90), prop::option::of((any::<bool>(), 0_i64..40)))
            .prop_map(|(amount, priority, life, period)| WalletStep::Give { amount, priority, life, period });
    prop::collection::vec(
        prop_oneof![
            give,
            (1_i64..60).prop_map(WalletStep::Hold),
            (0_usize..9, 0_i64..60).prop_map(|(hold, part)| WalletStep::Settle { hold, part }),
            (1_i64..60).prop_map(WalletStep::Spend),
            (0_usize..9).prop_map(WalletStep::Void),
            (0_i64..40).prop_map(WalletStep::Wait),
        ],
        1..60,
    )
}

proptest! {
    /// Coverage and cost do not depend on the number of grants that make up a balance. The settled and the
    /// returned part of a hold sum to the held amount.
    #[test]
    fn coverage_does_not_depend_on_how_a_balance_is_split(
        cost in 1_i64..9_000_000_000, nanos in prop::collection::vec(1_i64..4_000_000_000_000, 1..6),
        asked in 1_i64..9_000_000_000_000, at in 0_i64..9_000_000_000_000, whole in any::<bool>(),
    ) {
        // whole costs and whole units need no rounding
        let step = if whole { 1_000_000_000 } else { 1 };
        let text = |nanos: i64| Total::from_nanos((nanos - nanos % step).max(step).into()).to_string();
        let balance = nanos.iter().fold(Total::default(), |sum, part| sum + Total::from_nanos((*part).into()));
        let (mut one, mut many) = (costing(&text(cost)), costing(&text(cost)));
        one.give(json!({"credit_unit": "u", "amount": balance.to_string()}));
        for part in &nanos {
            many.give(json!({"credit_unit": "u", "amount": Total::from_nanos((*part).into()).to_string()}));
        }
        let parts = [one, many].map(|rig| rig.parts("m", &text(asked), json!({})));
        let amount = |parts: &GrantShares| parts.iter().fold(Total::default(), |sum, part| sum + part.amount);
        prop_assert_eq!(quantity_of(&parts[0]), quantity_of(&parts[1]));
        prop_assert_eq!(amount(&parts[0]), amount(&parts[1]));
        prop_assert!(parts.iter().all(|parts| amount(parts) <= balance));
        let at = Quantity::from_decimal(&text(at)).unwrap();
        let cut = parts.each_ref().map(|parts| split(parts, at));
        for ((first, rest), parts) in cut.iter().zip(&parts) {
            prop_assert_eq!(amount(first) + amount(rest), amount(parts));
            prop_assert_eq!(quantity_of(first), at.min(quantity_of(parts)));
        }
        let apart = (amount(&cut[0].0) - amount(&cut[1].0)).nanos().abs();
        prop_assert!(apart <= i128::from(!whole), "{} {}", amount(&cut[0].0), amount(&cut[1].0));
    }

    /// After any steps no account of a grant is negative, each balance is the sum of its movements, and
    /// grants hold exactly the holds of open reservations.
    #[test]
    fn balances_equal_ledger_sums_and_are_never_negative(steps in steps()) {
        let mut rig = WalletRig::at("2026-01-31");
        let meter = MeterKey::parse("m").unwrap();
        let (mut given, mut holds) = (Vec::new(), Vec::new());
        for (n, step) in steps.into_iter().enumerate() {
            let reservation = Uuid::from_u128(n as u128);
            match step {
                WalletStep::Give { amount, priority, life, period } => {
                    let mut request = json!({"meter": "m", "amount": amount, "priority": priority});
                    if let Some(days) = life {
                        request["expires_after"] = json!(format!("{days}d"));
                    }
                    if let Some((renews, max)) = period {
                        request["period"] = json!("month");
                        request["renews"] = json!(renews);
                        request["rollover"] = json!({"max": max});
                    }
                    given.push(rig.give(request));
                }
                WalletStep::Hold(quantity) => {
                    let parts = rig.parts("m", &quantity.to_string(), json!({}));
                    rig.wallet.hold(&parts, &meter, reservation, rig.now);
                    holds.push((reservation, parts));
                }
                WalletStep::Settle { hold, part } => {
                    if !holds.is_empty() {
                        let (reservation, parts) = holds.swap_remove(hold % holds.len());
                        let quantity = Total::from(part).quantity().unwrap();
                        let (spent, back) = split(&parts, quantity);
                        prop_assert_eq!(quantity_of(&spent), quantity.min(quantity_of(&parts)));
                        rig.wallet.settle(&spent, &meter, (reservation, reservation), rig.now);
                        rig.wallet.release(&back, &meter, reservation, rig.now);
                    }
                }
                WalletStep::Spend(quantity) => { rig.burn(&quantity.to_string()); }
                WalletStep::Void(n) => if !given.is_empty() { rig.wallet.void(given[n % given.len()], None, rig.now); },
                WalletStep::Wait(days) => {
                    let to = rig.now.micros() + days * 86_400_000_000;
                    rig.now = Timestamp::from_micros(to).unwrap();
                    rig.wallet.advance(Vec::new(), &[], rig.now);
                }
            }
            let none = Total::default();
            for grant_balance in rig.wallet.grant_balances() {
                let sum = |account: LedgerAccount| {
                    let of = rig.wallet.movements().iter().filter(|m| m.grant == Some(grant_balance.grant.id));
                    of.fold(none, |sum, m| sum + m.kind.effect_on(account, m.amount))
                };
                prop_assert!(grant_balance.available >= none && grant_balance.held >= none);
                prop_assert_eq!((sum(LedgerAccount::Available), sum(LedgerAccount::Held)), (grant_balance.available, grant_balance.held));
                let held = holds.iter().flat_map(|(_, parts)| parts).filter(|part| part.grant == grant_balance.grant.id);
                prop_assert_eq!(held.fold(none, |sum, part| sum + part.amount), grant_balance.held);
                prop_assert!(grant_balance.state != GrantState::Ended || grant_balance.available == none);
                prop_assert!(grant_balance.state != GrantState::Open || grant_balance.grant.is_good(rig.now));
            }
            let carried = rig.wallet.movements().iter().fold(none, |sum, m| sum + m.kind.effect_on(LedgerAccount::Carried, m.amount));
            prop_assert_eq!(carried, none);
            let available = rig.wallet.grant_balances().iter().fold(none, |sum, grant_balance| sum + grant_balance.available);
            prop_assert_eq!(rig.wallet.balance(&Unit::Meter(meter.clone())), available);
            prop_assert!(rig.wallet.movements().iter().all(|m| m.balance >= none && m.amount > none));
        }
    }
}
