//! The subject of a subscription.

use axum::http::StatusCode;
use serde_json::json;

use super::{Rig, switch_of};

#[tokio::test]
async fn checkouts_map_customers_to_subjects() {
    for fetching in [false, true] {
        let rig = Rig::start(fetching).await;
        let session = rig.stripe.post(
            "/v1/checkout/sessions",
            &[
                ("mode", "subscription"),
                ("line_items[0][price]", &rig.pro),
                ("client_reference_id", "user_42"),
                ("success_url", "https://app.example"),
            ],
        );
        rig.stripe.complete_checkout(session["id"].as_str().unwrap());
        // the subscription's events arrive before the checkout that names the subject
        let told = rig.stripe.take_webhooks();
        let (checkout, rest): (Vec<_>, Vec<_>) =
            told.into_iter().partition(|webhook| webhook.kind == "checkout.session.completed");
        for webhook in &rest {
            rig.deliver(webhook).await;
        }
        rig.work().await;
        assert_eq!(
            rig.events("unmapped").await,
            [("customer.subscription.created".to_owned(), "no_subject".to_owned())]
        );
        assert_eq!(rig.service.get("/v1/subjects/user_42").await.status, StatusCode::NOT_FOUND);
        rig.deliver(&checkout[0]).await;
        rig.work().await;
        assert_eq!(rig.subject_path("user_42").await, "pro active -");
        assert_eq!(rig.events("unmapped").await, []);
        let subject = rig.service.get("/v1/subjects/user_42").await.json();
        assert!(subject["stripe_customer_id"].as_str().unwrap().starts_with("cus_"), "{subject}");
    }
}

#[tokio::test]
async fn metadata_of_a_subscription_or_its_customer_names_the_subject() {
    for fetching in [false, true] {
        let rig = Rig::start(fetching).await;
        let one = rig.stripe.customer(&[]);
        rig.stripe.subscribe(&one, &rig.pro, &[("metadata[subject]", "a")]);
        let two = rig.stripe.customer(&[("metadata[subject]", "b")]);
        rig.stripe.subscribe(&two, &rig.team, &[]);
        // a mapping by the application goes before both
        let three = rig.stripe.customer(&[("metadata[subject]", "d")]);
        rig.map("c", &three).await;
        rig.stripe.subscribe(&three, &rig.starter, &[("metadata[subject]", "d")]);
        rig.hear().await;
        for (subject, plan, customer) in [("a", "pro", &one), ("b", "team", &two), ("c", "starter", &three)] {
            assert_eq!(rig.subject_path(subject).await, format!("{plan} active -"));
            let shown = rig.service.get(&format!("/v1/subjects/{subject}")).await.json();
            assert_eq!(shown["stripe_customer_id"], **customer);
        }
        assert_eq!(rig.service.get("/v1/subjects/d").await.status, StatusCode::NOT_FOUND);
    }
}

#[tokio::test]
async fn fetches_customers_that_were_created_before_the_first_webhook() {
    let rig = Rig::start(true).await;
    let customer = rig.stripe.customer(&[("metadata[subject]", "a")]);
    rig.stripe.take_webhooks();
    rig.stripe.subscribe(&customer, &rig.pro, &[]);
    rig.hear().await;
    assert_eq!(rig.subject_path("a").await, "pro active -");
}

#[tokio::test]
async fn unmapped_subscriptions_are_applied_once_mapped() {
    for fetching in [false, true] {
        let rig = Rig::start(fetching).await;
        let customer = rig.stripe.customer(&[]);
        let subscription = rig.stripe.subscribe(&customer, &rig.pro, &[]);
        rig.hear().await;
        rig.stripe.set_status(&subscription, "past_due");
        rig.hear().await;
        let waiting = rig.events("unmapped").await;
        assert_eq!(waiting.len(), 2, "{waiting:?}");
        assert!(waiting.iter().all(|(_, why)| why == "no_subject"));
        rig.map("s", &customer).await;
        rig.work().await;
        assert_eq!(rig.subject_path("s").await, "pro past_due -");
        assert_eq!(rig.events("unmapped").await, []);

        // an unknown price: the present plan continues until the catalog has the price
        let other = rig.customer_of("t").await;
        rig.apply_catalog(&[&rig.starter, &rig.pro]).await;
        rig.stripe.subscribe(&other, &rig.team, &[]);
        rig.hear().await;
        assert_eq!(
            rig.events("unmapped").await,
            [("customer.subscription.created".to_owned(), "no_plan".to_owned())]
        );
        assert_eq!(rig.check("t", 1).await, "no_subscription");
        rig.apply_catalog(&[&rig.starter, &rig.pro, &rig.team]).await;
        rig.work().await;
        assert_eq!(rig.subject_path("t").await, "team active -");
        assert_eq!(rig.events("unmapped").await, []);
    }
}

#[tokio::test]
async fn an_unknown_price_keeps_the_plan_and_still_ends_it() {
    let rig = Rig::start(false).await;
    rig.apply_catalog(&[&rig.pro]).await;
    let customer = rig.customer_of("s").await;
    let subscription = rig.stripe.subscribe(&customer, &rig.pro, &[]);
    rig.hear().await;
    let path = format!("/v1/subscriptions/{subscription}");
    switch_of(&rig.stripe, &subscription, &rig.team);
    rig.stripe.set_status(&subscription, "past_due");
    rig.hear().await;
    assert_eq!(rig.subject_path("s").await, "pro past_due -");
    assert_eq!(rig.events("unmapped").await.len(), 2);
    rig.stripe.delete(&path);
    rig.hear().await;
    assert!(rig.subject_path("s").await.starts_with("pro canceled"));
    assert_eq!(rig.events("unmapped").await, []);
}

#[tokio::test]
async fn a_remapped_customer_moves_its_subscription() {
    let rig = Rig::start(false).await;
    let customer = rig.customer_of("a").await;
    rig.stripe.subscribe(&customer, &rig.pro, &[]);
    rig.hear().await;
    rig.service.put("/v1/subjects/a", &json!({"stripe_customer_id": null})).await;
    rig.work().await;
    assert_eq!(
        rig.subject_path("a").await,
        "pro active -",
        "the subscription must not move before the mapping"
    );
    rig.map("b", &customer).await;
    rig.work().await;
    assert_eq!(rig.subject_path("b").await, "pro active -");
    assert!(rig.subject_path("a").await.starts_with("pro canceled"));
}

#[tokio::test]
async fn a_deleted_customer_can_be_replaced() {
    for fetching in [false, true] {
        let rig = Rig::start(fetching).await;
        let customer = rig.customer_of("s").await;
        rig.stripe.subscribe(&customer, &rig.pro, &[]);
        rig.hear().await;
        rig.stripe.delete(&format!("/v1/customers/{customer}"));
        // the deletion of the customer is delivered first
        let mut told = rig.stripe.take_webhooks();
        told.reverse();
        for webhook in &told {
            rig.deliver(webhook).await;
            rig.work().await;
        }
        assert!(rig.subject_path("s").await.starts_with("pro canceled"), "{}", rig.subject_path("s").await);
        let shown = rig.service.get("/v1/subjects/s").await.json();
        assert_eq!(shown["stripe_customer_id"], json!(null));
        let next = rig.stripe.customer(&[]);
        rig.stripe.subscribe(&next, &rig.team, &[("metadata[subject]", "s")]);
        rig.hear().await;
        assert_eq!(rig.subject_path("s").await, "team active -");
        assert_eq!(rig.service.get("/v1/subjects/s").await.json()["stripe_customer_id"], *next);
    }
}
