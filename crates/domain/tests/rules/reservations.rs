//! Decisions of the gate as tables with one row per call, like `TigerBeetle`'s tests of two-phase
//! transfers.
//!
//! `user` and `peer` are children of `crew`, which is a child of `org`. Only `plan seat` subscribes the
//! users, and only `plan org` subscribes the org.
//!
//! ```text
//! 0   plan seat tokens 100/lifetime                    a given fact
//! 10  reserve r1 tokens=40 -> held 40 | user.tokens 0+40   a call, its outcome, used+held after it
//! ```
//!
//! Every table runs four ways with equal results. Each call has its own transaction, or the calls of an
//! instant share one. Expired reservations are swept or not. After each row, all counters and hold lines
//! must match the events and open reservations.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value, json};
use uuid::Uuid;

use metergate_domain::base::digest::Digest;
use metergate_domain::base::fields::Violation;
use metergate_domain::base::names::{MeterKey, PlanKey, SubjectId};
use metergate_domain::base::quantity::{Quantity, Total};
use metergate_domain::base::timestamp::{MICROS_PER_SECOND, Timestamp};
use metergate_domain::catalog::Catalog;
use metergate_domain::catalog::meter::StoredMeter;
use metergate_domain::gate::calls::{CallOutcome, GateAnswer};
use metergate_domain::gate::catalog_index::{ApplicableLimit, CatalogIndex};
use metergate_domain::gate::counter::{CounterKey, CounterPeriod, CounterState, EffectiveFrom};
use metergate_domain::gate::credit_coverage::shortfall;
use metergate_domain::gate::decision::{Denial, Denier, GrantMode, LimitState, Reason, granted};
use metergate_domain::gate::path::{Path, PathSubject};
use metergate_domain::gate::request::{Commit, Extend, OnExpiry, Release, Reserve};
use metergate_domain::gate::reservation::{Hold, Moment, Record, Reservation, ReservationStatus, holds};
use metergate_domain::gate::state::{Counter, GateState, HoldLine, HoldLineKey, ReservationChange};
use metergate_domain::pricing::exchange::Rates;
use metergate_domain::subjects::subscription::{Subscription, SubscriptionParams};

/// Noon of the day before the last day of a month.
const START: &str = "2026-01-30T12:00:00Z";
/// The taken event ids: none.
static NONE: BTreeSet<Uuid> = BTreeSet::new();
const AGE_MAX: Duration = Duration::from_hours(30 * 24);
const SUBJECTS: [&str; 4] = ["user", "peer", "crew", "org"];
const METERS: [&str; 3] = ["tokens", "requests", "storage"];

/// Returns a subject and its ancestors.
fn lineage(subject: &str) -> &'static [&'static str] {
    match subject {
        "user" => &["user", "crew", "org"],
        "peer" => &["peer", "crew", "org"],
        "crew" => &["crew", "org"],
        _ => &["org"],
    }
}

fn path_id(subject: &str) -> i64 {
    SUBJECTS.iter().zip(1..).find(|(known, _)| **known == subject).unwrap().1
}

fn is_on(subject: &str, path_id: i64) -> bool {
    let of = SUBJECTS.iter().zip(1..).find(|(_, id)| *id == path_id).unwrap().0;
    lineage(of).contains(&subject)
}

/// Parses `90`, `12h` or `2d` as a time after the start, and `-30` as a time before it.
fn time(text: &str) -> Timestamp {
    let (number, seconds) = match text.split_at(text.len() - 1) {
        (number, "h") => (number, 3_600),
        (number, "d") => (number, 86_400),
        _ => (text, 1),
    };
    let start = Timestamp::parse(START).unwrap().micros();
    Timestamp::from_micros(start + number.parse::<i64>().unwrap() * seconds * MICROS_PER_SECOND).unwrap()
}

fn quantity(text: &str) -> Quantity {
    text.parse().unwrap()
}

/// Builds the request body from the words of a call. Quantities such as `tokens=40` and `tokens<=40` go
/// under `amounts`. Other words are a subject, `step`, fields and properties.
fn body(words: &[&str], amounts: &str) -> Value {
    let (mut fields, mut properties, mut list) = (Map::new(), Map::new(), Vec::new());
    for word in words {
        let (name, value) = word.split_once('=').unwrap_or((word, ""));
        match name {
            "step" => drop(fields.insert("final".into(), false.into())),
            "ttl" => drop(fields.insert("ttl_seconds".into(), serde_json::from_str(value).unwrap())),
            "on_expiry" | "reason" => drop(fields.insert(name.into(), value.into())),
            "model" | "job" => drop(properties.insert(name.into(), value.into())),
            _ if SUBJECTS.contains(&name) => drop(fields.insert("subject".into(), name.into())),
            _ => list.push(match name.strip_suffix('<') {
                Some(meter) => json!({"meter": meter, "value": value, "grant": "up_to"}),
                None => json!({"meter": name, "value": value}),
            }),
        }
    }
    if amounts == "reserve" {
        fields.entry("subject").or_insert("user".into());
        for hold in &mut list {
            hold["properties"] = properties.clone().into();
        }
        fields.insert("holds".into(), list.into());
        return fields.into();
    }
    if !list.is_empty() {
        fields.insert(amounts.into(), list.into());
    }
    if !properties.is_empty() {
        fields.insert("properties".into(), properties.into());
    }
    fields.into()
}

/// Parses `[key=]meter[model] quota/period [soft] [reset]`; the quota `-` means unlimited.
fn limit(text: &str) -> Value {
    let mut words = text.split_whitespace();
    let what = words.next().unwrap();
    let (key, slice) = what.split_once('=').unwrap_or((what, what));
    let (meter, model) = slice.split_once('[').unwrap_or((slice, ""));
    let (quota, period) = words.next().unwrap().split_once('/').unwrap();
    let mut limit = json!({"key": key, "meter": meter, "period": period});
    if quota != "-" {
        limit["quota"] = quota.into();
    }
    if !model.is_empty() {
        limit["filter"] = json!({"model": model.trim_end_matches(']')});
    }
    for word in words {
        match word {
            "soft" => limit["enforcement"] = word.into(),
            _ => limit["on_plan_change"] = word.into(),
        }
    }
    limit
}

/// The committed state between transactions.
#[derive(Clone, Default)]
struct World {
    now: Option<Timestamp>,
    /// The version of the catalog, which rises with every plan.
    version: i64,
    plans: BTreeMap<String, Value>,
    terms: Arc<CatalogIndex>,
    /// The instants from which plans have a limit of a definition.
    since: HashMap<(String, Uuid), EffectiveFrom>,
    subscriptions: BTreeMap<String, Subscription>,
    counters: BTreeMap<CounterKey, (CounterPeriod, Counter)>,
    lines: BTreeMap<HoldLineKey, HoldLine>,
    reservations: HashMap<Uuid, Reservation>,
    /// The recorded events, with path and time.
    events: Vec<(i64, Timestamp, Record)>,
}

/// A counter as computed from events and reservations.
struct Fact {
    period: CounterPeriod,
    level: CounterState,
    lines: BTreeMap<HoldLineKey, HoldLine>,
}

impl World {
    fn clock(&self) -> Timestamp {
        self.now.unwrap()
    }

    fn path(&self, subject: &str) -> Path {
        let member = |name: &&str| PathSubject {
            subscription: self.subscriptions.get(*name).cloned(),
            ..PathSubject::new(path_id(name), SubjectId::parse(*name).unwrap())
        };
        let members = lineage(subject).iter().map(member).collect();
        Path { id: path_id(subject), customer_id: None, members }.settled(self.clock(), &self.terms)
    }

    /// Applies a fact: `plan <key> [unmatched=allow,] <limits>`, `put <subject> plan=… status=… ends=…
    /// <limit>=<quota>`, or `track <subject> <meter>=<value> [model=…]`.
    fn give(&mut self, words: &[&str]) {
        match words {
            ["plan", key, limits @ ..] => self.plan(key, &limits.join(" ")),
            ["put", subject, words @ ..] => {
                let (mut statement, mut overrides) = (Map::new(), Map::new());
                for (name, value) in words.iter().filter_map(|word| word.split_once('=')) {
                    match name {
                        "plan" | "status" => drop(statement.insert(name.into(), value.into())),
                        "ends" => drop(statement.insert("ends_at".into(), time(value).to_string().into())),
                        "cycle" => {
                            statement.insert("cycle_start".into(), time(value).to_string().into());
                        }
                        _ => {
                            let quota = if value == "-" { Value::Null } else { value.into() };
                            overrides.insert(name.into(), quota);
                        }
                    }
                }
                statement.insert("overrides".into(), overrides.into());
                let statement = SubscriptionParams::read(statement.into()).unwrap();
                let before = self.subscriptions.get(*subject);
                let next =
                    Subscription::with_params(before, statement, &self.terms.catalog, self.clock()).unwrap();
                self.subscriptions.insert((*subject).to_owned(), next);
            }
            ["track", subject, words @ ..] => {
                self.load();
                let body = body(words, "values");
                let (meter, value) = (&body["values"][0]["meter"], &body["values"][0]["value"]);
                let record = Record {
                    key: Uuid::from_u128(self.events.len() as u128),
                    meter: MeterKey::parse(meter.as_str().unwrap()).unwrap(),
                    quantity: quantity(value.as_str().unwrap()),
                    properties: metergate_domain::usage::event::Properties::stored(
                        body.get("properties").cloned(),
                    ),
                };
                self.events.push((path_id(subject), self.clock(), record));
                // Other tests show that recording updates counters; here the counters are set.
                let facts = self.facts();
                for (key, (_, counter)) in &mut self.counters {
                    counter.level.used = facts[key].level.used;
                }
            }
            _ => panic!("{words:?}"),
        }
    }

    fn plan(&mut self, key: &str, limits: &str) {
        let (stated, limits) = match limits.strip_prefix("unmatched=allow") {
            Some(rest) => ("allow", rest.trim_start_matches(", ")),
            None => ("deny", limits),
        };
        let limits: Vec<Value> = limits.split(", ").filter(|l| !l.is_empty()).map(limit).collect();
        self.plans.insert(key.into(), json!({"key": key, "unmatched": stated, "limits": limits}));
        let meter = |(name, aggregation): (&str, &str)| json!({"key": name, "event_name": name, "aggregation": aggregation, "dimensions": ["model"]});
        let mut catalog = json!({"plans": self.plans.values().collect::<Vec<_>>(),
            "meters": METERS.into_iter().zip(["sum", "count", "max"]).map(meter).collect::<Vec<_>>()});
        if self.plans.contains_key("default") {
            catalog["default_plan"] = "default".into();
        }
        let catalog = Catalog::read(catalog).unwrap();
        let meters = catalog.meters.iter().zip(1..).map(|(meter, id)| StoredMeter {
            id,
            event_name_id: id,
            meter: meter.clone(),
        });
        self.version += 1;
        let known = std::mem::take(&mut self.since);
        let new = EffectiveFrom { at: self.clock(), version: self.version };
        for plan in &catalog.plans {
            for limit in &plan.limits {
                let name = (plan.key.to_string(), limit.definition());
                let since = known.get(&name).copied().unwrap_or(new);
                self.since.insert(name, since);
            }
        }
        self.terms =
            Arc::new(CatalogIndex::new(catalog.clone(), meters.collect(), &self.since, Rates::default()));
        let on_it: &[&str] = match key {
            "seat" => &["user", "peer"],
            "org" => &["org"],
            _ => &[],
        };
        for subject in on_it {
            let begun = || Subscription {
                pristine_version: Some(self.version),
                ..Subscription::begin(PlanKey::parse(key).unwrap(), self.now.unwrap())
            };
            self.subscriptions.entry((*subject).to_owned()).or_insert_with(begun);
        }
    }

    /// Subscribes the root at the first request on a path without a subscription.
    fn meet(&mut self, words: &[&str]) {
        let ["reserve", _, words @ ..] = words else { return };
        let body = body(words, "reserve");
        let path = self.path(body["subject"].as_str().unwrap());
        if let Some((member, subscription)) = path.nearest() {
            self.subscriptions.entry(member.subject.to_string()).or_insert_with(|| subscription.clone());
        }
    }

    /// Computes every counter from events and reservations alone.
    fn facts(&self) -> BTreeMap<CounterKey, Fact> {
        let mut facts = BTreeMap::new();
        let mut instants = vec![self.clock()];
        instants.extend(self.reservations.values().map(|reservation| reservation.created_at));
        instants.extend(self.events.iter().map(|(_, at, _)| *at));
        let of_subject = |subject: &String| self.path(subject);
        let paths: Vec<Path> = self.subscriptions.keys().map(of_subject).collect();
        for found in paths.iter().flat_map(|path| self.terms.of_member(&path.members[0])) {
            let limit = &found.terms.limit;
            for period in instants.iter().filter_map(|at| found.counter_at(*at)) {
                let mut level = CounterState::default();
                for (path_id, at, record) in &self.events {
                    let counts = limit.meter == record.meter && limit.filter.admits(&record.properties);
                    if counts
                        && is_on(found.member.subject.as_str(), *path_id)
                        && period.counted_span().contains(*at)
                    {
                        let more = Total::from(record.quantity);
                        level.used =
                            if found.terms.uses_counter() { level.used + more } else { level.used.max(more) };
                    }
                }
                let lines = self.open_lines(&found, period);
                level.held = total(lines.values());
                facts.insert(period.key, Fact { period, level, lines });
            }
        }
        facts
    }

    fn open_lines(
        &self,
        found: &ApplicableLimit<'_>,
        period: CounterPeriod,
    ) -> BTreeMap<HoldLineKey, HoldLine> {
        let limit = &found.terms.limit;
        let here = |of: &&Reservation| {
            is_on(found.member.subject.as_str(), of.path_id)
                && found.counter_at(of.created_at) == Some(period)
        };
        let line = |of: &Reservation, hold: &Hold| {
            let quantity = of.open(hold, self.clock());
            let counts = limit.meter == hold.meter && limit.filter.admits(&hold.properties);
            let key = HoldLineKey { counter: period.key, expires_at: of.expires_at, reservation: of.key };
            (counts && !quantity.is_zero())
                .then_some((key, HoldLine { quantity, covered: Total::default(), on_expiry: of.on_expiry }))
        };
        let held = self.reservations.values().filter(here);
        held.flat_map(|of| of.holds.iter().filter_map(move |hold| line(of, hold))).collect()
    }

    /// Creates missing counters, and drops the counters of limits that are no longer assigned.
    fn load(&mut self) {
        let facts = self.facts();
        let stays = |key: &CounterKey, was: &CounterPeriod| {
            facts.get(key).is_some_and(|fact| fact.period.since == was.since)
        };
        self.counters.retain(|key, (period, _)| stays(key, period));
        self.lines.retain(|key, _| self.counters.contains_key(&key.counter));
        for (key, Fact { period, level, lines }) in facts {
            if self.counters.contains_key(&key) || period.is_closed(self.clock()) {
                continue;
            }
            assert!(!period.starts_at_zero || level == CounterState::default(), "{period:?} {level:?}");
            self.counters.insert(key, (period, Counter { level, ..Counter::default() }));
            self.lines.extend(lines);
        }
    }

    fn open<'a>(&self, terms: &'a CatalogIndex, swept: bool) -> GateState<'a> {
        let mut book = GateState::open(terms, Moment { now: self.clock(), age_max: AGE_MAX, taken: &NONE });
        book.paths = SUBJECTS.map(|subject| (path_id(subject), Arc::new(self.path(subject)))).into();
        book.reservations.clone_from(&self.reservations);
        for (key, (_, counter)) in &self.counters {
            let next_expiry =
                self.lines.keys().filter(|line| line.counter == *key).map(|l| l.expires_at).min();
            book.counters.insert(*key, Counter { next_expiry, ..*counter });
        }
        for (key, line) in self.lines.iter().filter(|(key, _)| key.expires_at <= self.clock()) {
            match line.on_expiry {
                OnExpiry::Release => book.expire_line(*key, *line),
                OnExpiry::Commit => book.expire(key.reservation),
            }
        }
        for key in self.reservations.keys().filter(|_| swept) {
            book.expire(*key);
        }
        book
    }

    /// Returns the world after the changes of a state are committed.
    fn after(&self, book: &GateState<'_>) -> Self {
        let mut next = self.clone();
        for (key, counter) in &book.counters {
            next.counters.get_mut(key).unwrap().1 = *counter;
        }
        for (key, change) in &book.lines {
            assert_eq!(change.was_there, self.lines.contains_key(key), "{key:?}");
            match change.line {
                Some(line) => next.lines.insert(*key, line),
                None => next.lines.remove(key),
            };
        }
        for (key, change) in &book.changed {
            assert_eq!(*change == ReservationChange::Altered, self.reservations.contains_key(key));
            next.reservations.insert(*key, book.reservations[key].clone());
        }
        next.events.extend(book.entries.iter().map(|entry| (entry.path.id, entry.at, entry.record.clone())));
        next
    }

    fn assert_rules(&self, row: &str) {
        let facts = self.facts();
        for (key, (_, counter)) in &self.counters {
            let lines = || self.lines.iter().filter(|(line, _)| line.counter == *key);
            let fact = &facts[key];
            assert!(counter.level.held >= Total::default(), "{row}: {counter:?}");
            assert_eq!(counter.level.held, total(lines().map(|(_, line)| line)), "{row}");
            assert!(lines().eq(&fact.lines), "{row}: {:?} {:?}", lines().collect::<Vec<_>>(), fact.lines);
            assert_eq!(counter.level, fact.level, "{row}: {key:?}");
            let no_sooner =
                |line: &HoldLineKey| counter.next_expiry.is_some_and(|next| next <= line.expires_at);
            assert!(lines().all(|(line, _)| no_sooner(line)), "{row}");
        }
        let ids: HashSet<Uuid> = self.events.iter().map(|(_, _, record)| record.key).collect();
        assert_eq!(ids.len(), self.events.len(), "{row}");
    }

    /// Makes a call and returns its outcome as text.
    fn call(&self, book: &mut GateState<'_>, words: &[&str]) -> String {
        let [verb, words @ ..] = words else { panic!("a row without a call") };
        if *verb == "check" {
            return self.check(book, words);
        }
        let [id, words @ ..] = words else { panic!("{verb} without an id") };
        let key = Digest::default().text(id).finish();
        let answer = match *verb {
            "reserve" => {
                let call = Reserve::read(body(words, "reserve"))
                    .and_then(|call| call.validate(&self.terms, true).map(|()| call));
                call.map(|call| {
                    let path = Arc::new(self.path(call.subject.as_str()));
                    book.reserve(key, id, &call, Some(&path))
                })
            }
            "commit" => Commit::read(Some(body(words, "values"))).map(|call| book.commit(key, &call)),
            "release" => Release::read(Some(body(words, "values"))).map(|call| book.release(key, &call)),
            "extend" => Extend::read(Some(body(words, "holds"))).map(|call| book.extend(key, &call)),
            _ => panic!("{verb}"),
        };
        match answer {
            Ok(answer) => self.shown(book, &answer),
            Err(violations) => invalid(&violations),
        }
    }

    fn check(&self, book: &mut GateState<'_>, words: &[&str]) -> String {
        let call = match Reserve::read(body(words, "reserve")) {
            Ok(call) => call,
            Err(violations) => return invalid(&violations),
        };
        let path = self.path(call.subject.as_str());
        for ask in &call.asks {
            let found = self.terms.matching(&path, &ask.meter, &ask.properties);
            for level in found.filter(|found| !found.terms.uses_counter()) {
                let counter = book.counters.get_mut(&level.counter_at(self.clock()).unwrap().key).unwrap();
                counter.becomes = Some(counter.level.used.max(ask.value.amount().into()));
            }
        }
        if let Err(violations) = call.validate(&self.terms, false) {
            return invalid(&violations);
        }
        let outcome = match book.test(&call.asks, &path) {
            Ok(grants) => CallOutcome::Allowed { holds: holds(&call.asks, &grants) },
            Err(denial) => CallOutcome::Denied(denial),
        };
        let uses = call.asks.iter().map(|ask| (&ask.meter, &ask.properties));
        self.shown(book, &GateAnswer { outcome, limits: book.limits(&path, uses), at: self.clock() })
    }

    fn shown(&self, book: &GateState<'_>, answer: &GateAnswer) -> String {
        for state in &answer.limits {
            let shown = self.level(book, &format!("{}.{}", state.subject, state.key));
            assert_eq!(format!("{}+{}", state.used, state.held), shown);
            let left = |quota: Quantity| (Total::from(quota) - state.used - state.held).or_zero();
            assert_eq!(state.remaining, state.quota.map(left));
        }
        assert!(
            answer.limits.is_sorted_by_key(|state| path_id(state.subject.as_str())),
            "limit states must begin with the nearest subject"
        );
        let committed = |of: &Reservation| joined(of.holds.iter().map(|hold| &hold.committed));
        let status = |of: &Reservation| match of.status(book.moment.now) {
            ReservationStatus::Held => "held",
            ReservationStatus::Committed => "committed",
            ReservationStatus::Released => "released",
            ReservationStatus::Expired => "expired",
        };
        let (text, is_replayed) = match &answer.outcome {
            CallOutcome::Held { reservation, replayed } => {
                if !*replayed {
                    self.assert_hard_rule(reservation, answer);
                }
                let held = joined(reservation.holds.iter().map(|hold| &hold.value));
                (format!("{} {held}", status(reservation)), *replayed)
            }
            CallOutcome::Committed { reservation, events, replayed } => {
                let known = self.events.iter().map(|(_, _, record)| record);
                let known: HashMap<Uuid, Quantity> = known
                    .chain(book.entries.iter().map(|entry| &entry.record))
                    .map(|record| (record.key, record.quantity))
                    .collect();
                let events = joined(events.iter().map(|id| &known[id]));
                let step = match status(reservation) {
                    "committed" => String::new(),
                    status => format!("{status}, "),
                };
                let over = if reservation.over_hold { " over_hold" } else { "" };
                let late = if reservation.late { " late" } else { "" };
                (format!("{step}committed {} [{events}]{over}{late}", committed(reservation)), *replayed)
            }
            CallOutcome::Released { reservation, replayed } => (status(reservation).to_owned(), *replayed),
            CallOutcome::Extended { reservation } => {
                let held = joined(reservation.holds.iter().map(|hold| &hold.value));
                let until = reservation.expires_at.micros() - time("0").micros();
                (format!("held {held} until {}", until / MICROS_PER_SECOND), false)
            }
            CallOutcome::Allowed { holds } => {
                (format!("allowed {}", joined(holds.iter().map(|hold| &hold.value))), false)
            }
            CallOutcome::Denied(denial) => {
                for denier in &denial.denied_by {
                    let Denier::Limit(denier) = denier else { panic!("these plans have no caps") };
                    let asked = Total::from(denier.requested);
                    assert!(denier.used + denier.held + asked > denier.quota.unwrap().into(), "{denier:?}");
                    let name =
                        |state: &&LimitState| state.subject == denier.subject && state.key == denier.key;
                    let state = answer.limits.iter().find(name).unwrap();
                    assert_eq!(denier.quota, state.quota);
                }
                (denied(denial), false)
            }
            CallOutcome::Refused(refusal) => (refusal.code().to_owned(), false),
            CallOutcome::Invalid(violations) => (invalid(violations), false),
        };
        if is_replayed { format!("replayed {text}") } else { text }
    }

    /// Asserts that a new hold passes no quota.
    fn assert_hard_rule(&self, made: &Reservation, answer: &GateAnswer) {
        let path = self.path(SUBJECTS.iter().find(|subject| path_id(subject) == made.path_id).unwrap());
        for found in self.terms.of_path(&path).filter(|found| found.terms.is_hard()) {
            let is_it =
                |state: &&LimitState| state.subject == found.member.subject && state.key == *found.key();
            if let Some(state) = answer.limits.iter().find(is_it)
                && let Some(quota) = state.quota
            {
                assert!(state.used + state.held <= quota.into(), "{state:?}");
            }
        }
    }

    /// Returns `used+held` of a limit such as `user.tokens`, now or in the period around
    /// `user.tokens@time`.
    fn level(&self, book: &GateState<'_>, name: &str) -> String {
        let (name, at) = name.split_once('@').map_or((name, self.clock()), |(name, at)| (name, time(at)));
        let (subject, key) = name.split_once('.').unwrap();
        let path = self.path(subject);
        let mut limits = self.terms.of_member(&path.members[0]);
        let Some(found) = limits.find(|found| found.key().as_str() == key) else { return "none".to_owned() };
        let counter = found.counter_at(at).and_then(|period| book.counters.get(&period.key));
        let CounterState { used, held, .. } = counter.map(|counter| counter.level).unwrap_or_default();
        format!("{used}+{held}")
    }
}

fn total<'a>(lines: impl Iterator<Item = &'a HoldLine>) -> Total {
    lines.fold(Total::default(), |sum, line| sum + line.quantity.into())
}

fn joined<'a>(quantities: impl Iterator<Item = &'a Quantity>) -> String {
    quantities.map(Quantity::to_string).collect::<Vec<_>>().join(",")
}

fn invalid(violations: &[Violation]) -> String {
    format!("{} {}", violations[0].code, violations[0].pointer)
}

fn denied(denial: &Denial) -> String {
    let name = |by: &Denier| match by {
        Denier::Limit(by) => format!("{}.{}", by.subject, by.key),
        Denier::Cap(by) => format!("{}.{}", by.subject, by.key),
    };
    let by: Vec<String> = denial.denied_by.iter().map(name).collect();
    if denial.reason == Reason::LimitReached {
        format!("denied by {}", by.join(", "))
    } else {
        assert!(by.is_empty());
        format!("denied {}", denial.reason.as_str())
    }
}

struct Row<'a> {
    text: &'a str,
    time: &'a str,
    words: Vec<&'a str>,
    /// The expected outcome; none for a given fact.
    outcome: Option<&'a str>,
    levels: Vec<(&'a str, &'a str)>,
}

impl<'a> Row<'a> {
    fn read(text: &'a str) -> Self {
        let (call, rest) = text.split_once(" -> ").map_or((text, None), |(call, rest)| (call, Some(rest)));
        let (outcome, levels) = match rest.map(|rest| rest.split_once(" | ").unwrap_or((rest, ""))) {
            Some((outcome, levels)) => (Some(outcome.trim()), levels),
            None => (None, ""),
        };
        let mut words: Vec<&str> = call.split_whitespace().collect();
        let time = words.remove(0);
        let levels = levels.split(", ").filter(|level| !level.is_empty());
        let levels = levels.map(|level| level.trim().split_once(' ').unwrap()).collect();
        Self { text, time, words, outcome, levels }
    }
}

/// Plays a table in all four ways and returns the final world.
fn play(table: &str) -> World {
    let [world, ..] =
        [(false, false), (false, true), (true, false), (true, true)].map(|(together, swept)| {
            let (world, wrong) = play_one_way(table, together, swept);
            assert!(wrong.is_empty(), "together: {together}, swept: {swept}\n{}", wrong.join("\n"));
            world
        });
    world
}

fn play_one_way(table: &str, together: bool, swept: bool) -> (World, Vec<String>) {
    let lines = table.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let rows: Vec<Row<'_>> = lines.map(Row::read).collect();
    let (mut world, mut wrong) = (World::default(), Vec::new());
    let meet =
        |a: &Row<'_>, b: &Row<'_>| together && a.time == b.time && a.outcome.is_some() && b.outcome.is_some();
    for rows in rows.chunk_by(meet) {
        world.now = Some(time(rows[0].time));
        if rows[0].outcome.is_none() {
            world.give(&rows[0].words);
            continue;
        }
        for row in rows {
            world.meet(&row.words);
        }
        world.load();
        let terms = Arc::clone(&world.terms);
        let mut book = world.open(&terms, swept);
        for row in rows {
            let outcome = world.call(&mut book, &row.words);
            world.after(&book).assert_rules(row.text);
            let levels: Vec<(&str, String)> =
                row.levels.iter().map(|(name, _)| (*name, world.level(&book, name))).collect();
            let as_expected = levels.iter().map(|(_, level)| level).eq(row.levels.iter().map(|(_, l)| l));
            if Some(&*outcome) != row.outcome || !as_expected {
                let levels: Vec<String> =
                    levels.iter().map(|(name, level)| format!("{name} {level}")).collect();
                wrong.push(format!("{}\n    was: {outcome} | {}", row.text, levels.join(", ")));
            }
        }
        world = world.after(&book);
    }
    (world, wrong)
}

#[test]
fn holds_are_reserved_and_committed() {
    play(
        "
        0   plan seat tokens 100/lifetime, requests 3/lifetime
        0   reserve r1 tokens=40                   -> held 40            | user.tokens 0+40, user.requests 0+0
        1   reserve r2 tokens=60 requests=1        -> held 60,1          | user.tokens 0+100, user.requests 0+1
        2   reserve r3 tokens=1 requests=1         -> denied by user.tokens | user.tokens 0+100, user.requests 0+1
        3   commit r1 tokens=30                    -> committed 30 [30]  | user.tokens 30+60
        3   reserve r3 tokens=10 requests=2        -> held 10,2          | user.tokens 30+70, user.requests 0+3
        4   release r2                             -> released           | user.tokens 30+10, user.requests 0+2
        4   reserve r4 requests=1                  -> held 1             | user.tokens 30+10, user.requests 0+3
        5   commit r3                              -> committed 10,2 [10,2] | user.tokens 40+0, user.requests 2+1
        6   commit r4 requests=0                   -> committed 0 []     | user.tokens 40+0, user.requests 2+0
        7   reserve r5 tokens=59.999999999         -> held 59.999999999  | user.tokens 40+59.999999999
        7   reserve r6 tokens=0.000000001          -> held 0.000000001   | user.tokens 40+60
        7   reserve r7 tokens=0.000000001          -> denied by user.tokens | user.tokens 40+60
        7   reserve r8                             -> empty /holds
        7   reserve r8 tokens=-1                   -> invalid_value /holds/0/value
        7   reserve r8 tokens=0.0000000001         -> invalid_value /holds/0/value
        7   reserve r8 tokens=1 tokens=1           -> duplicate_meter /holds
        7   reserve r8 tokens=1 nonsense=1         -> unknown_meter /holds/1/meter
        7   reserve r8 storage=1                   -> not_reservable /holds/0/meter
        7   reserve r8 tokens=1 ttl=0              -> invalid_ttl /ttl_seconds
        7   reserve r8 tokens=1 ttl=86401          -> invalid_ttl /ttl_seconds
        7   commit r8                              -> reservation_not_found
        7   release r8                             -> reservation_not_found
        7   extend r8                              -> reservation_not_found
        ",
    );
}

#[test]
fn denials_name_the_limit_and_the_reason() {
    play(
        "
        0   plan seat tokens 100/lifetime, mini=tokens[mini] 30/lifetime, requests 1/lifetime
        0   plan org tokens 150/lifetime, seats=requests 5/lifetime
        0   reserve u1 tokens=100                  -> held 100           | user.tokens 0+100, org.tokens 0+100
        1   reserve u2 tokens=1                    -> denied by user.tokens
        # `peer` is in the same crew on a separate plan, so only the org's limits are short
        1   reserve p1 peer tokens=51              -> denied by org.tokens | peer.tokens 0+0, org.tokens 0+100
        1   reserve p1 peer tokens=50 model=mini   -> denied by peer.mini | peer.tokens 0+0, org.tokens 0+100
        1   reserve p1 peer tokens=60 model=mini   -> denied by peer.mini, org.tokens
        1   reserve p1 peer tokens=120 model=mini  -> denied by peer.tokens, peer.mini, org.tokens
        1   reserve p1 peer tokens=120 requests=2  -> denied by peer.tokens, org.tokens, peer.requests
        1   reserve p1 peer tokens=10 requests=2   -> denied by peer.requests | peer.tokens 0+0, org.tokens 0+100
        1   reserve p1 peer tokens=30 model=mini   -> held 30            | peer.mini 0+30, peer.tokens 0+30, user.mini 0+0, org.tokens 0+130
        2   reserve p2 peer tokens=1 model=mini    -> denied by peer.mini
        2   reserve p2 peer tokens=20 model=large  -> held 20            | peer.mini 0+30, peer.tokens 0+50, org.tokens 0+150
        3   reserve o1 org tokens=1                -> denied by org.tokens
        3   reserve o1 org requests=5              -> held 5             | org.seats 0+5, user.requests 0+0
        3   reserve c1 crew requests=1             -> denied by org.seats
        4   commit u1 tokens=90                    -> committed 90 [90]  | user.tokens 90+0, org.tokens 90+50
        4   reserve c1 crew tokens=10              -> held 10            | org.tokens 90+60, user.tokens 90+0
        # a lowered quota applies to the next decision; older holds can still be committed
        5   plan org tokens 50/lifetime
        5   reserve p3 peer tokens=0               -> denied by org.tokens | org.tokens 90+60
        5   commit c1                              -> committed 10 [10]  | org.tokens 100+50
        5   put org plan=org tokens=200
        5   reserve p3 peer tokens=51              -> denied by peer.tokens, org.tokens
        5   reserve p3 peer tokens=50              -> held 50            | org.tokens 100+100
        5   put org plan=org tokens=-
        5   put peer plan=seat tokens=-
        6   reserve p4 peer tokens=999999          -> held 999999        | org.tokens 100+1000099
        ",
    );
}

#[test]
fn up_to_holds_grant_the_remaining_quota() {
    play(
        "
        0   plan seat tokens 100/lifetime, mini=tokens[mini] 30/lifetime, requests 2.5/lifetime
        0   plan org tokens 120.5/lifetime
        0   reserve r1 tokens<=40                  -> held 40            | user.tokens 0+40
        0   reserve r2 tokens<=80 model=mini       -> held 30            | user.tokens 0+70, user.mini 0+30
        0   reserve r3 tokens<=1 model=mini        -> denied by user.mini
        0   reserve r4 peer tokens<=80 requests<=9 -> held 50.5,2        | org.tokens 0+120.5, peer.requests 0+2
        # half a request is left, which does not suffice for a whole request
        0   reserve r5 peer requests<=1            -> denied by peer.requests
        0   reserve r6 tokens<=30                  -> denied by org.tokens
        0   reserve r6 tokens<=0                   -> held 0             | user.tokens 0+70
        # an `up_to` hold that fits does not help another hold that does not fit
        0   reserve r7 requests<=9 tokens=1        -> denied by org.tokens | user.requests 0+0
        1   release r1                             -> released           | user.tokens 0+30
        1   reserve r8 tokens<=100                 -> held 40            | user.tokens 0+70
        1   commit r8 tokens=55                    -> committed 55 [55] over_hold | user.tokens 55+30, org.tokens 55+80.5
        2   track user tokens=100
        2   reserve r9 tokens<=1                   -> denied by user.tokens, org.tokens | user.tokens 155+30
        2   reserve r9 tokens<=0                   -> denied by user.tokens, org.tokens
        2   check tokens<=7                        -> denied by user.tokens, org.tokens
        2   track user tokens=-150
        2   check tokens<=700                      -> allowed 35         | user.tokens 5+30, org.tokens 5+80.5
        2   check tokens=35.000000001              -> denied by org.tokens
        ",
    );
}

#[test]
fn repeated_calls_replay_the_first_answer() {
    play(
        "
        0   plan seat tokens 100/lifetime, requests 9/lifetime
        0   reserve r1 tokens=40 requests=1 ttl=90 -> held 40,1          | user.tokens 0+40
        0   reserve r1 tokens=40 requests=1 ttl=90 -> replayed held 40,1 | user.tokens 0+40
        1   reserve r1 requests=1 tokens=40.0 ttl=90 -> replayed held 40,1 | user.tokens 0+40
        1   reserve r1 tokens=41 requests=1 ttl=90 -> id_reused          | user.tokens 0+40
        1   reserve r1 tokens=40 ttl=90            -> id_reused
        1   reserve r1 tokens=40 requests=1 ttl=91 -> id_reused
        1   reserve r1 tokens<=40 requests=1 ttl=90 -> id_reused
        1   reserve r1 tokens=40 requests=1 ttl=90 model=mini -> id_reused
        1   reserve r1 tokens=40 requests=1 ttl=90 on_expiry=commit -> id_reused
        1   reserve r1 peer tokens=40 requests=1 ttl=90 -> id_reused     | peer.tokens 0+0
        # a denial is not stored
        2   reserve r2 tokens=61                   -> denied by user.tokens
        2   reserve r2 tokens=60                   -> held 60            | user.tokens 0+100
        2   reserve r3 tokens=5                    -> denied by user.tokens
        2   release r2                             -> released           | user.tokens 0+40
        2   release r2                             -> replayed released  | user.tokens 0+40
        2   release r2 reason=why                  -> replayed released
        2   reserve r2 tokens=60                   -> replayed released 60 | user.tokens 0+40
        2   commit r2                              -> already_released   | user.tokens 0+40
        2   extend r2                              -> already_released
        3   reserve r3 tokens=5                    -> held 5             | user.tokens 0+45
        4   commit r1 tokens=30                    -> committed 30,1 [30,1] | user.tokens 30+5, user.requests 1+0
        4   commit r1 tokens=30                    -> replayed committed 30,1 [30,1] | user.tokens 30+5
        5   commit r1 requests=1 tokens=30         -> replayed committed 30,1 [30,1]
        5   commit r1 tokens=30.0                  -> replayed committed 30,1 [30,1]
        5   commit r1 tokens=31                    -> already_committed  | user.tokens 30+5
        5   commit r1                              -> already_committed
        5   release r1                             -> already_committed
        5   extend r1                              -> already_committed
        5   reserve r1 tokens=40 requests=1 ttl=90 -> replayed committed 40,1 | user.tokens 30+5
        5   reserve r1 tokens=40 requests=2 ttl=90 -> id_reused
        # replays work long after the event age
        40d commit r1 tokens=30                    -> replayed committed 30,1 [30,1]
        40d reserve r1 tokens=40 requests=1 ttl=90 -> replayed committed 40,1
        ",
    );
}

#[test]
fn retries_after_lost_answers_are_replays() {
    play(
        "
        0   plan seat tokens 100/lifetime
        0   reserve r1 tokens=40                   -> held 40            | user.tokens 0+40
        2   reserve r1 tokens=40                   -> replayed held 40
        3   commit r1 tokens=10 step               -> held, committed 10 [10] | user.tokens 10+30
        4   commit r1 tokens=30                    -> committed 30 [20]  | user.tokens 30+0
        5   commit r1 tokens=30                    -> replayed committed 30 [20]
        6   reserve r2 tokens=5                    -> held 5             | user.tokens 30+5
        6   extend r2 tokens=70 ttl=9              -> held 70 until 15   | user.tokens 30+70
        ",
    );
}

#[test]
fn cumulative_commits_reach_the_same_total_in_any_steps() {
    play(
        "
        0   plan seat tokens 100/lifetime, requests 9/lifetime
        0   plan org tokens 150/lifetime
        0   reserve r1 tokens=40 requests=2        -> held 40,2          | user.tokens 0+40, user.requests 0+2
        1   commit r1 tokens=10 step               -> held, committed 10,0 [10] | user.tokens 10+30, user.requests 0+2
        2   commit r1 tokens=25 requests=1 step    -> held, committed 25,1 [15,1] | user.tokens 25+15, user.requests 1+1
        # a repeated or reordered step changes nothing
        2   commit r1 tokens=25 requests=1 step    -> replayed held, committed 25,1 [15,1] | user.tokens 25+15
        2   commit r1 tokens=10 step               -> held, committed 25,1 [] | user.tokens 25+15, org.tokens 25+15
        3   commit r1 tokens=20                    -> below_committed    | user.tokens 25+15
        3   commit r1 requests=0                   -> below_committed
        3   commit r1 storage=1                    -> meter_not_held /values/0/meter
        3   commit r1 tokens=-1                    -> invalid_value /values/0/value
        3   commit r1 tokens=26 tokens=27          -> duplicate_meter /values
        3   commit r1 requests=1.5                 -> invalid_value /values/0/value
        # a step may pass the held quantity; then the hold keeps nothing
        4   commit r1 tokens=60 step               -> held, committed 60,1 [35] over_hold | user.tokens 60+0, user.requests 1+1
        4   reserve r2 tokens=41                   -> denied by user.tokens
        5   commit r1                              -> committed 60,2 [1] over_hold | user.tokens 60+0, user.requests 2+0
        5   commit r1 tokens=50 step               -> replayed committed 60,2 [] over_hold
        5   commit r1 tokens=70 step               -> already_committed  | user.tokens 60+0
        # recorded usage counts, whatever the quota
        6   reserve r2 tokens=40                   -> held 40            | user.tokens 60+40, org.tokens 60+40
        6   commit r2 tokens=200                   -> committed 200 [200] over_hold | user.tokens 260+0, org.tokens 260+0
        6   reserve r3 tokens=0                    -> denied by user.tokens, org.tokens
        6   reserve r3 requests=1                  -> held 1             | user.requests 2+1
        6   commit r3 requests=4                   -> committed 4 [4] over_hold | user.requests 6+0
        # a release keeps the usage recorded before it
        7   reserve r4 requests=3                  -> held 3             | user.requests 6+3
        7   commit r4 requests=1 step              -> held, committed 1 [1] | user.requests 7+2
        7   release r4                             -> released           | user.requests 7+0
        7   commit r4 requests=1                   -> already_released
        7   commit r4 requests=2 step              -> already_released
        7   commit r4 requests=1 step              -> already_released
        7   release r4                             -> replayed released
        ",
    );
}

#[test]
fn unsettled_holds_expire() {
    play(
        "
        0   plan seat tokens 100/lifetime, requests 9/lifetime
        0   reserve r1 tokens=100                  -> held 100           | user.tokens 0+100
        59  reserve r2 tokens=1                    -> denied by user.tokens
        # at the instant of expiry the quota is free for the next call
        60  reserve r2 tokens=100 ttl=10           -> held 100           | user.tokens 0+100
        60  reserve r1 tokens=100                  -> replayed expired 100 | user.tokens 0+100
        60  release r1                             -> expired            | user.tokens 0+100
        60  release r1                             -> expired            | user.tokens 0+100
        60  extend r1 ttl=60                       -> reservation_expired
        60  extend r1 tokens=1                     -> reservation_expired
        # a late commit still counts its usage, even over the quota
        65  commit r1 tokens=80                    -> committed 80 [80] late | user.tokens 80+100
        65  commit r1 tokens=80                    -> replayed committed 80 [80] late | user.tokens 80+100
        65  commit r1 tokens=81                    -> already_committed
        65  release r1                             -> already_committed
        70  reserve r3 tokens=20 ttl=1             -> held 20            | user.tokens 80+20
        # the same in steps
        80  commit r3 tokens=0 step                -> expired, committed 0 [] | user.tokens 80+0
        80  commit r3 tokens=5 step                -> expired, committed 5 [5] late | user.tokens 85+0
        80  commit r3 tokens=5 step                -> replayed expired, committed 5 [5] late
        80  release r3                             -> expired            | user.tokens 85+0
        80  commit r3 tokens=30                    -> committed 30 [25] over_hold late | user.tokens 110+0
        # a step in time is not late, but the final commit is
        90  reserve r4 requests=3 ttl=10           -> held 3             | user.requests 0+3
        95  commit r4 requests=1 step              -> held, committed 1 [1] | user.requests 1+2
        100 reserve r5 requests=8                  -> held 8             | user.requests 1+8
        100 commit r4                              -> committed 3 [2] late | user.requests 3+8
        101 release r5                             -> released
        # a late commit of zero counts nothing
        101 reserve r6 requests=1 ttl=1            -> held 1             | user.requests 3+1
        102 commit r6 requests=0                   -> committed 0 [] late | user.requests 3+0
        ",
    );
}

#[test]
fn holds_with_on_expiry_charge_are_committed_at_expiry() {
    play(
        "
        0   plan seat tokens 100/lifetime, requests 9/lifetime
        0   reserve r1 tokens=40 requests=1 on_expiry=commit -> held 40,1 | user.tokens 0+40
        59  commit r1 tokens=10 step               -> held, committed 10,0 [10] | user.tokens 10+30, user.requests 0+1
        60  reserve r2 tokens=61                   -> denied by user.tokens | user.tokens 40+0, user.requests 1+0
        60  reserve r1 tokens=40 requests=1 on_expiry=commit -> replayed committed 40,1
        60  commit r1                              -> replayed committed 40,1 [30,1]
        60  commit r1 tokens=40                    -> replayed committed 40,1 [30,1]
        60  commit r1 tokens=39                    -> already_committed  | user.tokens 40+0
        60  commit r1 tokens=10 step               -> replayed committed 40,1 []
        60  release r1                             -> already_committed
        60  extend r1 ttl=60                       -> already_committed
        # before its expiry, it behaves like any other
        61  reserve r3 tokens=10 on_expiry=commit  -> held 10            | user.tokens 40+10
        61  reserve r4 tokens=10 on_expiry=commit  -> held 10            | user.tokens 40+20
        61  reserve r5 tokens=10 on_expiry=commit ttl=1 -> held 10       | user.tokens 40+30
        61  commit r3 tokens=7                     -> committed 7 [7]    | user.tokens 47+20
        61  release r4                             -> released           | user.tokens 47+10
        # the next call sees the expiry even if no sweep has run
        62  release r5                             -> already_committed  | user.tokens 57+0
        90  extend r5 ttl=90                       -> already_committed
        # usage that passed the hold before the expiry is not charged again
        91  reserve r6 tokens=10 on_expiry=commit ttl=1 -> held 10       | user.tokens 57+10
        91  commit r6 tokens=15 step               -> held, committed 15 [15] over_hold | user.tokens 72+0
        92  commit r6 tokens=15                    -> replayed committed 15 [] over_hold | user.tokens 72+0
        200 check tokens=28                        -> allowed 28         | user.tokens 72+0
        ",
    );
}

#[test]
fn extensions_are_tested_against_the_same_limits() {
    play(
        "
        0   plan seat tokens 100/lifetime, requests 9/lifetime
        0   plan org tokens 150/lifetime
        0   reserve r1 tokens=40 requests=1        -> held 40,1          | user.tokens 0+40
        50  extend r1 ttl=60                       -> held 40,1 until 110 | user.tokens 0+40
        60  extend r1                              -> held 40,1 until 120
        60  extend r1 tokens=100                   -> held 100,1 until 120 | user.tokens 0+100, org.tokens 0+100
        60  extend r1 tokens=101                   -> denied by user.tokens | user.tokens 0+100
        60  extend r1 tokens=50 requests=10        -> denied by user.requests | user.tokens 0+100, user.requests 0+1
        60  extend r1 tokens=151 requests=10       -> denied by user.tokens, org.tokens, user.requests
        60  extend r1 tokens=30 requests=9         -> held 30,9 until 120 | user.tokens 0+30, user.requests 0+9
        60  extend r1 storage=1                    -> meter_not_held /holds/0/meter
        60  extend r1 requests=1.5                 -> invalid_value /holds/0/value
        60  extend r1 tokens=1 tokens=2            -> duplicate_meter /holds
        60  extend r1 ttl=0                        -> invalid_ttl /ttl_seconds
        # totals include the quantities of steps
        61  commit r1 tokens=20 step               -> held, committed 20,0 [20] | user.tokens 20+10
        61  extend r1 tokens=19                    -> below_committed    | user.tokens 20+10
        61  extend r1 tokens=20                    -> held 20,9 until 120 | user.tokens 20+0
        61  reserve p1 peer tokens=90              -> held 90            | org.tokens 20+90
        61  extend r1 tokens=61                    -> denied by org.tokens | user.tokens 20+0
        61  extend r1 tokens=60                    -> held 60,9 until 120 | user.tokens 20+40, org.tokens 20+130
        # after usage above the hold, only the growth beyond that usage is tested
        62  commit r1 tokens=65 step               -> held, committed 65,0 [45] over_hold | user.tokens 65+0, org.tokens 65+90
        62  extend r1 tokens=64                    -> below_committed
        62  extend r1 tokens=101                   -> denied by user.tokens, org.tokens
        62  extend r1 tokens=66                    -> denied by org.tokens | user.tokens 65+0, org.tokens 65+90
        62  extend p1 tokens=80                    -> held 80 until 121  | user.tokens 65+0, org.tokens 65+80
        62  extend r1 tokens=70                    -> held 70,9 until 120 | user.tokens 65+5, user.requests 0+9
        # the expiry may become earlier; a denial leaves it unchanged
        63  extend r1 tokens=101 ttl=500           -> denied by user.tokens, org.tokens
        63  extend r1 ttl=2                        -> held 70,9 until 65 | user.tokens 65+5
        65  extend r1 ttl=2                        -> reservation_expired | user.tokens 65+0, user.requests 0+0
        # an extension of time needs no test, even over the quota
        66  reserve r2 requests=3                  -> held 3
        66  track user requests=20
        67  extend r2 ttl=100                      -> held 3 until 167   | user.requests 20+3
        67  extend r2 requests=2                   -> held 2 until 167   | user.requests 20+2
        67  extend r2 requests=3                   -> denied by user.requests
        67  put user plan=seat status=paused
        68  extend r2 ttl=100                      -> held 2 until 168
        68  extend r2 requests=1                   -> held 1 until 168
        68  extend r2 requests=2                   -> denied subscription_inactive
        ",
    );
}

#[test]
fn reservations_past_the_event_age_are_not_settled() {
    play(
        "
        0   plan seat tokens 100/lifetime, requests 9/lifetime
        0   reserve r1 tokens=10                   -> held 10
        0   reserve r2 tokens=10                   -> held 10
        0   reserve r3 tokens=10                   -> held 10
        0   reserve r4 tokens=10 on_expiry=commit  -> held 10
        0   reserve r5 tokens=10 ttl=86400         -> held 10            | user.tokens 0+50
        9   commit r3 tokens=5 step                -> held, committed 5 [5] | user.tokens 5+45
        30d commit r1                              -> committed 10 [10] late | user.tokens 25+0
        # one second after the event age
        2592001 commit r2                          -> reservation_too_old | user.tokens 25+0
        2592001 commit r2 tokens=0                 -> reservation_too_old
        2592001 commit r3 tokens=6 step            -> reservation_too_old
        2592001 commit r3 tokens=5 step            -> replayed expired, committed 5 [5]
        2592001 release r2                         -> expired
        2592001 commit r1                          -> replayed committed 10 [10] late
        2592001 commit r4                          -> replayed committed 10 [10]
        2592001 extend r2                          -> reservation_expired
        ",
    );
}

#[test]
fn reservations_can_be_extended_until_the_event_age() {
    use std::fmt::Write as _;
    let mut table =
        "0 plan seat tokens 100/lifetime\n0 reserve r1 tokens=10 ttl=86400 -> held 10\n".to_owned();
    for day in 1..31 {
        let now = day * 86_399;
        writeln!(table, "{now} extend r1 ttl=86400 -> held 10 until {} | user.tokens 0+10", now + 86_400)
            .unwrap();
    }
    table += "
        2592001 extend r1           -> reservation_too_old | user.tokens 0+10
        2592001 release r1          -> reservation_too_old | user.tokens 0+10
        2592001 commit r1           -> reservation_too_old | user.tokens 0+10
        31d     release r1          -> expired             | user.tokens 0+0
        ";
    play(&table);
}

#[test]
fn properties_select_the_limit_slice_for_the_whole_reservation() {
    let world = play(
        "
        0   plan seat tokens 100/lifetime, mini=tokens[mini] 30/lifetime
        0   reserve r1 tokens=20 model=mini        -> held 20            | user.tokens 0+20, user.mini 0+20
        0   reserve r2 tokens=20 model=large       -> held 20            | user.tokens 0+40, user.mini 0+20
        0   reserve r3 tokens=20                   -> held 20            | user.tokens 0+60, user.mini 0+20
        1   commit r1 tokens=5 model=large step    -> dimension_changed /properties/model | user.mini 0+20
        1   commit r3 tokens=5 model=mini          -> dimension_changed /properties/model
        1   commit r1 tokens=5 job=7 model=mini step -> held, committed 5 [5] | user.tokens 5+55, user.mini 5+15
        1   commit r1 tokens=5 job=7 model=mini step -> replayed held, committed 5 [5]
        2   commit r1 job=8                        -> committed 20 [15]  | user.tokens 20+40, user.mini 20+0
        2   commit r2 job=8                        -> committed 20 [20]  | user.tokens 40+20, user.mini 20+0
        2   commit r3 tokens=50                    -> committed 50 [50] over_hold | user.tokens 90+0, user.mini 20+0
        3   reserve r4 tokens=10 model=mini        -> held 10            | user.tokens 90+10, user.mini 20+10
        3   extend r4 tokens=11                    -> denied by user.tokens, user.mini
        3   commit r4 tokens=30                    -> committed 30 [30] over_hold | user.tokens 120+0, user.mini 50+0
        ",
    );
    let text = world.events.iter().filter_map(|(_, _, record)| record.properties.to_json());
    let expected = r#"{"job":"7","model":"mini"} {"job":"8","model":"mini"} {"job":"8","model":"large"} {"model":"mini"}"#;
    assert_eq!(text.collect::<Vec<_>>().join(" "), expected);
}

#[test]
fn soft_limits_count_without_denying() {
    play(
        "
        0   plan seat tokens 100/lifetime soft, mini=tokens[mini] 30/lifetime, requests -/lifetime
        0   plan org requests 5/lifetime soft
        0   reserve r1 tokens=400 requests=7       -> held 400,7         | user.tokens 0+400, user.requests 0+7, org.requests 0+7
        1   commit r1 tokens=300                   -> committed 300,7 [300,7] | user.tokens 300+0, user.requests 7+0, org.requests 7+0
        1   reserve r2 tokens<=50                  -> held 50            | user.tokens 300+50
        1   reserve r3 tokens<=50 model=mini       -> held 30            | user.tokens 300+80, user.mini 0+30
        1   reserve r4 tokens=1 model=mini         -> denied by user.mini
        1   extend r2 tokens=99999                 -> held 99999 until 61 | user.tokens 300+100029
        # a limit that becomes hard includes earlier holds
        1   plan seat tokens 100/lifetime, requests -/lifetime
        1   reserve r5 tokens=1                    -> denied by user.tokens
        1   reserve r5 requests=9999999999999999999 -> held 9999999999999999999 | user.requests 7+9999999999999999999
        1   reserve r6 requests=9999999999999999999 -> held 9999999999999999999 | user.requests 7+19999999999999999998
        1   reserve r7 requests=10000000000000000000 -> invalid_value /holds/0/value
        ",
    );
}

#[test]
fn zero_value_holds_are_tested_against_quotas() {
    play(
        "
        0   plan seat tokens 100/lifetime, requests 0/lifetime
        0   reserve z1 tokens=0                    -> held 0             | user.tokens 0+0
        0   reserve z1 tokens=0                    -> replayed held 0
        0   reserve z2 requests=0                  -> held 0             | user.requests 0+0
        0   reserve z3 requests=1                  -> denied by user.requests
        0   reserve r1 tokens=100                  -> held 100           | user.tokens 0+100
        0   reserve z3 tokens=0                    -> held 0             | user.tokens 0+100
        0   extend z3 tokens=1                     -> denied by user.tokens
        1   commit z1 tokens=0                     -> committed 0 []     | user.tokens 0+100
        1   commit z3                              -> committed 0 []
        1   commit z2 requests=1                   -> committed 1 [1] over_hold | user.requests 1+0
        1   reserve z4 requests=0                  -> denied by user.requests
        1   check requests=0                       -> denied by user.requests
        60  reserve z1 tokens=0                    -> replayed committed 0 | user.tokens 0+0
        # a zero-value hold is committed at its expiry without an event
        60  reserve z5 tokens=0 ttl=1 on_expiry=commit -> held 0
        61  commit z5                              -> replayed committed 0 []
        ",
    );
}

#[test]
fn holds_count_in_the_periods_of_their_creation() {
    play(
        "
        # midnight is 12 hours after the start, the end of the month 36 hours
        0   plan seat day=tokens 100/day, month=tokens 150/month, hour=requests 2/hour
        43190 reserve r1 tokens=80                 -> held 80            | user.day 0+80, user.month 0+80
        43190 reserve r2 tokens=10                 -> held 10            | user.day 0+90, user.month 0+90
        43190 reserve r3 tokens=11                 -> denied by user.day
        # the new day has its whole quota, but the month does not
        12h reserve r3 tokens=61                   -> denied by user.month | user.day 0+0, user.month 0+90
        12h reserve r3 tokens=60                   -> held 60            | user.day 0+60, user.month 0+150, user.day@0 0+90
        # a hold is committed in the period of its creation
        43201 commit r1 tokens=85                  -> committed 85 [85] over_hold | user.day 0+60, user.day@0 85+10, user.month 85+70
        # its growth is tested in that period, too
        43201 extend r2 tokens=16 ttl=60           -> denied by user.day, user.month | user.day@0 85+10
        43201 extend r2 tokens=12 ttl=60           -> denied by user.month
        43201 commit r3 tokens=0                   -> committed 0 []     | user.day 0+0, user.month 85+10
        43201 extend r2 tokens=16 ttl=60           -> denied by user.day
        43201 extend r2 tokens=15 ttl=60           -> held 15 until 43261 | user.day 0+0, user.day@0 85+15
        43261 reserve r4 tokens=60                 -> held 60            | user.day 0+60, user.day@0 85+0, user.month 85+60
        # late commits after the end of the month
        36h commit r2                              -> committed 15 [15] late | user.day@0 100+0, user.month@0 100+0, user.month 0+0
        36h commit r4 tokens=70                    -> committed 70 [70] over_hold late | user.day 0+0, user.day@12h 70+0, user.month@0 170+0
        36h reserve r5 tokens=100                  -> held 100           | user.day 0+100, user.month 0+100
        # a charge at an expiry in a later hour counts in the hour of the reservation
        38h reserve r6 requests=2 on_expiry=commit ttl=7200 -> held 2    | user.hour 0+2
        39h reserve r7 requests=2                  -> held 2             | user.hour 0+2, user.hour@38h 0+2
        40h reserve r8 requests=2                  -> held 2             | user.hour 0+2, user.hour@38h 2+0, user.hour@39h 0+0
        ",
    );
}

#[test]
fn new_limits_count_earlier_usage() {
    play(
        "
        0   plan seat tokens 100/lifetime
        0   reserve r1 tokens=30                   -> held 30            | user.tokens 0+30
        1   commit r1 tokens=20                    -> committed 20 [20]
        1   reserve r2 tokens=10 ttl=86400         -> held 10            | user.tokens 20+10
        1   track user tokens=5
        2   plan seat tokens 100/lifetime, day=tokens 40/day
        2   reserve r3 tokens=6                    -> denied by user.day | user.day 25+10
        2   reserve r3 tokens=5                    -> held 5             | user.day 25+15, user.tokens 25+15
        # a removed limit forgets its counter; its holds can still be committed
        3   plan seat requests 5/lifetime
        3   reserve r4 tokens=1                    -> denied unmatched
        3   commit r3                              -> committed 5 [5]
        3   extend r2 tokens=11                    -> denied unmatched
        3   extend r2 ttl=86400                    -> held 10 until 86403
        4   plan seat tokens 100/lifetime
        4   reserve r4 tokens=60                   -> held 60            | user.tokens 30+70
        # a day before the limit existed has no quota to pass
        43500 plan seat tokens 120/lifetime, day=tokens 5/day
        43500 extend r2 tokens=60                  -> held 60 until 86403 | user.tokens 30+60, user.day 0+0
        ",
    );
}

#[test]
fn plan_changes_keep_or_reset_counters() {
    play(
        "
        0   plan seat tokens 100/lifetime
        0   plan pro tokens 200/lifetime
        0   plan trial tokens 50/lifetime reset
        0   reserve r1 tokens=60                   -> held 60            | user.tokens 0+60
        1   commit r1                              -> committed 60 [60]
        1   reserve r2 tokens=40                   -> held 40            | user.tokens 60+40
        # used and held quantities count under the new quota
        2   put user plan=pro
        2   reserve r3 tokens=101                  -> denied by user.tokens
        2   reserve r3 tokens=100                  -> held 100           | user.tokens 60+140
        2   put user plan=pro tokens=10
        2   reserve r4 tokens=0                    -> denied by user.tokens
        # after a reset, earlier reservations no longer count, whenever they are committed
        3   put user plan=trial
        3   reserve r4 tokens=51                   -> denied by user.tokens | user.tokens 0+0
        3   reserve r4 tokens=30                   -> held 30            | user.tokens 0+30
        4   commit r2 tokens=45                    -> committed 45 [45] over_hold | user.tokens 0+30
        4   extend r3 tokens=120                   -> held 120 until 62  | user.tokens 0+30
        4   release r3                             -> released           | user.tokens 0+30
        5   commit r4                              -> committed 30 [30]  | user.tokens 30+0
        5   put user plan=seat
        5   reserve r5 tokens=70                   -> held 70            | user.tokens 30+70
        ",
    );
}

#[test]
fn renewals_start_a_new_billing_period() {
    play(
        "
        0   plan seat tokens 100/billing
        0   plan pro tokens 100/billing
        0   put user plan=pro
        0   reserve r1 tokens=60 ttl=86400         -> held 60            | user.tokens 0+60
        0   reserve r2 tokens=10 ttl=86400         -> held 10            | user.tokens 0+70
        9   commit r2                              -> committed 10 [10]  | user.tokens 10+60
        # earlier than expected
        10  put user plan=pro cycle=10
        11  reserve r3 tokens=100                  -> held 100           | user.tokens 0+100, user.tokens@0 10+60
        12  commit r1 tokens=50                    -> committed 50 [50]  | user.tokens 0+100, user.tokens@0 60+0
        13  commit r3 tokens=1                     -> committed 1 [1]    | user.tokens 1+0, user.tokens@0 60+0
        # a month after Jan 30 12:00:10 is Feb 28 12:00:10
        2505609 check tokens=100                   -> denied by user.tokens | user.tokens 1+0
        2505610 check tokens=100                   -> allowed 100        | user.tokens 0+0
        ",
    );
}

#[test]
fn prechecks_deny_before_quotas_and_in_order() {
    play(
        "
        # no subject on the path has a plan, and there is no default plan
        0   plan pro tokens 100/lifetime
        0   reserve r1 tokens=1                    -> denied no_subscription
        0   check tokens=1                         -> denied no_subscription
        0   put org plan=pro status=paused
        0   reserve r1 tokens=1                    -> denied subscription_inactive
        0   put org plan=pro status=past_due
        0   reserve r1 tokens=1                    -> held 1             | org.tokens 0+1
        0   reserve r2 requests=1                  -> denied unmatched
        0   reserve r2 tokens=500 requests=1       -> denied unmatched   | org.tokens 0+1
        0   reserve r2 tokens=500                  -> denied by org.tokens
        # an inactive subscription blocks all subjects below it
        1   plan lax unmatched=allow, tokens 10/lifetime, mini=requests[mini] 1/lifetime
        1   put user plan=lax
        1   reserve r2 requests=1                  -> held 1             | org.tokens 0+1, user.mini 0+0
        1   reserve r3 requests=2 model=mini       -> denied by user.mini
        1   reserve r3 tokens=50 requests=1        -> denied by user.tokens
        1   put user plan=lax status=unpaid
        1   reserve r3 requests=1                  -> denied subscription_inactive
        1   reserve r3 peer tokens=1               -> held 1             | org.tokens 0+2
        1   put user plan=lax
        1   put org plan=pro status=incomplete
        1   reserve r4 tokens=1                    -> denied subscription_inactive
        1   reserve r5 peer tokens=1               -> denied subscription_inactive
        # the nearest plan decides about uses without a matching limit
        2   put org plan=lax
        2   put user plan=pro
        2   reserve r4 requests=1                  -> denied unmatched
        2   reserve r4 peer requests=1             -> held 1
        # holds can be committed and released under any subscription status
        3   put user plan=pro status=canceled
        3   commit r1                              -> committed 1 [1]    | org.tokens 1+1, user.tokens 1+0
        3   release r2                             -> released
        # a subscription ends at its instant, even before the end is written
        4   put user plan=pro ends=9
        8   reserve r6 tokens=1                    -> held 1             | user.tokens 1+1
        9   reserve r7 tokens=1                    -> denied subscription_inactive
        9   reserve r6 tokens=1                    -> replayed held 1
        9   commit r6                              -> committed 1 [1]    | user.tokens 2+0
        ",
    );
}

#[test]
fn default_plan_is_assigned_to_the_root_subject() {
    play(
        "
        0   plan default tokens 100/lifetime
        0   plan pro tokens 10/lifetime, requests 5/lifetime
        0   check tokens=101                       -> denied by org.tokens | org.tokens 0+0
        # a path with its own subscription does not get the default plan
        0   put peer plan=pro
        0   reserve p1 peer tokens=10 requests=1   -> held 10,1          | peer.tokens 0+10, org.tokens 0+0
        0   reserve p2 peer tokens=1               -> denied by peer.tokens
        # the root's default plan counts for all subjects below it, with their earlier holds
        1   reserve r1 tokens=91                   -> denied by org.tokens | org.tokens 0+10
        1   reserve r1 tokens=60                   -> held 60            | org.tokens 0+70
        1   reserve r2 requests=1                  -> denied unmatched
        2   put peer plan=pro tokens=-
        2   reserve p2 peer tokens=31              -> denied by org.tokens
        2   reserve p2 peer tokens=30              -> held 30            | peer.tokens 0+40, org.tokens 0+100
        2   commit p1                              -> committed 10,1 [10,1] | peer.tokens 10+30, org.tokens 10+90
        ",
    );
}

#[test]
fn gauge_checks_use_the_value_after_the_change() {
    play(
        "
        0   plan seat storage 100/lifetime, tokens 9/lifetime
        0   track user storage=40
        0   check storage=100                      -> allowed 100        | user.storage 40+0
        0   check storage=100.5                    -> denied by user.storage
        0   check storage=100 tokens=10            -> denied by user.tokens
        0   check storage=101 tokens=10            -> denied by user.storage, user.tokens
        0   track user storage=120
        0   check storage=1                        -> denied by user.storage
        0   check requests=1.5                     -> invalid_value /holds/0/value
        0   check requests=1                       -> denied unmatched
        ",
    );
}

#[test]
fn moved_billing_cycles_keep_recorded_usage() {
    // The biller corrects the start of the billing cycle to a slightly later time.
    play(
        "
        0   plan seat tokens 100/billing
        1   reserve r1 tokens=60                   -> held 60            | user.tokens 0+60
        2   commit r1                              -> committed 60 [60]  | user.tokens 60+0
        3   put user plan=seat cycle=-30
        4   reserve r2 tokens=41                   -> denied by user.tokens | user.tokens 60+0
        ",
    );
    play(
        "
        0   plan pro tokens 100/billing
        0   put user plan=pro
        15d reserve r1 tokens=60                   -> held 60            | user.tokens 0+60
        15d commit r1                              -> committed 60 [60]  | user.tokens 60+0
        20d put user plan=pro cycle=10d
        20d reserve r2 tokens=41                   -> denied by user.tokens | user.tokens 60+0
        ",
    );
}

#[test]
fn two_limits_may_share_one_counter() {
    play(
        "
        0   plan seat warn=tokens 80/lifetime soft, tokens 100/lifetime
        0   reserve r1 tokens=90                   -> held 90            | user.warn 0+90, user.tokens 0+90
        1   reserve r2 tokens=11                   -> denied by user.tokens
        1   commit r1 tokens=85                    -> committed 85 [85]  | user.warn 85+0, user.tokens 85+0
        ",
    );
}

#[test]
fn releases_with_lost_answers_apply_once() {
    play(
        "
        0   plan seat tokens 100/lifetime
        0   reserve r1 tokens=40                   -> held 40            | user.tokens 0+40
        1   release r1                             -> released           | user.tokens 0+0
        2   release r1                             -> replayed released
        ",
    );
}

/// Runs a test on the limits of a path with one subject.
fn with_limits<T>(limits: &str, run: impl FnOnce(&[ApplicableLimit<'_>]) -> T) -> T {
    let mut world = World { now: Some(time("0")), ..World::default() };
    world.plan("org", limits);
    let path = world.path("org");
    run(&world.terms.of_path(&path).collect::<Vec<_>>())
}

/// Limits; their `used` and `held`; the request; the grant for `all`, for `up_to`, and for `up_to` in whole
/// units.
type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a str, [Option<&'a str>; 3]);

#[test]
fn granted_values_follow_requested_value_and_mode() {
    let hard = |quota: &str| format!("tokens {quota}/lifetime");
    let most = "9999999999999999999.999999999";
    let cases: &[Case<'_>] = &[
        ("", &[], "5", [Some("5"); 3]),
        (&hard("-"), &[("7", "7")], most, [Some(most); 3]),
        ("tokens 1/lifetime soft", &[("7", "7")], "5", [Some("5"); 3]),
        (&hard("10"), &[("4", "2")], "4", [Some("4"); 3]),
        (&hard("10"), &[("4", "2")], "5", [None, Some("4"), Some("4")]),
        (&hard("10"), &[("4", "2.5")], "4", [None, Some("3.5"), Some("3")]),
        (&hard("10"), &[("4", "5.5")], "1", [None, Some("0.5"), None]),
        (&hard("10"), &[("4", "5.999999999")], "1", [None, Some("0.000000001"), None]),
        (&hard("10"), &[("4", "6")], "1", [None; 3]),
        (&hard("10"), &[("4", "6")], "0", [Some("0"); 3]),
        (&hard("10"), &[("10.000000001", "0")], "0", [None; 3]),
        (&hard("10"), &[("20", "5")], "1", [None; 3]),
        (&hard("0"), &[("0", "0")], "1", [None; 3]),
        // corrections leave more than the quota
        (&hard("10"), &[("-5", "0")], "15", [Some("15"); 3]),
        (&hard("10"), &[("-5.5", "0")], "20", [None, Some("15.5"), Some("15")]),
        (&hard(most), &[("-9999999999999999999", "0")], most, [Some(most); 3]),
        (
            &hard(most),
            &[("1", "0")],
            most,
            [None, Some("9999999999999999998.999999999"), Some("9999999999999999998")],
        ),
        // the overage is larger than any quantity
        (&hard("10"), &[("9999999999999999999", "9999999999999999999")], "1", [None; 3]),
        // the smallest remainder of all hard limits counts; soft limits do not
        (
            "tokens 10/day, m=tokens 7/month, y=tokens 1/year soft",
            &[("1", "0"), ("1", "1"), ("9", "0")],
            "9",
            [None, Some("5"), Some("5")],
        ),
        (
            "tokens 10/day, m=tokens 7/month, y=tokens -/year",
            &[("1", "0"), ("1", "6"), ("9", "0")],
            "9",
            [None; 3],
        ),
    ];
    for (limits, levels, asked, expected) in cases {
        let level = |(used, held): &(&str, &str)| CounterState {
            used: Total::from_decimal(used).unwrap(),
            held: Total::from_decimal(held).unwrap(),
            ..CounterState::default()
        };
        let found = with_limits(limits, |limits| {
            let limits: Vec<(ApplicableLimit<'_>, CounterState)> =
                limits.iter().copied().zip(levels.iter().map(level)).collect();
            [(GrantMode::Exactly, false), (GrantMode::UpTo, false), (GrantMode::UpTo, true)]
                .map(|(grant, whole)| granted(quantity(asked), grant, whole, &limits).map(|q| q.to_string()))
        });
        assert_eq!(found.each_ref().map(Option::as_deref), *expected, "{limits}: {levels:?} {asked}");
    }
}

#[test]
fn credits_cover_only_the_overage_of_their_own_use() {
    // quota; used, held and covered; requested quantity; quantity that needs credits
    let cases = [
        ("10", ["4", "2", "0"], "4", "0"),
        ("10", ["4", "2", "0"], "4.000000001", "0.000000001"),
        ("10", ["4", "2", "0"], "7", "3"),
        ("10", ["15", "5", "10"], "3", "3"),
        ("10", ["15", "5", "12"], "3", "1"),
        ("10", ["10", "0", "0"], "0", "0"),
        // uncovered usage above the quota is not paid for later
        ("10", ["30", "0", "5"], "3", "3"),
        ("0", ["0.666666667", "0", "0"], "1", "1"),
        ("0", ["1", "0", "0.333333333"], "1", "1"),
        // the same after the quota was lowered
        ("1", ["8", "1", "0"], "2", "2"),
        // a zero-value use needs the smallest unit
        ("10", ["10.5", "0", "0"], "0", "0.000000001"),
        ("-", ["30", "0", "0"], "3", "0"),
        // usage was voided: the quantity that credits paid for is free quota
        ("10", ["0", "0", "5"], "20", "5"),
    ];
    for (quota, levels, asked, expected) in cases {
        let [used, held, covered] = levels.map(|level| Total::from_decimal(level).unwrap());
        let found = with_limits(&format!("tokens {quota}/lifetime"), |limits| {
            shortfall(&limits[0], CounterState { used, held, covered }, quantity(asked)).to_string()
        });
        assert_eq!(found, expected, "{quota} {levels:?} {asked}");
    }
}

#[test]
fn counters_start_at_zero_only_without_earlier_usage() {
    // the subscription starts at noon, the limit before or after it; a day begins at 12h; 300 is five
    // minutes
    let cases = [
        // a pristine subject with an older limit: zero from its first day on
        (true, "0", "0", "0", true),
        (true, "0", "-90", "0", true),
        (true, "0", "0", "12h", true),
        // a younger limit must count earlier usage on its first day, but not on the next
        (true, "0", "1", "1", false),
        (true, "0", "1", "12h", true),
        // usage was recorded before the subscription
        (false, "0", "0", "0", false),
        (false, "0", "0", "12h", true),
        // just before midnight, events of the next day may already be recorded
        (false, "42900", "0", "12h", true),
        (false, "42901", "0", "12h", false),
        (false, "42901", "0", "36h", true),
        (false, "0", "42901", "12h", false),
        (true, "42901", "0", "12h", true),
        (true, "0", "42901", "12h", false),
        // a day before the subscription
        (false, "0", "0", "-1d", false),
        (true, "0", "0", "-1d", true),
    ];
    for (pristine, terms_since, limit_since, at, expected) in cases {
        with_limits("tokens 5/day, requests 5/lifetime", |limits| {
            // a later limit also has a later version of the catalog
            let came_later = time(limit_since) > time(terms_since);
            let subscription = Subscription {
                terms_since: time(terms_since),
                pristine_version: pristine.then_some(1),
                ..limits[0].subscription.clone()
            };
            for found in limits {
                let mut terms = found.terms.clone();
                terms.since =
                    EffectiveFrom { at: time(limit_since), version: if came_later { 2 } else { 1 } };
                let found = ApplicableLimit { subscription: &subscription, terms: &terms, ..*found };
                let counter = found.counter_at(time(at)).unwrap();
                // a lifetime period began before any limit
                let is_day = found.key().as_str() == "tokens";
                let expected = if is_day { expected } else { pristine && !came_later };
                assert_eq!(
                    counter.starts_at_zero, expected,
                    "{pristine} {terms_since} {limit_since} {at} {is_day}"
                );
                assert_eq!(counter.counted_span(), counter.period);
            }
        });
    }
    // an unknown age requires counting
    with_limits("tokens 5/day", |limits| {
        let mut terms = limits[0].terms.clone();
        terms.since = EffectiveFrom { at: Timestamp::MAX, version: i64::MAX };
        assert!(
            !ApplicableLimit { terms: &terms, ..limits[0] }.counter_at(time("90d")).unwrap().starts_at_zero
        );
    });
}

#[test]
fn counters_count_from_their_reset() {
    with_limits("tokens 5/day", |limits| {
        let [found] = limits else { panic!("{limits:?}") };
        let mut subscription = found.subscription.clone();
        subscription.resets.insert(found.terms.definition, time("1h"));
        let found = ApplicableLimit { subscription: &subscription, ..*found };
        // earlier usage in the period no longer counts
        assert_eq!(found.counter_at(time("3599")), None);
        let counter = found.counter_at(time("1h")).unwrap();
        assert_eq!((counter.since, counter.counted_span().to), (time("1h"), time("12h")));
        assert_eq!((counter.key.period_start, counter.period.from), (time("-12h"), time("-12h")));
        // the day before no longer counts, and the next day counts completely
        assert_eq!(found.counter_at(time("-1d")), None);
        let next = found.counter_at(time("12h")).unwrap();
        assert_eq!((next.since, next.key.period_start), (time("12h"), time("12h")));
        // a counter is closed some time after its period ends
        assert!(!counter.is_closed(time("43499")) && counter.is_closed(time("43500")));
    });
}
