//! Spend caps: the most money that a subject may spend in a period.

use serde::Serialize;
use serde_json::Value;

use super::amount;
use super::amount::Amount;
use super::currency::Currency;
use crate::base::fields::{self, ObjectParser, Parsed, Violation};
use crate::base::limits::SPEND_CAPS_MAX;
use crate::base::names::ItemKey;
use crate::base::period::{Anchor, Cycle, Period};
use crate::base::timestamp::Timestamp;
use crate::base::window::{Span, Zone};
use crate::catalog::meter::has_repeats;

/// A cap on the cost of a subject and all subjects below it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SpendCap {
    pub key: ItemKey,
    /// The cap in minor units.
    pub amount: Amount,
    pub currency: Currency,
    pub period: Period,
    pub anchor: Anchor,
    pub timezone: Zone,
}

impl SpendCap {
    pub fn read(value: Value) -> Parsed<Self> {
        let mut fields = ObjectParser::new(value)?;
        let key = fields.required("key", |v| Ok(ItemKey::parse(fields::text(v)?)?));
        let amount = fields.required("amount", amount::read);
        let currency = fields.required("currency", Currency::read);
        let period = fields.required("period", |v| fields::one_of(v, &Period::WORDS));
        let anchor = fields.optional("anchor", |v| fields::one_of(v, &Anchor::WORDS));
        let timezone = fields.optional("timezone", |v| Zone::parse(&fields::text(v)?));
        let (key, amount, currency, period) = fields.finish_with((key, amount, currency, period))?;
        let (anchor, timezone) = (anchor.unwrap_or(Anchor::Calendar), timezone.unwrap_or_default());
        Ok(Self { key, amount, currency, period, anchor, timezone })
    }

    /// Reads `{"spend_caps": […]}`.
    pub fn read_all(value: Value) -> Parsed<Vec<Self>> {
        let mut fields = ObjectParser::new(value)?;
        let caps = fields.required("spend_caps", |v| fields::items(v, SPEND_CAPS_MAX, Self::read));
        let keys: Vec<&ItemKey> = caps.iter().flatten().map(|cap| &cap.key).collect();
        if has_repeats(&keys) {
            fields.add_error(
                Violation::new(
                    "duplicate_key",
                    "must not contain two spend caps with one key; rename or remove one",
                )
                .under("spend_caps"),
            );
        }
        let caps = fields.finish_with(caps)?;
        let violations: Vec<Violation> =
            Self::validate_not_withdrawn(&caps).map(|violation| violation.under("spend_caps")).collect();
        Violation::check_all(violations).map(|()| caps)
    }

    /// Returns the violations of caps in withdrawn currencies, each under the index of its cap.
    pub fn validate_not_withdrawn(caps: &[Self]) -> impl Iterator<Item = Violation> {
        let violation = |(index, cap): (usize, &Self)| {
            Some(cap.currency.validate_not_withdrawn()?.under(&index.to_string()))
        };
        caps.iter().enumerate().filter_map(violation)
    }

    /// Returns the period of the cap around an instant.
    pub fn period_at(&self, cycle: &Cycle, at: Timestamp) -> Span {
        self.period.around(at, self.anchor, &self.timezone, cycle)
    }
}
