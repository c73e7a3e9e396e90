//! Gauges of customers by hour, for meters that are exported by their last or greatest value. The fold
//! updates them, and the run that creates exports reads them.

use sqlx::postgres::PgRow;
use sqlx::{Postgres, QueryBuilder, Row};

use super::parts::{BucketPart, ExportValue, MeterBucket, read_units};
use crate::store::StoreError;
use crate::store::scope::Scope;
use crate::store::usage::UsageScope;
use crate::store::usage::measures::{MeasureScope, Measures};
use metergate_domain::base::{Span, Timestamp};
use metergate_domain::catalog::{Aggregation, StoredMeter};
use metergate_domain::exports::Units;

/// The sort key of a gauge value, with the value itself as the last element.
pub type Mark = Vec<Units>;

/// A gauge of a customer.
#[derive(Debug, Clone)]
pub struct HourlyGauge {
    /// The greatest mark of live values. None without a live value.
    pub mark: Option<Mark>,
    /// True if a value was voided. Then the new mark replaces the earlier one; otherwise the greater
    /// mark stays.
    pub voided: bool,
}

impl ExportValue for HourlyGauge {
    fn push_columns(sql: &mut QueryBuilder<Postgres>, stored: &StoredMeter) {
        let mark = mark_of(stored.meter.aggregation);
        sql.push(format!("({mark})::text[] as mark, bool_or(sign = -1) as voided"));
    }

    fn read(row: &PgRow) -> Result<Self, StoreError> {
        Ok(Self { mark: read_mark(row)?, voided: row.try_get("voided")? })
    }

    fn merge(&mut self, other: Self) {
        self.mark = self.mark.take().max(other.mark);
        self.voided |= other.voided;
    }
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
    texts.map(|texts| texts.iter().map(read_units).collect()).transpose()
}

/// Reads the gauge of a customer in a span from the events.
pub async fn recount(
    scope: &mut Scope<'_>,
    stored: &StoredMeter,
    customer_id: i64,
    span: Span,
) -> Result<Option<Mark>, StoreError> {
    let mut sql = QueryBuilder::new("with measures as (");
    let (environment, spans) = (scope.environment, [span]);
    let events = MeasureScope::Spans(&spans);
    Measures { environment, stored, dimensions: &[], usage: UsageScope::All, events }.push(&mut sql);
    sql.push(format!(") select ({})::text[] as mark from measures", mark_of(stored.meter.aggregation)));
    sql.push(" where customer_id = ").push_bind(customer_id);
    let row = sql.build().persistent(false).fetch_one(&mut *scope.connection).await?;
    read_mark(&row)
}

/// Writes gauges in the order of their keys. After a replacement, later gauges of the same period count
/// as changed, because a running maximum may have fallen.
pub async fn keep(
    scope: &mut Scope<'_>,
    meter_id: i32,
    gauges: &[BucketPart<HourlyGauge>],
) -> Result<(), StoreError> {
    for gauge in gauges {
        let mark: Option<Vec<String>> =
            gauge.value.mark.as_ref().map(|mark| mark.iter().map(Units::to_string).collect());
        let period = gauge.bucket.period;
        sqlx::query(
            "insert into export_levels as l (environment, meter_id, customer_id, bucket_from, bucket_to, period_from,
                                            period_to, mark)
             values ($1, $2, $3, $4, $5, $6, $7, $8::text[]::numeric[])
             on conflict on constraint export_levels_pk do update set
                 mark = case when $9 then excluded.mark else greatest(l.mark, excluded.mark) end,
                 changed = l.changed or $9 or greatest(l.mark, excluded.mark) is distinct from l.mark",
        )
        .bind(scope.environment.code())
        .bind(meter_id)
        .bind(gauge.customer_id)
        .bind(gauge.bucket.span.from)
        .bind(gauge.bucket.span.to)
        .bind(period.map(|period| period.from))
        .bind(period.map(|period| period.to))
        .bind(mark)
        .bind(gauge.value.voided)
        .execute(&mut *scope.connection)
        .await?;
        if gauge.value.voided {
            sqlx::query(
                "update export_levels set changed = true
                 where customer_id = $1 and meter_id = $2 and bucket_from > $3 and period_from is not distinct from $4",
            )
            .bind(gauge.customer_id)
            .bind(meter_id)
            .bind(gauge.bucket.span.from)
            .bind(period.map(|period| period.from))
            .execute(&mut *scope.connection)
            .await?;
        }
    }
    Ok(())
}

/// A gauge that has changed.
#[derive(Debug, Clone)]
pub struct ChangedGauge {
    pub place: MeterBucket,
    /// The hour's gauge in the provider's units; none without a live value.
    pub level: Option<Units>,
    /// The maximum of the period up to this hour, in the provider's units.
    pub greatest: Option<Units>,
}

/// Locks some changed gauges of a meter, the oldest first, and marks them as unchanged.
pub async fn take_changed(
    scope: &mut Scope<'_>,
    stored: &StoredMeter,
    ended_by: Timestamp,
    limit: i64,
) -> Result<Vec<ChangedGauge>, StoreError> {
    let Some(stripe) = &stored.meter.stripe else { return Ok(Vec::new()) };
    let rows = sqlx::query(
        "with due as materialized (
             select customer_id, bucket_from from export_levels
             where environment = $1 and meter_id = $2 and changed and bucket_to <= $3
             order by customer_id, bucket_from limit $5 for update),
         taken as (
             update export_levels l set changed = false from due
             where l.meter_id = $2 and l.customer_id = due.customer_id and l.bucket_from = due.bucket_from
             returning l.*)
         select t.customer_id, t.meter_id, t.bucket_from, t.bucket_to, t.period_from, t.period_to,
                (t.mark[array_length(t.mark, 1)] * $4)::text as level,
                (select (max(o.mark[1]) * $4)::text from export_levels o
                 where o.customer_id = t.customer_id and o.meter_id = t.meter_id and o.bucket_from <= t.bucket_from
                   and o.period_from is not distinct from t.period_from) as greatest
         from taken t order by t.customer_id, t.bucket_from",
    )
    .bind(scope.environment.code())
    .bind(stored.id)
    .bind(ended_by)
    .bind(stripe.scale)
    .bind(limit)
    .fetch_all(&mut *scope.connection)
    .await?;
    rows.iter()
        .map(|row| {
            let units = |name: &str| -> Result<Option<Units>, StoreError> {
                let text: Option<String> = row.try_get(name)?;
                text.as_ref().map(read_units).transpose()
            };
            Ok(ChangedGauge {
                place: MeterBucket::read(row)?,
                level: units("level")?,
                greatest: units("greatest")?,
            })
        })
        .collect()
}
