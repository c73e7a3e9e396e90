//! Rankings of subjects, and pages of them.

use crate::base::fields::{Parsed, Violation};
use crate::base::limits::TOP_RANKS_MAX;
use crate::base::names::MeterKey;
use crate::base::window::Span;
use crate::pricing::currency::Currency;

/// The measure by which subjects are ranked, the largest first.
#[derive(Debug, Clone)]
pub enum RankBy {
    /// The own usage of each subject on a meter.
    Usage { meter: MeterKey, span: Span },
    /// The cost of each subject on a plan with prices, including all subjects below it. Without a
    /// currency, the currency of the catalog's first price.
    Cost { span: Span, currency: Option<Currency> },
    /// The used percentage of a quota, of one meter or of any.
    Limit { meter: Option<MeterKey> },
}

const CURSOR: &str = "must be the `next_cursor` of the previous page of the same ranking";

/// A page of consecutive ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RankPageRequest {
    /// The number of ranks before the page.
    pub after: usize,
    pub limit: usize,
}

impl RankPageRequest {
    /// Parses the cursor of a page. A ranking ends after [`TOP_RANKS_MAX`] ranks.
    pub fn read(cursor: Option<&str>, limit: u32) -> Parsed<Self> {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let Some(cursor) = cursor else { return Ok(Self { after: 0, limit }) };
        match cursor.parse::<usize>() {
            Ok(after) if after < TOP_RANKS_MAX => Ok(Self { after, limit: limit.min(TOP_RANKS_MAX - after) }),
            _ => Err(Violation::new("invalid_cursor", CURSOR).under("cursor").into()),
        }
    }

    /// Returns the cursor of the next page, if there is one.
    pub fn next(self, more: bool) -> Option<String> {
        let next = self.after + self.limit;
        (more && next < TOP_RANKS_MAX).then(|| next.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranking_pages_continue_up_to_the_last_rank() {
        let first = RankPageRequest::read(None, 50).unwrap();
        assert_eq!(first, RankPageRequest { after: 0, limit: 50 });
        assert_eq!((first.next(false), first.next(true).as_deref()), (None, Some("50")));
        let last = RankPageRequest::read(Some(&(TOP_RANKS_MAX - 10).to_string()), 50).unwrap();
        assert_eq!((last.limit, last.next(true)), (10, None));
        for wrong in ["-1", "x", "", &TOP_RANKS_MAX.to_string()] {
            assert_eq!(
                RankPageRequest::read(Some(wrong), 50).unwrap_err()[0].code,
                "invalid_cursor",
                "{wrong}"
            );
        }
    }
}
