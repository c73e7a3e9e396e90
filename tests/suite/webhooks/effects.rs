//! The effect of each subscription change on limits, at its instant. Every test runs twice: with
//! payloads only, and with fetching.

use std::time::Duration;

use serde_json::{Value, json};

use super::{Rig, switch_of, unix};
use crate::support::service::NOON;

const DAY: Duration = Duration::from_hours(24);

async fn rigs() -> [Rig; 2] {
    [Rig::start(false).await, Rig::start(true).await]
}

fn cancel_at_end(rig: &Rig, subscription: &str, whether: &str) {
    rig.stripe.post(&format!("/v1/subscriptions/{subscription}"), &[("cancel_at_period_end", whether)]);
}

async fn record(rig: &Rig, subject: &str, value: i64) {
    rig.service.record(&json!({"event_name": "e", "subject": subject, "value": value})).await;
}

#[tokio::test]
async fn every_api_version_has_the_same_effect() {
    for version in [
        "2022-11-15",
        "2023-10-16",
        "2024-06-20",
        "2025-02-24.acacia",
        "2025-03-31.basil",
        "2026-07-29.dahlia",
    ] {
        let rig = Rig::start(false).await;
        rig.stripe.pin_webhooks(version);
        let customer = rig.customer_of("s").await;
        rig.stripe.subscribe(&customer, &rig.pro, &[]);
        rig.hear().await;
        assert_eq!(rig.subject_path("s").await, "pro active -", "{version}");
        let shown = rig.subscription("s").await;
        assert_eq!(
            (&shown["cycle_anchor"], &shown["period"]),
            (&json!(NOON), &json!({"start": NOON, "end": "2026-12-20T12:00:00Z"})),
            "{version}"
        );
        assert_eq!(rig.check("s", 100).await, "allowed");
        assert_eq!(rig.check("s", 101).await, "limit_reached");
    }
}

#[tokio::test]
async fn a_plan_change_takes_effect_at_once_and_keeps_usage() {
    for rig in rigs().await {
        let customer = rig.customer_of("s").await;
        let subscription = rig.stripe.subscribe(&customer, &rig.starter, &[]);
        rig.hear().await;
        record(&rig, "s", 8).await;
        assert_eq!(rig.check("s", 3).await, "limit_reached");
        switch_of(&rig.stripe, &subscription, &rig.pro);
        rig.hear().await;
        assert_eq!(rig.subject_path("s").await, "pro active -");
        assert_eq!(
            (rig.check("s", 92).await.as_str(), rig.check("s", 93).await.as_str()),
            ("allowed", "limit_reached")
        );
        rig.service.verify().await;
    }
}

#[tokio::test]
async fn a_late_payment_keeps_access_and_a_failed_one_ends_it() {
    for rig in rigs().await {
        let customer = rig.customer_of("s").await;
        let subscription = rig.stripe.subscribe(&customer, &rig.pro, &[]);
        for (status, verdict) in [
            ("past_due", "allowed"),
            ("unpaid", "subscription_inactive"),
            ("active", "allowed"),
            ("paused", "subscription_inactive"),
            ("trialing", "allowed"),
        ] {
            rig.stripe.set_status(&subscription, status);
            rig.hear().await;
            assert_eq!(rig.check("s", 1).await, verdict, "{status}");
            assert_eq!(rig.subject_path("s").await, format!("pro {status} -"));
        }
    }
}

#[tokio::test]
async fn a_missing_first_payment_neither_gives_nor_takes_access() {
    for rig in rigs().await {
        let customer = rig.customer_of("s").await;
        rig.stripe.set_payments(&customer, crate::support::stripe_fake::Payments::Fail);
        rig.stripe.subscribe(&customer, &rig.pro, &[]);
        rig.hear().await;
        assert_eq!(rig.subject_path("s").await, "pro incomplete -");
        assert_eq!(rig.check("s", 1).await, "subscription_inactive");
        // a subject with another plan keeps it
        let other = rig.customer_of("t").await;
        rig.service.put("/v1/subjects/t/subscription", &json!({"plan": "free"})).await;
        rig.stripe.set_payments(&other, crate::support::stripe_fake::Payments::Fail);
        rig.stripe.subscribe(&other, &rig.pro, &[]);
        rig.hear().await;
        assert_eq!(rig.subject_path("t").await, "free active -");
        rig.set_clock("2026-11-21T12:00:00Z");
        rig.hear().await;
        assert_eq!(rig.subject_path("s").await, "pro incomplete_expired -");
        assert_eq!(
            (rig.subject_path("t").await.as_str(), rig.check("t", 1).await.as_str()),
            ("free active -", "allowed")
        );
    }
}

#[tokio::test]
async fn an_announced_end_takes_effect_at_its_instant_without_a_webhook() {
    for rig in rigs().await {
        for (subject, price, then) in [
            ("s", &rig.pro, ("pro canceled 2026-12-20T12:00:00Z", "subscription_inactive")),
            ("t", &rig.team, ("free active -", "allowed")),
        ] {
            rig.service.clock.set(super::at(NOON));
            let customer = rig.customer_of(subject).await;
            let subscription = rig.stripe.subscribe(&customer, price, &[]);
            cancel_at_end(&rig, &subscription, "true");
            rig.hear().await;
            assert!(rig.subject_path(subject).await.ends_with("active 2026-12-20T12:00:00Z"));
            rig.service.clock.set(super::at("2026-12-20T11:59:59Z"));
            assert_eq!(rig.check(subject, 50).await, "allowed");
            rig.service.clock.set(super::at("2026-12-20T12:00:00Z"));
            assert_eq!(rig.check(subject, 1).await, then.1);
            assert_ne!(rig.check(subject, 50).await, "allowed");
            assert_eq!(rig.subject_path(subject).await, then.0);
        }
        // the webhook arrives after the end: usage on the fallback plan stays counted
        record(&rig, "t", 1).await;
        rig.set_clock("2026-12-20T13:00:00Z");
        rig.hear().await;
        assert_eq!(rig.subject_path("s").await, "pro canceled 2026-12-20T12:00:00Z");
        assert_eq!(
            (rig.subject_path("t").await.as_str(), rig.check("t", 1).await.as_str()),
            ("free active -", "limit_reached")
        );
        rig.service.verify().await;
    }
}

#[tokio::test]
async fn a_withdrawn_cancelation_keeps_the_plan() {
    for rig in rigs().await {
        let customer = rig.customer_of("s").await;
        let subscription = rig.stripe.subscribe(&customer, &rig.pro, &[]);
        cancel_at_end(&rig, &subscription, "true");
        rig.hear().await;
        cancel_at_end(&rig, &subscription, "false");
        rig.hear().await;
        assert_eq!(rig.subject_path("s").await, "pro active -");
        rig.set_clock("2026-12-20T12:00:01Z");
        assert_eq!(rig.check("s", 1).await, "allowed");
        // an end at a given time, not at the end of the period
        let end = unix("2026-12-25T00:00:00Z").to_string();
        rig.stripe.post(&format!("/v1/subscriptions/{subscription}"), &[("cancel_at", &end)]);
        rig.hear().await;
        assert_eq!(rig.subject_path("s").await, "pro active 2026-12-25T00:00:00Z");
    }
}

#[tokio::test]
async fn a_deletion_ends_the_subscription_at_once_and_for_good() {
    for rig in rigs().await {
        for (subject, price, expected) in
            [("s", &rig.pro, "pro canceled 2026-11-20T12:00:00Z"), ("t", &rig.team, "free active -")]
        {
            let customer = rig.customer_of(subject).await;
            let subscription = rig.stripe.subscribe(&customer, price, &[]);
            let told = rig.stripe.take_webhooks();
            for webhook in &told {
                rig.deliver(webhook).await;
            }
            rig.work().await;
            rig.stripe.delete(&format!("/v1/subscriptions/{subscription}"));
            rig.hear().await;
            assert_eq!(rig.subject_path(subject).await, expected);
            for webhook in told {
                let again = webhook.body.replace(&webhook.id, &format!("{}_again", webhook.id));
                rig.deliver(&super::Webhook { body: again, ..webhook }).await;
                rig.work().await;
                assert_eq!(rig.subject_path(subject).await, expected);
            }
            // a new subscription starts from zero
            rig.stripe.subscribe(&customer, &rig.starter, &[]);
            rig.hear().await;
            assert_eq!(rig.subject_path(subject).await, "starter active -");
        }
    }
}

#[tokio::test]
async fn a_trial_is_followed_by_periods_of_the_new_anchor() {
    for rig in rigs().await {
        let customer = rig.customer_of("s").await;
        rig.stripe.subscribe(&customer, &rig.pro, &[("trial_period_days", "14")]);
        rig.hear().await;
        assert_eq!(rig.subject_path("s").await, "pro trialing -");
        assert_eq!(rig.subscription("s").await["period"]["end"], "2026-12-04T12:00:00Z");
        record(&rig, "s", 100).await;
        rig.set_clock("2026-12-04T11:59:59Z");
        assert_eq!(rig.check("s", 1).await, "limit_reached");
        // no webhook has reported the end of the trial yet
        rig.service.clock.set(super::at("2026-12-04T12:00:00Z"));
        assert_eq!(rig.check("s", 100).await, "allowed");
        record(&rig, "s", 60).await;
        rig.set_clock("2026-12-04T12:00:30Z");
        rig.hear().await;
        assert_eq!(rig.subject_path("s").await, "pro active -");
        let shown = rig.subscription("s").await;
        assert_eq!(
            (&shown["cycle_anchor"], &shown["period"]["end"]),
            (&json!("2026-12-04T12:00:00Z"), &json!("2027-01-04T12:00:00Z"))
        );
        assert_eq!(
            (rig.check("s", 40).await.as_str(), rig.check("s", 41).await.as_str()),
            ("allowed", "limit_reached")
        );
        rig.service.verify().await;
    }
}

#[tokio::test]
async fn periods_renew_without_webhooks_and_a_later_webhook_corrects_them() {
    let rig = Rig::start(false).await;
    rig.set_clock("2027-01-31T10:00:00Z");
    let customer = rig.customer_of("s").await;
    let subscription = rig.stripe.subscribe(&customer, &rig.pro, &[]);
    rig.hear().await;
    for (before, after) in [
        ("2027-02-28T09:59:59Z", "2027-02-28T10:00:00Z"),
        ("2027-03-31T09:59:59Z", "2027-03-31T10:00:00Z"),
        ("2027-04-30T09:59:59Z", "2027-04-30T10:00:00Z"),
    ] {
        rig.set_clock(before);
        record(&rig, "s", 100).await;
        assert_eq!(rig.check("s", 1).await, "limit_reached", "{before}");
        rig.set_clock(after);
        assert_eq!(rig.check("s", 100).await, "allowed", "{after}");
    }
    record(&rig, "s", 30).await;
    rig.hear().await;
    assert_eq!(
        rig.subscription("s").await["period"],
        json!({"start": "2027-04-30T10:00:00Z", "end": "2027-05-31T10:00:00Z"})
    );
    assert_eq!(
        (rig.check("s", 70).await.as_str(), rig.check("s", 71).await.as_str()),
        ("allowed", "limit_reached")
    );
    // the anchor moves, so the period begins now
    rig.set_clock("2027-05-10T08:00:00Z");
    rig.stripe.post(&format!("/v1/subscriptions/{subscription}"), &[("billing_cycle_anchor", "now")]);
    rig.hear().await;
    let shown = rig.subscription("s").await;
    assert_eq!(
        (&shown["cycle_anchor"], &shown["period"]["end"]),
        (&json!("2027-05-10T08:00:00Z"), &json!("2027-06-10T08:00:00Z"))
    );
    assert_eq!(rig.check("s", 100).await, "allowed");
    rig.service.verify().await;
}

#[tokio::test]
async fn latest_usable_subscription_governs() {
    for rig in rigs().await {
        let customer = rig.customer_of("s").await;
        let old = rig.stripe.subscribe(&customer, &rig.starter, &[]);
        rig.stripe.advance(DAY);
        let new = rig.stripe.subscribe(&customer, &rig.pro, &[]);
        rig.service.clock.set(super::at("2026-11-21T12:00:00Z"));
        rig.hear().await;
        assert_eq!(rig.subject_path("s").await, "pro active -");
        rig.stripe.set_status(&new, "unpaid");
        rig.hear().await;
        assert_eq!(rig.subject_path("s").await, "starter active -");
        rig.stripe.set_status(&new, "active");
        rig.hear().await;
        rig.stripe.delete(&format!("/v1/subscriptions/{old}"));
        rig.hear().await;
        assert_eq!(
            rig.subject_path("s").await,
            "pro active -",
            "a deleted subscription must not end another"
        );
        rig.stripe.delete(&format!("/v1/subscriptions/{new}"));
        rig.hear().await;
        assert!(rig.subject_path("s").await.starts_with("pro canceled"));
    }
}

#[tokio::test]
async fn application_changes_override_the_provider() {
    let rig = Rig::start(false).await;
    let customer = rig.customer_of("s").await;
    let subscription = rig.stripe.subscribe(&customer, &rig.pro, &[]);
    rig.hear().await;
    let put = async |body: Value| rig.service.put("/v1/subjects/s/subscription", &body).await;
    put(json!({"plan": "pro", "overrides": {"l": 150}})).await;
    // an event without a change keeps the parameters, and so does a renewal
    rig.stripe.post(&format!("/v1/subscriptions/{subscription}"), &[("description", "x")]);
    rig.hear().await;
    assert_eq!(rig.check("s", 150).await, "allowed");
    rig.set_clock("2026-12-20T12:00:05Z");
    rig.hear().await;
    assert_eq!(rig.subscription("s").await["period"]["start"], "2026-12-20T12:00:00Z");
    assert_eq!(
        (rig.check("s", 150).await.as_str(), rig.check("s", 151).await.as_str()),
        ("allowed", "limit_reached")
    );
    // after a move to another plan by the application, the end of the old subscription has no effect
    put(json!({"plan": "team"})).await;
    rig.stripe.delete(&format!("/v1/subscriptions/{subscription}"));
    rig.hear().await;
    assert_eq!(rig.subject_path("s").await, "team active -");
}
