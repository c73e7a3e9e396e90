//! The handle of a test on the fake, which listens until the handle is dropped.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::http::Method;
use axum::serve::ListenerExt;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::faults::{Endpoint, Fault, Plan};
use super::http::{Call, handle};
use super::ledger::MeterEvent;
use super::state::State;
use super::{Options, delivery};

#[derive(Debug)]
pub(super) struct Shared(Mutex<State>);

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
pub(crate) struct StripeFake {
    pub(super) shared: Arc<Shared>,
    address: SocketAddr,
    tasks: [JoinHandle<()>; 2],
}

impl StripeFake {
    /// Starts a fake on a free port.
    pub(crate) async fn start(options: Options) -> Self {
        Self::bind(SocketAddr::from(([127, 0, 0, 1], 0)), options).await.expect("a port is free")
    }

    pub(crate) async fn bind(address: SocketAddr, options: Options) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        // a dropped connection is reset
        let listener = listener.tap_io(|stream| {
            stream.set_zero_linger().ok();
            stream.set_nodelay(true).ok();
        });
        let webhook_url = options.webhook_url.clone();
        let shared = Arc::new(Shared(Mutex::new(State::new(options, format!("http://{address}")))));
        let router = Router::new().fallback(handle).with_state(Arc::clone(&shared));
        let serving = tokio::spawn(async move {
            axum::serve(listener, router).await.ok();
        });
        let telling = tokio::spawn(delivery::run(Arc::clone(&shared), webhook_url));
        Ok(Self { shared, address, tasks: [serving, telling] })
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    // calls without the network, which skip faults, counts and violations

    pub(crate) fn get(&self, path: &str) -> Value {
        self.call(Method::GET, path, &[])
    }

    pub(crate) fn post(&self, path: &str, fields: &[(&str, &str)]) -> Value {
        self.call(Method::POST, path, fields)
    }

    pub(crate) fn delete(&self, path: &str) -> Value {
        self.call(Method::DELETE, path, &[])
    }

    /// Executes a call, and panics if the call is refused.
    fn call(&self, method: Method, path: &str, fields: &[(&str, &str)]) -> Value {
        let parameters = form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish();
        let answer = self.shared.lock().carry_out(&Call::direct(method, path, parameters));
        answer.unwrap_or_else(|why| panic!("{path}: {}", why.body()))
    }

    // the clock

    pub(crate) fn now(&self) -> i64 {
        self.shared.lock().now()
    }

    /// Sets the clock. Everything due until then happens at its own time.
    pub(crate) fn set_clock(&self, to: i64) {
        let mut state = self.shared.lock();
        state.clock.set(to);
        state.settle();
    }

    pub(crate) fn advance(&self, by: Duration) {
        let mut state = self.shared.lock();
        state.clock.advance(by);
        state.settle();
    }

    // faults

    pub(crate) fn set_faults(&self, plan: Plan) {
        self.shared.lock().faults = plan;
    }

    /// Makes the next calls fail, before random faults apply.
    pub(crate) fn fail_next(&self, endpoint: Endpoint, fault: Fault, count: u32) {
        self.shared.lock().faults.push_next(endpoint, fault, count);
    }

    // meters and what was billed

    /// Creates a meter with the usual keys and the aggregation `sum`, and returns its id.
    pub(crate) fn meter(&self, event_name: &str) -> String {
        self.meter_with(event_name, "sum", None)
    }

    pub(crate) fn meter_with(&self, event_name: &str, formula: &str, window: Option<&str>) -> String {
        let mut fields = vec![
            ("display_name", event_name),
            ("event_name", event_name),
            ("default_aggregation[formula]", formula),
        ];
        fields.extend(window.map(|window| ("event_time_window", window)));
        id(&self.post("/v1/billing/meters", &fields))
    }

    /// Returns the aggregate of a customer's events with timestamps in `[from, to)`, or 0 without events.
    pub(crate) fn total(&self, customer: &str, event_name: &str, from: i64, to: i64) -> i128 {
        let state = self.shared.lock();
        let meter = state.meters.by_event_name(event_name);
        let total = meter.and_then(|meter| state.ledger.aggregate(meter, customer, (from, to), i64::MAX));
        total.unwrap_or(0)
    }

    /// Returns every recorded event in the order of receipt, including canceled ones.
    pub(crate) fn events(&self) -> Vec<MeterEvent> {
        self.shared.lock().ledger.events.clone()
    }

    // the behaviour of the callers

    /// Returns the number of received calls.
    pub(crate) fn calls(&self, endpoint: Endpoint) -> u64 {
        self.shared.lock().traffic.arrived(endpoint)
    }

    /// Returns the number of calls answered with this status; `None` counts calls without an answer.
    pub(crate) fn answers(&self, endpoint: Endpoint, status: Option<u16>) -> u64 {
        self.shared.lock().traffic.answers(endpoint, status)
    }

    /// Returns the highest number of concurrent calls for one customer and meter.
    pub(crate) fn most_in_flight(&self, customer: &str, event_name: &str) -> usize {
        let lane = (customer.to_owned(), event_name.to_owned());
        self.shared.lock().traffic.most_in_flight.get(&lane).copied().unwrap_or_default()
    }

    /// Returns the first requests as received: method, path and parameters.
    pub(crate) fn requests(&self) -> Vec<(String, String, String)> {
        self.shared.lock().traffic.requests.clone()
    }

    /// Returns the callers' violations of Stripe's rules, which Metergate must never commit.
    pub(crate) fn violations(&self) -> Vec<String> {
        self.shared.lock().traffic.violations.clone()
    }
}

/// Returns the id of an object.
pub(super) fn id(object: &Value) -> String {
    object["id"].as_str().unwrap_or_default().to_owned()
}

impl Drop for StripeFake {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}
