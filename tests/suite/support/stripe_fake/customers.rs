//! Customers and the outcome of their payments.

use serde_json::{Map, Value, json};

use super::errors::ApiError;
use super::forms::Form;
use super::routes::page;
use super::state::State;
use super::subscriptions;

/// The outcome of a customer's payments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Payments {
    Succeed,
    Fail,
    /// The customer has no payment method.
    Missing,
}

const TEXTS: [(&str, usize); 4] = [("name", 256), ("email", 512), ("phone", 20), ("description", 5000)];

fn fill(customer: &mut Value, mut form: Form) -> Result<(), ApiError> {
    for (field, length_max) in TEXTS {
        if let Some(text) = form.text(field, length_max)? {
            customer[field] = if text.is_empty() { Value::Null } else { json!(text) };
        }
    }
    merge_metadata(&mut customer["metadata"], &mut form)?;
    form.finish()
}

/// Merges metadata as Stripe does: sets the named keys, removes those with an empty text, and keeps all
/// others.
pub(super) fn merge_metadata(metadata: &mut Value, form: &mut Form) -> Result<(), ApiError> {
    let Some(named) = form.texts("metadata")? else { return Ok(()) };
    if !metadata.is_object() {
        *metadata = Value::Object(Map::new());
    }
    let Some(metadata) = metadata.as_object_mut() else { return Ok(()) };
    for (key, text) in named {
        if text.is_empty() {
            metadata.remove(&key);
        } else {
            metadata.insert(key, json!(text));
        }
    }
    Ok(())
}

/// Returns a customer, or an error if it is missing or deleted.
pub(super) fn existing<'a>(state: &'a State, id: &str) -> Result<&'a Value, ApiError> {
    let customer = state.customers.get(id).filter(|customer| customer["deleted"] != true);
    customer.ok_or_else(|| ApiError::not_found("customer", id))
}

pub(super) fn create(state: &mut State, form: Form) -> Result<Value, ApiError> {
    let mut customer = json!({
        "id": "",
        "object": "customer",
        "created": state.now(),
        "livemode": state.options.livemode,
        "name": null,
        "email": null,
        "phone": null,
        "description": null,
        "metadata": {},
    });
    fill(&mut customer, form)?;
    let id = state.next_id("cus");
    customer["id"] = json!(id);
    state.customers.insert(id, customer.clone());
    state.emit("customer.created", &customer, None);
    Ok(customer)
}

pub(super) fn list(state: &State, mut form: Form) -> Result<Value, ApiError> {
    let email = form.text("email", 512)?;
    let customers = state.customers.values().rev().filter(|customer| customer["deleted"] != true);
    let rows = customers.filter(|customer| email.as_ref().is_none_or(|email| customer["email"] == *email));
    page(rows.cloned().collect(), form, "/v1/customers")
}

/// Returns a customer; a deleted one is marked as deleted.
pub(super) fn get(state: &State, id: &str, form: Form) -> Result<Value, ApiError> {
    form.finish()?;
    state.customers.get(id).cloned().ok_or_else(|| ApiError::not_found("customer", id))
}

pub(super) fn update(state: &mut State, id: &str, form: Form) -> Result<Value, ApiError> {
    let before = existing(state, id)?.clone();
    let mut customer = before.clone();
    fill(&mut customer, form)?;
    state.customers.insert(id.to_owned(), customer.clone());
    state.emit_change("customer.updated", &before, &customer);
    Ok(customer)
}

/// Deletes a customer and ends its subscriptions at once.
pub(super) fn delete(state: &mut State, id: &str, form: Form) -> Result<Value, ApiError> {
    form.finish()?;
    let customer = existing(state, id)?.clone();
    for subscription in subscriptions::open_of(state, id) {
        subscriptions::end(state, &subscription);
    }
    let deleted = json!({"id": id, "object": "customer", "deleted": true});
    state.customers.insert(id.to_owned(), deleted.clone());
    state.emit("customer.deleted", &customer, None);
    Ok(deleted)
}
