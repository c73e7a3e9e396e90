//! Rating by Stripe's prices. Amounts are integers in units of 10^-12 of a minor unit, because Stripe's
//! amounts may have twelve decimals. This module uses no code of the service, so that it is an independent
//! check (<https://docs.stripe.com/products-prices/pricing-models>).

use serde_json::{Value, json};

use super::TierLines;
use super::errors::ApiError;
use super::forms::Form;

const DECIMALS: usize = 12;
const ONE: i128 = 1_000_000_000_000;

/// An invoice line: a quantity and an unrounded amount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rated {
    pub(super) quantity: i128,
    amount: i128,
}

impl Rated {
    /// Rounds to minor units, half away from zero: "rounding occurs on the line item level".
    pub(super) fn rounded(self) -> i64 {
        let away = if self.amount < 0 { -ONE / 2 } else { ONE / 2 };
        i64::try_from((self.amount + away) / ONE).unwrap_or(i64::MAX)
    }

    fn with(self, other: Self) -> Self {
        Self { quantity: self.quantity + other.quantity, amount: self.amount + other.amount }
    }
}

/// Reads an amount of a price or a tier, whole or decimal, and returns both fields.
pub(super) fn read_amount(form: &mut Form, name: &str) -> Result<(Value, Value), ApiError> {
    let whole = form.integer(name)?;
    let decimal = form.text(&format!("{name}_decimal"), 40)?;
    match (whole, decimal) {
        (None, None) => Ok((Value::Null, Value::Null)),
        (Some(whole), None) => Ok((json!(whole), json!(whole.to_string()))),
        (None, Some(text)) => {
            let read = decimal_of(&text).filter(|amount| *amount >= 0);
            let message = format!("Invalid decimal: {text} is not a decimal of at most {DECIMALS} places");
            let amount = read.ok_or_else(|| ApiError::bad_param(name, message))?;
            let whole = if amount % ONE == 0 { json!(amount / ONE) } else { Value::Null };
            Ok((whole, json!(text)))
        }
        (Some(_), Some(_)) => {
            Err(ApiError::bad_param(name, format!("You may only specify one of {name} and {name}_decimal.")))
        }
    }
}

/// Reads tiers (`tiers[0][up_to]=inf&tiers[0][unit_amount_decimal]=…`), which rise and end with `inf`.
pub(super) fn read_tiers(form: &mut Form) -> Result<Vec<Value>, ApiError> {
    let mut tiers = Vec::new();
    let mut below = 0;
    let forms = form.list("tiers")?;
    let count = forms.len();
    for (index, mut tier) in forms.into_iter().enumerate() {
        let is_last = index + 1 == count;
        let bound = tier.required("up_to", 40)?;
        let up_to = match bound.parse::<i64>() {
            _ if bound == "inf" && is_last => Value::Null,
            Ok(up_to) if up_to > below && !is_last => {
                below = up_to;
                json!(up_to)
            }
            _ => return Err(ApiError::bad_param("tiers", format!("Invalid up_to: {bound}"))),
        };
        let (unit_amount, unit_amount_decimal) = read_amount(&mut tier, "unit_amount")?;
        let (flat_amount, flat_amount_decimal) = read_amount(&mut tier, "flat_amount")?;
        tier.finish()?;
        if unit_amount_decimal.is_null() && flat_amount_decimal.is_null() {
            return Err(ApiError::bad_param("tiers", "A tier needs unit_amount or flat_amount."));
        }
        tiers.push(json!({
            "up_to": up_to, "unit_amount": unit_amount, "unit_amount_decimal": unit_amount_decimal,
            "flat_amount": flat_amount, "flat_amount_decimal": flat_amount_decimal,
        }));
    }
    Ok(tiers)
}

/// Rates a quantity. Returns one line, or one per reached tier.
pub(super) fn rate(price: &Value, quantity: i128, of_tiers: TierLines) -> Vec<Rated> {
    let tiers = price["tiers"].as_array().map_or(&[][..], Vec::as_slice);
    let lines = match price["tiers_mode"].as_str() {
        Some("graduated") => graduated(tiers, quantity),
        Some(_) => {
            let fits =
                |tier: &&Value| tier["up_to"].as_i64().is_none_or(|up_to| quantity <= i128::from(up_to));
            tiers.iter().find(fits).map(|tier| of_tier(tier, quantity)).into_iter().collect()
        }
        None => {
            let transform = &price["transform_quantity"];
            let units = match transform["divide_by"].as_i64().map(i128::from) {
                None => quantity,
                Some(by) if transform["round"] == "up" => (quantity + by - 1) / by,
                Some(by) => quantity / by,
            };
            vec![Rated { quantity: units, amount: units * decimal(&price["unit_amount_decimal"]) }]
        }
    };
    if of_tiers == TierLines::Apart {
        return lines;
    }
    lines.into_iter().reduce(Rated::with).into_iter().collect()
}

/// Rates from the highest tier down: usage above a tier's lower bound belongs to that tier. The first tier's
/// flat amount is due even without usage.
fn graduated(tiers: &[Value], quantity: i128) -> Vec<Rated> {
    let mut rest = quantity;
    let mut lines = Vec::new();
    for index in (0..tiers.len()).rev() {
        let below =
            index.checked_sub(1).and_then(|before| tiers[before]["up_to"].as_i64()).map_or(0, i128::from);
        if rest > below || index == 0 {
            lines.push(of_tier(&tiers[index], rest - below));
            rest = below;
        }
    }
    lines.reverse();
    lines
}

fn of_tier(tier: &Value, quantity: i128) -> Rated {
    let amount = quantity * decimal(&tier["unit_amount_decimal"]) + decimal(&tier["flat_amount_decimal"]);
    Rated { quantity, amount }
}

fn decimal(value: &Value) -> i128 {
    value.as_str().and_then(decimal_of).unwrap_or_default()
}

fn decimal_of(text: &str) -> Option<i128> {
    let (whole, places) = text.split_once('.').unwrap_or((text, ""));
    if places.len() > DECIMALS || whole.is_empty() || whole.starts_with('+') {
        return None;
    }
    format!("{whole}{places:0<DECIMALS$}").parse().ok()
}
