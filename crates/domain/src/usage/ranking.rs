//! Rankings of subjects: what is asked, and a place in one.

use crate::base::fields::{Parsed, Violation};
use crate::base::limits::TOP_RANKS_MAX;
use crate::base::names::MeterKey;
use crate::base::window::Span;
use crate::pricing::currency::Currency;

/// By what subjects are ranked, the most first.
#[derive(Debug, Clone)]
pub enum RankBy {
    /// What each used of a meter, itself alone.
    Usage { meter: MeterKey, span: Span },
    /// What each that is on a plan with prices owes for itself and all below it; none: in the currency of
    /// the first price of the catalog.
    Cost { span: Span, currency: Option<Currency> },
    /// How much of a quota is used, in percent; of one meter, or of any.
    Limit { meter: Option<MeterKey> },
}

const CURSOR: &str = "must be the `next_cursor` of the previous page of the same ranking";

/// Some ranks in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RankPageRequest {
    /// How many come before them.
    pub after: usize,
    pub limit: usize,
}

impl RankPageRequest {
    /// After those of a page before; a ranking shows so many and not more.
    pub fn read(cursor: Option<&str>, limit: u32) -> Parsed<Self> {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let Some(cursor) = cursor else { return Ok(Self { after: 0, limit }) };
        match cursor.parse::<usize>() {
            Ok(after) if after < TOP_RANKS_MAX => Ok(Self { after, limit: limit.min(TOP_RANKS_MAX - after) }),
            _ => Err(Violation::new("invalid_cursor", CURSOR).under("cursor").into()),
        }
    }

    /// The cursor of the next page, if there are more.
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
