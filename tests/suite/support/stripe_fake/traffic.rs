//! Observations of the calls: their number, concurrency and rate, and violations of Stripe's rules.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Instant;

use super::Overlap;
use super::errors::ApiError;
use super::faults::Endpoint;
use super::forms::Form;
use super::http::{Call, lock_timeout, rate_limited};
use super::server::Shared;
use super::state::State;

/// A customer and the event name of a meter.
type Lane = (String, String);

/// Limit of requests that are kept.
const REQUESTS_KEPT_MAX: usize = 1_000;

#[derive(Debug)]
pub(super) struct Traffic {
    arrived: BTreeMap<Endpoint, u64>,
    answers: BTreeMap<(Endpoint, Option<u16>), u64>,
    in_flight: HashMap<Lane, usize>,
    pub(super) most_in_flight: HashMap<Lane, usize>,
    pub(super) violations: Vec<String>,
    /// The first requests as received: method, path and parameters.
    pub(super) requests: Vec<(String, String, String)>,
    bucket: Option<Bucket>,
}

/// A token bucket of one second's calls, by the system's time.
#[derive(Debug)]
struct Bucket {
    per_second: f64,
    tokens: f64,
    at: Instant,
}

impl Traffic {
    pub(super) fn new(calls_per_second: Option<u32>) -> Self {
        let bucket =
            |rate| Bucket { per_second: f64::from(rate), tokens: f64::from(rate), at: Instant::now() };
        Self {
            arrived: BTreeMap::new(),
            answers: BTreeMap::new(),
            in_flight: HashMap::new(),
            most_in_flight: HashMap::new(),
            violations: Vec::new(),
            requests: Vec::new(),
            bucket: calls_per_second.map(bucket),
        }
    }

    /// Counts an answer; `None` stands for a call without one.
    pub(super) fn count(&mut self, endpoint: Endpoint, status: Option<u16>) {
        *self.answers.entry((endpoint, status)).or_default() += 1;
    }

    pub(super) fn arrived(&self, endpoint: Endpoint) -> u64 {
        self.arrived.iter().filter(|(of, _)| endpoint.includes(**of)).map(|(_, count)| count).sum()
    }

    pub(super) fn answers(&self, endpoint: Endpoint, status: Option<u16>) -> u64 {
        let wanted = self.answers.iter().filter(|((of, with), _)| endpoint.includes(*of) && *with == status);
        wanted.map(|(_, count)| count).sum()
    }

    pub(super) fn spend(&mut self, endpoint: Endpoint) -> Result<(), ApiError> {
        let Some(bucket) = self.bucket.as_mut().filter(|_| endpoint == Endpoint::MeterEvents) else {
            return Ok(());
        };
        let gained = bucket.at.elapsed().as_secs_f64() * bucket.per_second;
        bucket.tokens = (bucket.tokens + gained).min(bucket.per_second);
        bucket.at = Instant::now();
        if bucket.tokens < 1.0 {
            return Err(rate_limited("endpoint-rate"));
        }
        bucket.tokens -= 1.0;
        Ok(())
    }

    /// Counts a call and checks the rules that hold for every call.
    pub(super) fn inspect(&mut self, call: &Call) {
        *self.arrived.entry(call.endpoint()).or_default() += 1;
        if self.requests.len() < REQUESTS_KEPT_MAX {
            self.requests.push((call.method.to_string(), call.path.clone(), call.parameters.clone()));
        }
        let mut lacks = |what: &str| {
            self.violations.push(format!("{} {} without {what}", call.method, call.path));
        };
        if call.header("stripe-version").is_none() {
            lacks("Stripe-Version");
        }
        if call.method == axum::http::Method::POST && call.idempotency_key().is_none() {
            lacks("Idempotency-Key");
        }
    }
}

/// The permission for one call about a customer and a meter; it is released when the call ends.
pub(super) struct Slot {
    shared: Arc<Shared>,
    lane: Option<Lane>,
}

impl Slot {
    pub(super) fn take(shared: &Arc<Shared>, call: &Call) -> Result<Self, ApiError> {
        let mut state = shared.lock();
        let lane = lane(&state, call);
        if let Some(lane) = &lane {
            let overlap = state.options.overlap;
            let traffic = &mut state.traffic;
            let in_flight = traffic.in_flight.entry(lane.clone()).or_default();
            *in_flight += 1;
            let count = *in_flight;
            let most = traffic.most_in_flight.entry(lane.clone()).or_default();
            *most = count.max(*most);
            if count > 1 {
                *traffic.in_flight.entry(lane.clone()).or_default() -= 1;
                traffic.violations.push(format!("overlapping calls for {} and {}", lane.0, lane.1));
                return Err(match overlap {
                    Overlap::LockTimeout => lock_timeout(),
                    Overlap::Conflict => {
                        ApiError::new(409, "Too many concurrent requests for this customer and meter.")
                            .with_code("too_many_concurrent_requests")
                    }
                });
            }
        }
        Ok(Self { shared: Arc::clone(shared), lane })
    }
}

fn lane(state: &State, call: &Call) -> Option<Lane> {
    if call.endpoint() != Endpoint::MeterEvents {
        return None;
    }
    let mut form = Form::read(&call.parameters).ok()?;
    let event_name = form.text("event_name", usize::MAX).ok()??;
    let customer_key = &state.meters.by_event_name(&event_name)?.customer_key;
    let customer = form.texts("payload").ok()??.remove(customer_key)?;
    Some((customer, event_name))
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(lane) = self.lane.take() {
            let mut state = self.shared.lock();
            if let Some(in_flight) = state.traffic.in_flight.get_mut(&lane) {
                *in_flight = in_flight.saturating_sub(1);
            }
        }
    }
}
