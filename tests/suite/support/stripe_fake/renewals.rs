//! The passage of time: trials and subscriptions end, periods are renewed, invoices are finalized. Each event
//! happens at its own time and in order, even if the clock jumps.

use super::clock::{DAY, HOUR};
use super::customers::Payments;
use super::state::State;
use super::subscriptions::{Item, Subscription, change, snapshot};
use super::{invoices, subscriptions};

const INCOMPLETE_MAX: i64 = 23 * HOUR;
const TRIAL_NOTICE: i64 = 3 * DAY;

/// Due events, in the order in which simultaneous ones happen.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    Finalize(String),
    Cancel(String),
    Expire(String),
    TellTrialEnd(String),
    EndTrial(String),
    Renew(String),
}

impl State {
    /// Executes every event that is due by now.
    pub(super) fn settle(&mut self) {
        let now = self.clock.now();
        if self.settled_at == Some(now) {
            return;
        }
        while let Some((at, due)) = next(self).filter(|(at, _)| *at <= now) {
            self.moment = Some(at);
            happen(self, due);
        }
        self.moment = None;
        self.settled_at = Some(now);
    }
}

fn next(state: &State) -> Option<(i64, Due)> {
    let invoices = state
        .invoices
        .iter()
        .filter_map(|(id, invoice)| invoice.finalize_at.map(|at| (at, Due::Finalize(id.clone()))));
    state.subscriptions.values().filter_map(due).chain(invoices).min()
}

fn due(subscription: &Subscription) -> Option<(i64, Due)> {
    let id = || subscription.id.clone();
    if subscription.has_ended() {
        return None;
    }
    let mut all = Vec::new();
    if let Some(at) = subscription.cancel_at {
        all.push((at, Due::Cancel(id())));
    }
    match (subscription.status, subscription.trial) {
        ("incomplete", _) => all.push((subscription.created + INCOMPLETE_MAX, Due::Expire(id()))),
        ("paused", _) => {}
        ("trialing", Some((start, end))) => {
            if !subscription.is_trial_end_told {
                all.push(((end - TRIAL_NOTICE).max(start), Due::TellTrialEnd(id())));
            }
            all.push((end, Due::EndTrial(id())));
        }
        _ => all.extend(subscription.period_end().map(|at| (at, Due::Renew(id())))),
    }
    all.into_iter().min()
}

fn happen(state: &mut State, due: Due) {
    match due {
        Due::Finalize(id) => invoices::finalize(state, &id),
        Due::Cancel(id) => {
            // usage of the last period still has to be billed
            let is_metered =
                subscriptions::find(state, &id).is_ok_and(|it| it.items.iter().any(Item::is_metered));
            subscriptions::end(state, &id);
            if is_metered {
                invoices::open(state, &id, "subscription_cycle", false);
            }
        }
        Due::Expire(id) => change(state, &id, |subscription| subscription.status = "incomplete_expired"),
        Due::TellTrialEnd(id) => {
            if let Some(subscription) = state.subscriptions.get_mut(&id) {
                subscription.is_trial_end_told = true;
            }
            let shown = snapshot(state, &id);
            state.emit("customer.subscription.trial_will_end", &shown, None);
        }
        Due::EndTrial(id) => end_trial(state, &id),
        Due::Renew(id) => {
            let now = state.now();
            change(state, &id, |subscription| subscription.restart_periods(now));
            invoices::open(state, &id, "subscription_cycle", false);
        }
    }
}

fn end_trial(state: &mut State, id: &str) {
    let Ok(subscription) = subscriptions::find(state, id) else { return };
    let is_missing = state.payments.get(&subscription.customer) == Some(&Payments::Missing);
    let without_payment = subscription.without_payment.clone();
    match without_payment.as_str() {
        "cancel" if is_missing => return subscriptions::end(state, id),
        "pause" if is_missing => return subscriptions::pause(state, id),
        _ => {}
    }
    let now = state.now();
    change(state, id, |subscription| {
        subscription.status = "active";
        subscription.anchor = now;
        subscription.restart_periods(now);
    });
    invoices::open(state, id, "subscription_cycle", false);
}
