//! Rows of notices, which ask for an action of the operator.

use serde::Serialize;
use sqlx::FromRow;

use crate::store::StoreError;
use crate::store::scope::Scope;
use metergate_domain::base::names::SubjectId;
use metergate_domain::base::{Quantity, Timestamp, Total};
use metergate_domain::credits::{NoticeFilter, NoticeKind, Unit};

/// A notice to insert.
#[derive(Debug, Clone)]
pub struct NewNotice {
    pub subject_id: i64,
    pub kind: NoticeKind,
    pub unit: Unit,
    pub balance: Total,
    pub threshold: Quantity,
    pub pack: Option<String>,
    pub at: Timestamp,
}

/// A stored notice, in the form that clients see.
#[derive(Debug, Clone, FromRow, Serialize)]
pub struct CreditNotice {
    pub id: i64,
    pub kind: String,
    pub subject: String,
    #[sqlx(flatten)]
    #[serde(flatten)]
    pub unit: Unit,
    pub balance: Total,
    pub threshold: Quantity,
    /// The pack to buy; only for a due top-up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pack: Option<String>,
    pub at: Timestamp,
}

pub async fn insert(scope: &mut Scope<'_>, notices: &[NewNotice]) -> Result<(), StoreError> {
    for notice in notices {
        let (unit, unit_key) = notice.unit.kept();
        sqlx::query(
            "insert into notices (environment, subject_id, kind, unit, unit_key, balance, threshold, pack, at)
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        )
        .bind(scope.environment.code())
        .bind(notice.subject_id)
        .bind(notice.kind.as_str())
        .bind(unit)
        .bind(unit_key)
        .bind(notice.balance)
        .bind(notice.threshold)
        .bind(&notice.pack)
        .bind(notice.at)
        .execute(&mut *scope.connection)
        .await?;
    }
    Ok(())
}

/// Returns notices in descending order of id, from below `before`.
pub async fn list(
    scope: &mut Scope<'_>,
    filter: &NoticeFilter,
    before: i64,
    limit: u32,
) -> Result<Vec<CreditNotice>, StoreError> {
    let rows = sqlx::query_as(
        "select n.id, n.kind, s.subject, n.unit, n.unit_key, n.balance, n.threshold, n.pack, n.at
         from notices n join subjects s on s.id = n.subject_id
         where n.environment = $1 and n.id < $2 and ($3::text is null or s.subject = $3)
           and ($4::text is null or n.kind = $4)
         order by n.id desc limit $5",
    )
    .bind(scope.environment.code())
    .bind(before)
    .bind(filter.subject.as_ref().map(SubjectId::as_str))
    .bind(filter.kind.map(NoticeKind::as_str))
    .bind(i64::from(limit));
    Ok(rows.fetch_all(&mut *scope.connection).await?)
}
