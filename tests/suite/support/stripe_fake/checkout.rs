//! Checkout sessions: the application creates them, and the customer completes them.

use serde_json::{Value, json};

use super::errors::ApiError;
use super::forms::Form;
use super::server::id as id_of;
use super::state::State;
use super::version::Version;
use super::{catalog, customers, subscription_calls};

#[derive(Debug, Clone)]
pub(super) struct Session {
    pub(super) shown: Value,
    /// The parameters of the subscription to create, without the customer.
    subscription: Vec<(String, String)>,
    email: Option<String>,
}

pub(super) fn create(state: &mut State, mut form: Form) -> Result<Value, ApiError> {
    form.choice("mode", &["subscription"])?.ok_or_else(|| ApiError::missing_param("mode"))?;
    let customer = form.text("customer", 5000)?;
    if let Some(customer) = &customer {
        customers::existing(state, customer)?;
    }
    let email = form.text("customer_email", 800)?;
    let mut subscription = Vec::new();
    for (number, mut item) in form.list("line_items")?.into_iter().enumerate() {
        let (price, quantity) = (item.required("price", 5000)?, item.integer("quantity")?);
        item.finish()?;
        catalog::price(state, &price)?;
        subscription.push((format!("items[{number}][price]"), price));
        subscription.extend(quantity.map(|it| (format!("items[{number}][quantity]"), it.to_string())));
    }
    if subscription.is_empty() {
        return Err(ApiError::missing_param("line_items"));
    }
    if let Some(mut data) = form.nested("subscription_data")? {
        for (key, text) in data.texts("metadata")?.unwrap_or_default() {
            subscription.push((format!("metadata[{key}]"), text));
        }
        let days = data.integer("trial_period_days")?;
        subscription.extend(days.map(|days| ("trial_period_days".to_owned(), days.to_string())));
        data.finish()?;
    }
    let mut shown = json!({
        "id": "",
        "object": "checkout.session",
        "client_reference_id": form.text("client_reference_id", 200)?,
        "created": state.now(),
        "currency": "usd",
        "customer": customer,
        "customer_details": {"email": email},
        "livemode": state.options.livemode,
        "metadata": form.texts("metadata")?.unwrap_or_default(),
        "mode": "subscription",
        "payment_status": "unpaid",
        "status": "open",
        "subscription": null,
        "success_url": form.text("success_url", 5000)?,
        "cancel_url": form.text("cancel_url", 5000)?,
    });
    form.finish()?;
    let id = state.next_id("cs");
    shown["id"] = json!(id);
    shown["url"] = json!(format!("{}/pay/{id}", state.base_url));
    state.sessions.insert(id, Session { shown: shown.clone(), subscription, email });
    Ok(shown)
}

pub(super) fn get(state: &State, id: &str, form: Form) -> Result<Value, ApiError> {
    form.finish()?;
    let session = state.sessions.get(id).ok_or_else(|| ApiError::not_found("checkout.session", id))?;
    Ok(session.shown.clone())
}

/// Completes a session, as the customer does at its URL.
pub(super) fn complete(state: &mut State, id: &str) -> Result<Value, ApiError> {
    let session = state.sessions.get(id).cloned();
    let mut session = session.ok_or_else(|| ApiError::not_found("checkout.session", id))?;
    if session.shown["status"] != "open" {
        return Err(ApiError::invalid("The session is complete already."));
    }
    let customer = if let Some(customer) = session.shown["customer"].as_str() {
        customer.to_owned()
    } else {
        let email = session.email.iter().map(|email| ("email", email.as_str()));
        let form = form_urlencoded::Serializer::new(String::new()).extend_pairs(email).finish();
        id_of(&customers::create(state, Form::read(&form)?)?)
    };
    session.subscription.push(("customer".to_owned(), customer.clone()));
    let form = form_urlencoded::Serializer::new(String::new()).extend_pairs(&session.subscription).finish();
    let version = Version::read(&state.options.api_version)?;
    let subscription = subscription_calls::create(state, Form::read(&form)?, &version)?;
    session.shown["customer"] = json!(customer);
    session.shown["subscription"] = subscription["id"].clone();
    session.shown["status"] = json!("complete");
    session.shown["payment_status"] = json!("paid");
    session.shown["url"] = Value::Null;
    let shown = session.shown.clone();
    state.sessions.insert(id.to_owned(), session);
    state.emit("checkout.session.completed", &shown, None);
    Ok(shown)
}
