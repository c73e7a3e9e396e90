//! The customers that a subject was mapped to, with their times. A period may have several customers; one of
//! them owes the fixed fees.

use crate::base::timestamp::Timestamp;
use crate::base::window::Span;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapping {
    pub customer_id: i64,
    pub from: Timestamp,
    /// The end of the mapping. None means that it still holds.
    pub until: Option<Timestamp>,
}

/// The mappings of a subject, in the order of their creation.
#[derive(Debug, Clone, Default)]
pub struct Mappings(Vec<Mapping>);

impl Mappings {
    pub fn of(mappings: Vec<Mapping>) -> Self {
        Self(mappings)
    }

    /// Returns the last customer that the subject was mapped to within a span. That customer owes the fees.
    pub fn last_in(&self, span: Span) -> Option<i64> {
        let meets = |it: &&Mapping| it.from < span.to && it.until.is_none_or(|until| until > span.from);
        self.0.iter().rev().find(meets).map(|it| it.customer_id)
    }

    /// Returns the first and last instant at which usage may have been recorded for a customer, both
    /// inclusive.
    pub fn reach(&self, customer_id: i64) -> Option<(Timestamp, Timestamp)> {
        let own = || self.0.iter().filter(|it| it.customer_id == customer_id);
        let until = own().map(|it| it.until.unwrap_or(Timestamp::MAX)).max()?;
        Some((own().map(|it| it.from).min()?, until))
    }

    /// Returns all customers without duplicates.
    pub fn customers(&self) -> Vec<i64> {
        let mut customers: Vec<i64> = self.0.iter().map(|it| it.customer_id).collect();
        customers.sort_unstable();
        customers.dedup();
        customers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn day(number: i32) -> Timestamp {
        Timestamp::parse(&format!("2026-01-{number:02}T00:00:00Z")).unwrap()
    }

    /// Builds mappings from `(customer, from, until)`, with days of January.
    fn mappings(of: &[(i64, i32, Option<i32>)]) -> Mappings {
        Mappings::of(
            of.iter()
                .map(|(customer_id, from, until)| Mapping {
                    customer_id: *customer_id,
                    from: day(*from),
                    until: until.map(day),
                })
                .collect(),
        )
    }

    /// Mappings, a span, and the customer that owes its fees.
    type Case<'a> = (&'a [(i64, i32, Option<i32>)], (i32, i32), Option<i64>);

    #[test]
    fn last_customer_mapped_in_a_period_owes_its_fees() {
        let cases: &[Case<'_>] = &[
            (&[(1, 1, None)], (10, 20), Some(1)),
            (&[(1, 1, None)], (1, 2), Some(1)),
            // mapped within the span, at its end, and after it
            (&[(1, 15, None)], (10, 20), Some(1)),
            (&[(1, 20, None)], (10, 20), None),
            (&[(1, 21, None)], (10, 20), None),
            // another customer within the span; a mapping at its end belongs to the next period
            (&[(1, 1, Some(15)), (2, 15, None)], (10, 20), Some(2)),
            (&[(1, 1, Some(20)), (2, 20, None)], (10, 20), Some(1)),
            (&[(1, 1, Some(10)), (2, 10, None)], (10, 20), Some(2)),
            // unmapped within the span, and before it
            (&[(1, 1, Some(15))], (10, 20), Some(1)),
            (&[(1, 1, Some(10))], (10, 20), None),
            // a mapping of zero length
            (&[(1, 12, Some(12)), (2, 12, None)], (10, 20), Some(2)),
            (&[(1, 12, Some(12))], (10, 20), Some(1)),
            // mapped away and back
            (&[(1, 1, Some(12)), (2, 12, Some(14)), (1, 14, None)], (10, 20), Some(1)),
            (&[], (10, 20), None),
        ];
        for (given, (from, to), expected) in cases {
            let span = Span { from: day(*from), to: day(*to) };
            assert_eq!(mappings(given).last_in(span), *expected, "{given:?} {span:?}");
        }
        let back = mappings(&[(1, 2, Some(12)), (2, 12, Some(14)), (1, 14, Some(16))]);
        assert_eq!(back.reach(1), Some((day(2), day(16))));
        assert_eq!((back.reach(2), back.reach(3)), (Some((day(12), day(14))), None));
        assert_eq!(back.customers(), [1, 2]);
    }
}
