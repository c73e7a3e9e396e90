//! Usage of customers in claimed batches, by hour or by instant, which becomes exports.

use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Postgres, QueryBuilder, Row};

use crate::store::StoreError;
use crate::store::usage::UsageScope;
use crate::store::usage::fold::MeterBatches;
use crate::store::usage::measures::{MeasureScope, Measures};
use metergate_domain::base::{Span, Timestamp};
use metergate_domain::catalog::StoredMeter;
use metergate_domain::exports::{Bucket, Units};

/// The start of a measure's hour.
const HOUR: &str = "date_bin('1 hour', at, '2000-01-01T00:00:00Z')";

/// A value that exports accumulate: a sum or a gauge.
pub trait ExportValue: Sized + Send {
    /// Appends the aggregate columns that [`Self::read`] reads.
    fn push_columns(sql: &mut QueryBuilder<Postgres>, stored: &StoredMeter);

    fn read(row: &PgRow) -> Result<Self, StoreError>;

    /// Adds another value of the same bucket.
    fn merge(&mut self, other: Self);
}

/// A customer's value in an hour, or at an instant.
#[derive(Debug, Clone)]
pub struct CustomerPart<V> {
    pub customer_id: i64,
    pub at: Timestamp,
    pub value: V,
}

/// A customer's value in a bucket.
#[derive(Debug, Clone)]
pub struct BucketPart<V> {
    pub customer_id: i64,
    pub bucket: Bucket,
    pub value: V,
}

/// Reads the values of customers by hour. For some customers and hours, reads them by instant.
pub async fn read<V: ExportValue>(
    connection: &mut PgConnection,
    batches: MeterBatches<'_>,
    instants_within: Option<&[(i64, Timestamp)]>,
) -> Result<Vec<CustomerPart<V>>, StoreError> {
    let MeterBatches { environment, stored, claimed } = batches;
    let Some(within) = claimed.within else { return Ok(Vec::new()) };
    let events = MeasureScope::Batches { batch_ids: &claimed.batch_ids, within };
    let mut sql = QueryBuilder::new("with measures as (");
    Measures { environment, stored, dimensions: &[], usage: UsageScope::All, events }.push(&mut sql);
    let start = if instants_within.is_some() { "at" } else { HOUR };
    sql.push(format!(") select customer_id, {start} as at, "));
    V::push_columns(&mut sql, stored);
    sql.push(" from measures where customer_id is not null");
    if let Some(pairs) = instants_within {
        let (customers, hours): (Vec<i64>, Vec<Timestamp>) = pairs.iter().copied().unzip();
        sql.push(format!(" and (customer_id, {HOUR}) in (select * from unnest("));
        sql.push_bind(customers).push(", ").push_bind(hours).push("))");
    }
    sql.push(" group by 1, 2");
    let rows = sql.build().persistent(false).fetch_all(connection).await?;
    rows.iter()
        .map(|row| {
            let (customer_id, at) = (row.try_get("customer_id")?, row.try_get("at")?);
            Ok(CustomerPart { customer_id, at, value: V::read(row)? })
        })
        .collect()
}

/// A bucket of a customer and a meter.
#[derive(Debug, Clone, Copy)]
pub struct MeterBucket {
    pub customer_id: i64,
    pub meter_id: i32,
    pub bucket: Bucket,
}

impl MeterBucket {
    pub(super) fn read(row: &PgRow) -> Result<Self, StoreError> {
        let (from, to): (Option<Timestamp>, Option<Timestamp>) =
            (row.try_get("period_from")?, row.try_get("period_to")?);
        Ok(Self {
            customer_id: row.try_get("customer_id")?,
            meter_id: row.try_get("meter_id")?,
            bucket: Bucket {
                span: Span { from: row.try_get("bucket_from")?, to: row.try_get("bucket_to")? },
                period: from.zip(to).map(|(from, to)| Span { from, to }),
            },
        })
    }
}

pub(super) fn unreadable(what: impl std::fmt::Debug) -> StoreError {
    StoreError::Refused(sqlx::Error::Decode(format!("a stored number is not readable: {what:?}").into()))
}

/// Reads units of the provider, which the database sends as text.
pub(super) fn read_units(text: &String) -> Result<Units, StoreError> {
    Units::parse(text).ok_or_else(|| unreadable(text))
}
