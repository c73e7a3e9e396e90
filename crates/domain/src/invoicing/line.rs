//! Lines of invoices in their stored form. The lines of a numbered invoice never change.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Number, Value};

use crate::base::fields;
use crate::base::fields::{ObjectParser, Parsed};
use crate::base::names::PlanKey;
use crate::base::quantity::Total;
use crate::base::window::Span;
use crate::pricing::amount::MinorUnits;
use crate::pricing::commitment::Commitment;
use crate::pricing::line::{Bound, LineModel, RatedLine};
use crate::pricing::price::Price;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InvoiceLineKind {
    Usage,
    /// A fee for the plan as a whole, once per invoice.
    Fee,
    /// The difference that raises the sum of all lines to the minimum.
    Minimum,
    /// The difference that lowers the sum of all lines to the maximum.
    Maximum,
    /// The difference between an earlier invoice and its present computation.
    Correction,
}

impl InvoiceLineKind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Usage => "usage",
            Self::Fee => "fee",
            Self::Minimum => "minimum",
            Self::Maximum => "maximum",
            Self::Correction => "correction",
        }
    }
}

/// A time span in its written form.
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

/// A line of an invoice. Numbers are written in full, amounts are in minor units.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InvoiceLine {
    pub kind: InvoiceLineKind,
    pub plan: String,
    /// The name of the plan at the time of the invoice, if it had one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan_name: Option<String>,
    /// The key of the price; none for a bound of all lines.
    pub price: Option<String>,
    pub meter: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub meter_name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<BTreeMap<String, Vec<String>>>,
    pub model: String,
    /// The span of the usage; for a correction, the span of the corrected line.
    pub period: LinePeriod,
    /// The number of the corrected invoice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub corrects: Option<String>,
    pub quantity: Number,
    pub amount: Number,
    pub rounded_amount: Number,
    pub tiers: Vec<LineTier>,
    /// The fields of the price, without its tiers, that determine the amount.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub rates: BTreeMap<String, Value>,
    /// The amount that a minimum or maximum of the price adds or takes off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adjustment: Option<Number>,
    /// The minimum or maximum for the sum of all lines; only for a bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bound: Option<Number>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LineTier {
    pub up_to: Option<Number>,
    pub quantity: Number,
    pub unit_amount: Number,
    pub flat_amount: Number,
    pub amount: Number,
}

/// The fields of a price, without its tiers, that determine its amount.
const RATES: [&str; 10] = [
    "unit_amount",
    "per_units",
    "round",
    "rate",
    "fixed_amount",
    "event_minimum",
    "event_maximum",
    "free_units",
    "minimum_amount",
    "maximum_amount",
];

/// The identity of a line within an invoice.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct InvoiceLineKey {
    plan: String,
    price: Option<String>,
    model: String,
    period: LinePeriod,
}

/// The values of a line that a correction changes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BilledAmount {
    pub quantity: Total,
    pub amount: MinorUnits,
}

fn number(text: String) -> Number {
    // decimals written in full always parse as JSON numbers
    text.parse().unwrap_or_else(|_| Number::from(0))
}

impl InvoiceLine {
    pub fn of(plan: &PlanKey, span: Span, line: &RatedLine) -> Self {
        let tiers = line.tiers.iter().map(|tier| LineTier {
            up_to: tier.up_to.map(|up_to| number(up_to.to_string())),
            quantity: number(tier.quantity.to_string()),
            unit_amount: number(tier.unit_amount.to_string()),
            flat_amount: number(tier.flat_amount.to_string()),
            amount: number(tier.amount.to_string()),
        });
        let filter: BTreeMap<String, Vec<String>> =
            line.filter.iter().map(|(name, values)| (name.to_owned(), values.to_vec())).collect();
        // enum names always serialise
        let model = serde_json::to_value(line.model).unwrap_or_default();
        Self {
            kind: match (line.model, &line.meter) {
                (LineModel::Bound(Bound::Minimum), _) => InvoiceLineKind::Minimum,
                (LineModel::Bound(Bound::Maximum), _) => InvoiceLineKind::Maximum,
                (_, Some(_)) => InvoiceLineKind::Usage,
                (_, None) => InvoiceLineKind::Fee,
            },
            plan: plan.to_string(),
            plan_name: None,
            price: line.price.as_ref().map(ToString::to_string),
            meter: line.meter.as_ref().map(ToString::to_string),
            meter_name: None,
            filter: (!filter.is_empty()).then_some(filter),
            model: model.as_str().unwrap_or_default().to_owned(),
            period: span.into(),
            corrects: None,
            quantity: number(line.quantity.to_string()),
            amount: number(line.amount.to_string()),
            rounded_amount: number(line.rounded_amount.to_string()),
            tiers: tiers.collect(),
            rates: BTreeMap::new(),
            adjustment: (!line.adjustment.is_zero()).then(|| number(line.adjustment.to_string())),
            bound: line.bound.as_ref().map(|bound| number(bound.to_string())),
        }
    }

    /// Adds the fields of the price that determine the amount, and the names of the plan and the meter.
    #[must_use]
    pub fn explained(self, price: &Price, plan_name: Option<String>, meter_name: Option<String>) -> Self {
        // prices always serialise
        let fields = serde_json::to_value(price).unwrap_or_default();
        let said = |name: &&str| match &fields[*name] {
            Value::Null => None,
            // zero free units and single units are the defaults
            value if *name == "free_units" && *value == 0 => None,
            value if *name == "per_units" && *value == 1 => None,
            value => Some(((*name).to_owned(), value.clone())),
        };
        Self { rates: RATES.iter().filter_map(said).collect(), plan_name, meter_name, ..self }
    }

    pub fn key(&self) -> InvoiceLineKey {
        InvoiceLineKey {
            plan: self.plan.clone(),
            price: self.price.clone(),
            model: self.model.clone(),
            period: self.period.clone(),
        }
    }

    /// Returns whether the line is a commitment with nothing to adjust; such a line is not shown.
    pub fn is_kept_to(&self) -> bool {
        matches!(self.kind, InvoiceLineKind::Minimum | InvoiceLineKind::Maximum)
            && self.rounded() == MinorUnits::default()
    }

    pub fn rounded(&self) -> MinorUnits {
        MinorUnits::parse(self.rounded_amount.as_str()).unwrap_or_default()
    }

    pub fn billed(&self) -> BilledAmount {
        let quantity = Total::from_decimal(self.quantity.as_str()).unwrap_or_default();
        BilledAmount { quantity, amount: self.rounded() }
    }

    /// Returns the same line with zero usage.
    #[must_use]
    pub fn unused(&self) -> Self {
        let nothing = || Number::from(0);
        Self { quantity: nothing(), amount: nothing(), rounded_amount: nothing(), ..self.clone() }
    }

    /// Returns the correction line for the difference to the amounts billed so far, or none without a
    /// difference.
    pub fn correction(&self, so_far: &BilledAmount, corrects: &str) -> Option<Self> {
        let now = self.billed();
        let amount = now.amount - so_far.amount.clone();
        if amount == MinorUnits::default() {
            return None;
        }
        Some(Self {
            kind: InvoiceLineKind::Correction,
            corrects: Some(corrects.to_owned()),
            quantity: number((now.quantity - so_far.quantity).to_string()),
            amount: number(amount.to_string()),
            rounded_amount: number(amount.to_string()),
            tiers: Vec::new(),
            rates: BTreeMap::new(),
            adjustment: None,
            bound: None,
            ..self.clone()
        })
    }
}

/// Returns the sum of the rounded lines.
pub fn total(lines: &[InvoiceLine]) -> MinorUnits {
    lines.iter().map(InvoiceLine::rounded).sum()
}

/// The terms by which one part of a billing period is rated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RatingTerms {
    pub plan: PlanKey,
    /// The name of the plan, if it has one.
    pub plan_name: Option<String>,
    pub span: Span,
    /// False if usage in this span is free, as in a trial.
    pub is_billed: bool,
    /// The prices of the plan and of the subscription in the invoice's currency.
    pub prices: Vec<Price>,
    /// The commitment for the whole invoice. Only the last plan of the period has it, as with fees.
    pub commitment: Option<Commitment>,
    /// True if the fees of the plan fall due in this span. Only the last plan of the period charges them.
    pub with_fees: bool,
    /// True if another customer owes the fixed amounts, so that only usage is billed here.
    pub only_used: bool,
}

impl RatingTerms {
    pub fn to_json(&self) -> Value {
        serde_json::json!({
            "plan": self.plan,
            "plan_name": self.plan_name,
            "period": self.span,
            "billed": self.is_billed,
            "with_fees": self.with_fees,
            "only_used": self.only_used,
            "prices": self.prices,
            "commitment": self.commitment,
        })
    }

    pub fn read(value: Value) -> Parsed<Self> {
        let mut fields = ObjectParser::new(value)?;
        let plan = fields.required("plan", |v| Ok(PlanKey::parse(fields::text(v)?)?));
        let plan_name = fields.optional("plan_name", fields::text);
        let span = fields.required("period", |v| {
            let mut period = ObjectParser::new(v)?;
            let (from, to) =
                (period.required("start", fields::timestamp), period.required("end", fields::timestamp));
            let (from, to) = period.finish_with((from, to))?;
            Ok(Span { from, to })
        });
        let is_billed = fields.required("billed", fields::boolean);
        let with_fees = fields.required("with_fees", fields::boolean);
        let only_used = fields.optional("only_used", fields::boolean).unwrap_or_default();
        let prices = fields.required("prices", |v| fields::items(v, usize::MAX, Price::read));
        let commitment = fields.optional("commitment", Commitment::read);
        let (plan, span, is_billed, with_fees, prices) =
            fields.finish_with((plan, span, is_billed, with_fees, prices))?;
        Ok(Self { plan, plan_name, span, is_billed, prices, commitment, with_fees, only_used })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::timestamp::Timestamp;
    use crate::pricing::rating::RatedQuantity;
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

    fn minimum(amount: i64) -> Commitment {
        Commitment::read(json!({"currency": "usd", "minimum_amount": amount})).unwrap()
    }

    fn line(quantity: i64) -> InvoiceLine {
        let used = RatedQuantity { quantity: quantity.into(), ..RatedQuantity::default() };
        InvoiceLine::of(&PlanKey::parse("pro").unwrap(), span(), &price().rate(&used))
    }

    #[test]
    fn stored_invoice_lines_read_back_unchanged() {
        let terms = RatingTerms {
            plan: PlanKey::parse("pro").unwrap(),
            plan_name: Some("Pro".to_owned()),
            span: span(),
            is_billed: true,
            prices: vec![price()],
            commitment: Some(minimum(500)),
            with_fees: true,
            only_used: true,
        };
        assert_eq!(RatingTerms::read(terms.to_json()).unwrap(), terms);
        // the stored form before commitments existed
        let mut older = terms.to_json();
        for later in ["commitment", "only_used", "plan_name"] {
            older.as_object_mut().unwrap().remove(later);
        }
        assert_eq!(
            RatingTerms::read(older).unwrap(),
            RatingTerms { commitment: None, only_used: false, plan_name: None, ..terms }
        );
        let line = line(25).explained(&price(), None, Some("AI".to_owned()));
        assert_eq!(line.rates.keys().collect::<Vec<_>>(), ["minimum_amount"]);
        let text = serde_json::to_string(&line).unwrap();
        assert_eq!(serde_json::from_str::<InvoiceLine>(&text).unwrap(), line);
        assert_eq!((line.rounded_amount.as_str(), line.amount.as_str()), ("23", "23.23456789012"));
    }

    #[test]
    fn late_usage_reduces_the_minimum_charge() {
        let of = |sum: i64| {
            let bound = minimum(500).lines(&sum.into()).next().unwrap();
            InvoiceLine::of(&PlanKey::parse("pro").unwrap(), span(), &bound)
        };
        let first = of(200);
        assert_eq!(
            (first.kind, first.price.clone(), first.is_kept_to()),
            (InvoiceLineKind::Minimum, None, false)
        );
        assert!(of(500).is_kept_to());
        assert_eq!(first.key(), of(900).key());
        // 100 more units reduce the minimum charge by 100; beyond the minimum it is refunded in full
        for (sum, expected) in [(200, None), (300, Some("-100")), (900, Some("-300"))] {
            let correction = of(sum).correction(&first.billed(), "MG-000001");
            assert_eq!(correction.as_ref().map(|line| line.rounded_amount.as_str()), expected, "{sum}");
        }
        let text = serde_json::to_string(&first).unwrap();
        assert_eq!(serde_json::from_str::<InvoiceLine>(&text).unwrap(), first);
    }

    #[test]
    fn corrections_bill_the_difference_to_all_earlier_lines() {
        let first = line(25);
        assert_eq!(line(25).correction(&first.billed(), "MG-000001"), None);
        let more = line(40).correction(&first.billed(), "MG-000001").unwrap();
        assert_eq!((more.quantity.as_str(), more.rounded_amount.as_str()), ("15", "15"));
        let less = line(0).correction(&first.billed(), "MG-000001").unwrap();
        assert_eq!(less.rounded_amount.as_str(), "-23");
        assert_eq!(total(&[first, more, less]).to_string(), "15");
    }
}
