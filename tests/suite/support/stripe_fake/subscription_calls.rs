//! Calls that create, change, cancel and resume subscriptions.

use serde_json::{Value, json};

use super::clock::DAY;
use super::customers::merge_metadata;
use super::errors::ApiError;
use super::forms::Form;
use super::state::State;
use super::subscriptions::{Subscription, change, read_item, show, snapshot};
use super::version::Version;
use super::{customers, invoices, subscriptions};

/// Fields that have no effect in the fake.
const IGNORED: [&str; 6] = [
    "collection_method",
    "currency",
    "default_payment_method",
    "off_session",
    "payment_behavior",
    "proration_behavior",
];

fn ignore(form: &mut Form) -> Result<(), ApiError> {
    for field in IGNORED {
        form.text(field, 5000)?;
    }
    Ok(())
}

pub(super) fn create(state: &mut State, mut form: Form, version: &Version) -> Result<Value, ApiError> {
    let customer = form.required("customer", 5000)?;
    customers::existing(state, &customer)?;
    let mut items = Vec::new();
    for mut item in form.list("items")? {
        let (price, quantity) = (item.required("price", 5000)?, item.integer("quantity")?);
        item.texts("metadata")?;
        item.finish()?;
        items.push(read_item(state, &price, quantity)?);
    }
    if items.is_empty() {
        return Err(ApiError::missing_param("items"));
    }
    let now = state.now();
    let trial_days = form.integer("trial_period_days")?.filter(|days| *days > 0);
    let trial_end = form.integer("trial_end")?.or_else(|| trial_days.map(|days| now + days * DAY));
    let trial = trial_end.filter(|end| *end > now).map(|end| (now, end));
    let anchor = form.integer("billing_cycle_anchor")?;
    let mut metadata = json!({});
    merge_metadata(&mut metadata, &mut form)?;
    let mut made = Subscription {
        id: String::new(),
        status: "active",
        customer,
        items,
        anchor: trial.map(|trial| trial.1).or(anchor).unwrap_or(now),
        created: now,
        cancel_at: form.integer("cancel_at")?,
        cancel_at_period_end: form.flag("cancel_at_period_end")?.unwrap_or(false),
        canceled_at: None,
        ended_at: None,
        trial,
        is_trial_end_told: false,
        without_payment: read_trial_settings(&mut form)?.unwrap_or_else(|| "create_invoice".to_owned()),
        metadata,
        description: form.text("description", 500)?,
        pause_collection: None,
        latest_invoice: None,
    };
    ignore(&mut form)?;
    form.finish()?;
    start_first_period(&mut made, now);
    if made.cancel_at_period_end {
        made.cancel_at = made.period_end();
    }
    let can_pay = trial.is_some() || state.can_pay(&made.customer);
    made.status = if trial.is_some() {
        "trialing"
    } else if can_pay {
        "active"
    } else {
        "incomplete"
    };
    let id = state.next_id("sub");
    made.id.clone_from(&id);
    state.subscriptions.insert(id.clone(), made);
    let created = snapshot(state, &id);
    state.emit("customer.subscription.created", &created, None);
    invoices::open(state, &id, "subscription_create", true);
    show(state, &id, version)
}

fn start_first_period(subscription: &mut Subscription, now: i64) {
    match subscription.trial {
        Some(trial) => subscription.items.iter_mut().for_each(|item| item.period = trial),
        None => subscription.restart_periods(now),
    }
}

fn read_trial_settings(form: &mut Form) -> Result<Option<String>, ApiError> {
    let Some(mut settings) = form.nested("trial_settings")? else { return Ok(None) };
    let mut behavior = settings
        .nested("end_behavior")?
        .ok_or_else(|| ApiError::missing_param("trial_settings[end_behavior]"))?;
    let chosen = behavior.choice("missing_payment_method", &["create_invoice", "pause", "cancel"])?;
    behavior.finish()?;
    settings.finish()?;
    Ok(chosen)
}

pub(super) fn update(
    state: &mut State,
    id: &str,
    mut form: Form,
    version: &Version,
) -> Result<Value, ApiError> {
    let mut changed = open(state, id)?.clone();
    let now = state.now();
    let must_restart = update_items(state, &mut changed, form.list("items")?)?;
    merge_metadata(&mut changed.metadata, &mut form)?;
    if let Some(description) = form.text("description", 500)? {
        changed.description = Some(description);
    }
    if let Some(chosen) = read_trial_settings(&mut form)? {
        changed.without_payment = chosen;
    }
    let anchor = form.choice("billing_cycle_anchor", &["now", "unchanged"])?;
    if must_restart || anchor.as_deref() == Some("now") {
        changed.anchor = now;
        changed.restart_periods(now);
    }
    update_trial(&mut changed, form.text("trial_end", 20)?.as_deref(), now)?;
    if form.is_cleared("pause_collection") {
        changed.pause_collection = None;
    } else if let Some(mut pause) = form.nested("pause_collection")? {
        changed.pause_collection =
            pause.choice("behavior", &["keep_as_draft", "mark_uncollectible", "void"])?;
        pause.finish()?;
    }
    update_cancellation(&mut changed, &mut form, now)?;
    ignore(&mut form)?;
    form.finish()?;
    let is_new_period = changed.anchor == now && open(state, id)?.anchor != now;
    change(state, id, |subscription| *subscription = changed);
    if is_new_period {
        invoices::open(state, id, "subscription_update", true);
    }
    show(state, id, version)
}

/// Updates the items, and returns whether a changed interval restarts the periods.
fn update_items(state: &mut State, changed: &mut Subscription, forms: Vec<Form>) -> Result<bool, ApiError> {
    let mut must_restart = false;
    for mut form in forms {
        let (item, price) = (form.text("id", 5000)?, form.text("price", 5000)?);
        let (quantity, is_deleted) = (form.integer("quantity")?, form.flag("deleted")? == Some(true));
        form.texts("metadata")?;
        form.finish()?;
        let Some(item) = item else {
            let price = price.ok_or_else(|| ApiError::missing_param("items[price]"))?;
            let mut added = read_item(state, &price, quantity)?;
            added.period = super::periods::around(changed.anchor, added.interval, state.now());
            changed.items.push(added);
            continue;
        };
        let place = changed.items.iter().position(|known| known.id == item);
        let place = place.ok_or_else(|| ApiError::not_found("subscription_item", &item))?;
        if is_deleted {
            changed.items.remove(place);
        } else if let Some(price) = price {
            let new = read_item(state, &price, quantity)?;
            let item = &mut changed.items[place];
            must_restart |= item.interval != new.interval;
            (item.price, item.quantity, item.interval) = (new.price, new.quantity, new.interval);
        } else if quantity.is_some() {
            changed.items[place].quantity = quantity;
        }
    }
    if changed.items.is_empty() {
        return Err(ApiError::bad_param("items", "A subscription must have at least one item."));
    }
    Ok(must_restart)
}

fn update_trial(changed: &mut Subscription, end: Option<&str>, now: i64) -> Result<(), ApiError> {
    let end = match end {
        None => return Ok(()),
        Some("now") => now,
        Some(end) => end.parse().map_err(|_| ApiError::bad_param("trial_end", "Invalid timestamp"))?,
    };
    changed.anchor = end;
    if end > now {
        changed.status = "trialing";
        changed.is_trial_end_told = false;
        changed.trial = Some((now, end));
        start_first_period(changed, now);
    } else {
        changed.trial = changed.trial.map(|(start, _)| (start, now));
        changed.status = "active";
        changed.restart_periods(now);
    }
    Ok(())
}

fn update_cancellation(changed: &mut Subscription, form: &mut Form, now: i64) -> Result<(), ApiError> {
    if let Some(at_period_end) = form.flag("cancel_at_period_end")? {
        changed.cancel_at_period_end = at_period_end;
        changed.cancel_at = if at_period_end { changed.period_end() } else { None };
    }
    match form.text("cancel_at", 20)?.as_deref() {
        None => {}
        Some("") => changed.cancel_at = None,
        Some("min_period_end") => changed.cancel_at = changed.period_end(),
        Some("max_period_end") => changed.cancel_at = changed.items.iter().map(|item| item.period.1).max(),
        Some(at) => {
            let at = at.parse().map_err(|_| ApiError::bad_param("cancel_at", "Invalid timestamp"))?;
            changed.cancel_at = Some(at);
        }
    }
    changed.canceled_at = changed.cancel_at.map(|_| changed.canceled_at.unwrap_or(now));
    Ok(())
}

pub(super) fn cancel(
    state: &mut State,
    id: &str,
    mut form: Form,
    version: &Version,
) -> Result<Value, ApiError> {
    form.flag("invoice_now")?;
    form.flag("prorate")?;
    form.texts("cancellation_details")?;
    form.finish()?;
    open(state, id)?;
    subscriptions::end(state, id);
    show(state, id, version)
}

/// Resumes a paused subscription.
pub(super) fn resume(
    state: &mut State,
    id: &str,
    mut form: Form,
    version: &Version,
) -> Result<Value, ApiError> {
    let anchor = form.choice("billing_cycle_anchor", &["now", "unchanged"])?;
    ignore(&mut form)?;
    form.finish()?;
    if open(state, id)?.status != "paused" {
        return Err(ApiError::invalid("Only a paused subscription can be resumed."));
    }
    let now = state.now();
    change(state, id, |subscription| {
        subscription.status = "active";
        if anchor.as_deref() != Some("unchanged") {
            subscription.anchor = now;
        }
        subscription.restart_periods(now);
    });
    let resumed = snapshot(state, id);
    state.emit("customer.subscription.resumed", &resumed, None);
    show(state, id, version)
}

fn open<'a>(state: &'a State, id: &str) -> Result<&'a Subscription, ApiError> {
    let subscription = subscriptions::find(state, id)?;
    if subscription.has_ended() {
        return Err(ApiError::not_found("subscription", id));
    }
    Ok(subscription)
}
