//! Credits of the model: grants of a limit's subject pay for use above the quota, if the limit allows it.
//! Quantities and amounts are in billionths. A grant may pay for a fraction of a unit.

use jiff::{SignedDuration, Timestamp};
use num_rational::Ratio;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::plans::{CALLS, METERS, PLANS, Period, SUBJECTS, TOKENS, grid, month_of};
use super::steps::Ask;
use super::{Standing, World};
use crate::credits::ledger;
use crate::support::TestService;

pub(super) const ONE: i64 = 1_000_000_000;

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Unit {
    Meter(usize),
    Credits,
    Money,
}

/// The units, in the order of the shown balances.
pub(super) const UNITS: [Unit; 4] = [Unit::Meter(CALLS), Unit::Meter(TOKENS), Unit::Credits, Unit::Money];

/// The cost of a unit of a meter in credits, narrowest filter first.
const COSTS: [(usize, Option<&str>, i64); 3] = [(TOKENS, Some("a"), 3), (TOKENS, None, 1), (CALLS, None, 2)];

pub(super) fn credit_unit() -> Value {
    let cost = |(meter, model, cost): &(usize, Option<&str>, i64)| {
        let filter = model.map_or(json!({}), |model| json!({"model": [model]}));
        json!({"meter": METERS[*meter], "filter": filter, "cost": cost})
    };
    json!({"key": "credits", "costs": COSTS.iter().map(cost).collect::<Vec<_>>()})
}

/// The identity of a limit's counter, which plans may share: meter, filter and period.
pub(super) type Tally = (usize, Option<&'static str>, Period);

#[derive(Debug, Clone)]
pub(super) struct Grant {
    /// The id, or none for a grant made by a rollover.
    pub(super) id: Option<String>,
    who: usize,
    unit: Unit,
    amount: i64,
    priority: i64,
    created: Timestamp,
    from: Timestamp,
    until: Option<Timestamp>,
    turns: Option<Turns>,
    state: State,
    available: i64,
    held: i64,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum State {
    Upcoming,
    Open,
    Over,
    Voided,
}

/// The recurrence of a grant.
#[derive(Debug, Clone, Copy)]
pub(super) struct Turns {
    anchor: Timestamp,
    until: Option<Timestamp>,
    terms: Recurring,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Recurring {
    pub(super) is_monthly: bool,
    pub(super) renews: bool,
    /// The least and the most that a period carries over.
    pub(super) min: i64,
    pub(super) max: i64,
}

/// A grant as a caller requests it. Times are in seconds from now.
#[derive(Debug, Clone)]
pub(super) struct Given {
    pub(super) who: usize,
    pub(super) unit: Unit,
    pub(super) amount: i64,
    pub(super) priority: i64,
    pub(super) from: Option<i64>,
    pub(super) life: Option<i64>,
    pub(super) recurring: Option<Recurring>,
}

/// The credits that grants pay for a use, for the limits of one subject.
#[derive(Debug, Clone)]
pub(super) struct Paid {
    who: usize,
    /// The parts, in the order in which the grants are used.
    parts: Vec<Part>,
    /// The covered quantity of each counter.
    spared: Vec<(Tally, i64)>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Part {
    grant: usize,
    quantity: Ratio<i128>,
    amount: i64,
}

fn exactly(nanos: i64) -> Ratio<i128> {
    Ratio::from_integer(nanos.into())
}

fn above(exact: Ratio<i128>) -> i64 {
    i64::try_from(exact.ceil().to_integer()).unwrap()
}

/// Returns the sum of the quantities, rounded once to whole billionths.
fn quantity_of(parts: &[Part]) -> i64 {
    let sum: Ratio<i128> = parts.iter().map(|part| part.quantity).sum();
    i64::try_from(sum.floor().to_integer()).unwrap()
}

impl Paid {
    /// Splits off the credits of the first `count` of `of` units. The quota covers the first units.
    fn cut_first(&mut self, count: i64, of: i64) -> Self {
        let first = |borne: i64| if count == 0 { 0 } else { (count + borne - of).clamp(0, borne) };
        self.cut(first)
    }

    /// Splits off the credits of the last units.
    fn cut_last(&mut self, count: i64) -> Self {
        let mut last = self.cut(|borne| borne - borne.min(count));
        std::mem::swap(self, &mut last);
        last
    }

    fn cut(&mut self, first: impl Fn(i64) -> i64) -> Self {
        let mut left = exactly(first(quantity_of(&self.parts)));
        let mut cut = Self { parts: Vec::new(), spared: Vec::new(), ..*self };
        for part in &mut self.parts {
            let quantity = part.quantity.min(left);
            let is_whole = quantity == part.quantity;
            let amount =
                if is_whole { part.amount } else { above(exactly(part.amount) * quantity / part.quantity) };
            left -= quantity;
            part.quantity -= quantity;
            part.amount -= amount;
            cut.parts.push(Part { quantity, amount, ..*part });
        }
        for (counter_source, borne) in &mut self.spared {
            cut.spared.push((*counter_source, first(*borne)));
            *borne -= first(*borne);
        }
        cut
    }
}

/// Adds the credits for the growth of a hold, which count as its last units.
pub(super) fn add(paid: &mut Vec<Paid>, more: Vec<Paid>) {
    for more in more {
        match paid.iter_mut().find(|paid| paid.who == more.who) {
            None => paid.push(more),
            Some(paid) => {
                paid.parts.extend(more.parts);
                for (counter_source, borne) in more.spared {
                    match paid.spared.iter_mut().find(|(known, _)| *known == counter_source) {
                        Some((_, sum)) => *sum += borne,
                        None => paid.spared.push((counter_source, borne)),
                    }
                }
            }
        }
    }
}

/// Returns the quantity that some credits cover on a counter.
pub(super) fn spared<'p>(paid: impl IntoIterator<Item = &'p Paid>, who: usize, counter_source: Tally) -> i64 {
    let of = paid.into_iter().filter(|paid| paid.who == who).flat_map(|paid| &paid.spared);
    of.filter(|(of, _)| *of == counter_source).map(|(_, borne)| borne).sum()
}

impl Standing {
    /// Returns the part of `more` above the quota. If the quota is exceeded, a zero-value use needs the
    /// smallest unit.
    pub(super) fn short(&self, more: i64) -> i64 {
        let above = |quota: i64| (self.used + self.held - quota) * ONE - self.covered;
        match self.quota.map(above) {
            None => 0,
            Some(above) if above > 0 => more.max(1),
            Some(above) => (above + more).max(0),
        }
    }
}

/// Returns the largest shortfall among the limits of a subject, which is paid once.
fn need(limits: &[&Standing], more: i64) -> i64 {
    limits.iter().map(|limit| limit.short(more)).max().unwrap_or_default()
}

/// Returns the limits that credits extend, grouped by subject.
fn payers(limits: &[Standing]) -> Vec<Vec<&Standing>> {
    let mut found: Vec<Vec<&Standing>> = Vec::new();
    for limit in limits.iter().filter(|limit| limit.is_extended) {
        match found.iter_mut().find(|known| known[0].subject == limit.subject) {
            Some(known) => known.push(limit),
            None => found.push(vec![limit]),
        }
    }
    found
}

/// A use: its meter and its model.
pub(super) type Use<'a> = (usize, Option<&'a str>);

/// The quantity of a request that credits allow.
pub(super) enum Payable {
    Whole(i64),
    /// A fraction of a unit, which the model does not support.
    Fraction,
    Denied(Vec<Value>),
}

impl World {
    fn cost(&self, unit: Unit, plan: usize, (meter, model): Use<'_>) -> Option<i64> {
        match unit {
            Unit::Meter(of) => (of == meter).then_some(1),
            Unit::Credits => {
                let fits = |(of, only, _): &&(usize, Option<&str>, i64)| {
                    *of == meter && (only.is_none() || *only == model)
                };
                COSTS.iter().find(fits).map(|(_, _, cost)| *cost)
            }
            Unit::Money => PLANS[plan].prices.as_ref()?.each(meter, model, self.edition),
        }
    }

    /// Returns the credits that grants pay for a need. `taken` has the credits of earlier requests.
    fn bears(&self, payer: &[&Standing], of: Use<'_>, need: i64, taken: &[Part]) -> Vec<Part> {
        let (who, plan) = (payer[0].subject, payer[0].plan);
        let is_good = |n: &usize| self.grants[*n].who == who && self.grants[*n].state == State::Open;
        let mut good: Vec<usize> = (0..self.grants.len()).filter(is_good).collect();
        good.sort_by_key(|n| {
            let Grant { priority, until, created, .. } = &self.grants[*n];
            (*priority, until.unwrap_or(Timestamp::MAX), *created, *n)
        });
        let (mut parts, mut left) = (Vec::new(), exactly(need));
        for grant in good {
            let Some(cost) = self.cost(self.grants[grant].unit, plan, of) else { continue };
            let beside: i64 = taken.iter().filter(|part| part.grant == grant).map(|part| part.amount).sum();
            let available = self.grants[grant].available - beside;
            let amount = above(left * exactly(cost)).min(available);
            let quantity = left.min(exactly(available) / exactly(cost));
            left -= quantity;
            parts.push(Part { grant, quantity, amount });
        }
        // A quantity below one billionth takes no credits.
        if quantity_of(&parts) == 0 { Vec::new() } else { parts }
    }

    /// Returns the subjects without enough credits for a use.
    fn short_of(&self, limits: &[Standing], of: Use<'_>, more: i64, taken: &[Part]) -> Vec<usize> {
        let is_short = |payer: &Vec<&Standing>| {
            let need = need(payer, more);
            quantity_of(&self.bears(payer, of, need, taken)) < need
        };
        payers(limits).into_iter().filter(is_short).map(|payer| payer[0].subject).collect()
    }

    /// Returns the quantity of `asked` that credits allow.
    pub(super) fn payable(
        &self,
        limits: &[Standing],
        (ask, model): (&Ask, Option<&str>),
        asked: i64,
        taken: &[Part],
    ) -> Payable {
        let of = (ask.meter, model);
        let passes = |more: i64| self.short_of(limits, of, more, taken).is_empty();
        if passes(asked * ONE) {
            return Payable::Whole(asked);
        }
        let (mut least, mut most) = (asked * ONE, None);
        if ask.up_to {
            most = (1..asked).rev().find(|value| passes(value * ONE));
            least = least.min(if ask.meter == TOKENS { 1 } else { ONE });
            if ask.meter == TOKENS && asked > 0 && passes(most.unwrap_or_default() * ONE + 1) {
                return Payable::Fraction;
            }
        }
        if let Some(most) = most {
            return Payable::Whole(most);
        }
        let short = self.short_of(limits, of, least, taken);
        let denies =
            |limit: &&Standing| limit.is_extended && short.contains(&limit.subject) && limit.short(least) > 0;
        Payable::Denied(limits.iter().filter(denies).map(|limit| limit.to_denier(ask.value)).collect())
    }

    /// Returns the credits for a use that is not counted yet.
    pub(super) fn pay(
        &self,
        limits: &[Standing],
        of: Use<'_>,
        more: i64,
        taken: &mut Vec<Part>,
    ) -> Vec<Paid> {
        let paid = payers(limits).into_iter().map(|payer| {
            let parts = self.bears(&payer, of, need(&payer, more), taken);
            let borne = quantity_of(&parts);
            let spared =
                payer.iter().map(|limit| (limit.limit.counter_source(), limit.short(more).min(borne)));
            Paid { who: payer[0].subject, spared: spared.collect(), parts }
        });
        let paid: Vec<Paid> = paid.collect();
        taken.extend(paid.iter().flat_map(|paid| &paid.parts));
        paid
    }

    fn each<'p>(&mut self, paid: impl IntoIterator<Item = &'p Paid>, change: impl Fn(&mut Grant, i64)) {
        for part in paid.into_iter().flat_map(|paid| &paid.parts) {
            let grant = &mut self.grants[part.grant];
            change(grant, part.amount);
            assert!(grant.available >= 0 && grant.held >= 0, "{grant:?}");
        }
    }

    pub(super) fn keep(&mut self, paid: &[Paid]) {
        self.each(paid, |grant, amount| {
            grant.available -= amount;
            grant.held += amount;
        });
    }

    /// Returns credits to their grants. Credits of an expired grant are lost.
    pub(super) fn give_back(&mut self, paid: &[Paid], was_held: bool) {
        self.each(paid, |grant, amount| {
            grant.held -= if was_held { amount } else { 0 };
            grant.available += if grant.state == State::Open { amount } else { 0 };
        });
    }

    /// Releases the credits of a hold's last units, or all if nothing is left of the hold.
    pub(super) fn shrink(&mut self, reservation: usize, hold: usize, by: i64) {
        let hold = &mut self.reservations[reservation].holds[hold];
        let is_empty = hold.rest() == 0;
        let cut = |paid: &mut Paid| paid.cut_last(if is_empty { i64::MAX } else { by * ONE });
        let back: Vec<Paid> = hold.paid.iter_mut().map(cut).collect();
        self.give_back(&back, true);
    }

    /// Spends the credits held for the first `count` of a hold's `open` units, which an event records.
    pub(super) fn spend_held(&mut self, (n, hold): (usize, usize), (count, open): (i64, i64), event: usize) {
        let hold = &mut self.reservations[n].holds[hold];
        let cut = |paid: &mut Paid| paid.cut_first(count * ONE, open * ONE);
        let spent: Vec<Paid> = hold.paid.iter_mut().map(cut).collect();
        self.each(&spent, |grant, amount| grant.held -= amount);
        self.events[event].paid.extend(spent);
    }

    /// Pays for recorded usage that was not held, as far as the credits reach.
    pub(super) fn burn(&mut self, event: usize, meter: usize, quantity: i64) {
        let (path, model, at) =
            (self.events[event].path.clone(), self.events[event].model, self.events[event].at);
        let mut limits = self.extended(&path, (meter, model), at);
        for limit in &mut limits {
            limit.used -= quantity;
        }
        let paid = self.pay(&limits, (meter, model), quantity * ONE, &mut Vec::new());
        for (payer, paid) in payers(&limits).iter().zip(&paid) {
            self.uncovered[paid.who][meter] += need(payer, quantity * ONE) - quantity_of(&paid.parts);
        }
        self.each(&paid, |grant, amount| grant.available -= amount);
        self.events[event].paid.extend(paid);
    }

    /// Returns the limits that credits extend and that count a use at an instant.
    fn extended(&self, path: &[usize], (meter, model): Use<'_>, at: Timestamp) -> Vec<Standing> {
        let mut limits = self.limits(path, &[meter], model, at);
        limits.retain(|limit| limit.is_extended && limit.since <= at);
        limits
    }

    /// Returns whether credits would pay for a use in a closed period. Such a use counts only if the
    /// counter existed before.
    pub(super) fn owes_in_the_past(&self, path: &[usize], of: Use<'_>, more: i64, at: Timestamp) -> bool {
        let is_over = |limit: &Standing| limit.period.1 <= self.now && limit.short(more * ONE) > 0;
        more > 0 && self.extended(path, of, at).iter().any(is_over)
    }

    /// Refunds the credits of a voided event.
    pub(super) fn refund(&mut self, event: usize) {
        let back = std::mem::take(&mut self.events[event].paid);
        self.give_back(&back, false);
    }

    /// Makes a grant. Returns the path, the body, and the expected status and answer.
    pub(super) fn give(&mut self, given: &Given) -> (String, Value, u16, Value) {
        let Given { who, unit, amount, priority, .. } = *given;
        let path = format!("/v1/subjects/{}/credits/grants", SUBJECTS[who]);
        // No two grants expire at the same time.
        let exactly = |seconds: i64| {
            let whole = Timestamp::from_second(self.now.as_second() + seconds).unwrap();
            whole + SignedDuration::from_millis(i64::try_from(self.given).unwrap())
        };
        let from = given.from.or(given.recurring.map(|_| 0)).map(exactly);
        let starts = from.unwrap_or(self.now);
        let ends = given.life.map(|life| exactly(life + (starts.as_second() - self.now.as_second()).max(1)));
        let mut body = json!({"amount": amount, "priority": priority});
        unit.write(&mut body);
        if let Some(from) = from {
            body["effective_at"] = json!(from.to_string());
        }
        if let Some(ends) = ends {
            body["expires_at"] = json!(ends.to_string());
        }
        if let Some(terms) = given.recurring {
            body["period"] = json!(if terms.is_monthly { "month" } else { "day" });
            body["renews"] = json!(terms.renews);
            body["rollover"] = json!({"min": terms.min, "max": terms.max});
        }
        let plan = self.subscriptions[who].as_ref().map(|own| own.plan);
        if unit == Unit::Money && plan.is_some_and(|plan| PLANS[plan].has_uncoverable_price(self.edition)) {
            return (path, body, 422, json!({"code": "uncoverable_price"}));
        }
        self.given += 1;
        let turns = given.recurring.map(|terms| Turns { anchor: starts, until: ends, terms });
        let mut grant = Grant {
            id: None,
            who,
            unit,
            amount: amount * ONE,
            priority,
            created: self.now,
            from: starts,
            until: [turns.map(|turns| turns.after(starts)), ends].into_iter().flatten().min(),
            turns,
            state: State::Upcoming,
            available: 0,
            held: 0,
        };
        grant.take_effect(self.now);
        let answer = json!({"amount": amount, "available": number(grant.available), "held": 0, "priority": priority,
            "effective_at": grant.from.to_string(), "expires_at": grant.until.map(|until| until.to_string()),
            "status": if grant.state == State::Open { "active" } else { "upcoming" }});
        self.grants.push(grant);
        (path, body, 201, answer)
    }

    /// Voids a grant and keeps its held credits. Returns the path, the expected answer, and whether the
    /// call is a replay.
    pub(super) fn void_grant(&mut self, n: usize) -> (String, Value, bool) {
        let grant = &mut self.grants[n];
        let was = std::mem::replace(&mut grant.state, State::Voided);
        grant.available = 0;
        let id = grant.id.clone().unwrap_or_default();
        let path = format!("/v1/subjects/{}/credits/grants/{id}/void", SUBJECTS[grant.who]);
        (path, json!({"status": "voided", "available": 0, "held": number(grant.held)}), was == State::Voided)
    }

    /// Returns the next grant that takes effect or ends.
    pub(super) fn next_turn(&self) -> Option<(Timestamp, usize)> {
        let due = |(n, grant): (usize, &Grant)| match grant.state {
            State::Upcoming => Some((grant.from, n)),
            State::Open => grant.until.map(|until| (until, n)),
            State::Over | State::Voided => None,
        };
        self.grants.iter().enumerate().filter_map(due).min()
    }

    pub(super) fn turn(&mut self, n: usize, at: Timestamp) {
        let grant = &mut self.grants[n];
        if grant.state == State::Upcoming {
            return grant.take_effect(at);
        }
        let unused = std::mem::take(&mut grant.available);
        grant.state = State::Over;
        let Some(turns) = grant.turns.filter(|turns| turns.until.is_none_or(|until| at < until)) else {
            return;
        };
        let Recurring { renews, min, max, .. } = turns.terms;
        let amount = if renews { grant.amount } else { 0 };
        let available = amount + unused.max(min * ONE).min(max * ONE);
        let until = [Some(turns.after(at)), turns.until].into_iter().flatten().min();
        let next = Grant {
            id: None,
            amount,
            created: at,
            from: at,
            until,
            state: State::Open,
            available,
            held: 0,
            ..grant.clone()
        };
        if available > 0 {
            self.grants.push(next);
        }
    }

    /// Returns the balances of a subject as the API shows them.
    fn balances(&self, who: usize) -> Vec<Value> {
        let shown = |unit: &Unit| {
            let of: Vec<&Grant> =
                self.grants.iter().filter(|grant| grant.who == who && grant.unit == *unit).collect();
            let sum = |amount: fn(&Grant) -> i64| number(of.iter().map(|grant| amount(grant)).sum());
            let mut expiring: Vec<(Timestamp, i64)> = of
                .iter()
                .filter(|grant| grant.available > 0)
                .filter_map(|grant| Some((grant.until?, grant.available)))
                .collect();
            expiring.sort_unstable();
            let expiring = expiring
                .into_iter()
                .map(|(until, amount)| json!({"expires_at": until.to_string(), "amount": number(amount)}));
            let upcoming = |grant: &Grant| if grant.state == State::Upcoming { grant.amount } else { 0 };
            let mut shown = json!({"balance": sum(|grant| grant.available), "pending": sum(|grant| grant.held),
                "upcoming": sum(upcoming), "expiring": expiring.collect::<Vec<_>>()});
            unit.write(&mut shown);
            shown
        };
        UNITS.iter().map(shown).filter(has_something).collect()
    }

    /// Compares the balances of a subject.
    pub(super) async fn look_at_credits(
        &self,
        service: &TestService,
        who: usize,
    ) -> Result<(), TestCaseError> {
        let path = format!("/v1/subjects/{}/credits", SUBJECTS[who]);
        let answer = service.get(&path).await.json();
        let mut shown: Vec<Value> = answer["balances"].as_array().cloned().unwrap_or_default();
        shown.retain(has_something);
        for expiring in shown.iter_mut().flat_map(|shown| shown["expiring"].as_array_mut().unwrap()) {
            expiring.as_object_mut().unwrap().remove("grant");
        }
        prop_assert_eq!(&shown, &self.balances(who), "{} at {}", path, self.now);
        Ok(())
    }

    /// Compares the spent and the uncovered quantities with the ledger, where every entry must balance.
    pub(super) async fn look_at_ledger(
        &self,
        service: &TestService,
        who: usize,
    ) -> Result<(), TestCaseError> {
        let moved = ledger(service, SUBJECTS[who]).await;
        let nanos = |value: &Value| {
            let total = metergate_domain::base::quantity::Total::from_decimal(&value.to_string()).unwrap();
            i64::try_from(total.nanos()).unwrap()
        };
        let sum = |account: &str, is_it: &dyn Fn(&Value) -> bool| -> i64 {
            let rows = moved.iter().filter(|row| is_it(row));
            let entries = rows.flat_map(|row| row["entries"].as_array().unwrap());
            entries.filter(|entry| entry["account"] == account).map(|entry| nanos(&entry["amount"])).sum()
        };
        for unit in UNITS {
            let parts = self.events.iter().flat_map(|event| &event.paid).flat_map(|paid| &paid.parts);
            let is_it = |grant: &Grant| grant.who == who && grant.unit == unit;
            let spent: i64 =
                parts.filter(|part| is_it(&self.grants[part.grant])).map(|part| part.amount).sum();
            let mut name = json!({});
            unit.write(&mut name);
            let is_of_it = |row: &Value| name.as_object().unwrap().iter().all(|(key, of)| row[key] == *of);
            prop_assert_eq!(sum("spent", &is_of_it), spent, "{:?} of {}", unit, SUBJECTS[who]);
        }
        for (meter, uncovered) in METERS.iter().zip(self.uncovered[who]) {
            let is_of_it = |row: &Value| row["meter"] == *meter;
            prop_assert_eq!(sum("uncovered", &is_of_it), uncovered, "{} of {}", meter, SUBJECTS[who]);
        }
        Ok(())
    }
}

fn has_something(shown: &Value) -> bool {
    ["balance", "pending", "upcoming"].iter().any(|name| shown[name] != 0)
}

impl Grant {
    fn take_effect(&mut self, now: Timestamp) {
        if self.from <= now {
            self.state = State::Open;
            self.available = self.amount;
        }
    }
}

impl Turns {
    /// Returns the end of the period around an instant. Months count from the anchor and end early in
    /// shorter months.
    fn after(&self, at: Timestamp) -> Timestamp {
        let around =
            if self.terms.is_monthly { month_of(at, self.anchor) } else { grid(at, self.anchor, 86_400) };
        around.1
    }
}

impl Unit {
    fn write(self, value: &mut Value) {
        let (kind, key) = match self {
            Self::Meter(meter) => ("meter", METERS[meter]),
            Self::Credits => ("credit_unit", "credits"),
            Self::Money => ("currency", "usd"),
        };
        value[kind] = json!(key);
    }
}

/// Returns the decimal number without trailing zeros.
pub(super) fn number(nanos: i64) -> Value {
    serde_json::from_str(&metergate_domain::base::quantity::Total::from_nanos(nanos.into()).to_string())
        .unwrap()
}
