//! Levels of customers' meters, by hour, for meters that are exported by their last or greatest value:
//! kept in the fold, looked at by whoever makes exports.

use sqlx::postgres::PgRow;
use sqlx::{PgConnection, QueryBuilder, Row};

use super::sums::unreadable;
use crate::store::StoreError;
use crate::store::measures::{MeasureScope, push_measures};
use crate::store::usage::fold::ClaimedBatches;
use metergate_domain::base::environment::Environment;
use metergate_domain::base::quantity::Quantity;
use metergate_domain::base::timestamp::Timestamp;
use metergate_domain::base::window::Span;
use metergate_domain::catalog::meter::{Aggregation, StoredMeter};
use metergate_domain::exports::{Bucket, Units};

/// What orders levels, the level itself last.
pub type Mark = Vec<Units>;

/// What batches say of a customer in an hour, or at an instant.
#[derive(Debug, Clone)]
pub struct HourlyGauge {
    pub customer_id: i64,
    pub at: Timestamp,
    /// None: nothing of it stands.
    pub mark: Option<Mark>,
    /// Whether something was taken back.
    pub voided: bool,
}

fn mark_of(aggregation: Aggregation) -> &'static str {
    match aggregation {
        Aggregation::Last => {
            "max(array[extract(epoch from at), batch_id, ordinal, number]) filter (where live)"
        }
        _ => "max(array[number]) filter (where live)",
    }
}

fn read_mark(row: &PgRow) -> Result<Option<Mark>, StoreError> {
    let texts: Option<Vec<String>> = row.try_get("mark")?;
    let unit = |text: &String| Units::parse(text).ok_or_else(|| unreadable(text));
    texts.map(|texts| texts.iter().map(unit).collect()).transpose()
}

/// What the taken batches say of customers, by hour; or, of some customers in some hours, by instant.
pub async fn parts(
    connection: &mut PgConnection,
    environment: Environment,
    stored: &StoredMeter,
    taken: &ClaimedBatches,
    within: Option<&[(i64, Timestamp)]>,
) -> Result<Vec<HourlyGauge>, StoreError> {
    let Some(span) = taken.within else { return Ok(Vec::new()) };
    let hour = "date_bin('1 hour', at, '2000-01-01T00:00:00Z')";
    let mut sql = QueryBuilder::new("with measures as (");
    let scope = MeasureScope::Batches { batch_ids: &taken.batch_ids, within: span };
    push_measures(&mut sql, environment, stored, &[], None, &scope);
    let resolution = if within.is_some() { "at" } else { hour };
    let mark = mark_of(stored.meter.aggregation);
    sql.push(format!(
        ") select customer_id, {resolution} as at, ({mark})::text[] as mark, bool_or(sign = -1) as voided"
    ));
    sql.push(" from measures where customer_id is not null");
    if let Some(pairs) = within {
        let (customers, hours): (Vec<i64>, Vec<Timestamp>) = pairs.iter().copied().unzip();
        sql.push(format!(" and (customer_id, {hour}) in (select * from unnest("));
        sql.push_bind(customers).push(", ").push_bind(hours).push("))");
    }
    sql.push(" group by 1, 2");
    let rows = sql.build().persistent(false).fetch_all(connection).await?;
    rows.iter()
        .map(|row| {
            Ok(HourlyGauge {
                customer_id: row.try_get("customer_id")?,
                at: row.try_get("at")?,
                mark: read_mark(row)?,
                voided: row.try_get("voided")?,
            })
        })
        .collect()
}

/// The level of a customer in a span, from its events.
pub async fn recount(
    connection: &mut PgConnection,
    environment: Environment,
    stored: &StoredMeter,
    customer_id: i64,
    span: Span,
) -> Result<Option<Mark>, StoreError> {
    let mut sql = QueryBuilder::new("with measures as (");
    push_measures(&mut sql, environment, stored, &[], None, &MeasureScope::Spans(&[span]));
    sql.push(format!(") select ({})::text[] as mark from measures", mark_of(stored.meter.aggregation)));
    sql.push(" where customer_id = ").push_bind(customer_id);
    let row = sql.build().persistent(false).fetch_one(connection).await?;
    read_mark(&row)
}

/// A level that is to be kept.
#[derive(Debug, Clone)]
pub struct BucketGauge {
    pub customer_id: i64,
    pub bucket: Bucket,
    pub mark: Option<Mark>,
    /// Whether it replaces what is there; else the greater of the two stays.
    pub replaces: bool,
}

/// Keeps levels, in the order of their keys. Where one is replaced, later ones of the same period are
/// looked at again: a running maximum may have become less.
pub async fn keep(
    connection: &mut PgConnection,
    environment: Environment,
    meter_id: i32,
    levels: &[BucketGauge],
) -> Result<(), StoreError> {
    for level in levels {
        let mark: Option<Vec<String>> =
            level.mark.as_ref().map(|mark| mark.iter().map(Units::to_string).collect());
        let period = level.bucket.period;
        sqlx::query(
            "insert into export_levels as l (environment, meter_id, customer_id, bucket_from, bucket_to, period_from,
                                            period_to, mark)
             values ($1, $2, $3, $4, $5, $6, $7, $8::text[]::numeric[])
             on conflict on constraint export_levels_pk do update set
                 mark = case when $9 then excluded.mark else greatest(l.mark, excluded.mark) end,
                 changed = l.changed or $9 or greatest(l.mark, excluded.mark) is distinct from l.mark",
        )
        .bind(environment.code())
        .bind(meter_id)
        .bind(level.customer_id)
        .bind(level.bucket.span.from)
        .bind(level.bucket.span.to)
        .bind(period.map(|period| period.from))
        .bind(period.map(|period| period.to))
        .bind(mark)
        .bind(level.replaces)
        .execute(&mut *connection)
        .await?;
        if level.replaces {
            sqlx::query(
                "update export_levels set changed = true
                 where customer_id = $1 and meter_id = $2 and bucket_from > $3 and period_from is not distinct from $4",
            )
            .bind(level.customer_id)
            .bind(meter_id)
            .bind(level.bucket.span.from)
            .bind(period.map(|period| period.from))
            .execute(&mut *connection)
            .await?;
        }
    }
    Ok(())
}

/// A level that has changed.
#[derive(Debug, Clone)]
pub struct Changed {
    pub customer_id: i64,
    pub meter_id: i32,
    pub bucket: Bucket,
    /// In the provider's units: the level itself, and the greatest of the period until then.
    pub level: Option<Units>,
    pub greatest: Option<Units>,
}

/// Locks some changed levels of a meter, the oldest first, and takes them as looked at.
pub async fn take_changed(
    connection: &mut PgConnection,
    environment: Environment,
    meter_id: i32,
    scale: Quantity,
    ended_by: Timestamp,
    limit: i64,
) -> Result<Vec<Changed>, StoreError> {
    let rows = sqlx::query(
        "with due as materialized (
             select customer_id, bucket_from from export_levels
             where environment = $1 and meter_id = $2 and changed and bucket_to <= $3
             order by customer_id, bucket_from limit $5 for update),
         taken as (
             update export_levels l set changed = false from due
             where l.meter_id = $2 and l.customer_id = due.customer_id and l.bucket_from = due.bucket_from
             returning l.*)
         select t.customer_id, t.bucket_from, t.bucket_to, t.period_from, t.period_to,
                (t.mark[array_length(t.mark, 1)] * $4)::text as level,
                (select (max(o.mark[1]) * $4)::text from export_levels o
                 where o.customer_id = t.customer_id and o.meter_id = t.meter_id and o.bucket_from <= t.bucket_from
                   and o.period_from is not distinct from t.period_from) as greatest
         from taken t order by t.customer_id, t.bucket_from",
    )
    .bind(environment.code())
    .bind(meter_id)
    .bind(ended_by)
    .bind(scale)
    .bind(limit)
    .fetch_all(connection)
    .await?;
    rows.iter()
        .map(|row| {
            let units = |name: &str| -> Result<Option<Units>, StoreError> {
                let text: Option<String> = row.try_get(name)?;
                text.map(|text| Units::parse(&text).ok_or_else(|| unreadable(&text))).transpose()
            };
            let (from, to): (Option<Timestamp>, Option<Timestamp>) =
                (row.try_get("period_from")?, row.try_get("period_to")?);
            Ok(Changed {
                customer_id: row.try_get("customer_id")?,
                meter_id,
                bucket: Bucket {
                    span: Span { from: row.try_get("bucket_from")?, to: row.try_get("bucket_to")? },
                    period: from.zip(to).map(|(from, to)| Span { from, to }),
                },
                level: units("level")?,
                greatest: units("greatest")?,
            })
        })
        .collect()
}
