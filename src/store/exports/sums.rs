//! Unexported sums of customers by meter and hour. The fold adds to them, and the run that creates
//! exports reads them.

use std::collections::{BTreeMap, HashMap};

use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Postgres, QueryBuilder, Row};

use super::parts::{BucketPart, ExportValue, MeterBucket, read_units};
use crate::store::StoreError;
use crate::store::scope::Scope;
use metergate_domain::base::{Cycle, Span, Timestamp};
use metergate_domain::catalog::StoredMeter;
use metergate_domain::exports::{UnexportedUsage, Units};

/// A sum of usage, in the provider's units.
#[derive(Debug, Clone, Copy)]
pub struct HourlySum {
    pub units: Units,
    /// The time of the latest usage in the sum.
    pub last_at: Timestamp,
}

impl ExportValue for HourlySum {
    fn push_columns(sql: &mut QueryBuilder<Postgres>, stored: &StoredMeter) {
        sql.push("max(at) as last_at, (sum(case when sign = 1 then number else -number end) * ");
        sql.push_bind(stored.meter.stripe.as_ref().map(|stripe| stripe.scale)).push(")::text as units");
    }

    fn read(row: &PgRow) -> Result<Self, StoreError> {
        Ok(Self { units: read_units(&row.try_get("units")?)?, last_at: row.try_get("last_at")? })
    }

    fn merge(&mut self, other: Self) {
        self.units = self.units.plus(other.units);
        self.last_at = self.last_at.max(other.last_at);
    }
}

/// Returns the billing cycles of some customers' subjects.
pub async fn cycles(
    connection: &mut PgConnection,
    customer_ids: &[i64],
) -> Result<HashMap<i64, Cycle>, StoreError> {
    let rows = sqlx::query(
        "select s.customer_id, sub.cycle_anchor, sub.period_start, sub.period_end
         from subjects s join subscriptions sub on sub.subject_id = s.id
         where s.customer_id = any($1)",
    )
    .bind(customer_ids)
    .fetch_all(connection)
    .await?;
    rows.iter()
        .map(|row| {
            let (start, end): (Option<Timestamp>, Option<Timestamp>) =
                (row.try_get("period_start")?, row.try_get("period_end")?);
            let billing = start.zip(end).map(|(from, to)| Span { from, to });
            Ok((row.try_get("customer_id")?, Cycle { anchor: row.try_get("cycle_anchor")?, billing }))
        })
        .collect()
}

/// Adds to sums, in the order of their keys.
pub async fn add(
    scope: &mut Scope<'_>,
    meter_id: i32,
    given: &[BucketPart<HourlySum>],
) -> Result<(), StoreError> {
    let column = |of: fn(&BucketPart<HourlySum>) -> Timestamp| given.iter().map(of).collect::<Vec<_>>();
    let period =
        |of: fn(Span) -> Timestamp| given.iter().map(|add| add.bucket.period.map(of)).collect::<Vec<_>>();
    sqlx::query(
        "insert into export_sums (environment, meter_id, customer_id, bucket_from, bucket_to, period_from, period_to,
                                 last_at, recorded)
         select $1, $2, customer_id, bucket_from, bucket_to, period_from, period_to, last_at, units::numeric
         from unnest($3::bigint[], $4::timestamptz[], $5::timestamptz[], $6::timestamptz[], $7::timestamptz[],
                     $8::timestamptz[], $9::text[])
             as given (customer_id, bucket_from, bucket_to, period_from, period_to, last_at, units)
         order by customer_id, bucket_from
         on conflict on constraint export_sums_pk do update
             set recorded = export_sums.recorded + excluded.recorded,
                 last_at = greatest(export_sums.last_at, excluded.last_at)",
    )
    .bind(scope.environment.code())
    .bind(meter_id)
    .bind(given.iter().map(|add| add.customer_id).collect::<Vec<_>>())
    .bind(column(|add| add.bucket.span.from))
    .bind(column(|add| add.bucket.span.to))
    .bind(period(|period| period.from))
    .bind(period(|period| period.to))
    .bind(column(|add| add.value.last_at))
    .bind(given.iter().map(|add| add.value.units.to_string()).collect::<Vec<_>>())
    .execute(&mut *scope.connection)
    .await?;
    Ok(())
}

/// A bucket with unexported usage.
#[derive(Debug, Clone)]
pub struct DueBucket {
    pub place: MeterBucket,
    pub new: UnexportedUsage,
}

/// Returns some customers and meters with due buckets.
pub async fn due_pairs(
    scope: &mut Scope<'_>,
    ended_by: Timestamp,
    meter_ids: &[i32],
    limit: i64,
) -> Result<Vec<(i64, i32)>, StoreError> {
    let rows = sqlx::query_as(
        "select distinct s.customer_id, s.meter_id from export_sums s
         where s.environment = $1 and s.is_due and s.bucket_to <= $2 and s.meter_id = any($3)
           -- a bucket with an open cancelation waits for it
           and not exists (select from exports e where e.customer_id = s.customer_id and e.meter_id = s.meter_id
                           and e.bucket_from = s.bucket_from and e.cancel_wanted and e.status in ('pending', 'delivered'))
         order by 1, 2 limit $4",
    )
    .bind(scope.environment.code())
    .bind(ended_by)
    .bind(meter_ids)
    .bind(limit)
    .fetch_all(&mut *scope.connection)
    .await?;
    Ok(rows)
}

/// Locks the remainders of some customers and meters, and returns them by pair. The lock is the right
/// to create exports.
pub async fn lock_remainders(
    scope: &mut Scope<'_>,
    pairs: &[(i64, i32)],
) -> Result<BTreeMap<(i64, i32), Units>, StoreError> {
    let (customers, meters): (Vec<i64>, Vec<i32>) = pairs.iter().copied().unzip();
    sqlx::query(
        "insert into export_remainders (environment, customer_id, meter_id)
         select $1, * from unnest($2::bigint[], $3::int[]) order by 1, 2
         on conflict on constraint export_remainders_pk do nothing",
    )
    .bind(scope.environment.code())
    .bind(&customers)
    .bind(&meters)
    .execute(&mut *scope.connection)
    .await?;
    let rows = sqlx::query(
        "select r.customer_id, r.meter_id, r.remainder::text as remainder from export_remainders r
         where (r.customer_id, r.meter_id) in (select * from unnest($1::bigint[], $2::int[]))
         order by r.customer_id, r.meter_id for no key update",
    )
    .bind(&customers)
    .bind(&meters)
    .fetch_all(&mut *scope.connection)
    .await?;
    rows.iter()
        .map(|row| {
            let units = read_units(&row.try_get("remainder")?)?;
            Ok(((row.try_get("customer_id")?, row.try_get("meter_id")?), units))
        })
        .collect()
}

/// Locks the due buckets of some pairs, the oldest of each pair first. The caller holds the locks of
/// their remainders. The order by meter is that of the fold, which prevents deadlocks.
pub async fn lock_due(
    connection: &mut PgConnection,
    pairs: &[(i64, i32)],
    ended_by: Timestamp,
) -> Result<Vec<DueBucket>, StoreError> {
    let (customers, meters): (Vec<i64>, Vec<i32>) = pairs.iter().copied().unzip();
    let rows = sqlx::query(
        "select s.customer_id, s.meter_id, s.bucket_from, s.bucket_to, s.period_from, s.period_to, s.last_at,
                (s.recorded - s.exported)::text as new
         from export_sums s
         where (s.customer_id, s.meter_id) in (select * from unnest($1::bigint[], $2::int[]))
           -- the plan must go from each pair to its buckets, not over an index by `is_due`
           and s.recorded <> s.exported and s.bucket_to <= $3
           and not exists (select from exports e where e.customer_id = s.customer_id and e.meter_id = s.meter_id
                           and e.bucket_from = s.bucket_from and e.cancel_wanted and e.status in ('pending', 'delivered'))
         order by s.meter_id, s.customer_id, s.bucket_from for no key update of s",
    )
    .bind(&customers)
    .bind(&meters)
    .bind(ended_by)
    .fetch_all(connection)
    .await?;
    rows.iter()
        .map(|row| {
            let units = read_units(&row.try_get("new")?)?;
            let new = UnexportedUsage { units, last_at: row.try_get("last_at")? };
            Ok(DueBucket { place: MeterBucket::read(row)?, new })
        })
        .collect()
}

/// Marks the new usage of buckets as exported. The caller holds their locks.
pub async fn mark_exported(connection: &mut PgConnection, buckets: &[DueBucket]) -> Result<(), StoreError> {
    sqlx::query(
        "update export_sums s set exported = s.exported + given.new::numeric
         from unnest($1::bigint[], $2::int[], $3::timestamptz[], $4::text[])
             as given (customer_id, meter_id, bucket_from, new)
         where s.customer_id = given.customer_id and s.meter_id = given.meter_id
           and s.bucket_from = given.bucket_from",
    )
    .bind(buckets.iter().map(|due| due.place.customer_id).collect::<Vec<_>>())
    .bind(buckets.iter().map(|due| due.place.meter_id).collect::<Vec<_>>())
    .bind(buckets.iter().map(|due| due.place.bucket.span.from).collect::<Vec<_>>())
    .bind(buckets.iter().map(|due| due.new.units.to_string()).collect::<Vec<_>>())
    .execute(connection)
    .await?;
    Ok(())
}

/// Writes remainders. The caller holds their locks.
pub async fn set_remainders(
    connection: &mut PgConnection,
    remainders: &BTreeMap<(i64, i32), Units>,
) -> Result<(), StoreError> {
    let (pairs, units): (Vec<(i64, i32)>, Vec<String>) =
        remainders.iter().map(|(pair, units)| (*pair, units.to_string())).unzip();
    let (customers, meters): (Vec<i64>, Vec<i32>) = pairs.into_iter().unzip();
    sqlx::query(
        "update export_remainders r set remainder = given.remainder::numeric
         from unnest($1::bigint[], $2::int[], $3::text[]) as given (customer_id, meter_id, remainder)
         where r.customer_id = given.customer_id and r.meter_id = given.meter_id",
    )
    .bind(customers)
    .bind(meters)
    .bind(units)
    .execute(connection)
    .await?;
    Ok(())
}
