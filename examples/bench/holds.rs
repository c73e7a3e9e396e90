//! The reservations of the benchmark as requests, which are built before the clock runs.

use rand::RngExt;
use uuid::Uuid;

use crate::events::{EVENT_NAME, MODELS, VALUE_MAX};
use crate::http;

/// Subjects that hold, each with a counter of its own.
pub(crate) const CALLERS: usize = 100_000;
/// Longer than the benchmark, so that no hold expires.
const TTL_SECONDS: u32 = 86_400;
/// One more subject, which gets a whole load alone.
pub(crate) const HOT: &str = "hot";
const ORGANISATION: &str = "organisation";
/// Members of the organisation, with limits of their own.
const MEMBERS: usize = 1_000;

/// Subjects on a plan with prices, a cap and credits. As many others are compared with them.
const PAYERS: usize = 1_000;

pub(crate) fn caller(number: usize) -> String {
    format!("caller_{number}")
}

pub(crate) fn random_caller() -> String {
    caller(rand::rng().random_range(0..CALLERS))
}

fn member(number: usize) -> String {
    format!("member_{number}")
}

pub(crate) fn random_member() -> String {
    member(rand::rng().random_range(0..MEMBERS))
}

fn payer(number: usize) -> String {
    format!("payer_{number}")
}

pub(crate) fn payers() -> impl Iterator<Item = String> {
    (0..PAYERS).map(payer)
}

pub(crate) fn random_payer() -> String {
    payer(rand::rng().random_range(0..PAYERS))
}

/// Returns a random subject out of as many without prices.
pub(crate) fn random_guest() -> String {
    caller(rand::rng().random_range(0..PAYERS))
}

fn random_value() -> u32 {
    rand::rng().random_range(1..=VALUE_MAX)
}

pub(crate) fn reserve(key: &str, subject: &str) -> Vec<u8> {
    hold(key, subject, Uuid::now_v7(), random_value())
}

/// Builds a reservation and its commit of the held value or less.
pub(crate) fn reserve_and_commit(key: &str, subject: &str) -> [Vec<u8>; 2] {
    let (id, held) = (Uuid::now_v7(), random_value());
    let value = rand::rng().random_range(1..=held);
    let body = format!(r#"{{"values":[{{"meter":"{EVENT_NAME}","value":{value}}}]}}"#);
    let commit = http::post(&format!("/v1/reservations/{id}/commit"), key, "application/json", &body);
    [hold(key, subject, id, held), commit]
}

fn hold(key: &str, subject: &str, id: Uuid, value: u32) -> Vec<u8> {
    let model = MODELS[rand::rng().random_range(0..MODELS.len())];
    let body = format!(
        r#"{{"id":"{id}","subject":"{subject}","holds":[{{"meter":"{EVENT_NAME}","value":{value},"properties":{{"model":"{model}"}}}}],"ttl_seconds":{TTL_SECONDS}}}"#
    );
    http::post("/v1/reservations", key, "application/json", &body)
}

fn put(key: &str, path: String, body: &str) -> Vec<u8> {
    http::put(&path, key, "application/json", body)
}

fn subscribe(key: &str, subject: &str, plan: &str) -> Vec<u8> {
    put(key, format!("/v1/subjects/{subject}/subscription"), &format!(r#"{{"plan":"{plan}"}}"#))
}

/// Builds the calls that put payers on their plan.
pub(crate) fn enrol_payers(key: &str) -> impl Iterator<Item = Vec<u8>> {
    (0..PAYERS).map(move |number| subscribe(key, &payer(number), "paid"))
}

/// Builds the calls that grant credits to the payers.
pub(crate) fn grant_credits(key: &str) -> impl Iterator<Item = Vec<u8>> {
    (0..PAYERS).map(move |number| {
        let path = format!("/v1/subjects/{}/credits/grants", payer(number));
        http::post(&path, key, "application/json", &format!(r#"{{"amount":1000000,"meter":"{EVENT_NAME}"}}"#))
    })
}

/// Builds the calls that put an organisation on its plan.
pub(crate) fn found_organisation(key: &str) -> [Vec<u8>; 2] {
    [put(key, format!("/v1/subjects/{ORGANISATION}"), "{}"), subscribe(key, ORGANISATION, "organisation")]
}

/// Builds the calls that put members below the organisation and on their own plans, in any order.
pub(crate) fn join_organisation(key: &str) -> impl Iterator<Item = Vec<u8>> {
    let join = format!(r#"{{"parent":"{ORGANISATION}"}}"#);
    (0..MEMBERS).map(member).flat_map(move |member| {
        [put(key, format!("/v1/subjects/{member}"), &join), subscribe(key, &member, "roomy")]
    })
}
