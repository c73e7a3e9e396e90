//! Objects for tests, created in one line each.

use super::customers::Payments;
use super::server::{StripeFake, id};
use super::{checkout, subscriptions};

impl StripeFake {
    /// Creates a customer with these fields, such as `("metadata[subject]", "user_42")`, and returns its id.
    pub(crate) fn customer(&self, fields: &[(&str, &str)]) -> String {
        id(&self.post("/v1/customers", fields))
    }

    pub(crate) fn set_payments(&self, customer: &str, payments: Payments) {
        self.shared.lock().payments.insert(customer.to_owned(), payments);
    }

    /// Creates a licensed price of 10.00 per interval (`month`) with a new product, and returns its id.
    pub(crate) fn price(&self, name: &str, interval: &str) -> String {
        let fields = [
            ("currency", "usd"),
            ("unit_amount", "1000"),
            ("recurring[interval]", interval),
            ("product_data[name]", name),
        ];
        id(&self.post("/v1/prices", &fields))
    }

    /// Creates a metered price of 0.01 per unit for a meter's id and an interval, and returns its id.
    pub(crate) fn metered_price(&self, meter: &str, interval: &str) -> String {
        let fields = [
            ("currency", "usd"),
            ("unit_amount", "1"),
            ("recurring[interval]", interval),
            ("recurring[usage_type]", "metered"),
            ("recurring[meter]", meter),
            ("product_data[name]", meter),
        ];
        id(&self.post("/v1/prices", &fields))
    }

    /// Creates a subscription with these additional fields, and returns its id.
    pub(crate) fn subscribe(&self, customer: &str, price: &str, fields: &[(&str, &str)]) -> String {
        let fields = [&[("customer", customer), ("items[0][price]", price)], fields].concat();
        id(&self.post("/v1/subscriptions", &fields))
    }

    /// Sets the status to paused; `POST /v1/subscriptions/{id}/resume` ends the pause.
    pub(crate) fn pause(&self, subscription: &str) {
        subscriptions::pause(&mut self.shared.lock(), subscription);
    }

    /// Sets a status that Stripe sets on its own, such as `unpaid` after the last attempt.
    pub(crate) fn set_status(&self, subscription: &str, status: &'static str) {
        subscriptions::change(&mut self.shared.lock(), subscription, |it| it.status = status);
    }

    /// Completes a checkout session, as the customer does at its URL.
    pub(crate) fn complete_checkout(&self, session: &str) {
        checkout::complete(&mut self.shared.lock(), session).expect("an open session");
    }
}
