//! Commitments: the minimum and maximum for the sum of all lines of a billing period. The difference is a
//! line of its own, so that a bill stays the sum of its rounded lines.

use serde::Serialize;
use serde_json::Value;

use super::amount;
use super::amount::{Amount, MinorUnits};
use super::currency::Currency;
use super::exchange::ExchangeRate;
use super::line::{Bound, LineModel, RatedLine};
use super::price::Price;
use crate::base::fields::{ObjectParser, Parsed, Violation};
use crate::base::quantity::Total;
use crate::catalog::meter::{Filter, has_repeats};

/// A commitment of a plan, or of a subscription that overrides it, for the bill in one currency.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Commitment {
    pub currency: Currency,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minimum_amount: Option<MinorUnits>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub maximum_amount: Option<MinorUnits>,
}

/// Reads a bound; bills have no fractions of minor units.
fn whole(value: Value) -> Parsed<MinorUnits> {
    let amount = amount::read(value)?;
    let units = amount.rounded();
    if Amount::from(&units) != amount {
        return Violation::only("invalid_amount", "must be a whole number of minor units");
    }
    Ok(units)
}

impl Commitment {
    pub fn read(value: Value) -> Parsed<Self> {
        let mut fields = ObjectParser::new(value)?;
        let currency = fields.required("currency", Currency::read);
        let minimum_amount = fields.optional("minimum_amount", whole);
        let maximum_amount = fields.optional("maximum_amount", whole);
        if minimum_amount.is_none() && maximum_amount.is_none() && !fields.has_errors() {
            let detail = "`minimum_amount` or `maximum_amount` is required";
            fields.add_error(Violation::new("missing_field", detail));
        }
        if let (Some(least), Some(most)) = (&minimum_amount, &maximum_amount)
            && most < least
        {
            let detail = "must be at least `minimum_amount`";
            fields.add_error(Violation::new("invalid_range", detail).under("maximum_amount"));
        }
        let currency = fields.finish_with(currency)?;
        Ok(Self { currency, minimum_amount, maximum_amount })
    }

    /// Converts the bounds to another currency, rounded to whole minor units.
    #[must_use]
    pub fn converted(&self, rate: &ExchangeRate) -> Self {
        let converted = |units: &MinorUnits| rate.converted(&units.into()).rounded();
        Self {
            currency: rate.to,
            minimum_amount: self.minimum_amount.as_ref().map(converted),
            maximum_amount: self.maximum_amount.as_ref().map(converted),
        }
    }

    /// Returns a line for each bound with the amount that brings `sum` within it. The amount is zero if the
    /// sum is within the bound.
    pub fn lines(&self, sum: &MinorUnits) -> impl Iterator<Item = RatedLine> + use<> {
        let least = self.minimum_amount.as_ref().map(|least| {
            let short = (least.clone() - sum.clone()).max(MinorUnits::default());
            line(Bound::Minimum, least, short)
        });
        let most = self.maximum_amount.as_ref().map(|most| {
            let beyond = (most.clone() - sum.clone()).min(MinorUnits::default());
            line(Bound::Maximum, most, beyond)
        });
        least.into_iter().chain(most)
    }

    /// Adds the line that brings the sum within the bounds, if it lies outside.
    pub fn complete(&self, lines: &mut Vec<RatedLine>) {
        let sum = lines.iter().map(|line| line.rounded_amount.clone()).sum();
        lines.extend(self.lines(&sum).filter(|line| !line.amount.is_zero()));
    }
}

fn line(bound: Bound, amount: &MinorUnits, difference: MinorUnits) -> RatedLine {
    RatedLine {
        price: None,
        meter: None,
        filter: Filter::default(),
        model: LineModel::Bound(bound),
        quantity: Total::default(),
        amount: (&difference).into(),
        rounded_amount: difference,
        tiers: Vec::new(),
        adjustment: Amount::default(),
        bound: Some(amount.clone()),
    }
}

/// Returns the violations of a list of commitments, each under its index. Each commitment needs its own
/// currency, in which there are prices.
pub fn validate_commitments<'p>(
    commitments: &[Commitment],
    prices: impl Iterator<Item = &'p Price> + Clone,
) -> Vec<Violation> {
    let mut violations = Vec::new();
    if has_repeats(&commitments.iter().map(|commitment| commitment.currency).collect::<Vec<_>>()) {
        violations.push(Violation::new(
            "duplicate_key",
            "must have one commitment per currency; merge those of one currency",
        ));
    }
    for (place, Commitment { currency, .. }) in commitments.iter().enumerate() {
        if !prices.clone().any(|price| price.currency == *currency) {
            let detail = format!(
                "must be a currency of a price in this catalog; got {currency}, in which nothing has a price"
            );
            let violation = Violation::new("unpriced_currency", detail);
            violations.push(violation.under("currency").under(&place.to_string()));
        }
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    use crate::base::timestamp::Timestamp;
    use crate::pricing::rating::RatedQuantity;

    fn of(minimum: Option<i64>, maximum: Option<i64>) -> Commitment {
        Commitment::read(json!({"currency": "usd", "minimum_amount": minimum, "maximum_amount": maximum}))
            .unwrap()
    }

    #[test]
    fn commitment_lines_keep_the_total_within_its_bounds() {
        let cases = [
            (Some(500), None, 0, "minimum 500"),
            (Some(500), None, 499, "minimum 1"),
            (Some(500), None, 500, ""),
            (Some(500), None, 501, ""),
            (Some(500), None, -20, "minimum 520"),
            (None, Some(900), 900, ""),
            (None, Some(900), 901, "maximum -1"),
            (None, Some(0), 7, "maximum -7"),
            (Some(500), Some(900), 0, "minimum 500"),
            (Some(500), Some(900), 700, ""),
            (Some(500), Some(900), 1000, "maximum -100"),
            (Some(500), Some(500), 1000, "maximum -500"),
            (Some(0), None, 0, ""),
        ];
        for (minimum, maximum, sum, expected) in cases {
            let lines = of(minimum, maximum).lines(&sum.into()).filter(|line| !line.amount.is_zero());
            let told = lines.map(|line| {
                let model = serde_json::to_value(line.model).unwrap();
                format!("{} {}", model.as_str().unwrap(), line.amount)
            });
            assert_eq!(told.collect::<Vec<_>>().join(", "), expected, "{minimum:?} {maximum:?} {sum}");
        }
    }

    #[test]
    fn commitments_convert_to_the_currency_of_the_lines() {
        let rate = ExchangeRate {
            from: Currency::parse("usd").unwrap(),
            to: Currency::parse("jpy").unwrap(),
            rate: Amount::from_decimal("150.5").unwrap(),
            as_of: Timestamp::MIN,
        };
        let yen = of(Some(333), Some(1_001)).converted(&rate);
        // the exact values are 501.165 and 1506.505 yen
        assert_eq!((yen.minimum_amount, yen.maximum_amount), (Some(501.into()), Some(1_507.into())));
    }

    #[test]
    fn invalid_commitments_are_refused_with_their_pointer() {
        let fee = json!({"key": "p", "model": "flat", "currency": "usd", "amount": 1});
        let prices = [Price::read(fee).unwrap()];
        let violation = |commitments: &Value| {
            let read = crate::base::fields::items(commitments.clone(), 10, Commitment::read);
            let violations = read.map_or_else(
                |violations| violations.to_vec(),
                |read| validate_commitments(&read, prices.iter()),
            );
            violations.first().map(|violation| (violation.pointer.clone(), violation.code))
        };
        let usd = json!({"currency": "usd", "minimum_amount": 1});
        let cases = [
            (json!([usd]), None),
            (json!([{"currency": "usd", "minimum_amount": 2, "maximum_amount": 2}]), None),
            (json!([{"currency": "usd", "minimum_amount": "2.0"}]), None),
            (
                json!([{"currency": "usd", "minimum_amount": 2, "maximum_amount": 1}]),
                Some(("/0/maximum_amount", "invalid_range")),
            ),
            (
                json!([{"currency": "usd", "minimum_amount": -1}]),
                Some(("/0/minimum_amount", "negative_amount")),
            ),
            (
                json!([{"currency": "usd", "maximum_amount": 0.5}]),
                Some(("/0/maximum_amount", "invalid_amount")),
            ),
            (
                json!([{"currency": "usd", "maximum_amount": "a"}]),
                Some(("/0/maximum_amount", "invalid_amount")),
            ),
            (json!([{"currency": "xyz", "minimum_amount": 1}]), Some(("/0/currency", "unknown_currency"))),
            (json!([{"minimum_amount": 1}]), Some(("/0/currency", "missing_field"))),
            (json!([{"currency": "usd"}]), Some(("/0", "missing_field"))),
            (
                json!([{"currency": "usd", "minimum_amount": 1, "period": "month"}]),
                Some(("/0/period", "unknown_field")),
            ),
            (json!([usd, usd]), Some(("", "duplicate_key"))),
            (
                json!([usd, {"currency": "eur", "minimum_amount": 1}]),
                Some(("/1/currency", "unpriced_currency")),
            ),
        ];
        for (commitments, expected) in cases {
            let expected = expected.map(|(pointer, code)| (pointer.to_owned(), code));
            assert_eq!(violation(&commitments), expected, "{commitments}");
        }
    }

    proptest! {
        /// A bill is the sum of its rounded lines and lies within the bounds.
        #[test]
        fn line_totals_lie_within_commitment_bounds(
            quantities in prop::collection::vec(-50_i64..2_000, 0..8),
            least in prop::option::of(0_i64..3_000), width in prop::option::of(0_i64..3_000),
        ) {
            prop_assume!(least.is_some() || width.is_some());
            let price = Price::read(json!({"key": "p", "meter": "m", "model": "per_unit", "currency": "usd",
                "unit_amount": 1, "per_units": 3})).unwrap();
            let rated = |quantity: &i64| price.rate(&RatedQuantity { quantity: (*quantity).into(), ..RatedQuantity::default() });
            let mut lines: Vec<RatedLine> = quantities.iter().map(rated).collect();
            let sum = |lines: &[RatedLine]| lines.iter().map(|line| line.rounded_amount.clone()).sum::<MinorUnits>();
            let before = sum(&lines);
            let most = width.map(|width| least.unwrap_or_default() + width);
            of(least, most).complete(&mut lines);
            let after = sum(&lines);
            let bounded = least.map_or(before.clone(), |least| before.max(least.into()));
            prop_assert_eq!(after, most.map_or(bounded.clone(), |most| bounded.min(most.into())));
            prop_assert!(lines.len() <= quantities.len() + 1);
        }
    }
}
