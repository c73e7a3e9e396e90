//! Everything the fake knows, behind one lock.

use super::Options;
use super::clock::Clock;
use super::faults::{Fault, Plan};
use super::http::{Answer, Call};
use super::idempotency::Keys;
use super::ledger::Ledger;
use super::meters::Meters;
use super::routes;
use super::traffic::Traffic;

#[derive(Debug)]
pub(super) struct State {
    pub(super) options: Options,
    pub(super) clock: Clock,
    pub(super) faults: Plan,
    pub(super) traffic: Traffic,
    pub(super) keys: Keys,
    pub(super) meters: Meters,
    pub(super) ledger: Ledger,
    last_id: u64,
}

impl State {
    pub(super) fn new(options: Options) -> Self {
        Self {
            clock: options.clock,
            faults: Plan::seeded(0),
            traffic: Traffic::new(options.calls_per_second),
            keys: Keys::default(),
            meters: Meters::default(),
            ledger: Ledger::default(),
            last_id: 0,
            options,
        }
    }

    pub(super) fn now(&self) -> i64 {
        self.clock.now()
    }

    /// Ids rise, so that sorting by them is sorting by age.
    pub(super) fn next_id(&mut self, prefix: &str) -> String {
        self.last_id += 1;
        format!("{prefix}_fake{:08}", self.last_id)
    }

    /// Notes a call, and draws what goes wrong with it.
    pub(super) fn arrive(&mut self, call: &Call) -> Option<Fault> {
        self.traffic.inspect(call);
        self.faults.draw(call.endpoint())
    }

    /// Carries a call out, and keeps what came of it under its key.
    pub(super) fn process(&mut self, call: &Call, fault: Option<Fault>) -> Answer {
        let (answer, is_kept) = match fault {
            Some(Fault::ErrorBefore) => (Answer::internal(), false),
            Some(Fault::ErrorBeforeKept) => (Answer::internal(), true),
            _ => match routes::answer(self, call) {
                Ok(_) if fault == Some(Fault::ErrorAfter) => (Answer::internal(), true),
                Ok(body) => (Answer::ok(&body), true),
                Err(why) => {
                    let is_kept = why.is_kept;
                    (why.into(), is_kept)
                }
            },
        };
        if let Some(key) = call.idempotency_key().filter(|_| is_kept) {
            self.keys.keep(key, &answer);
        }
        answer
    }
}
