//! A subscription's whole life, delivered in any order and three times: the result equals that of the
//! ordered delivery. Access is never given after the deletion was received, and never taken before the
//! end.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use metergate_domain::base::Environment;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use serde_json::Value;
use sqlx::{Connection, PgConnection, Row};

use super::{Rig, SECRET, seconds, settings, switch_of};
use crate::support::service::TestService;
use crate::support::stripe_fake::{Webhook, shuffled, sign};
use crate::support::{at, cluster};

const SUBJECT: &str = "the_subject";
const END: &str = "2026-12-08T10:00:00Z";
/// The orders in each of four tests: before and after the end, with payloads only and with fetching.
const SHUFFLES: usize = 500;

/// The events of one life in order, with the ids of its objects.
struct Life {
    told: Vec<Webhook>,
    subscription: String,
    customer: String,
}

/// Creates one life: trial, active, upgrade, past due, active, cancel at period end, deleted; in
/// November and December 2026.
fn live(rig: &Rig, first: &str, then: &str) -> Life {
    let stripe = &rig.stripe;
    let customer = stripe.customer(&[]);
    let fields = [("trial_period_days", "7"), ("metadata[subject]", SUBJECT)];
    let subscription = stripe.subscribe(&customer, first, &fields);
    let path = format!("/v1/subscriptions/{subscription}");
    rig.set_clock("2026-11-08T10:00:00Z");
    switch_of(stripe, &subscription, then);
    // two more events in the second of the upgrade
    stripe.post(&path, &[("description", "upgraded")]);
    stripe.post(&path, &[("metadata[note]", "upgraded")]);
    rig.set_clock("2026-11-12T10:00:00Z");
    stripe.set_status(&subscription, "past_due");
    rig.set_clock("2026-11-14T10:00:00Z");
    stripe.set_status(&subscription, "active");
    rig.set_clock("2026-11-20T10:00:00Z");
    stripe.post(&path, &[("cancel_at_period_end", "true")]);
    rig.set_clock(END);
    let told = stripe.take_webhooks();
    let told: Vec<Webhook> =
        told.into_iter().filter(|webhook| webhook.kind.starts_with("customer.subscription.")).collect();
    let kinds: Vec<&str> =
        told.iter().map(|webhook| webhook.kind.trim_start_matches("customer.subscription.")).collect();
    assert_eq!((kinds[0], kinds[kinds.len() - 1]), ("created", "deleted"), "{kinds:?}");
    assert!(kinds.len() >= 9, "{kinds:?}");
    Life { told, subscription, customer }
}

impl Life {
    /// Returns the same webhook in another life.
    fn of(&self, webhook: &Webhook, who: usize) -> Webhook {
        let body = webhook
            .body
            .replace(&self.subscription, &format!("sub_{who}"))
            .replace(&self.customer, &format!("cus_{who}"))
            .replace(SUBJECT, &format!("s{who}"))
            .replace(&webhook.id, &format!("{}_{who}", webhook.id));
        Webhook { body, ..webhook.clone() }
    }
}

/// A Stripe server that shows each of many lives at its own step.
#[derive(Clone)]
struct Stage {
    life: Arc<Life>,
    happened: Arc<Mutex<HashMap<usize, usize>>>,
}

impl Stage {
    async fn open(life: Arc<Life>) -> (Self, String) {
        let stage = Self { life, happened: Arc::default() };
        let show = axum::routing::get(|state, id| std::future::ready(Self::show(state, id)));
        let router = Router::new().route("/v1/subscriptions/{id}", show).with_state(stage.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        (stage, url)
    }

    fn show(State(stage): State<Self>, Path(id): Path<String>) -> Response {
        let Some(who) = id.strip_prefix("sub_").and_then(|who| who.parse().ok()) else {
            return StatusCode::NOT_FOUND.into_response();
        };
        let happened = stage.happened.lock().unwrap().get(&who).copied();
        let last = happened.unwrap_or(stage.life.told.len()) - 1;
        let webhook = stage.life.of(&stage.life.told[last], who);
        let event: Value = serde_json::from_str(&webhook.body).unwrap();
        event["data"]["object"].to_string().into_response()
    }
}

async fn tell(service: &TestService, webhook: &Webhook) {
    let header = sign(&[SECRET], seconds(service), &webhook.body);
    service.engine.receive_webhook(Some(&header), webhook.body.as_bytes()).await.unwrap();
}

async fn work(service: &TestService) {
    while service.engine.apply_webhooks(Environment::Test).await.unwrap() > 0 {}
    service.engine.end_due_subscriptions(Environment::Test).await.unwrap();
}

/// Returns the state of all subjects: plan, status, anchor, period and end.
async fn subject_paths(connection: &mut PgConnection) -> HashMap<String, String> {
    let rows = sqlx::query(
        "select s.subject, concat_ws(' ', sub.plan, sub.status, sub.cycle_anchor, sub.period_start, sub.period_end,
                                     coalesce(sub.ends_at::text, 'open'), sub.fallback_plan, sub.overrides) as standing
         from subscriptions sub join subjects s on s.id = sub.subject_id",
    )
    .fetch_all(connection)
    .await
    .unwrap();
    rows.iter().map(|row| (row.get("subject"), row.get("standing"))).collect()
}

fn may_use(standing: &str) -> bool {
    ["trialing", "active", "past_due"].iter().any(|status| standing.split(' ').nth(1) == Some(status))
}

/// Creates one service for all lives of a kind.
async fn world(then: &str, fetching: bool) -> (TestService, Arc<Life>, Stage) {
    let rig = Rig::start_at("2026-11-01T10:00:00Z", false).await;
    let price = if then == "pro" { &rig.pro } else { &rig.team };
    let life = Arc::new(live(&rig, &rig.starter, price));
    let (stage, url) = Stage::open(Arc::clone(&life)).await;
    let mut settings = settings(&rig.stripe, fetching);
    settings.stripe.api_base = url;
    let service = TestService::at_url(&cluster::database_url().await, settings).await;
    service.apply(rig.catalog(&[&rig.starter, &rig.pro, &rig.team])).await;
    (service, life, stage)
}

/// Delivers all events after the end.
async fn shuffled_afterwards(then: &str, fetching: bool) {
    let (service, life, _) = world(then, fetching).await;
    service.clock.set(at("2026-12-08T10:00:30Z"));
    let deletion = life.told.last().unwrap().id.clone();
    for webhook in &life.told {
        tell(&service, &life.of(webhook, 0)).await;
        work(&service).await;
    }
    let orders: Vec<Vec<Webhook>> = (1..=SHUFFLES).map(|who| shuffled(&life.told, 3, who as u64)).collect();
    let mut deleted = vec![false; SHUFFLES + 1];
    let mut connection = PgConnection::connect(&service.url).await.unwrap();
    for step in 0..orders[0].len() {
        for (who, order) in (1..).zip(&orders) {
            tell(&service, &life.of(&order[step], who)).await;
            deleted[who] |= order[step].id == deletion;
        }
        work(&service).await;
        let subject_paths = subject_paths(&mut connection).await;
        for who in (1..=SHUFFLES).filter(|who| deleted[*who] || fetching) {
            let standing = &subject_paths[&format!("s{who}")];
            assert!(!may_use(standing) || standing.starts_with("free "), "{who} after {step}: {standing}");
        }
    }
    let subject_paths = subject_paths(&mut connection).await;
    assert_eq!(subject_paths.len(), SHUFFLES + 1);
    for (who, standing) in &subject_paths {
        assert_eq!(*standing, subject_paths["s0"], "{who}");
    }
    assert!(subject_paths["s0"].starts_with(if then == "pro" { "pro canceled" } else { "free active" }));
}

/// Delivers all events but the deletion before the end. Every subject keeps access until the end, and
/// loses it then.
async fn shuffled_meanwhile(then: &str, fetching: bool) {
    let (service, life, stage) = world(then, fetching).await;
    service.clock.set(at("2026-11-20T12:00:00Z"));
    let (deletion, before) = life.told.split_last().unwrap();
    let mut rng = StdRng::seed_from_u64(17);
    // steps and deliveries alternate at random; no event is delivered before its step
    let schedule = |rng: &mut StdRng| {
        let mut steps: Vec<usize> = (0..before.len()).flat_map(|n| [n; 3]).collect();
        steps.shuffle(rng);
        steps
    };
    let orders: Vec<Vec<usize>> = (0..SHUFFLES).map(|_| schedule(&mut rng)).collect();
    let mut connection = PgConnection::connect(&service.url).await.unwrap();
    for step in 0..before.len() * 3 {
        for (who, order) in orders.iter().enumerate() {
            {
                let mut happened = stage.happened.lock().unwrap();
                let so_far = happened.entry(who).or_insert(1);
                *so_far = (*so_far).max(order[step] + 1);
            }
            tell(&service, &life.of(&before[order[step]], who)).await;
        }
        work(&service).await;
        let subject_paths = subject_paths(&mut connection).await;
        for who in 0..SHUFFLES {
            let standing = &subject_paths[&format!("s{who}")];
            assert!(may_use(standing) && !standing.starts_with("free "), "{who} after {step}: {standing}");
        }
    }
    let all_alike = async |connection: &mut PgConnection| {
        let subject_paths = subject_paths(connection).await;
        assert!(subject_paths.values().all(|standing| *standing == subject_paths["s0"]), "{subject_paths:?}");
        subject_paths["s0"].clone()
    };
    assert!(all_alike(&mut connection).await.starts_with(&format!("{then} active")));
    // no webhook arrives at the end
    service.clock.set(at(END));
    work(&service).await;
    let ended = all_alike(&mut connection).await;
    assert!(ended.starts_with(if then == "pro" { "pro canceled" } else { "free active" }), "{ended}");
    for who in 0..SHUFFLES {
        stage.happened.lock().unwrap().insert(who, life.told.len());
        tell(&service, &life.of(deletion, who)).await;
    }
    work(&service).await;
    assert_eq!(all_alike(&mut connection).await, ended);
}

#[tokio::test]
async fn shuffled_payloads_after_the_end_give_the_ordered_result() {
    shuffled_afterwards("pro", false).await;
}

#[tokio::test]
async fn shuffled_payloads_before_the_end_give_the_ordered_result() {
    shuffled_meanwhile("team", false).await;
}

#[tokio::test]
async fn shuffled_fetches_after_the_end_give_the_ordered_result() {
    shuffled_afterwards("team", true).await;
}

#[tokio::test]
async fn shuffled_fetches_before_the_end_give_the_ordered_result() {
    shuffled_meanwhile("pro", true).await;
}
