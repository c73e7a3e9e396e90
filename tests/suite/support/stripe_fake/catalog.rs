//! Products and prices.

use serde_json::{Value, json};

use super::customers::merge_metadata;
use super::errors::ApiError;
use super::forms::Form;
use super::periods::{Interval, Unit};
use super::rating;
use super::routes::page;
use super::state::State;

pub(super) fn create_product(state: &mut State, mut form: Form) -> Result<Value, ApiError> {
    let mut product = json!({
        "id": "",
        "object": "product",
        "created": state.now(),
        "livemode": state.options.livemode,
        "name": form.required("name", 250)?,
        "description": form.text("description", 40_000)?,
        "active": form.flag("active")?.unwrap_or(true),
        "metadata": {},
    });
    let id = form.text("id", 5000)?;
    merge_metadata(&mut product["metadata"], &mut form)?;
    form.finish()?;
    let id = id.unwrap_or_else(|| state.next_id("prod"));
    product["id"] = json!(id);
    state.products.insert(id, product.clone());
    state.emit("product.created", &product, None);
    Ok(product)
}

pub(super) fn update_product(state: &mut State, id: &str, mut form: Form) -> Result<Value, ApiError> {
    let before = state.products.get(id).cloned().ok_or_else(|| ApiError::not_found("product", id))?;
    let mut product = before.clone();
    if let Some(name) = form.text("name", 250)? {
        product["name"] = json!(name);
    }
    if let Some(active) = form.flag("active")? {
        product["active"] = json!(active);
    }
    merge_metadata(&mut product["metadata"], &mut form)?;
    form.finish()?;
    state.products.insert(id.to_owned(), product.clone());
    state.emit_change("product.updated", &before, &product);
    Ok(product)
}

pub(super) fn create_price(state: &mut State, mut form: Form) -> Result<Value, ApiError> {
    let currency = form.required("currency", 3)?;
    let (unit_amount, unit_amount_decimal) = rating::read_amount(&mut form, "unit_amount")?;
    let scheme = form.choice("billing_scheme", &["per_unit", "tiered"])?;
    let tiers_mode = form.choice("tiers_mode", &["graduated", "volume"])?;
    let tiers = rating::read_tiers(&mut form)?;
    let is_tiered = scheme.as_deref() == Some("tiered");
    let transform_quantity = read_transform(&mut form)?;
    let recurring = match form.nested("recurring")? {
        None => None,
        Some(recurring) => Some(read_recurring(state, recurring)?),
    };
    let mut price = json!({
        "id": "",
        "object": "price",
        "created": state.now(),
        "livemode": state.options.livemode,
        "active": form.flag("active")?.unwrap_or(true),
        "billing_scheme": if is_tiered { "tiered" } else { "per_unit" },
        "tiers_mode": tiers_mode,
        "transform_quantity": transform_quantity,
        "currency": currency,
        "nickname": form.text("nickname", 5000)?,
        "lookup_key": form.text("lookup_key", 200)?,
        "type": if recurring.is_some() { "recurring" } else { "one_time" },
        "recurring": recurring,
        "unit_amount": unit_amount,
        "unit_amount_decimal": unit_amount_decimal,
        "metadata": {},
    });
    merge_metadata(&mut price["metadata"], &mut form)?;
    let product = form.text("product", 5000)?;
    let product_data = form.nested("product_data")?;
    form.finish()?;
    if is_tiered {
        if tiers.is_empty() || price["tiers_mode"].is_null() {
            return Err(ApiError::missing_param("tiers"));
        }
        if !price["unit_amount_decimal"].is_null() || !price["transform_quantity"].is_null() {
            return Err(ApiError::invalid("A tiered price takes no unit_amount and no transform_quantity."));
        }
        price["tiers"] = json!(tiers);
    } else if !tiers.is_empty() || !price["tiers_mode"].is_null() {
        return Err(ApiError::bad_param("tiers", "Tiers need `billing_scheme=tiered`."));
    } else if price["unit_amount_decimal"].is_null() {
        return Err(ApiError::missing_param("unit_amount"));
    }
    let product = match (product, product_data) {
        (Some(id), None) if state.products.contains_key(&id) => json!(id),
        (Some(id), None) => return Err(ApiError::not_found("product", &id)),
        (None, Some(data)) => create_product(state, data)?["id"].clone(),
        _ => return Err(ApiError::invalid("You must specify either `product` or `product_data`.")),
    };
    price["product"] = product;
    let id = state.next_id("price");
    price["id"] = json!(id);
    state.prices.insert(id, price.clone());
    state.emit("price.created", &price, None);
    Ok(price)
}

fn read_transform(form: &mut Form) -> Result<Option<Value>, ApiError> {
    let Some(mut transform) = form.nested("transform_quantity")? else { return Ok(None) };
    let divide_by = transform.integer("divide_by")?.filter(|by| *by > 0);
    let round = transform.choice("round", &["up", "down"])?;
    transform.finish()?;
    match (divide_by, round) {
        (Some(divide_by), Some(round)) => Ok(Some(json!({"divide_by": divide_by, "round": round}))),
        _ => Err(ApiError::missing_param("transform_quantity")),
    }
}

fn read_recurring(state: &State, mut form: Form) -> Result<Value, ApiError> {
    let interval = form.choice("interval", &["day", "week", "month", "year"])?;
    let count = form.integer("interval_count")?.unwrap_or(1);
    let usage_type = form.choice("usage_type", &["licensed", "metered"])?;
    let meter = form.text("meter", 5000)?;
    form.finish()?;
    if !(1..=1095).contains(&count) {
        return Err(ApiError::bad_param("recurring[interval_count]", "Invalid interval_count."));
    }
    if let Some(meter) = &meter {
        state.meters.get(meter)?;
    }
    if meter.is_some() != (usage_type.as_deref() == Some("metered")) {
        let message = "A metered price must be backed by a meter, and no other can be.";
        return Err(ApiError::bad_param("recurring[meter]", message));
    }
    Ok(json!({
        "interval": interval.ok_or_else(|| ApiError::missing_param("recurring[interval]"))?,
        "interval_count": count,
        "meter": meter,
        "usage_type": usage_type.unwrap_or_else(|| "licensed".to_owned()),
    }))
}

pub(super) fn update_price(state: &mut State, id: &str, mut form: Form) -> Result<Value, ApiError> {
    let before = price(state, id)?.clone();
    let mut price = before.clone();
    if let Some(active) = form.flag("active")? {
        price["active"] = json!(active);
    }
    if let Some(nickname) = form.text("nickname", 5000)? {
        price["nickname"] = json!(nickname);
    }
    merge_metadata(&mut price["metadata"], &mut form)?;
    form.finish()?;
    state.prices.insert(id.to_owned(), price.clone());
    state.emit_change("price.updated", &before, &price);
    Ok(price)
}

pub(super) fn get(state: &State, kind: &str, id: &str, form: Form) -> Result<Value, ApiError> {
    form.finish()?;
    match kind {
        "product" => state.products.get(id).cloned().ok_or_else(|| ApiError::not_found("product", id)),
        _ => price(state, id).cloned(),
    }
}

pub(super) fn list(state: &State, kind: &str, mut form: Form) -> Result<Value, ApiError> {
    let active = form.flag("active")?;
    let objects = if kind == "product" { &state.products } else { &state.prices };
    let rows = objects.values().rev().filter(|row| active.is_none_or(|active| row["active"] == active));
    page(rows.cloned().collect(), form, &format!("/v1/{kind}s"))
}

pub(super) fn price<'a>(state: &'a State, id: &str) -> Result<&'a Value, ApiError> {
    state.prices.get(id).ok_or_else(|| ApiError::not_found("price", id))
}

/// Returns the interval of a price, or `None` if the price is paid once.
pub(super) fn interval(price: &Value) -> Option<Interval> {
    let recurring = &price["recurring"];
    let unit = match recurring["interval"].as_str()? {
        "day" => Unit::Day,
        "week" => Unit::Week,
        "month" => Unit::Month,
        _ => Unit::Year,
    };
    Some(Interval { unit, count: recurring["interval_count"].as_i64()? })
}
