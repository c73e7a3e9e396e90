//! Notices: a balance is below its threshold, or a top-up pack is due.

use serde::Serialize;

use crate::base::names::SubjectId;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NoticeKind {
    LowBalance,
    TopUpDue,
}

impl NoticeKind {
    pub const WORDS: [(&'static str, Self); 2] =
        [("low_balance", Self::LowBalance), ("top_up_due", Self::TopUpDue)];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::LowBalance => "low_balance",
            Self::TopUpDue => "top_up_due",
        }
    }
}

/// The filter of a list of notices.
#[derive(Debug, Clone, Default)]
pub struct NoticeFilter {
    pub subject: Option<SubjectId>,
    pub kind: Option<NoticeKind>,
}
