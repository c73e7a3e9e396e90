//! The gate against a model of events, open holds, plans, prices and credits. Every answer must match the
//! model, whatever was folded or swept before.

mod calls;
mod caps;
mod credits;
mod plans;
mod steps;

use std::ops::Range;

use axum::body::Body;
use futures::future::join_all;
use jiff::Timestamp;
use metergate::engine::{Engine, EngineError};
use metergate_domain::base::Environment;
use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::{Value, json};

use crate::support::service::NOON;
use crate::support::{TestService, at};
use calls::Call;
use credits::{Grant, ONE, Paid, Payable, number, spared};
use plans::Quota::{Absent, Of, Unlimited};
use plans::{Limit, METERS, PARENTS, PLANS, Period, SUBJECTS, catalog};
use steps::{Ask, Job, Step, step};

/// The state of the model, which determines every answer.
struct World {
    now: Timestamp,
    edition: usize,
    has_default: bool,
    parents: [Option<usize>; 5],
    subscriptions: [Option<Subscription>; 5],
    /// The caps that subjects have of their own, by subject.
    caps: [Option<i64>; 5],
    events: Vec<Event>,
    reservations: Vec<Reservation>,
    grants: Vec<Grant>,
    /// The number of grants made by callers.
    given: usize,
    /// The usage without coverage, by subject and meter.
    uncovered: [[i64; METERS.len()]; 5],
}

#[derive(Debug, Clone)]
struct Subscription {
    plan: usize,
    status: &'static str,
    anchor: Timestamp,
    /// The time of the last change to a plan that resets.
    reset_at: Timestamp,
    ends_at: Option<Timestamp>,
    fallback: Option<usize>,
    /// The override of the quota of `tokens`.
    tokens: Option<i64>,
}

#[derive(Debug)]
struct Event {
    /// The id, or none for an event of a reservation, as its id is unknown.
    id: Option<String>,
    body: Value,
    path: Vec<usize>,
    model: Option<&'static str>,
    at: Timestamp,
    /// The amount for each meter.
    amounts: [i64; 2],
    is_voided: bool,
    /// The credits that paid for the event.
    paid: Vec<Paid>,
}

#[derive(Debug, Clone)]
struct Reservation {
    body: Value,
    path: Vec<usize>,
    model: Option<&'static str>,
    created: Timestamp,
    expires: Timestamp,
    commits: bool,
    holds: Vec<Hold>,
    status: &'static str,
    is_late: bool,
}

#[derive(Debug, Clone)]
struct Hold {
    meter: usize,
    value: i64,
    committed: i64,
    /// The credits held for the rest of the hold.
    paid: Vec<Paid>,
}

impl Hold {
    /// Returns the quantity that is held but not committed.
    fn rest(&self) -> i64 {
        (self.value - self.committed).max(0)
    }
}

impl Subscription {
    fn move_to(&mut self, plan: usize, at: Timestamp) {
        if PLANS[plan].resets && self.plan != plan {
            self.reset_at = at;
        }
        self.plan = plan;
    }
}

/// Returns the positions of requests in the order of decision; `up_to` requests come last.
fn order(asks: &[Ask]) -> Vec<usize> {
    let mut places: Vec<usize> = (0..asks.len()).collect();
    places.sort_by_key(|place| (asks[*place].up_to, METERS[asks[*place].meter]));
    places
}

/// The state of a limit of a subject.
struct Standing {
    subject: usize,
    plan: usize,
    limit: &'static Limit,
    quota: Option<i64>,
    used: i64,
    held: i64,
    /// The part of `used` and `held` that credits cover, in billionths.
    covered: i64,
    /// Whether credits extend the limit.
    is_extended: bool,
    since: Timestamp,
    period: (Timestamp, Timestamp),
}

impl Standing {
    fn left(&self) -> Option<i64> {
        self.quota.map(|quota| (quota - self.used - self.held).max(0))
    }

    fn is_plain(&self) -> bool {
        !self.limit.is_soft && !self.is_extended
    }

    fn refuses(&self, more: i64) -> bool {
        self.is_plain() && self.quota.is_some_and(|quota| self.used + self.held + more > quota)
    }

    fn remaining(&self) -> Value {
        let borne = if self.is_extended { self.covered } else { 0 };
        let left = self.quota.map(|quota| (quota - self.used - self.held) * ONE + borne);
        left.map_or(Value::Null, |left| number(left.max(0)))
    }

    /// Adds `covered` to a limit state if credits extend the limit.
    fn with_covered(&self, mut shown: Value) -> Value {
        if self.is_extended {
            shown["covered"] = number(self.covered);
        }
        shown
    }

    fn resets_at(&self) -> Value {
        if self.limit.period == Period::Lifetime { Value::Null } else { json!(self.period.1.to_string()) }
    }

    fn to_json(&self) -> Value {
        self.with_covered(json!({"subject": SUBJECTS[self.subject], "key": self.limit.key,
            "meter": METERS[self.limit.meter], "quota": self.quota, "used": self.used, "held": self.held,
            "remaining": self.remaining(), "resets_at": self.resets_at()}))
    }

    fn to_denier(&self, requested: i64) -> Value {
        self.with_covered(
            json!({"subject": SUBJECTS[self.subject], "key": self.limit.key, "quota": self.quota,
            "used": self.used, "held": self.held, "requested": requested, "resets_at": self.resets_at()}),
        )
    }

    fn to_report(&self) -> Value {
        let state = match self.quota {
            Some(quota) if quota == 0 || self.used >= quota => "exceeded",
            Some(quota) if self.used * 100 >= quota * 90 => "critical",
            Some(quota) if self.used * 100 >= quota * 75 => "warning",
            _ => "ok",
        };
        json!({"key": self.limit.key, "meter": METERS[self.limit.meter], "quota": self.quota, "used": self.used,
            "held": self.held, "remaining": self.remaining(), "state": state, "resets_at": self.resets_at(),
            "enforcement": if self.limit.is_soft { "soft" } else { "hard" }})
    }
}

/// The marker for a request that must be changed: credits would allow a fraction, and the model has none.
const FRACTION: &str = "fraction";

impl World {
    fn path(&self, who: usize) -> Vec<usize> {
        std::iter::successors(Some(who), |subject| self.parents[*subject]).collect()
    }

    /// Returns the subscriptions on a path, nearest first. A path that never had one gets the default plan.
    fn on_path(&self, path: &[usize]) -> Vec<(usize, Subscription)> {
        let found = |subject: &usize| Some((*subject, self.subscriptions[*subject].clone()?));
        let mut found: Vec<_> = path.iter().filter_map(found).collect();
        if found.is_empty() && self.has_default {
            let default = Subscription {
                plan: 0,
                status: "active",
                anchor: self.now,
                reset_at: Timestamp::MIN,
                ends_at: None,
                fallback: None,
                tokens: None,
            };
            found.extend(path.last().map(|root| (*root, default)));
        }
        found
    }

    /// Makes the default plan a subscription at the first recorded use of a path.
    fn contact(&mut self, path: &[usize]) {
        for (subject, subscription) in self.on_path(path) {
            self.subscriptions[subject] = Some(subscription);
        }
    }

    /// Returns the sum of a meter over some events.
    fn sum(&self, meter: usize, counts: impl Fn(&Event) -> bool) -> i64 {
        self.events
            .iter()
            .filter(|event| !event.is_voided && counts(event))
            .map(|event| event.amounts[meter])
            .sum()
    }

    fn subject_path(
        &self,
        subject: usize,
        own: &Subscription,
        limit: &'static Limit,
        at: Timestamp,
    ) -> Option<Standing> {
        let quota = match (limit.quotas[self.edition], own.tokens) {
            (Absent, _) => return None,
            (_, Some(tokens)) if limit.key == "tokens" => Some(tokens),
            (Unlimited, _) => None,
            (Of(quota), _) => Some(quota),
        };
        let period = limit.period.around(at, own.anchor);
        let since = if PLANS[own.plan].resets { own.reset_at.max(period.0) } else { period.0 };
        let counts = |path: &[usize], at: Timestamp| path.contains(&subject) && since <= at && at < period.1;
        let used = self
            .sum(limit.meter, |event| counts(&event.path, event.at) && limit.takes(limit.meter, event.model));
        let held = self
            .reservations
            .iter()
            .filter(|held| held.status == "held" && counts(&held.path, held.created))
            .flat_map(|held| held.holds.iter().filter(|hold| limit.takes(hold.meter, held.model)))
            .map(Hold::rest)
            .sum();
        let (plan, is_extended) = (own.plan, limit.credits[self.edition]);
        let covered = self.covered(subject, limit, (since, period.1));
        Some(Standing { subject, plan, limit, quota, used, held, covered, is_extended, since, period })
    }

    /// Returns the part of a limit's used and held quantities that credits cover.
    fn covered(&self, subject: usize, limit: &Limit, span: (Timestamp, Timestamp)) -> i64 {
        let counts = |at: Timestamp| span.0 <= at && at < span.1;
        let events = self.events.iter().filter(|event| counts(event.at)).map(|event| &event.paid);
        let held = self.reservations.iter().filter(|held| held.status == "held" && counts(held.created));
        let holds = held.flat_map(|held| &held.holds).map(|hold| &hold.paid);
        spared(events.chain(holds).flatten(), subject, limit.counter_source())
    }

    /// Returns the limits that apply to a use of some meters.
    fn limits(&self, path: &[usize], meters: &[usize], model: Option<&str>, at: Timestamp) -> Vec<Standing> {
        let mut found = Vec::new();
        for (subject, own) in self.on_path(path) {
            let met = |limit: &&Limit| meters.iter().any(|meter| limit.takes(*meter, model));
            let limits = PLANS[own.plan].limits.iter().filter(met);
            found.extend(limits.filter_map(|limit| self.subject_path(subject, &own, limit, at)));
        }
        found
    }

    fn shown(&self, path: &[usize], meters: &[usize], model: Option<&str>) -> Value {
        self.limits(path, meters, model, self.now).iter().map(Standing::to_json).collect()
    }

    fn shown_of(&self, reservation: &Reservation) -> Value {
        let meters: Vec<usize> = reservation.holds.iter().map(|hold| hold.meter).collect();
        self.shown(&reservation.path, &meters, reservation.model)
    }

    /// Returns the granted quantities, or the reason for the denial with the limits or caps that deny.
    fn decide(
        &self,
        path: &[usize],
        model: Option<&'static str>,
        asks: &[Ask],
        at: Timestamp,
    ) -> Result<Vec<i64>, (&'static str, Vec<Value>)> {
        let on_path = self.on_path(path);
        let Some((_, nearest)) = on_path.first() else { return Err(("no_subscription", Vec::new())) };
        if on_path.iter().any(|(_, own)| !["active", "trialing", "past_due"].contains(&own.status)) {
            return Err(("subscription_inactive", Vec::new()));
        }
        let is_stray = |ask: &Ask| self.limits(path, &[ask.meter], model, at).is_empty();
        if asks.iter().any(is_stray) && !PLANS[nearest.plan].allows_unmatched {
            return Err(("unmatched", Vec::new()));
        }
        let (mut granted, mut taken) = (vec![0; asks.len()], Vec::new());
        let (mut denied_by, mut reason) = (vec![Vec::new(); asks.len()], "insufficient_credits");
        for place in order(asks) {
            let ask = &asks[place];
            let limits = self.limits(path, &[ask.meter], model, at);
            let left = limits.iter().filter(|limit| limit.is_plain()).filter_map(Standing::left).min();
            let within = if ask.up_to { left.unwrap_or(ask.value).min(ask.value) } else { ask.value };
            // An `up_to` request is denied if nothing is left.
            let least = if ask.up_to { ask.value.min(1).max(within) } else { within };
            let refusing = limits.iter().filter(|limit| limit.refuses(least));
            let refusing: Vec<Value> = refusing.map(|limit| limit.to_denier(ask.value)).collect();
            let is_refused = !refusing.is_empty();
            if is_refused {
                reason = "limit_reached";
            }
            denied_by[place].extend(refusing);
            let asked = if is_refused { ask.value } else { within };
            match self.payable(&limits, (ask, model), asked, &taken) {
                Payable::Denied(short) => denied_by[place].extend(short),
                Payable::Whole(_) if is_refused => {}
                Payable::Fraction => return Err((FRACTION, Vec::new())),
                Payable::Whole(value) => {
                    if value > 0 {
                        self.pay(&limits, (ask.meter, model), value * ONE, &mut taken);
                    }
                    granted[place] = value;
                }
            }
        }
        let denied_by = denied_by.concat();
        if !denied_by.is_empty() {
            return Err((reason, denied_by));
        }
        self.within_caps(path, model, asks, &granted, at)
            .map_err(|denied_by| ("spend_cap_reached", denied_by))
    }

    /// Applies the expiries of holds and the ends of subscriptions that are due.
    fn settle(&mut self) {
        loop {
            let held = self.reservations.iter().enumerate().filter(|(_, held)| held.status == "held");
            let expire = held.map(|(n, held)| (held.expires, n)).min().filter(|(at, _)| *at <= self.now);
            let turn = self.next_turn().filter(|(at, _)| *at <= self.now);
            match (expire, turn) {
                // Credits that return at the very end of a grant are lost.
                (expire, Some((at, n))) if expire.is_none_or(|(expired, _)| at <= expired) => {
                    self.turn(n, at);
                }
                (Some((_, n)), _) => self.expire(n),
                _ => break,
            }
        }
        for own in self.subscriptions.iter_mut().flatten() {
            if own.status == "canceled" || own.ends_at.is_none_or(|end| end > self.now) {
                continue;
            }
            let Some(plan) = own.fallback.or(PLANS[own.plan].fallback) else {
                own.status = "canceled";
                continue;
            };
            own.move_to(plan, own.ends_at.unwrap());
            *own = Subscription { status: "active", ends_at: None, fallback: None, tokens: None, ..*own };
        }
    }

    fn expire(&mut self, n: usize) {
        let reservation = &self.reservations[n];
        if reservation.commits {
            let all: Vec<i64> = reservation.holds.iter().map(|hold| hold.value.max(hold.committed)).collect();
            self.record(n, &all, true);
            self.reservations[n].status = "committed";
        } else {
            self.reservations[n].status = "expired";
            self.let_go(n);
        }
    }

    /// Releases the credits of a reservation's holds.
    fn let_go(&mut self, n: usize) {
        for hold in 0..self.reservations[n].holds.len() {
            let back = std::mem::take(&mut self.reservations[n].holds[hold].paid);
            self.give_back(&back, true);
        }
    }

    /// Records the growth of a reservation's totals. Returns the range of the new events.
    fn record(&mut self, n: usize, totals: &[i64], is_final: bool) -> Range<usize> {
        let first = self.events.len();
        let is_held = self.reservations[n].status == "held";
        for (index, total) in totals.iter().enumerate() {
            let reservation = &mut self.reservations[n];
            let hold = &mut reservation.holds[index];
            let (meter, more) = (hold.meter, total - hold.committed);
            let open = if is_held { hold.rest() } else { 0 };
            hold.committed = *total;
            let event = self.events.len();
            if more > 0 {
                let mut amounts = [0; 2];
                amounts[meter] = more;
                self.events.push(Event {
                    id: None,
                    body: Value::Null,
                    path: reservation.path.clone(),
                    model: reservation.model,
                    at: reservation.created,
                    amounts,
                    is_voided: false,
                    paid: Vec::new(),
                });
                self.spend_held((n, index), (more.min(open), open), event);
            }
            if is_final {
                let back = std::mem::take(&mut self.reservations[n].holds[index].paid);
                self.give_back(&back, true);
            }
            if more > open {
                self.burn(event, meter, more - open);
            }
        }
        first..self.events.len()
    }

    /// Picks one of the latest reservations, preferably one that is held.
    fn pick(&self, which: Index) -> Option<usize> {
        let latest = self.reservations.len().saturating_sub(12)..self.reservations.len();
        let held: Vec<usize> = latest.clone().filter(|n| self.reservations[*n].status == "held").collect();
        let any = held.is_empty() || which.index(999).is_multiple_of(5);
        let candidates = if any { latest.collect() } else { held };
        (!candidates.is_empty()).then(|| candidates[which.index(candidates.len())])
    }
}

/// Returns whether an answer matches the expected value. An object may have more fields than expected.
fn agrees(expected: &Value, answer: &Value) -> bool {
    match (expected, answer) {
        (Value::Object(expected), Value::Object(answer)) => {
            expected.iter().all(|(name, value)| answer.get(name).is_some_and(|found| agrees(value, found)))
        }
        (Value::Array(expected), Value::Array(answer)) => {
            expected.len() == answer.len()
                && expected.iter().zip(answer).all(|(value, found)| agrees(value, found))
        }
        _ => expected == answer,
    }
}

/// Makes a call and compares its answer.
async fn make(service: &TestService, call: &Call) -> Result<Value, TestCaseError> {
    let body = if call.body.is_null() { Body::empty() } else { Body::from(call.body.to_string()) };
    let request = service.request(call.method.clone(), &call.path).header("content-type", "application/json");
    let answer = service.send(request.body(body).unwrap()).await;
    let said =
        format!("{} {} {}\nanswered {} {}", call.method, call.path, call.body, answer.status, answer.text);
    prop_assert_eq!(answer.status.as_u16(), call.status, "{}\nexpected: {}", said, call.answer);
    prop_assert!(agrees(&call.answer, &answer.json()), "{}\nexpected: {}", said, call.answer);
    prop_assert!(call.is_replay.is_none_or(|expected| expected == answer.is_replay()), "{}: is_replay", said);
    Ok(answer.json())
}

async fn run(engine: &Engine, job: Job) -> Result<(), EngineError> {
    match job {
        Job::Sweep => engine.sweep(Environment::Test).await.map(drop),
        Job::End => engine.end_due_subscriptions(Environment::Test).await,
        Job::Drop => engine.drop_old_counters(Environment::Test).await.map(drop),
        Job::Fold => engine.fold_some(Environment::Test).await.map(drop),
        Job::Build => engine.build_some(Environment::Test).await.map(drop),
    }
}

async fn play(has_default: bool, steps: &[Step]) -> Result<(), TestCaseError> {
    let service = TestService::start().await;
    service.apply(catalog(0, has_default)).await;
    let mut world = World {
        now: NOON.parse().unwrap(),
        edition: 0,
        has_default,
        parents: PARENTS,
        subscriptions: [const { None }; 5],
        caps: [None; 5],
        events: Vec::new(),
        reservations: Vec::new(),
        grants: Vec::new(),
        given: 0,
        uncovered: [[0; METERS.len()]; 5],
    };
    for (subject, parent) in SUBJECTS.iter().zip(PARENTS) {
        let parent = parent.map(|parent| SUBJECTS[parent]);
        service.put(&format!("/v1/subjects/{subject}"), &json!({"parent": parent})).await;
    }
    for (n, step) in steps.iter().enumerate() {
        let call = world.take(step);
        service.clock.set(at(&world.now.to_string()));
        if let Step::Job(job) = step {
            run(&service.engine, *job).await.unwrap();
        }
        if let Some(call) = call {
            let answer = make(&service, &call).await?;
            if let Some(n) = call.gives {
                world.grants[n].id = answer["id"].as_str().map(str::to_owned);
            }
            if !call.makes.is_empty() {
                let ids = answer["events"].as_array().unwrap();
                prop_assert_eq!(ids.len(), call.makes.len());
                for (event, id) in world.events[call.makes].iter_mut().zip(ids) {
                    event.id = id.as_str().map(str::to_owned);
                }
            }
        }
        let looks = world.looks(n);
        for looked in join_all(looks.iter().map(|look| make(&service, look))).await {
            looked?;
        }
        world.look_at_credits(&service, n % SUBJECTS.len()).await?;
        world.look_at_credits(&service, (n + 2) % SUBJECTS.len()).await?;
    }
    for look in world.last_looks() {
        make(&service, &look).await?;
    }
    for who in 0..SUBJECTS.len() {
        world.look_at_credits(&service, who).await?;
        world.look_at_ledger(&service, who).await?;
    }
    let verdict = service.engine.verify(Environment::Test).await.unwrap();
    prop_assert_eq!(verdict.differences, 0, "{:?}", verdict.shown);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn gate_answers_match_the_model(has_default in prop::bool::weighted(0.8), steps in prop::collection::vec(step(), 60..140)) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(play(has_default, &steps))?;
    }
}
