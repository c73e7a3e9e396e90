//! `/v1/gate`: the check in the form that gateways need, with the answer in the status and in headers.
//!
//! `RateLimit` and `RateLimit-Policy` follow draft-ietf-httpapi-ratelimit-headers-11. A policy has a name,
//! the quota `q` and the window `w` in seconds. A limit has the remaining quota `r` and the seconds until the
//! reset `t`. Limits without a quota are left out.

use std::collections::BTreeSet;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

use super::extract::{Caller, with_replay_header};
use super::problem::Problem;
use super::query;
use super::query::Parameters;
use super::state::Api;
use metergate_domain::base::limits::METER_DIMENSIONS_MAX;
use metergate_domain::base::timestamp::MICROS_PER_SECOND;
use metergate_domain::base::{Timestamp, Total, Violation};
use metergate_domain::gate::{CallOutcome, Denial, GateAnswer, LimitState, Reason, Reserve};

const REASON: HeaderName = HeaderName::from_static("x-metergate-reason");
const RESERVATION: HeaderName = HeaderName::from_static("x-metergate-reservation-id");
const EXPIRES_AT: HeaderName = HeaderName::from_static("x-metergate-expires-at");
const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// The largest integer of a structured field (RFC 9651, section 3.3.1).
const FIELD_INTEGER_MAX: i64 = 999_999_999_999_999;

/// The `Retry-After` for limits that do not reset.
const NEVER_SECONDS: i64 = 86_400;

struct GatewayRequest {
    request: Reserve,
    reserve: bool,
    allow_status: StatusCode,
    deny_status: Option<StatusCode>,
}

/// Answers a check with its parameters in the query.
pub(super) async fn gate(State(api): State<Api>, caller: Caller, uri: Uri) -> Result<Response, Problem> {
    answer(&api, &caller, read_question(Parameters::of(&uri))?).await
}

/// Answers a check that comes in headers. Path and query belong to the gateway's client and are ignored.
pub(super) async fn gate_by_headers(
    State(api): State<Api>,
    caller: Caller,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let parameter = |name: &'static str| {
        let header = format!("x-metergate-{}", name.replace('_', "-"));
        Some((name.to_owned(), headers.get(header)?.to_str().ok()?.to_owned()))
    };
    let given = PARAMETERS.iter().filter_map(|name| parameter(name)).collect();
    answer(&api, &caller, read_question(Parameters::given(given))?).await
}

async fn answer(api: &Api, caller: &Caller, question: GatewayRequest) -> Result<Response, Problem> {
    let GatewayRequest { request, reserve, allow_status, deny_status } = question;
    let answer = if reserve {
        api.engine.reserve(caller.environment, request).await?
    } else {
        api.engine.check(caller.environment, &request, false).await?
    };
    respond(&answer, allow_status, deny_status)
}

const PARAMETERS: [&str; 9] =
    ["subject", "meter", "value", "id", "on_expiry", "ttl_seconds", "reserve", "allow_status", "deny_status"];

const ALLOW_STATUSES: [(&str, StatusCode); 2] = [("200", StatusCode::OK), ("204", StatusCode::NO_CONTENT)];
const DENY_STATUSES: [(&str, StatusCode); 3] = [
    ("402", StatusCode::PAYMENT_REQUIRED),
    ("403", StatusCode::FORBIDDEN),
    ("429", StatusCode::TOO_MANY_REQUESTS),
];

fn read_question(mut parameters: Parameters) -> Result<GatewayRequest, Problem> {
    let mut body = Map::new();
    for name in ["subject", "meter", "value", "id", "on_expiry"] {
        if let Some(value) = parameters.optional(name, query::text) {
            body.insert(name.to_owned(), Value::String(value));
        }
    }
    if let Some(seconds) = parameters.optional("ttl_seconds", query::text) {
        let number = seconds.parse::<serde_json::Number>();
        body.insert("ttl_seconds".to_owned(), number.map_or(Value::String(seconds), Value::Number));
    }
    let properties = parameters.bracketed("properties");
    if properties.len() > METER_DIMENSIONS_MAX || properties.values().any(|values| values.len() > 1) {
        let detail = format!("must have at most {METER_DIMENSIONS_MAX} names, each given once");
        parameters.add_error(Violation::new("too_many", detail).under("properties"));
    }
    let properties: Map<String, Value> = properties
        .into_iter()
        .filter_map(|(name, mut values)| Some((name, Value::String(values.pop()?))))
        .collect();
    body.insert("properties".to_owned(), Value::Object(properties));
    let reserve = parameters.flag("reserve");
    let allow_status = parameters.word("allow_status", &ALLOW_STATUSES);
    let deny_status = parameters.word("deny_status", &DENY_STATUSES);
    for name in ["subject", "meter"] {
        if !body.contains_key(name) {
            let violation = Violation::new("missing_parameter", format!("`{name}` is required"));
            parameters.add_error(violation.under(name));
        }
    }
    parameters.finish()?;
    let allow_status = allow_status.unwrap_or(StatusCode::NO_CONTENT);
    let request = Reserve::read(Value::Object(body))?;
    Ok(GatewayRequest { request, reserve, allow_status, deny_status })
}

/// Removes the content encoding of a gateway's request: its headers may describe a body that the gateway did
/// not forward.
pub(super) fn without_body(mut request: Request) -> Request {
    if request.uri().path().starts_with("/v1/gate") {
        request.headers_mut().remove(header::CONTENT_ENCODING);
    }
    request
}

fn respond(
    answer: &GateAnswer,
    allow_status: StatusCode,
    deny_status: Option<StatusCode>,
) -> Result<Response, Problem> {
    let now = answer.at;
    let mut response = match &answer.outcome {
        CallOutcome::Denied(denial) => denied(denial, deny_status),
        CallOutcome::Refused(refusal) => return Err(Problem::refused(*refusal)),
        CallOutcome::Invalid(violations) => return Err(violations.clone().into()),
        _ => allow_status.into_response(),
    };
    let status = response.status();
    let headers = response.headers_mut();
    let mut is_replay = false;
    if let CallOutcome::Held { reservation, replayed } = &answer.outcome {
        insert(headers, RESERVATION, &reservation.id);
        insert(headers, EXPIRES_AT, &reservation.expires_at.to_string());
        is_replay = *replayed;
    }
    if let CallOutcome::Denied(denial) = &answer.outcome {
        insert(headers, REASON, denial.reason.as_str());
        let resets = denial.denied_by.iter().filter_map(|by| Some(seconds_until(by.resets_at()?, now)));
        // a 429 always has a `Retry-After`; other statuses have one if a limit resets
        let never = (status == StatusCode::TOO_MANY_REQUESTS).then_some(NEVER_SECONDS);
        if let Some(seconds) = resets.max().or(never) {
            insert(headers, header::RETRY_AFTER, &seconds.to_string());
        }
    }
    let (limits, policies) = rate_limits(&answer.limits, now);
    if !policies.is_empty() {
        insert(headers, RATE_LIMIT, &limits);
        insert(headers, RATE_LIMIT_POLICY, &policies);
    }
    Ok(with_replay_header(response, is_replay))
}

/// Inserts a header, unless its value has characters that no header can carry, such as those of some ids.
fn insert(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

fn denied(denial: &Denial, deny_status: Option<StatusCode>) -> Response {
    let (status, detail) = match denial.reason {
        Reason::LimitReached => (StatusCode::TOO_MANY_REQUESTS, "a limit of the plan is reached"),
        Reason::InsufficientCredits => (
            StatusCode::PAYMENT_REQUIRED,
            "a quota of the plan is used up and the credits do not cover the rest",
        ),
        Reason::NoSubscription => (StatusCode::PAYMENT_REQUIRED, "the subject has no subscription"),
        Reason::SubscriptionInactive => {
            (StatusCode::PAYMENT_REQUIRED, "the status of the subscription does not allow any use")
        }
        Reason::SpendCapReached => (StatusCode::PAYMENT_REQUIRED, "a spend cap is reached"),
        Reason::Unmatched => (StatusCode::FORBIDDEN, "no limit of the plan covers this use"),
    };
    let problem = Problem::new(deny_status.unwrap_or(status), denial.reason.as_str(), detail);
    problem.with("denied_by", json!(denial.denied_by)).into_response()
}

fn rate_limits(limits: &[LimitState], now: Timestamp) -> (String, String) {
    let (mut states, mut policies) = (Vec::new(), Vec::new());
    let mut names = BTreeSet::new();
    for limit in limits {
        let (Some(quota), Some(remaining)) = (limit.quota, limit.remaining) else { continue };
        // several subjects of a path may have limits of the same key
        let mut name = limit.key.to_string();
        let mut level = 1;
        while !names.insert(name.clone()) {
            level += 1;
            name = format!("{}-{level}", limit.key);
        }
        let units = |total: Total| total.units().clamp(0, FIELD_INTEGER_MAX);
        let mut state = format!("\"{name}\";r={}", units(remaining));
        let mut policy = format!("\"{name}\";q={}", units(quota.into()));
        if let Some(at) = limit.resets_at {
            state = format!("{state};t={}", seconds_until(at, now));
            policy = format!("{policy};w={}", seconds_until(at, limit.period.from));
        }
        states.push(state);
        policies.push(policy);
    }
    (states.join(", "), policies.join(", "))
}

/// Returns the seconds until a time, rounded up.
fn seconds_until(at: Timestamp, from: Timestamp) -> i64 {
    let micros = at.micros() - from.micros();
    (micros.max(0) + MICROS_PER_SECOND - 1).div_euclid(MICROS_PER_SECOND)
}
