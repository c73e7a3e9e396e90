//! The units of a use that credits cover: the shares of the grants, and the relief of each limit.

use uuid::Uuid;

use super::wallet::{GrantShares, quantity_of, split};
use crate::base::quantity::{Quantity, Total};

/// The coverage of a use by the grants of one subject, for its own limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreditCoverage {
    pub subject_id: i64,
    /// The shares of the grants. A grant pays once, regardless of the number of limits.
    pub parts: GrantShares,
    pub shares: Vec<CoverageShare>,
}

/// The covered units that do not count against one limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CoverageShare {
    /// See [`crate::catalog::plan::Limit::definition`].
    pub definition: Uuid,
    pub covered: Quantity,
}

impl CreditCoverage {
    /// Splits the coverage after the first `at` of `of` units. The quota pays for the first units and credits
    /// for the last.
    pub fn split(&self, at: Quantity, of: Quantity) -> (Self, Self) {
        let first = |covered: Quantity| {
            // holds of older versions may cover more than their own quantity
            if at.is_zero() {
                return Quantity::default();
            }
            let reached = (Total::from(at) + covered.into() - of.into()).or_zero();
            reached.quantity().unwrap_or(Quantity::MAX).min(covered)
        };
        let (taken, left) = split(&self.parts, first(quantity_of(&self.parts)));
        let share = |share: &CoverageShare, covered: Quantity| CoverageShare { covered, ..*share };
        let taken_shares = self.shares.iter().map(|s| share(s, first(s.covered)));
        let left_shares = self.shares.iter().map(|s| share(s, s.covered.above(first(s.covered))));
        let cover = |parts, shares| Self { subject_id: self.subject_id, parts, shares };
        (cover(taken, with_something(taken_shares)), cover(left, with_something(left_shares)))
    }

    /// Removes the coverage of the last `back` units; returns the rest and the removed part.
    pub fn less(&self, back: Quantity) -> (Self, Self) {
        let (kept, given) = split(&self.parts, quantity_of(&self.parts).above(back));
        let share = |share: &CoverageShare, covered: Quantity| CoverageShare { covered, ..*share };
        let kept_shares = self.shares.iter().map(|s| share(s, s.covered.above(back)));
        let given_shares = self.shares.iter().map(|s| share(s, s.covered.min(back)));
        let cover = |parts, shares| Self { subject_id: self.subject_id, parts, shares };
        (cover(kept, with_something(kept_shares)), cover(given, with_something(given_shares)))
    }

    /// Adds the coverage of later units of the same use.
    pub fn add(&mut self, more: Self) {
        self.parts.extend(more.parts);
        for share in more.shares {
            match self.shares.iter_mut().find(|known| known.definition == share.definition) {
                Some(known) => {
                    let sum = Total::from(known.covered) + share.covered.into();
                    known.covered = sum.quantity().unwrap_or(Quantity::MAX);
                }
                None => self.shares.push(share),
            }
        }
    }

    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Returns the covered quantity of one counter.
    pub fn covered(&self, subject_id: i64, definition: Uuid) -> Total {
        let of = self.shares.iter().filter(|share| share.definition == definition);
        let sum = of.fold(Total::default(), |sum, share| sum + share.covered.into());
        if self.subject_id == subject_id { sum } else { Total::default() }
    }
}

fn with_something(shares: impl Iterator<Item = CoverageShare>) -> Vec<CoverageShare> {
    shares.filter(|share| !share.covered.is_zero()).collect()
}

/// Returns the quantity of a counter that several coverages cover together.
pub fn covered(covers: &[CreditCoverage], subject_id: i64, definition: Uuid) -> Total {
    covers.iter().fold(Total::default(), |sum, cover| sum + cover.covered(subject_id, definition))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credits::wallet::GrantShare;

    fn units(n: i64) -> Quantity {
        Total::from(n).quantity().unwrap()
    }

    fn shown(cover: &CreditCoverage) -> (String, Vec<String>) {
        (quantity_of(&cover.parts).to_string(), cover.shares.iter().map(|s| s.covered.to_string()).collect())
    }

    #[test]
    fn quota_covers_first_units_and_credits_the_rest() {
        let part = |n: u128, quantity: i64| GrantShare {
            grant: Uuid::from_u128(n),
            quantity: units(quantity).into(),
            amount: Total::from(quantity * 10),
        };
        // 10 units: the quota of one limit pays for 6, that of another for 8
        let share =
            |n: u128, covered: i64| CoverageShare { definition: Uuid::from_u128(n), covered: units(covered) };
        let cover = CreditCoverage {
            subject_id: 1,
            parts: vec![part(1, 3), part(2, 1)],
            shares: vec![share(1, 4), share(2, 2)],
        };
        let cases = [
            (0, "0", vec![]),
            (5, "0", vec![]),
            (7, "1", vec!["1"]),
            (9, "3", vec!["3", "1"]),
            (10, "4", vec!["4", "2"]),
        ];
        for (at, parts, shares) in cases {
            let (first, rest) = cover.split(units(at), units(10));
            assert_eq!(
                shown(&first),
                (parts.to_owned(), shares.iter().map(ToString::to_string).collect()),
                "{at}"
            );
            let sum = |n: u128| covered(&[first.clone(), rest.clone()], 1, Uuid::from_u128(n));
            assert_eq!((sum(1), sum(2)), (Total::from(4), Total::from(2)), "{at}");
        }
        let (kept, back) = cover.less(units(2));
        assert_eq!((shown(&kept).0.as_str(), back.parts.len()), ("2", 2));
        assert_eq!(shown(&kept).1, ["2"]);
    }
}
