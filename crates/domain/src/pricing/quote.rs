//! Quotes: the cost of given quantities by given prices or by the prices of a plan.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use super::amount::MinorUnits;
use super::commitment::Commitment;
use super::cost_basis::CostBasis;
use super::currency::Currency;
use super::exchange::{ExchangeRate, Rates};
use super::line::RatedLine;
use super::price::Price;
use super::price_book::{PriceBook, nearest_to};
use super::rating::RatedQuantity;
use super::{commitment, price_book};
use crate::base::fields::{self, ObjectParser, Parsed, Violation};
use crate::base::limits::{CATALOG_ITEMS_MAX, QUOTE_VALUES_MAX};
use crate::base::names::{MeterKey, PlanKey};
use crate::base::quantity::{Quantity, Total};
use crate::base::timestamp::Timestamp;
use crate::catalog::Catalog;
use crate::usage::event::Properties;

/// The quantities to rate, and the prices to rate them by.
#[derive(Debug, Clone)]
pub struct QuoteRequest {
    pub basis: Basis,
    /// The currency of the quote. None means the currency of the first price.
    pub currency: Option<Currency>,
    pub usage: Vec<QuotedUse>,
    /// The instant at which the prices must be in force. None means now.
    pub at: Option<Timestamp>,
}

#[derive(Debug, Clone)]
pub enum Basis {
    Plan(PlanKey),
    Prices { prices: Vec<Price>, commitments: Vec<Commitment> },
}

#[derive(Debug, Clone)]
pub struct QuotedUse {
    pub meter: MeterKey,
    /// The values of the events; a single quantity is one event.
    pub values: Vec<Quantity>,
    pub properties: Properties,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Quote {
    pub currency: Currency,
    pub lines: Vec<RatedLine>,
    /// The sum of the rounded lines.
    pub total: MinorUnits,
    /// The rate from the currency of the prices to the requested one, if they differ.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exchange_rate: Option<ExchangeRate>,
    /// The usage that no price rates.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unpriced: Vec<Unpriced>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Unpriced {
    pub meter: MeterKey,
    pub quantity: Total,
}

impl QuoteRequest {
    pub fn read(value: Value) -> Parsed<Self> {
        let mut fields = ObjectParser::new(value)?;
        let plan = fields.optional("plan", |v| Ok(PlanKey::parse(fields::text(v)?)?));
        let prices = fields.optional("prices", |v| {
            let prices = fields::items(v, CATALOG_ITEMS_MAX, Price::read)?;
            price_book::validate_price_list(&prices, &[])?;
            Ok(prices)
        });
        let commitments = fields.list("commitments", CATALOG_ITEMS_MAX, Commitment::read);
        let currency = fields.optional("currency", Currency::read);
        let usage = fields.list("usage", CATALOG_ITEMS_MAX, QuotedUse::read);
        let at = fields.optional("at", fields::timestamp);
        if plan.is_some() && !commitments.is_empty() {
            let detail =
                "must not be given with `plan`, which has its own commitments; give them with `prices`";
            fields.add_error(Violation::new("conflicting_fields", detail).under("commitments"));
        }
        let basis = match (plan, prices) {
            (Some(plan), None) => Some(Basis::Plan(plan)),
            (None, Some(prices)) => {
                for violation in commitment::validate_commitments(&commitments, prices.iter()) {
                    fields.add_error(violation.under("commitments"));
                }
                Some(Basis::Prices { prices, commitments })
            }
            (Some(_), Some(_)) => {
                fields.add_error(Violation::new(
                    "conflicting_fields",
                    "`plan` and `prices` must not be given together; leave one out",
                ));
                None
            }
            (None, None) => {
                if !fields.has_errors() {
                    fields.add_error(
                        Violation::new("missing_field", "`plan` or `prices` is required").under("plan"),
                    );
                }
                None
            }
        };
        let basis = fields.finish_with(basis)?;
        Ok(Self { basis, currency, usage, at })
    }

    /// Rates the request under a catalog.
    pub fn rate(&self, catalog: &Catalog, rates: &Rates, now: Timestamp) -> Parsed<Quote> {
        let (prices, commitments) = self.prices(catalog)?;
        self.validate_unknown_meters(catalog, prices)?;
        let books = PriceBook::of_each_currency(prices);
        let Some(book) = nearest_to(&books, self.currency) else {
            return self.free();
        };
        let at = self.at.unwrap_or(now);
        let (mut used, mut unpriced) = (BTreeMap::new(), Vec::new());
        for entry in &self.usage {
            match book.rating(&entry.meter, &entry.properties, at) {
                Some(price) => {
                    let sum: &mut RatedQuantity = used.entry(&price.key).or_default();
                    *sum = sum.clone() + RatedQuantity::of_values(price, entry.values.iter().copied());
                }
                None => unpriced.push(entry.unpriced()),
            }
        }
        let exchange_rate = book.exchanged_to(self.currency, rates, at)?;
        let commitment = commitments.iter().find(|commitment| commitment.currency == book.currency);
        let basis = CostBasis { book, rate: exchange_rate.as_ref(), commitment };
        let line = |price: &Price| price.rate(used.get(&price.key).unwrap_or(&RatedQuantity::default()));
        let lines = basis.shown(book.prices().filter(|price| price.is_in_force(at)).map(line).collect());
        Ok(Quote {
            currency: basis.currency(),
            total: lines.iter().map(|line| line.rounded_amount.clone()).sum(),
            lines,
            exchange_rate,
            unpriced,
        })
    }

    fn prices<'a>(&'a self, catalog: &'a Catalog) -> Parsed<(&'a [Price], &'a [Commitment])> {
        match &self.basis {
            Basis::Prices { prices, commitments } => Ok((prices, commitments)),
            Basis::Plan(key) => {
                let plan = catalog.plan(key).ok_or_else(|| {
                    let detail = format!("must be the key of a plan in the catalog; got `{key}`");
                    Violation::new("unknown_plan", detail).under("plan")
                })?;
                Ok((&plan.prices, &plan.commitments))
            }
        }
    }

    fn validate_unknown_meters(&self, catalog: &Catalog, prices: &[Price]) -> Parsed<()> {
        let is_known = |meter: &MeterKey| {
            catalog.meter(meter).is_some() || prices.iter().any(|price| price.meter.as_ref() == Some(meter))
        };
        let violation = |(index, entry): (usize, &QuotedUse)| {
            let detail = format!("must be the key of a meter; got `{}`", entry.meter);
            Violation::new("unknown_meter", detail).under("meter").under(&index.to_string()).under("usage")
        };
        let unknown = self.usage.iter().enumerate().filter(|(_, entry)| !is_known(&entry.meter));
        let violations: Vec<Violation> = unknown.map(violation).collect();
        Violation::check_all(violations)
    }

    /// Returns an empty quote if there are no prices; the request must then name the currency.
    fn free(&self) -> Parsed<Quote> {
        let Some(currency) = self.currency else {
            let detail = "`currency` is required if there are no prices to take it from";
            return Err(Violation::new("missing_field", detail).under("currency").into());
        };
        let unpriced = self.usage.iter().map(QuotedUse::unpriced).collect();
        Ok(Quote { currency, lines: Vec::new(), total: MinorUnits::default(), exchange_rate: None, unpriced })
    }
}

impl QuotedUse {
    fn read(value: Value) -> Parsed<Self> {
        let mut fields = ObjectParser::new(value)?;
        let meter = fields.required("meter", |v| Ok(MeterKey::parse(fields::text(v)?)?));
        let quantity = fields.optional("quantity", fields::quantity);
        let values = fields.optional("values", |v| fields::items(v, QUOTE_VALUES_MAX, fields::quantity));
        let properties = fields.optional("properties", Properties::read).unwrap_or_default();
        let values = match (quantity, values) {
            (Some(quantity), None) => vec![quantity],
            (None, Some(values)) => values,
            (Some(_), Some(_)) => {
                fields.add_error(Violation::new(
                    "conflicting_fields",
                    "`quantity` and `values` must not be given together; leave one out",
                ));
                Vec::new()
            }
            (None, None) => {
                if !fields.has_errors() {
                    let detail = "`quantity` or `values` is required";
                    fields.add_error(Violation::new("missing_field", detail).under("quantity"));
                }
                Vec::new()
            }
        };
        let meter = fields.finish_with(meter)?;
        Ok(Self { meter, values, properties })
    }

    fn unpriced(&self) -> Unpriced {
        let quantity = self.values.iter().fold(Total::default(), |sum, value| sum + (*value).into());
        Unpriced { meter: self.meter.clone(), quantity }
    }
}
