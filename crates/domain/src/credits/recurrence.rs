//! Grants that recur from period to period. At the end of a period the rollover carries at least `min` and at
//! most `max` unused credits, as in `OpenMeter` (<https://openmeter.io/docs/billing/entitlements/grant>). The
//! rest expires; a renewing grant adds its amount again.

use serde::Serialize;
use serde_json::Value;

use crate::base::fields::{self, ObjectParser, Parsed, Violation};
use crate::base::period::{Anchor, Cycle, Period};
use crate::base::quantity::{Quantity, Total};
use crate::base::timestamp::Timestamp;
use crate::base::window::{Span, Zone};

/// The unused credits of a period that carry over to the next: at least `min`, at most `max`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Rollover {
    pub min: Quantity,
    pub max: Quantity,
}

impl Rollover {
    pub fn read(value: Value) -> Parsed<Self> {
        let mut fields = ObjectParser::new(value)?;
        let min = fields.optional("min", fields::quota).unwrap_or_default();
        let max = fields.required("max", fields::quota);
        if max.is_some_and(|max| max < min) {
            fields.add_error(Violation::new("invalid_range", "must be at least `min`").under("max"));
        }
        let max = fields.finish_with(max)?;
        Ok(Self { min, max })
    }

    pub fn carried(&self, unused: Total) -> Total {
        unused.max(self.min.into()).min(self.max.into())
    }

    pub fn is_none(&self) -> bool {
        self.max.is_zero()
    }
}

/// The recurrence of a caller's grant. Periods start at the anchor; in short months they end on the last day.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Recurrence {
    pub period: Period,
    /// True if each period adds the amount again. False if only the rollover carries over.
    pub renews: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub anchor: Option<Timestamp>,
    /// The end of the recurrence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
}

/// The periods in which credits may recur; shorter ones are not allowed.
const PERIODS: [(&str, Period); 4] =
    [("day", Period::Day), ("week", Period::Week), ("month", Period::Month), ("year", Period::Year)];

impl Recurrence {
    /// Reads the fields `period`, `renews` and `rollover`.
    pub fn take(fields: &mut ObjectParser) -> (Option<Self>, Rollover) {
        let has_period = fields.has("period");
        for dependent in ["renews", "rollover"] {
            if fields.has(dependent) && !has_period {
                let detail = format!(
                    "`period` is required with `{dependent}`; add a period or leave out `{dependent}`"
                );
                fields.add_error(Violation::new("missing_field", detail).under(dependent));
            }
        }
        let period = fields.optional("period", |v| fields::one_of(v, &PERIODS));
        let renews = fields.optional("renews", fields::boolean).unwrap_or(true);
        let rollover = fields.optional("rollover", Rollover::read).unwrap_or_default();
        (period.map(|period| Self { period, renews, anchor: None, until: None }), rollover)
    }

    /// Reads a stored recurrence.
    pub fn read_kept(value: Value) -> Parsed<Self> {
        let mut fields = ObjectParser::new(value)?;
        let period = fields.required("period", |v| fields::one_of(v, &PERIODS));
        let renews = fields.required("renews", fields::boolean);
        let anchor = fields.optional("anchor", fields::timestamp);
        let until = fields.optional("until", fields::timestamp);
        let (period, renews) = fields.finish_with((period, renews))?;
        Ok(Self { period, renews, anchor, until })
    }

    #[must_use]
    pub fn beginning(self, at: Timestamp, until: Option<Timestamp>) -> Self {
        Self { anchor: Some(at), until, ..self }
    }

    /// Returns the period around an instant. `cycle` is the billing cycle of the subscription, if the grant
    /// follows one.
    pub fn period_around(&self, at: Timestamp, cycle: Option<&Cycle>) -> Span {
        let own = Cycle { anchor: self.anchor.unwrap_or(at), billing: None };
        self.period.around(at, Anchor::Subscription, &Zone::default(), cycle.unwrap_or(&own))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn rollover_carries_unused_credits_within_its_bounds() {
        let cases = [
            (json!({"max": 50}), 90, 50),
            (json!({"max": 50}), 30, 30),
            (json!({"max": 50}), 0, 0),
            (json!({"min": 20, "max": 50}), 0, 20),
            (json!({"min": 20, "max": 50}), 30, 30),
            (json!({"max": 0}), 30, 0),
        ];
        for (rollover, unused, expected) in cases {
            let carried = Rollover::read(rollover.clone()).unwrap().carried(Total::from(unused));
            assert_eq!(carried, Total::from(expected), "{rollover} {unused}");
        }
        assert_eq!(Rollover::read(json!({"min": 5, "max": 2})).unwrap_err()[0].code, "invalid_range");
        assert_eq!(Rollover::default().carried(Total::from(9)), Total::default());
    }
}
