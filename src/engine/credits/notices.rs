//! Notices: a balance fell below the threshold of its plan, or a top-up pack is due.

use std::collections::BTreeMap;

use crate::engine::error::EngineError;
use crate::engine::page::{Page, PageRequest};
use crate::engine::services::Engine;
use crate::store;
use crate::store::Scope;
use crate::store::credits::notices::{CreditNotice, NewNotice};
use metergate_domain::base::environment::Environment;
use metergate_domain::base::quantity::Total;
use metergate_domain::base::timestamp::Timestamp;
use metergate_domain::credits::notice::{NoticeFilter, NoticeKind};
use metergate_domain::credits::offers::CreditAlert;
use metergate_domain::credits::unit::Unit;

/// Returns the notices for balances that fell below the threshold of an alert.
pub(super) fn due(
    alerts: &[CreditAlert],
    subject_id: i64,
    before: Option<&BTreeMap<Unit, Total>>,
    after: &BTreeMap<Unit, Total>,
    at: Timestamp,
) -> Vec<NewNotice> {
    let mut found = Vec::new();
    for alert in alerts {
        let of = |balances: Option<&BTreeMap<Unit, Total>>| {
            balances.and_then(|balances| balances.get(&alert.unit)).copied().unwrap_or_default()
        };
        let (was, balance, threshold) = (of(before), of(Some(after)), alert.below);
        if was < threshold.into() || balance >= threshold.into() {
            continue;
        }
        let notice = |kind, pack: Option<String>| NewNotice {
            subject_id,
            kind,
            unit: alert.unit.clone(),
            balance,
            threshold,
            pack,
            at,
        };
        found.push(notice(NoticeKind::LowBalance, None));
        if let Some(pack) = &alert.top_up {
            found.push(notice(NoticeKind::TopUpDue, Some(pack.to_string())));
        }
    }
    found
}

impl Engine {
    /// Returns a page of notices, the latest first.
    pub async fn list_notices(
        &self,
        environment: Environment,
        filter: &NoticeFilter,
        page: &PageRequest,
    ) -> Result<Page<CreditNotice>, EngineError> {
        let before = page.before_number()?;
        let mut connection = self.database().pool().acquire().await?;
        let rows = store::credits::notices::list(
            &mut Scope::new(&mut connection, environment),
            filter,
            before,
            page.rows_max(),
        )
        .await?;
        Ok(Page::from_rows(rows, page.limit, |row| row.id))
    }
}
