//! The whole state of the fake, behind one lock.

use std::collections::{BTreeMap, HashMap};

use serde_json::Value;

use super::checkout::Session;
use super::clock::Clock;
use super::control::is_control;
use super::customers::Payments;
use super::errors::ApiError;
use super::faults::{Fault, Plan};
use super::http::{Answer, Call};
use super::idempotency::Keys;
use super::invoices::Invoice;
use super::ledger::Ledger;
use super::meters::Meters;
use super::outbox::Outbox;
use super::subscriptions::Subscription;
use super::traffic::Traffic;
use super::version::Version;
use super::{Options, routes};

#[derive(Debug)]
pub(super) struct State {
    pub(super) options: Options,
    pub(super) base_url: String,
    pub(super) clock: Clock,
    /// The time of the past event that is being executed.
    pub(super) moment: Option<i64>,
    pub(super) settled_at: Option<i64>,
    pub(super) faults: Plan,
    pub(super) traffic: Traffic,
    pub(super) keys: Keys,
    pub(super) meters: Meters,
    pub(super) ledger: Ledger,
    pub(super) customers: BTreeMap<String, Value>,
    pub(super) payments: HashMap<String, Payments>,
    pub(super) products: BTreeMap<String, Value>,
    pub(super) prices: BTreeMap<String, Value>,
    pub(super) subscriptions: BTreeMap<String, Subscription>,
    pub(super) invoices: BTreeMap<String, Invoice>,
    pub(super) sessions: BTreeMap<String, Session>,
    pub(super) outbox: Outbox,
    pub(super) is_silent: bool,
    /// The version to which the webhook endpoint is pinned.
    pub(super) endpoint_version: Version,
    /// Thin events with their details.
    pub(super) reports: BTreeMap<String, Value>,
    last_id: u64,
}

impl State {
    pub(super) fn new(options: Options, base_url: String) -> Self {
        let endpoint_version = Version::read(&options.webhook_version).expect("a valid API version");
        Self {
            base_url,
            clock: options.clock,
            moment: None,
            settled_at: None,
            faults: Plan::seeded(0),
            traffic: Traffic::new(options.calls_per_second),
            keys: Keys::default(),
            meters: Meters::default(),
            ledger: Ledger::default(),
            customers: BTreeMap::new(),
            payments: HashMap::new(),
            products: BTreeMap::new(),
            prices: BTreeMap::new(),
            subscriptions: BTreeMap::new(),
            invoices: BTreeMap::new(),
            sessions: BTreeMap::new(),
            outbox: Outbox::default(),
            is_silent: false,
            endpoint_version,
            reports: BTreeMap::new(),
            last_id: 0,
            options,
        }
    }

    pub(super) fn now(&self) -> i64 {
        self.moment.unwrap_or_else(|| self.clock.now())
    }

    pub(super) fn can_pay(&self, customer: &str) -> bool {
        self.payments.get(customer).is_none_or(|payments| *payments == Payments::Succeed)
    }

    /// Returns a new id. Ids rise, so that sorting by them is sorting by age.
    pub(super) fn next_id(&mut self, prefix: &str) -> String {
        self.last_id += 1;
        format!("{prefix}_fake{:08}", self.last_id)
    }

    /// Counts a call and chooses its fault.
    pub(super) fn arrive(&mut self, call: &Call) -> Option<Fault> {
        if is_control(&call.path) {
            return None;
        }
        self.traffic.inspect(call);
        self.faults.draw(call.endpoint())
    }

    /// Executes a call, after everything that was due before it.
    pub(super) fn carry_out(&mut self, call: &Call) -> Result<Value, ApiError> {
        self.settle();
        let answer = routes::answer(self, call);
        self.settle();
        answer
    }

    /// Executes a call with its fault, and keeps the answer under its idempotency key.
    pub(super) fn process(&mut self, call: &Call, fault: Option<Fault>) -> Answer {
        let (answer, is_kept) = match fault {
            Some(Fault::ErrorBefore) => (Answer::internal(), false),
            Some(Fault::ErrorBeforeKept) => (Answer::internal(), true),
            _ => match self.carry_out(call) {
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
