//! Lines of invoices, as they are kept: what was numbered says for ever what it said then.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Number, Value};

use super::timeline::Stretch;
use crate::domain::fields;
use crate::domain::fields::{Fields, Read};
use crate::domain::names::PlanKey;
use crate::domain::pricing::amount::MinorUnits;
use crate::domain::pricing::price::Price;
use crate::domain::pricing::rating::Line;
use crate::domain::quantity::Total;
use crate::domain::window::Span;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Usage,
    /// For a plan as a whole, once an invoice.
    Fee,
    /// What an earlier invoice would have said differently, had it known what is known now.
    Correction,
}

impl Kind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Usage => "usage",
            Self::Fee => "fee",
            Self::Correction => "correction",
        }
    }
}

/// A time, as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LinePeriod {
    pub start: String,
    pub end: String,
}

impl From<Span> for LinePeriod {
    fn from(span: Span) -> Self {
        Self { start: span.from.to_string(), end: span.to.to_string() }
    }
}

/// A line; numbers in full, amounts in minor units.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InvoiceLine {
    pub kind: Kind,
    pub plan: String,
    pub price: String,
    pub meter: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<BTreeMap<String, Vec<String>>>,
    pub model: String,
    /// Of a correction: of what it corrects.
    pub period: LinePeriod,
    /// The number of the invoice that is corrected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub corrects: Option<String>,
    pub quantity: Number,
    pub amount: Number,
    pub rounded_amount: Number,
    pub tiers: Vec<LineTier>,
    /// What a minimum or a maximum of the price adds or takes off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adjustment: Option<Number>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LineTier {
    pub up_to: Option<Number>,
    pub quantity: Number,
    pub unit_amount: Number,
    pub flat_amount: Number,
    pub amount: Number,
}

/// What tells the lines of an invoice apart.
pub type LineKey = (String, String, LinePeriod);

/// What of a line a correction changes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Billed {
    pub quantity: Total,
    pub amount: MinorUnits,
}

fn number(text: String) -> Number {
    // decimals in full are always numbers
    text.parse().unwrap_or_else(|_| Number::from(0))
}

impl InvoiceLine {
    pub fn of(plan: &PlanKey, span: Span, line: &Line) -> Self {
        let tiers = line.tiers.iter().map(|tier| LineTier {
            up_to: tier.up_to.map(|up_to| number(up_to.to_string())),
            quantity: number(tier.quantity.to_string()),
            unit_amount: number(tier.unit_amount.to_string()),
            flat_amount: number(tier.flat_amount.to_string()),
            amount: number(tier.amount.to_string()),
        });
        let filter: BTreeMap<String, Vec<String>> =
            line.filter.iter().map(|(name, values)| (name.to_owned(), values.to_vec())).collect();
        // words always serialise
        let model = serde_json::to_value(line.model).unwrap_or_default();
        Self {
            kind: if line.meter.is_some() { Kind::Usage } else { Kind::Fee },
            plan: plan.to_string(),
            price: line.price.to_string(),
            meter: line.meter.as_ref().map(ToString::to_string),
            filter: (!filter.is_empty()).then_some(filter),
            model: model.as_str().unwrap_or_default().to_owned(),
            period: span.into(),
            corrects: None,
            quantity: number(line.quantity.to_string()),
            amount: number(line.amount.to_string()),
            rounded_amount: number(line.rounded_amount.to_string()),
            tiers: tiers.collect(),
            adjustment: (!line.adjustment.is_zero()).then(|| number(line.adjustment.to_string())),
        }
    }

    pub fn key(&self) -> LineKey {
        (self.plan.clone(), self.price.clone(), self.period.clone())
    }

    pub fn rounded(&self) -> MinorUnits {
        MinorUnits::parse(self.rounded_amount.as_str()).unwrap_or_default()
    }

    pub fn billed(&self) -> Billed {
        let quantity = Total::from_decimal(self.quantity.as_str()).unwrap_or_default();
        Billed { quantity, amount: self.rounded() }
    }

    /// What is to be charged or given back, where it comes to other than what was billed so far.
    pub fn correction(&self, so_far: &Billed, corrects: &str) -> Option<Self> {
        let now = self.billed();
        let amount = now.amount - so_far.amount.clone();
        if amount == MinorUnits::default() {
            return None;
        }
        Some(Self {
            kind: Kind::Correction,
            corrects: Some(corrects.to_owned()),
            quantity: number((now.quantity - so_far.quantity).to_string()),
            amount: number(amount.to_string()),
            rounded_amount: number(amount.to_string()),
            tiers: Vec::new(),
            adjustment: None,
            ..self.clone()
        })
    }
}

/// The sum of rounded lines.
pub fn total(lines: &[InvoiceLine]) -> MinorUnits {
    lines.iter().map(InvoiceLine::rounded).sum()
}

/// By what a stretch of a period was rated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terms {
    pub stretch: Stretch,
    /// Those of the plan in the invoice's currency.
    pub prices: Vec<Price>,
    /// Whether fees of the plan as a whole fall due with it: once, by the last.
    pub with_fees: bool,
}

impl Terms {
    pub fn to_json(&self) -> Value {
        serde_json::json!({
            "plan": self.stretch.plan,
            "period": self.stretch.span,
            "billed": self.stretch.is_billed,
            "with_fees": self.with_fees,
            "prices": self.prices,
        })
    }

    pub fn read(value: Value) -> Read<Self> {
        let mut fields = Fields::of(value)?;
        let plan = fields.required("plan", |v| Ok(PlanKey::parse(fields::text(v)?)?));
        let span = fields.required("period", |v| {
            let mut period = Fields::of(v)?;
            let (from, to) =
                (period.required("start", fields::timestamp), period.required("end", fields::timestamp));
            period.finish()?;
            let (Some(from), Some(to)) = (from, to) else { return Err(Vec::new()) };
            Ok(Span { from, to })
        });
        let is_billed = fields.required("billed", fields::boolean);
        let with_fees = fields.required("with_fees", fields::boolean);
        let prices = fields.required("prices", |v| fields::items(v, usize::MAX, Price::read));
        fields.finish()?;
        let (Some(plan), Some(span), Some(is_billed), Some(with_fees), Some(prices)) =
            (plan, span, is_billed, with_fees, prices)
        else {
            return Err(Vec::new());
        };
        Ok(Self { stretch: Stretch { plan, span, is_billed }, prices, with_fees })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::pricing::rating::Used;
    use crate::domain::timestamp::Timestamp;
    use serde_json::json;

    fn span() -> Span {
        let at = |text| Timestamp::parse(text).unwrap();
        Span { from: at("2026-01-31T00:00:00Z"), to: at("2026-02-28T00:00:00Z") }
    }

    fn price() -> Price {
        Price::read(json!({"key": "tokens", "meter": "ai", "filter": {"model": ["a"]}, "model": "graduated", "currency": "usd",
            "effective_from": "2026-01-01T00:00:00Z", "stripe_price_id": "price_1", "minimum_amount": "0.000000000001",
            "tiers": [{"up_to": 10, "unit_amount": "0.123456789012"}, {"up_to": null, "unit_amount": 1, "flat_amount": 7}]}))
        .unwrap()
    }

    fn line(quantity: i64) -> InvoiceLine {
        let used = Used { quantity: quantity.into(), ..Used::default() };
        InvoiceLine::of(&PlanKey::parse("pro").unwrap(), span(), &price().rate(&used))
    }

    #[test]
    fn what_is_kept_reads_back_as_it_was() {
        let terms = Terms {
            stretch: Stretch { plan: PlanKey::parse("pro").unwrap(), span: span(), is_billed: true },
            prices: vec![price()],
            with_fees: true,
        };
        assert_eq!(Terms::read(terms.to_json()).unwrap(), terms);
        let line = line(25);
        let text = serde_json::to_string(&line).unwrap();
        assert_eq!(serde_json::from_str::<InvoiceLine>(&text).unwrap(), line);
        assert_eq!((line.rounded_amount.as_str(), line.amount.as_str()), ("23", "23.23456789012"));
    }

    #[test]
    fn a_correction_is_the_difference_to_all_that_was_billed() {
        let first = line(25);
        assert_eq!(line(25).correction(&first.billed(), "MG-000001"), None);
        let more = line(40).correction(&first.billed(), "MG-000001").unwrap();
        assert_eq!((more.quantity.as_str(), more.rounded_amount.as_str()), ("15", "15"));
        let less = line(0).correction(&first.billed(), "MG-000001").unwrap();
        assert_eq!(less.rounded_amount.as_str(), "-23");
        assert_eq!(total(&[first, more, less]).to_string(), "15");
    }
}
