//! Notices: a balance has fallen below what its plan calls low, or a pack is due that would raise it.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::engine::{Engine, EngineError, cursor};
use crate::store;
use crate::store::credits::notices::{CreditNotice, NoticeRow};
use metergate_domain::base::environment::Environment;
use metergate_domain::base::quantity::{Quantity, Total};
use metergate_domain::base::timestamp::Timestamp;
use metergate_domain::credits::offers::CreditAlert;
use metergate_domain::credits::unit::Unit;

/// What is to be noted where balances went from one state to another.
pub(super) fn due(
    alerts: &[CreditAlert],
    subject_id: i64,
    before: Option<&BTreeMap<Unit, Total>>,
    after: &BTreeMap<Unit, Total>,
    at: Timestamp,
) -> Vec<CreditNotice> {
    let mut found = Vec::new();
    for alert in alerts {
        let of = |balances: Option<&BTreeMap<Unit, Total>>| {
            balances.and_then(|balances| balances.get(&alert.unit)).copied().unwrap_or_default()
        };
        let (was, balance, threshold) = (of(before), of(Some(after)), alert.below);
        if was < threshold.into() || balance >= threshold.into() {
            continue;
        }
        let notice = |kind, pack: Option<String>| CreditNotice {
            subject_id,
            kind,
            unit: alert.unit.clone(),
            balance,
            threshold,
            pack,
            at,
        };
        found.push(notice("low_balance", None));
        if let Some(pack) = &alert.top_up {
            found.push(notice("top_up_due", Some(pack.to_string())));
        }
    }
    found
}

#[derive(Debug, Clone, Serialize)]
pub struct NoticeView {
    pub id: i64,
    pub kind: String,
    pub subject: String,
    #[serde(flatten)]
    pub unit: Unit,
    pub balance: Total,
    pub threshold: Quantity,
    /// For a top-up: what to buy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pack: Option<String>,
    pub at: Timestamp,
}

#[derive(Debug, Clone, Serialize)]
pub struct NoticePage {
    pub data: Vec<NoticeView>,
    pub next_cursor: Option<String>,
}

impl From<NoticeRow> for NoticeView {
    fn from(row: NoticeRow) -> Self {
        let NoticeRow { id, kind, subject, unit, balance, threshold, pack, at } = row;
        Self { id, kind, subject, unit, balance, threshold, pack, at }
    }
}

impl Engine {
    /// A page of notices, the latest first.
    pub async fn list_notices(
        &self,
        environment: Environment,
        which: (Option<&str>, Option<&str>),
        cursor: Option<&str>,
        limit: u32,
    ) -> Result<NoticePage, EngineError> {
        let before = cursor::read_number(cursor)?;
        let mut connection = self.database().pool().acquire().await?;
        let mut rows =
            store::credits::notices::list(&mut connection, environment, which, before, limit + 1).await?;
        let more = rows.len() > limit as usize;
        rows.truncate(limit as usize);
        let next_cursor = rows.last().filter(|_| more).map(|row| row.id.to_string());
        Ok(NoticePage { data: rows.into_iter().map(NoticeView::from).collect(), next_cursor })
    }
}
