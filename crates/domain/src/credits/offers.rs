//! Credits in the catalog: grants of a plan, packs for sale, and alerts for low balances.

use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use super::grant::{life, priority};
use super::recurrence::Rollover;
use super::unit::{Unit, above_zero, short_text};
use crate::base::fields::{self, ObjectParser, Parsed, Violation};
use crate::base::names::ItemKey;
use crate::base::period::{Anchor, Cycle, Period};
use crate::base::quantity::Quantity;
use crate::base::timestamp::Timestamp;
use crate::base::window::{Span, Zone};
use crate::catalog::stripe_price_ids::StripePriceIds;

/// The credits that a plan grants in each period, valid for that period.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PlanCredits {
    pub key: ItemKey,
    #[serde(flatten)]
    pub unit: Unit,
    pub amount: Quantity,
    pub priority: i32,
    pub period: Period,
    pub anchor: Anchor,
    pub timezone: Zone,
    #[serde(skip_serializing_if = "Rollover::is_none")]
    pub rollover: Rollover,
}

impl PlanCredits {
    pub fn read(value: Value) -> Parsed<Self> {
        let mut fields = ObjectParser::new(value)?;
        let key = fields.required("key", |v| Ok(ItemKey::parse(fields::text(v)?)?));
        let unit = Unit::take(&mut fields);
        let amount = fields.required("amount", above_zero);
        let priority = fields.optional("priority", priority).unwrap_or_default();
        let period =
            fields.optional("period", |v| fields::one_of(v, &Period::WORDS)).unwrap_or(Period::Billing);
        let anchor = fields.optional("anchor", |v| fields::one_of(v, &Anchor::WORDS));
        let timezone = fields.optional("timezone", |v| Zone::parse(&fields::text(v)?)).unwrap_or_default();
        let rollover = fields.optional("rollover", Rollover::read).unwrap_or_default();
        if matches!(period, Period::Minute | Period::Hour) {
            let violation = Violation::new("period_too_short", "must be `day` or longer");
            fields.add_error(violation.under("period"));
        }
        let (key, unit, amount) = fields.finish_with((key, unit, amount))?;
        let anchor = anchor.unwrap_or(Anchor::Subscription);
        Ok(Self { key, unit, amount, priority, period, anchor, timezone, rollover })
    }

    pub fn period_around(&self, at: Timestamp, cycle: &Cycle) -> Span {
        self.period.around(at, self.anchor, &self.timezone, cycle)
    }
}

/// A pack of credits that a customer buys with a price of the biller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CreditPack {
    pub key: ItemKey,
    pub name: String,
    #[serde(flatten)]
    pub unit: Unit,
    pub amount: Quantity,
    pub priority: i32,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "written")]
    pub expires_after: Option<Duration>,
    pub stripe_price_ids: StripePriceIds,
}

#[expect(clippy::ref_option, reason = "the shape that serde asks for")]
fn written<S: serde::Serializer>(life: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    match life {
        Some(life) => serializer.serialize_str(&format!("{}s", life.as_secs())),
        None => serializer.serialize_none(),
    }
}

impl CreditPack {
    pub fn read(value: Value) -> Parsed<Self> {
        let mut fields = ObjectParser::new(value)?;
        let key = fields.required("key", |v| Ok(ItemKey::parse(fields::text(v)?)?));
        let name = fields.optional("name", short_text);
        let unit = Unit::take(&mut fields);
        let amount = fields.required("amount", above_zero);
        let priority = fields.optional("priority", priority).unwrap_or_default();
        let expires_after = fields.optional("expires_after", life);
        let stripe_price_ids = fields.optional("stripe_price_ids", StripePriceIds::read);
        let (key, unit, amount) = fields.finish_with((key, unit, amount))?;
        Ok(Self {
            name: name.unwrap_or_else(|| key.to_string()),
            key,
            unit,
            amount,
            priority,
            expires_after,
            stripe_price_ids: stripe_price_ids.unwrap_or_default(),
        })
    }
}

/// An alert: creates a notice when the available balance of a unit falls below the threshold. If it names a
/// pack, it also creates a notice that the top-up is due.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CreditAlert {
    #[serde(flatten)]
    pub unit: Unit,
    pub below: Quantity,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_up: Option<ItemKey>,
}

impl CreditAlert {
    pub fn read(value: Value) -> Parsed<Self> {
        let mut fields = ObjectParser::new(value)?;
        let unit = Unit::take(&mut fields);
        let below = fields.required("below", above_zero);
        let top_up = fields.optional("top_up", |v| Ok(ItemKey::parse(fields::text(v)?)?));
        let (unit, below) = fields.finish_with((unit, below))?;
        Ok(Self { unit, below, top_up })
    }
}
