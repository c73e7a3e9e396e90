//! What was recorded for customers, by meter and hour, until it is handed on: summed in the fold, taken
//! by whoever makes exports.

use std::collections::{BTreeMap, HashMap};

use sqlx::{PgConnection, QueryBuilder, Row};

use crate::store::StoreError;
use crate::store::measures::{MeasureScope, push_measures};
use crate::store::usage::fold::ClaimedBatches;
use metergate_domain::base::environment::Environment;
use metergate_domain::base::period::Cycle;
use metergate_domain::base::quantity::Quantity;
use metergate_domain::base::timestamp::Timestamp;
use metergate_domain::base::window::Span;
use metergate_domain::catalog::meter::StoredMeter;
use metergate_domain::exports::{Bucket, UnexportedUsage, Units};

/// What a customer used, in an hour or at an instant.
#[derive(Debug, Clone)]
pub struct HourlySum {
    pub customer_id: i64,
    pub at: Timestamp,
    /// The latest of it.
    pub last_at: Timestamp,
    /// In the provider's units.
    pub units: String,
}

/// What is to be added to a bucket.
#[derive(Debug, Clone, Copy)]
pub struct BucketAddition {
    pub customer_id: i64,
    pub bucket: Bucket,
    pub last_at: Timestamp,
    pub units: Units,
}

pub(crate) fn unreadable(what: impl std::fmt::Debug) -> StoreError {
    StoreError::Refused(sqlx::Error::Decode(format!("a number of the database: {what:?}").into()))
}

/// What the taken batches say of customers, by hour.
pub async fn by_hour(
    connection: &mut PgConnection,
    environment: Environment,
    stored: &StoredMeter,
    scale: Quantity,
    taken: &ClaimedBatches,
) -> Result<Vec<HourlySum>, StoreError> {
    let hour = "date_bin('1 hour', at, '2000-01-01T00:00:00Z')";
    parts(connection, environment, stored, scale, taken, (hour, &[], &[])).await
}

/// The same of some customers in some hours, by instant.
pub async fn by_instant(
    connection: &mut PgConnection,
    environment: Environment,
    stored: &StoredMeter,
    scale: Quantity,
    taken: &ClaimedBatches,
    pairs: &[(i64, Timestamp)],
) -> Result<Vec<HourlySum>, StoreError> {
    let (customers, hours): (Vec<i64>, Vec<Timestamp>) = pairs.iter().copied().unzip();
    parts(connection, environment, stored, scale, taken, ("at", &customers, &hours)).await
}

async fn parts(
    connection: &mut PgConnection,
    environment: Environment,
    stored: &StoredMeter,
    scale: Quantity,
    taken: &ClaimedBatches,
    (resolution, customers, hours): (&str, &[i64], &[Timestamp]),
) -> Result<Vec<HourlySum>, StoreError> {
    let Some(within) = taken.within else { return Ok(Vec::new()) };
    let scope = MeasureScope::Batches { batch_ids: &taken.batch_ids, within };
    let mut sql = QueryBuilder::new("with measures as (");
    push_measures(&mut sql, environment, stored, &[], None, &scope);
    sql.push(format!(
        ") select customer_id, {resolution} as at, max(at) as last_at, (sum(case when sign = 1 then number else -number end) * "
    ));
    sql.push_bind(scale).push(")::text as units from measures where customer_id is not null");
    if !customers.is_empty() {
        sql.push(
            " and (customer_id, date_bin('1 hour', at, '2000-01-01T00:00:00Z')) in (select * from unnest(",
        );
        sql.push_bind(customers.to_vec()).push(", ").push_bind(hours.to_vec()).push("))");
    }
    sql.push(" group by 1, 2");
    let rows = sql.build().persistent(false).fetch_all(connection).await?;
    rows.iter()
        .map(|row| {
            Ok(HourlySum {
                customer_id: row.try_get("customer_id")?,
                at: row.try_get("at")?,
                last_at: row.try_get("last_at")?,
                units: row.try_get("units")?,
            })
        })
        .collect()
}

/// The cycles of the subscriptions of some customers' subjects.
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
    connection: &mut PgConnection,
    environment: Environment,
    meter_id: i32,
    given: &[BucketAddition],
) -> Result<(), StoreError> {
    let column = |of: fn(&BucketAddition) -> Timestamp| given.iter().map(of).collect::<Vec<_>>();
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
    .bind(environment.code())
    .bind(meter_id)
    .bind(given.iter().map(|add| add.customer_id).collect::<Vec<_>>())
    .bind(column(|add| add.bucket.span.from))
    .bind(column(|add| add.bucket.span.to))
    .bind(period(|period| period.from))
    .bind(period(|period| period.to))
    .bind(column(|add| add.last_at))
    .bind(given.iter().map(|add| add.units.to_string()).collect::<Vec<_>>())
    .execute(connection)
    .await?;
    Ok(())
}

/// A bucket with usage that was not handed on.
#[derive(Debug, Clone)]
pub struct DueBucket {
    pub customer_id: i64,
    pub meter_id: i32,
    pub bucket: Bucket,
    pub new: UnexportedUsage,
}

/// Customers and meters with buckets that are due, some of them.
pub async fn due_pairs(
    connection: &mut PgConnection,
    environment: Environment,
    ended_by: Timestamp,
    meter_ids: &[i32],
    limit: i64,
) -> Result<Vec<(i64, i32)>, StoreError> {
    let rows = sqlx::query_as(
        "select distinct s.customer_id, s.meter_id from export_sums s
         where s.environment = $1 and s.is_due and s.bucket_to <= $2 and s.meter_id = any($3)
           -- what waits for a cancelation waits
           and not exists (select from exports e where e.customer_id = s.customer_id and e.meter_id = s.meter_id
                           and e.bucket_from = s.bucket_from and e.cancel_wanted and e.status in ('pending', 'delivered'))
         order by 1, 2 limit $4",
    )
    .bind(environment.code())
    .bind(ended_by)
    .bind(meter_ids)
    .bind(limit)
    .fetch_all(connection)
    .await?;
    Ok(rows)
}

/// Locks what is left of some customers and meters: the right to make their exports. By pair.
pub async fn lock_remainders(
    connection: &mut PgConnection,
    environment: Environment,
    pairs: &[(i64, i32)],
) -> Result<BTreeMap<(i64, i32), Units>, StoreError> {
    let (customers, meters): (Vec<i64>, Vec<i32>) = pairs.iter().copied().unzip();
    sqlx::query(
        "insert into export_remainders (environment, customer_id, meter_id)
         select $1, * from unnest($2::bigint[], $3::int[]) order by 1, 2
         on conflict on constraint export_remainders_pk do nothing",
    )
    .bind(environment.code())
    .bind(&customers)
    .bind(&meters)
    .execute(&mut *connection)
    .await?;
    let rows = sqlx::query(
        "select r.customer_id, r.meter_id, r.remainder::text as remainder from export_remainders r
         where (r.customer_id, r.meter_id) in (select * from unnest($1::bigint[], $2::int[]))
         order by r.customer_id, r.meter_id for no key update",
    )
    .bind(&customers)
    .bind(&meters)
    .fetch_all(connection)
    .await?;
    rows.iter()
        .map(|row| {
            let text: String = row.try_get("remainder")?;
            let units = Units::parse(&text).ok_or_else(|| unreadable(&text))?;
            Ok(((row.try_get("customer_id")?, row.try_get("meter_id")?), units))
        })
        .collect()
}

/// Locks the due buckets of some customers and meters, each pair's oldest first. Their remainders are
/// locked. A meter after the other, as the fold adds to them: so neither waits for the other for ever.
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
           -- not by `is_due`: from each pair to its buckets, however few the planner believes to be due
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
            let (from, to): (Option<Timestamp>, Option<Timestamp>) =
                (row.try_get("period_from")?, row.try_get("period_to")?);
            let new: String = row.try_get("new")?;
            Ok(DueBucket {
                customer_id: row.try_get("customer_id")?,
                meter_id: row.try_get("meter_id")?,
                bucket: Bucket {
                    span: Span { from: row.try_get("bucket_from")?, to: row.try_get("bucket_to")? },
                    period: from.zip(to).map(|(from, to)| Span { from, to }),
                },
                new: UnexportedUsage {
                    units: Units::parse(&new).ok_or_else(|| unreadable(&new))?,
                    last_at: row.try_get("last_at")?,
                },
            })
        })
        .collect()
}

/// Notes what of buckets was handed on. They are locked.
pub async fn mark_exported(connection: &mut PgConnection, buckets: &[DueBucket]) -> Result<(), StoreError> {
    sqlx::query(
        "update export_sums s set exported = s.exported + given.new::numeric
         from unnest($1::bigint[], $2::int[], $3::timestamptz[], $4::text[])
             as given (customer_id, meter_id, bucket_from, new)
         where s.customer_id = given.customer_id and s.meter_id = given.meter_id
           and s.bucket_from = given.bucket_from",
    )
    .bind(buckets.iter().map(|due| due.customer_id).collect::<Vec<_>>())
    .bind(buckets.iter().map(|due| due.meter_id).collect::<Vec<_>>())
    .bind(buckets.iter().map(|due| due.bucket.span.from).collect::<Vec<_>>())
    .bind(buckets.iter().map(|due| due.new.units.to_string()).collect::<Vec<_>>())
    .execute(connection)
    .await?;
    Ok(())
}

/// Sets what is left. The rows are locked.
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
