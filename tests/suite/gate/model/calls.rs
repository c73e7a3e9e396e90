//! The requests of the model's steps, and the expected answers.

use std::ops::Range;

use axum::http::Method;
use jiff::{SignedDuration, Timestamp};
use proptest::sample::Index;
use serde_json::{Value, json};

use super::caps::own_cap;
use super::credits::{Given, ONE, Paid, add};
use super::plans::{CALLS, METERS, MODELS, PLANS, SUBJECTS, TOKENS, catalog, grid, month_of};
use super::steps::{Ask, How, Statement, Step, Time};
use super::{Event, FRACTION, Hold, Reservation, Subscription, World, order};

/// A request and its expected answer. An object in the answer may have more fields.
pub(super) struct Call {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) body: Value,
    pub(super) status: u16,
    pub(super) answer: Value,
    /// Whether the answer is a replay; none accepts both.
    pub(super) is_replay: Option<bool>,
    /// The events of the model that get their ids from the answer.
    pub(super) makes: Range<usize>,
    /// The grant of the model that gets its id from the answer.
    pub(super) gives: Option<usize>,
}

impl Call {
    fn new(method: Method, path: String, body: Value, status: u16, answer: Value) -> Self {
        Self { method, path, body, status, answer, is_replay: Some(false), makes: 0..0, gives: None }
    }

    fn post(path: impl Into<String>, body: Value, status: u16, answer: Value) -> Self {
        Self::new(Method::POST, path.into(), body, status, answer)
    }

    fn refused(path: impl Into<String>, body: Value, status: u16, code: &str) -> Self {
        Self::post(path, body, status, json!({"code": code}))
    }

    fn replay(self, is_replay: Option<bool>) -> Self {
        Self { is_replay, ..self }
    }
}

impl World {
    /// Applies a step to the model and returns the call to make. Returns none if the step has nothing to
    /// act on.
    pub(super) fn take(&mut self, step: &Step) -> Option<Call> {
        let call = match step {
            Step::Track { who, value, model, seconds_ago } => {
                Some(self.track(*who, *value, MODELS[*model], *seconds_ago))
            }
            Step::TrackAgain { which, changed } => self.track_again(*which, *changed),
            Step::Void(which) => self.void(*which),
            Step::Ask { who, asks, model, how, ttl, commits } => {
                Some(self.ask(*who, asks, MODELS[*model], *how, *ttl, *commits))
            }
            Step::AskAgain { which, changed } => self.ask_again(*which, *changed),
            Step::Commit { which, values, is_final } => {
                self.pick(*which).and_then(|n| self.commit(n, &self.of_held(n, values, *which), *is_final))
            }
            Step::CommitAgain(which) => self.pick(*which).and_then(|n| {
                let same: Vec<_> =
                    self.reservations[n].holds.iter().map(|hold| (hold.meter, hold.committed)).collect();
                self.commit(n, &same, true)
            }),
            Step::Release(which) => self.pick(*which).map(|n| self.release(n)),
            Step::Extend { which, ttl, values } => {
                self.pick(*which).and_then(|n| self.extend(n, *ttl, &self.of_held(n, values, *which)))
            }
            Step::Subscribe(who, statement) => Some(self.subscribe(*who, statement)),
            Step::Renew(who) => self.renew(*who),
            Step::Unsubscribe { who, at, fallback } => Some(self.unsubscribe(*who, at, *fallback)),
            Step::Apply(edition) => Some(self.apply(*edition)),
            Step::Cap { who, amount } => Some(self.cap(*who, *amount)),
            Step::Move { who, parent } => Some(self.move_under(*who, *parent)),
            Step::Give(given) => Some(self.grant(given)),
            Step::VoidGrant(which) => self.take_back(*which),
            Step::Pass(time) => {
                self.pass(*time);
                None
            }
            Step::Job(_) => None,
        };
        self.settle();
        call
    }

    /// Returns the values for the meters that a reservation holds, and sometimes for others.
    fn of_held(&self, n: usize, values: &[(usize, i64)], which: Index) -> Vec<(usize, i64)> {
        let is_held = |meter: usize| self.reservations[n].holds.iter().any(|hold| hold.meter == meter);
        values
            .iter()
            .copied()
            .filter(|(meter, _)| is_held(*meter) || which.index(999).is_multiple_of(11))
            .collect()
    }

    fn track(&mut self, who: usize, value: i64, model: Option<&'static str>, seconds_ago: i64) -> Call {
        let (id, path) = (format!("e{}", self.events.len()), self.path(who));
        let mut body = json!({"id": id, "event_name": "call", "subject": SUBJECTS[who], "value": value,
            "properties": properties(model)});
        let mut at = self.now - SignedDuration::from_secs(seconds_ago);
        if [(TOKENS, value), (CALLS, 1)]
            .iter()
            .any(|(meter, more)| self.owes_in_the_past(&path, (*meter, model), *more, at))
        {
            at = self.now;
        }
        if at != self.now {
            body["timestamp"] = json!(at.to_string());
        }
        self.contact(&path);
        self.events.push(Event {
            id: Some(id),
            body: body.clone(),
            path: path.clone(),
            model,
            at,
            amounts: [value, 1],
            is_voided: false,
            paid: Vec::new(),
        });
        let event = self.events.len() - 1;
        // Limit states are ordered by the keys of their meters.
        for (meter, quantity) in [(CALLS, 1), (TOKENS, value)] {
            if quantity > 0 {
                self.burn(event, meter, quantity);
            }
        }
        let limits = self.shown(&path, &[TOKENS, CALLS], model);
        Call::post("/v1/events", body, 200, json!({"accepted": 1, "duplicates": 0, "limits": limits}))
    }

    fn track_again(&mut self, which: Index, changed: bool) -> Option<Call> {
        // Events that are too old are rejected before they count as a first contact.
        let young = |event: &&Event| self.now.duration_since(event.at) < SignedDuration::from_hours(29 * 24);
        let tracked = self.events.iter().filter(|event| event.body.is_object()).filter(young);
        let tracked: Vec<&Event> = tracked.collect();
        let event = tracked.get(which.index(tracked.len().max(1)))?;
        let (mut body, who) = (event.body.clone(), event.path[0]);
        self.contact(&self.path(who));
        if changed {
            body["value"] = json!(1_000);
            return Some(Call::refused("/v1/events", body, 409, "id_reused"));
        }
        Some(Call::post("/v1/events", body, 200, json!({"accepted": 0, "duplicates": 1})))
    }

    fn void(&mut self, which: Index) -> Option<Call> {
        let known: Vec<usize> = (0..self.events.len()).filter(|n| self.events[*n].id.is_some()).collect();
        let n = *known.get(which.index(known.len().max(1)))?;
        let event = &mut self.events[n];
        let path = format!("/v1/events/{}/void", event.id.as_ref().unwrap());
        let call = Call::post(path, json!({}), 200, json!({"status": "voided"}));
        let was_voided = std::mem::replace(&mut event.is_voided, true);
        if !was_voided {
            self.refund(n);
        }
        Some(call.replay(Some(was_voided)))
    }

    fn ask(
        &mut self,
        who: usize,
        asks: &[Ask],
        model: Option<&'static str>,
        how: How,
        ttl: i64,
        commits: bool,
    ) -> Call {
        // A denial is not stored, so the next request may use the same id.
        let (id, path) = (format!("r{}", self.reservations.len()), self.path(who));
        // A cap usually leaves a fraction of a token, and the model has only whole tokens.
        let fractional = self.meets_caps(&path, asks, model);
        let asked = |ask: &Ask| Ask { up_to: ask.up_to && !(fractional && ask.meter == TOKENS), ..*ask };
        let mut asks: Vec<Ask> = asks.iter().map(asked).collect();
        if matches!(self.decide(&path, model, &asks, self.now), Err((FRACTION, _))) {
            for ask in &mut asks {
                ask.up_to = false;
            }
        }
        let asks = asks.as_slice();
        let meters: Vec<usize> = asks.iter().map(|ask| ask.meter).collect();
        let shown = |ask: &Ask, value: i64| json!({"meter": METERS[ask.meter], "value": value, "properties": properties(model)});
        let mut holds: Vec<Value> = asks.iter().map(|ask| shown(ask, ask.value)).collect();
        for (hold, _) in holds.iter_mut().zip(asks).filter(|(_, ask)| ask.up_to) {
            hold["grant"] = json!("up_to");
        }
        let mut body = json!({"subject": SUBJECTS[who], "holds": holds});
        if how != How::Check {
            body["ttl_seconds"] = json!(ttl);
            body["on_expiry"] = json!(if commits { "commit" } else { "release" });
        }
        match how {
            How::Hold => body["id"] = json!(id),
            How::DryRun => body["dry_run"] = json!(true),
            How::Check => {}
        }
        let to = if how == How::Check { "/v1/check" } else { "/v1/reservations" };
        let granted = match self.decide(&path, model, asks, self.now) {
            Ok(granted) => granted,
            Err((reason, denied_by)) => {
                if how == How::Hold {
                    self.contact(&path);
                }
                let limits = self.shown(&path, &meters, model);
                let answer =
                    json!({"allowed": false, "reason": reason, "denied_by": denied_by, "limits": limits});
                return Call::post(to, body, 200, answer);
            }
        };
        let holds: Vec<Value> = asks.iter().zip(&granted).map(|(ask, value)| shown(ask, *value)).collect();
        let mut answer = json!({"allowed": true, "holds": holds});
        if how != How::Hold {
            answer["limits"] = self.shown(&path, &meters, model);
            return Call::post(to, body, 200, answer);
        }
        self.contact(&path);
        let expires = self.now + SignedDuration::from_secs(ttl);
        let mut taken = Vec::new();
        let hold = |(ask, value): (&Ask, &i64)| Hold {
            meter: ask.meter,
            value: *value,
            committed: 0,
            paid: Vec::new(),
        };
        let mut holds: Vec<Hold> = asks.iter().zip(&granted).map(hold).collect();
        for place in order(asks).into_iter().filter(|place| granted[*place] > 0) {
            let meter = asks[place].meter;
            let limits = self.limits(&path, &[meter], model, self.now);
            holds[place].paid = self.pay(&limits, (meter, model), granted[place] * ONE, &mut taken);
        }
        for hold in &holds {
            self.keep(&hold.paid);
        }
        self.reservations.push(Reservation {
            body: body.clone(),
            path: path.clone(),
            model,
            created: self.now,
            expires,
            commits,
            holds,
            status: "held",
            is_late: false,
        });
        answer["id"] = json!(id);
        answer["status"] = json!("held");
        answer["expires_at"] = json!(expires.to_string());
        answer["limits"] = self.shown(&path, &meters, model);
        Call::post(to, body, 201, answer)
    }

    fn ask_again(&mut self, which: Index, changed: bool) -> Option<Call> {
        let n = self.pick(which)?;
        let reservation = &self.reservations[n];
        let mut body = reservation.body.clone();
        if changed {
            body["ttl_seconds"] = json!(61);
            return Some(Call::refused("/v1/reservations", body, 409, "id_reused"));
        }
        let answer = json!({"id": format!("r{n}"), "allowed": true, "status": reservation.status, "limits": self.shown_of(reservation)});
        Some(Call::post("/v1/reservations", body, 201, answer).replay(Some(true)))
    }

    fn commit(&mut self, n: usize, values: &[(usize, i64)], is_final: bool) -> Option<Call> {
        let path = format!("/v1/reservations/r{n}/commit");
        let mut body = json!({"values": amounts(values)});
        if !is_final {
            body["final"] = json!(false);
        }
        let reservation = &self.reservations[n];
        if values.iter().any(|(meter, _)| reservation.holds.iter().all(|hold| hold.meter != *meter)) {
            return Some(Call::refused(path, body, 422, "meter_not_held"));
        }
        let total = |hold: &Hold| match values.iter().find(|(meter, _)| *meter == hold.meter) {
            Some((_, value)) if is_final => *value,
            Some((_, value)) => hold.committed.max(*value),
            None if is_final => hold.committed.max(hold.value),
            None => hold.committed,
        };
        let totals: Vec<i64> = reservation.holds.iter().map(total).collect();
        let is_same = reservation.holds.iter().all(|hold| total(hold) == hold.committed);
        let is_below = reservation.holds.iter().any(|hold| total(hold) < hold.committed);
        let is_old = self.now.duration_since(reservation.created) > SignedDuration::from_hours(30 * 24);
        let was = reservation.status;
        match was {
            "released" => return Some(Call::refused(path, body, 409, "already_released")),
            "committed" if is_same => {
                return Some(Call::post(path, body, 200, self.committed(n)).replay(None));
            }
            "committed" => return Some(Call::refused(path, body, 409, "already_committed")),
            _ if is_old => return Some(Call::refused(path, body, 409, "reservation_too_old")),
            _ if is_below => return Some(Call::refused(path, body, 409, "below_committed")),
            _ => {}
        }
        let owes = |(hold, total): (&Hold, &i64)| {
            let of = (hold.meter, reservation.model);
            self.owes_in_the_past(&reservation.path, of, total - hold.committed, reservation.created)
        };
        if reservation.holds.iter().zip(&totals).any(owes) {
            return None;
        }
        let makes = self.record(n, &totals, is_final);
        let says_something = is_final || !makes.is_empty();
        self.reservations[n].is_late |= was == "expired" && says_something;
        if is_final {
            self.reservations[n].status = "committed";
        }
        let answer = self.committed(n);
        let call = Call::post(path, body, 200, answer).replay(says_something.then_some(false));
        Some(Call { makes, ..call })
    }

    fn committed(&self, n: usize) -> Value {
        let reservation = &self.reservations[n];
        let committed: Vec<(usize, i64)> =
            reservation.holds.iter().map(|hold| (hold.meter, hold.committed)).collect();
        json!({"id": format!("r{n}"), "status": reservation.status, "committed": amounts(&committed),
            "over_hold": reservation.is_over(), "late": reservation.is_late,
            "limits": self.shown_of(reservation)})
    }

    fn release(&mut self, n: usize) -> Call {
        let path = format!("/v1/reservations/r{n}/release");
        let was = self.reservations[n].status;
        match was {
            "committed" => return Call::refused(path, json!({}), 409, "already_committed"),
            "held" => {
                self.reservations[n].status = "released";
                self.let_go(n);
            }
            _ => {}
        }
        let reservation = &self.reservations[n];
        let answer = json!({"id": format!("r{n}"), "status": reservation.status, "limits": self.shown_of(reservation)});
        let is_replay = match was {
            "held" => Some(false),
            "released" => Some(true),
            _ => None,
        };
        Call::post(path, json!({}), 200, answer).replay(is_replay)
    }

    fn extend(&mut self, n: usize, ttl: Option<i64>, values: &[(usize, i64)]) -> Option<Call> {
        let path = format!("/v1/reservations/r{n}/extend");
        let mut body = json!({});
        if let Some(ttl) = ttl {
            body["ttl_seconds"] = json!(ttl);
        }
        if !values.is_empty() {
            body["holds"] = amounts(values);
        }
        let reservation = &self.reservations[n];
        if values.iter().any(|(meter, _)| reservation.holds.iter().all(|hold| hold.meter != *meter)) {
            return Some(Call::refused(path, body, 422, "meter_not_held"));
        }
        let code = match reservation.status {
            "committed" => "already_committed",
            "released" => "already_released",
            "expired" => "reservation_expired",
            _ => "",
        };
        if !code.is_empty() {
            return Some(Call::refused(path, body, 409, code));
        }
        let mut next = reservation.clone();
        for (meter, value) in values {
            let hold = next.holds.iter_mut().find(|hold| hold.meter == *meter).unwrap();
            if *value < hold.committed {
                return Some(Call::refused(path, body, 409, "below_committed"));
            }
            hold.value = *value;
        }
        // An extension without fields sets the default time to live.
        if let Some(seconds) = ttl.or(values.is_empty().then_some(60)) {
            next.expires = self.now + SignedDuration::from_secs(seconds);
        }
        let more = |(old, new): (&Hold, &Hold)| Ask {
            meter: old.meter,
            value: new.rest() - old.rest(),
            up_to: false,
        };
        let asks = reservation.holds.iter().zip(&next.holds).map(more);
        let asks: Vec<Ask> = asks.filter(|ask| ask.value > 0).collect();
        let meters: Vec<usize> = asks.iter().map(|ask| ask.meter).collect();
        let limits = self.limits(&next.path, &meters, next.model, next.created);
        if limits.iter().any(|limit| limit.period.1 <= self.now || next.created < limit.since) {
            // The limits of a closed period may have been different ones.
            return None;
        }
        if self.has_cap_of_the_past(&next.path, next.created) {
            return None;
        }
        if !asks.is_empty()
            && let Err((reason, _)) = self.decide(&next.path, next.model, &asks, next.created)
        {
            let answer = json!({"allowed": false, "reason": reason, "limits": self.shown_of(reservation)});
            return Some(Call::post(path, body, 200, answer));
        }
        // Quota that one hold gives back is not available yet to another hold that grows.
        let mut taken = Vec::new();
        let growths: Vec<Ask> = reservation.holds.iter().zip(&next.holds).map(more).collect();
        let mut grown: Vec<Vec<Paid>> = vec![Vec::new(); growths.len()];
        for place in order(&growths).into_iter().filter(|place| growths[*place].value > 0) {
            let Ask { meter, value, .. } = growths[place];
            let limits = self.limits(&next.path, &[meter], next.model, next.created);
            grown[place] = self.pay(&limits, (meter, next.model), value * ONE, &mut taken);
        }
        let before = std::mem::replace(&mut self.reservations[n], next);
        for (index, paid) in grown.into_iter().enumerate() {
            let less = before.holds[index].rest() - self.reservations[n].holds[index].rest();
            if less > 0 {
                self.shrink(n, index, less);
            }
            self.keep(&paid);
            add(&mut self.reservations[n].holds[index].paid, paid);
        }
        let reservation = &self.reservations[n];
        let answer = json!({"id": format!("r{n}"), "allowed": true, "status": "held",
            "expires_at": reservation.expires.to_string(), "holds": reservation.holds_shown(), "limits": self.shown_of(reservation)});
        Some(Call::post(path, body, 200, answer))
    }

    fn subscribe(&mut self, who: usize, statement: &Statement) -> Call {
        let Statement { plan, status, .. } = *statement;
        let begun = Subscription {
            plan,
            status,
            anchor: self.now,
            reset_at: Timestamp::MIN,
            ends_at: None,
            fallback: None,
            tokens: None,
        };
        let mut own = self.subscriptions[who].take().unwrap_or(begun);
        own.move_to(plan, self.now);
        let mut body = json!({"plan": PLANS[plan].key, "status": status});
        if let Some(ago) = statement.start {
            let start = self.now - SignedDuration::from_secs(ago);
            body["cycle_start"] = json!(start.to_string());
            if month_of(start, own.anchor).0 != start {
                own.anchor = start;
            }
        }
        let ends_at = statement.ends.map(|ends| self.now + SignedDuration::from_secs(ends));
        if let Some(ends_at) = ends_at {
            body["ends_at"] = json!(ends_at.to_string());
        }
        let tokens = statement.tokens.filter(|_| PLANS[plan].limits[0].key == "tokens");
        if let Some(tokens) = tokens {
            body["overrides"] = json!({"tokens": tokens});
        }
        self.subscriptions[who] = Some(Subscription { status, ends_at, fallback: None, tokens, ..own });
        Call::new(Method::PUT, subscription_of(who), body, 200, self.subscription(who))
    }

    /// Begins the next period at the biller's request.
    fn renew(&mut self, who: usize) -> Option<Call> {
        let own =
            self.subscriptions[who].as_ref().filter(|own| own.status == "active" && own.ends_at.is_none())?;
        let (_, start) = month_of(self.now, own.anchor);
        let (_, end) = month_of(start, own.anchor);
        let plan = own.plan;
        self.now = start;
        self.settle();
        let body =
            json!({"plan": PLANS[plan].key, "cycle_start": start.to_string(), "period_end": end.to_string()});
        self.subscriptions[who].as_mut()?.tokens = None;
        Some(Call::new(Method::PUT, subscription_of(who), body, 200, self.subscription(who)))
    }

    fn unsubscribe(&mut self, who: usize, at: &str, fallback: Option<usize>) -> Call {
        let fallback_plan = fallback.map(|plan| format!("&fallback_plan={}", PLANS[plan].key));
        let path = format!("{}?at={at}{}", subscription_of(who), fallback_plan.unwrap_or_default());
        // A default plan without a first contact can be ended, too.
        if self.parents[who].is_none() {
            self.contact(&[who]);
        }
        let now = self.now;
        let Some(own) = &mut self.subscriptions[who] else {
            let answer = json!({"code": "subscription_not_found"});
            return Call::new(Method::DELETE, path, Value::Null, 404, answer);
        };
        if own.status != "canceled" {
            own.ends_at = Some(if at == "now" { now } else { month_of(now, own.anchor).1 });
            own.fallback = fallback;
        }
        self.settle();
        Call::new(Method::DELETE, path, Value::Null, 200, self.subscription(who))
    }

    fn subscription(&self, who: usize) -> Value {
        let own = self.subscriptions[who].as_ref().unwrap();
        let period = month_of(self.now, own.anchor);
        json!({"subject": SUBJECTS[who], "plan": PLANS[own.plan].key, "status": own.status, "cycle_anchor": own.anchor.to_string(),
            "period": {"start": period.0.to_string(), "end": period.1.to_string()}})
    }

    fn apply(&mut self, edition: usize) -> Call {
        self.edition = edition;
        let catalog = catalog(edition, self.has_default);
        Call::new(Method::PUT, "/v1/catalog".to_owned(), catalog, 200, json!({}))
    }

    fn cap(&mut self, who: usize, amount: Option<i64>) -> Call {
        self.caps[who] = amount;
        let path = format!("/v1/subjects/{}/spend-caps", SUBJECTS[who]);
        Call::new(Method::PUT, path, own_cap(amount), 200, self.caps_shown(who))
    }

    fn move_under(&mut self, who: usize, parent: Option<usize>) -> Call {
        self.parents[who] = parent;
        let body = json!({"parent": parent.map(|parent| SUBJECTS[parent])});
        let answer = json!({"path": names(&self.path(who))});
        Call::new(Method::PUT, format!("/v1/subjects/{}", SUBJECTS[who]), body, 200, answer)
    }

    fn grant(&mut self, given: &Given) -> Call {
        let (path, body, status, answer) = self.give(given);
        let made = (status == 201).then(|| self.grants.len() - 1);
        Call { gives: made, ..Call::post(path, body, status, answer) }
    }

    fn take_back(&mut self, which: Index) -> Option<Call> {
        let known: Vec<usize> = (0..self.grants.len()).filter(|n| self.grants[*n].id.is_some()).collect();
        let n = *known.get(which.index(known.len().max(1)))?;
        let (path, answer, was_voided) = self.void_grant(n);
        Some(Call::post(path, json!({}), 200, answer).replay(Some(was_voided)))
    }

    fn pass(&mut self, time: Time) {
        let open = self.reservations.iter().filter(|held| held.status == "held");
        self.now = match time {
            Time::Seconds(seconds) => self.now + SignedDuration::from_secs(seconds),
            Time::Expiry { before } => {
                let next = open.map(|held| held.expires).min().unwrap_or(self.now);
                (next - SignedDuration::from_secs(before.into())).max(self.now)
            }
            Time::Turn { before } => {
                let next = self.next_turn().map_or(self.now, |(at, _)| at);
                next - SignedDuration::from_secs(before.into())
            }
            Time::Midnight => {
                grid(self.now, Timestamp::UNIX_EPOCH, 86_400).1 - SignedDuration::from_secs(120)
            }
        }
        .max(self.now);
    }

    /// Returns the reads after a step: the limits of all paths, a report, the total usage, and a
    /// reservation.
    pub(super) fn looks(&mut self, turn: usize) -> Vec<Call> {
        let nothing = |meter: usize| Ask { meter, value: 0, up_to: false };
        let nothing = [nothing(TOKENS), nothing(CALLS)];
        let leaves = (2..SUBJECTS.len()).map(|who| (who, MODELS[turn % MODELS.len()]));
        let mut looks: Vec<Call> =
            leaves.map(|(who, model)| self.ask(who, &nothing, model, How::Check, 0, false)).collect();
        let mut look = |path: String, answer: Value| {
            looks.push(Call::new(Method::GET, path, Value::Null, 200, answer));
        };
        let who = turn % SUBJECTS.len();
        look(format!("/v1/subjects/{}/usage", SUBJECTS[who]), self.report(who));
        let payer = (turn / 2) % SUBJECTS.len();
        look(format!("/v1/subjects/{}/spend-caps", SUBJECTS[payer]), self.caps_shown(payer));
        let meter = turn % METERS.len();
        let usage = json!({"data": [{"value": self.sum(meter, |_| true)}]});
        let span = "from=2026-01-01T00:00:00Z&to=2036-01-01T00:00:00Z";
        look(format!("/v1/usage?meter={}&{span}", METERS[meter]), usage);
        if let Some(n) = turn.checked_rem(self.reservations.len()) {
            look(format!("/v1/reservations/r{n}"), self.reservations[n].to_json(n));
        }
        looks
    }

    /// Returns the reads at the end: every reservation, and the number of reservations per status.
    pub(super) fn last_looks(&self) -> Vec<Call> {
        let get = |path: String, answer: Value| Call::new(Method::GET, path, Value::Null, 200, answer);
        let list = |status: &str| {
            let of_it = self.reservations.iter().filter(|reservation| reservation.status == status);
            let data = vec![json!({"status": status}); of_it.count()];
            get(format!("/v1/reservations?status={status}&limit=1000"), json!({"data": data}))
        };
        let each = self.reservations.iter().enumerate();
        let each = each.map(|(n, reservation)| get(format!("/v1/reservations/r{n}"), reservation.to_json(n)));
        each.chain(["held", "committed", "released", "expired"].map(list)).collect()
    }

    /// Returns the expected report: the limits of the nearest subscription, and the usage of the subject's
    /// tree in its period.
    fn report(&self, who: usize) -> Value {
        let nearest = self.on_path(&self.path(who)).into_iter().next();
        let limits = nearest.iter().flat_map(|(subject, own)| {
            PLANS[own.plan]
                .limits
                .iter()
                .filter_map(|limit| self.subject_path(*subject, own, limit, self.now))
        });
        let limits: Vec<Value> = limits.map(|limit| limit.to_report()).collect();
        let anchor = nearest.as_ref().map_or("2026-01-01T00:00:00Z".parse().unwrap(), |(_, own)| own.anchor);
        let (start, end) = month_of(self.now, anchor);
        let used = |meter: usize| {
            self.sum(meter, |event| event.path.contains(&who) && start <= event.at && event.at < end)
        };
        json!({"subject": SUBJECTS[who],
            "plan": nearest.as_ref().map(|(_, own)| json!({"key": PLANS[own.plan].key})),
            "status": nearest.as_ref().map(|(_, own)| own.status), "limits": limits,
            "period": {"start": start.to_string(), "end": end.to_string()},
            "meters": [{"meter": "calls", "value": used(CALLS)}, {"meter": "tokens", "value": used(TOKENS)}]})
    }
}

impl Reservation {
    fn is_over(&self) -> bool {
        self.holds.iter().any(|hold| hold.committed > hold.value)
    }

    fn holds_shown(&self) -> Vec<Value> {
        let properties = properties(self.model);
        let shown =
            |hold: &Hold| json!({"meter": METERS[hold.meter], "value": hold.value, "properties": properties});
        self.holds.iter().map(shown).collect()
    }

    fn to_json(&self, n: usize) -> Value {
        let mut holds = self.holds_shown();
        for (shown, hold) in holds.iter_mut().zip(&self.holds) {
            shown["committed"] = json!(hold.committed);
        }
        let path = names(&self.path);
        json!({"id": format!("r{n}"), "subject": path[0], "status": self.status, "created_at": self.created.to_string(),
            "expires_at": self.expires.to_string(), "on_expiry": if self.commits { "commit" } else { "release" },
            "holds": holds, "over_hold": self.is_over(), "late": self.is_late, "path": path})
    }
}

fn names(path: &[usize]) -> Vec<&str> {
    path.iter().map(|subject| SUBJECTS[*subject]).collect()
}

fn amounts(values: &[(usize, i64)]) -> Value {
    values.iter().map(|(meter, value)| json!({"meter": METERS[*meter], "value": value})).collect()
}

fn properties(model: Option<&str>) -> Value {
    model.map_or(json!({}), |model| json!({"model": model}))
}

fn subscription_of(who: usize) -> String {
    format!("/v1/subjects/{}/subscription", SUBJECTS[who])
}
