//! Notices: a balance fell below the threshold of its plan, or a top-up pack is due.

use std::collections::BTreeMap;

use crate::store::credits::notices::NewNotice;
use metergate_domain::base::{Timestamp, Total};
use metergate_domain::credits::{CreditAlert, NoticeKind, Unit};

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
