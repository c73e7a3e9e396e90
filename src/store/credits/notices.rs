//! Notices: what somebody may want to act on.

use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};

use super::grants::read_unit;
use crate::store::StoreError;
use metergate_domain::base::environment::Environment;
use metergate_domain::base::quantity::{Quantity, Total};
use metergate_domain::base::timestamp::Timestamp;
use metergate_domain::credits::unit::Unit;

/// One that is to be written.
#[derive(Debug, Clone)]
pub struct CreditNotice {
    pub subject_id: i64,
    pub kind: &'static str,
    pub unit: Unit,
    pub balance: Total,
    pub threshold: Quantity,
    pub pack: Option<String>,
    pub at: Timestamp,
}

#[derive(Debug, Clone)]
pub struct NoticeRow {
    pub id: i64,
    pub kind: String,
    pub subject: String,
    pub unit: Unit,
    pub balance: Total,
    pub threshold: Quantity,
    pub pack: Option<String>,
    pub at: Timestamp,
}

pub const KINDS: [&str; 2] = ["low_balance", "top_up_due"];

pub async fn insert(
    connection: &mut PgConnection,
    environment: Environment,
    notices: &[CreditNotice],
) -> Result<(), StoreError> {
    for notice in notices {
        let (unit, unit_key) = notice.unit.kept();
        sqlx::query(
            "insert into notices (environment, subject_id, kind, unit, unit_key, balance, threshold, pack, at)
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        )
        .bind(environment.code())
        .bind(notice.subject_id)
        .bind(notice.kind)
        .bind(unit)
        .bind(unit_key)
        .bind(notice.balance)
        .bind(notice.threshold)
        .bind(&notice.pack)
        .bind(notice.at)
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
}

/// A page of notices, the latest first, those before the one with the number `before`.
pub async fn list(
    connection: &mut PgConnection,
    environment: Environment,
    (subject, kind): (Option<&str>, Option<&str>),
    before: i64,
    limit: u32,
) -> Result<Vec<NoticeRow>, StoreError> {
    let rows = sqlx::query(
        "select n.id, n.kind, s.subject, n.unit, n.unit_key, n.balance, n.threshold, n.pack, n.at
         from notices n join subjects s on s.id = n.subject_id
         where n.environment = $1 and n.id < $2 and ($3::text is null or s.subject = $3)
           and ($4::text is null or n.kind = $4)
         order by n.id desc limit $5",
    )
    .bind(environment.code())
    .bind(before)
    .bind(subject)
    .bind(kind)
    .bind(i64::from(limit))
    .fetch_all(connection)
    .await?;
    let read = |row: &PgRow| {
        Ok(NoticeRow {
            id: row.try_get("id")?,
            kind: row.try_get("kind")?,
            subject: row.try_get("subject")?,
            unit: read_unit(row)?,
            balance: row.try_get("balance")?,
            threshold: row.try_get("threshold")?,
            pack: row.try_get("pack")?,
            at: row.try_get("at")?,
        })
    };
    rows.iter().map(read).collect()
}
