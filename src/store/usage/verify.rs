//! Recounts all derived tables from the events and reports differences.

use sqlx::{PgConnection, Postgres, QueryBuilder, Row};
use uuid::Uuid;

use super::UsageScope;
use crate::store::StoreError;
use crate::store::scope::Scope;
use crate::store::usage::measures::{MeasureScope, Measures, made_of, rollup_column};
use crate::store::usage::rollup_resolution::RollupResolution;
use metergate_domain::base::{Environment, Span, Timestamp};
use metergate_domain::catalog::{Aggregation, Filter, StoredMeter};

/// The differences that are described. All differences are counted.
const SHOWN: i64 = 20;

/// The number of differences, and descriptions of some of them.
#[derive(Debug, Default)]
pub struct Differences {
    pub count: i64,
    pub shown: Vec<String>,
}

impl Differences {
    /// Adds a number of differences with their description.
    pub fn note(&mut self, count: i64, shown: String) {
        self.count += count;
        self.shown.push(shown);
    }
}

/// Lifts the time limits of the transaction, which would end a long recount.
pub async fn allow_long(connection: &mut PgConnection) -> Result<(), StoreError> {
    sqlx::raw_sql("set local statement_timeout = 0; set local work_mem = '256MB'")
        .execute(connection)
        .await?;
    Ok(())
}

/// Checks that events and keys match one to one, and so do voids and counter-events.
pub async fn keys(scope: &mut Scope<'_>, differences: &mut Differences) -> Result<i64, StoreError> {
    let environment = scope.environment;
    let row = sqlx::query(
        "with recorded as (
             select key, count(*) filter (where sign = 1) as made, count(*) filter (where sign = -1) as countered,
                    min(occurred_at) filter (where sign = 1) as occurred_at,
                    min(batch_id) filter (where sign = 1) as batch_id
             from events where environment = $1 group by key)
         select count(r.key) as events,
             count(*) filter (where r.made is distinct from 1) as not_once,
             count(*) filter (where k.key is null or r.key is null) as without_other,
             count(*) filter (where k.occurred_at <> r.occurred_at or k.batch_id <> r.batch_id) as elsewhere,
             count(*) filter (where coalesce(r.countered, 0) <> (v.key is not null)::int) as void_differs
         from recorded r
         full join (select * from event_keys where environment = $1) k on k.key = r.key
         left join voids v on v.environment = $1 and v.key = coalesce(r.key, k.key)",
    )
    .bind(environment.code())
    .fetch_one(&mut *scope.connection)
    .await?;
    for (column, meaning) in [
        ("not_once", "keys without exactly one event"),
        ("without_other", "events without a key, or keys without an event"),
        ("elsewhere", "keys that point to another time or batch than their event's"),
        ("void_differs", "voids without exactly one counter-event, or counter-events without a void"),
    ] {
        let count: i64 = row.try_get(column)?;
        if count > 0 {
            differences.note(count, format!("{environment}: {count} {meaning}"));
        }
    }
    Ok(row.try_get("events")?)
}

/// Compares the rollups of a meter outside of gaps with the folded events. Returns the number of
/// compared rollups.
pub async fn rollups(
    scope: &mut Scope<'_>,
    stored: &StoredMeter,
    differences: &mut Differences,
) -> Result<i64, StoreError> {
    let environment = scope.environment;
    let unique = stored.meter.aggregation == Aggregation::UniqueCount;
    let mut compared = 0;
    for resolution in RollupResolution::ALL {
        for of_members in [false, true].into_iter().filter(|of_members| unique || !of_members) {
            let mut sql = QueryBuilder::default();
            let table = RollupTable { environment, stored, resolution, of_members };
            table.push_compared(&mut sql);
            table.push_judged(&mut sql);
            let row = sql.build().persistent(false).fetch_one(&mut *scope.connection).await?;
            let wrong: i64 = row.try_get("wrong")?;
            if wrong > 0 {
                let shown: Vec<String> = row.try_get("shown")?;
                let (name, key, shown) = (table.name(), &stored.meter.key, shown.join("; "));
                let text = format!("{environment}: {wrong} {name} of meter {key} differ: {shown}");
                differences.note(wrong, text);
            }
            compared += row.try_get::<i64, _>("compared")?;
        }
    }
    Ok(compared)
}

/// A table of a meter's rollups or of their members.
struct RollupTable<'a> {
    environment: Environment,
    stored: &'a StoredMeter,
    resolution: RollupResolution,
    of_members: bool,
}

impl RollupTable<'_> {
    fn name(&self) -> &'static str {
        if self.of_members { self.resolution.members() } else { self.resolution.rollups() }
    }

    /// Writes the relation `compared`: the events' values and the stored values of each rollup.
    fn push_compared(&self, sql: &mut QueryBuilder<Postgres>) {
        let Self { environment, stored, resolution, of_members } = *self;
        let (table, start) = (self.name(), resolution.word());
        let dimensions: Vec<String> = stored.meter.dimensions.iter().map(ToString::to_string).collect();
        let (count, member) = if of_members { ("refs", ", member") } else { ("count", "") };
        let column = rollup_column(stored.meter.aggregation).filter(|_| !of_members);
        let events = MeasureScope::Folded(Span { from: Timestamp::MIN, to: Timestamp::MAX });
        sql.push("with measures as (");
        Measures { environment, stored, dimensions: &dimensions, usage: UsageScope::All, events }.push(sql);
        let bucket = resolution.start_of("at");
        sql.push(format!(
            "), counted as (select path_id, {bucket} as start, members{}, sum(sign)::bigint as count",
            member.replace("member", "text_digest(member) as member")
        ));
        if let Some(name) = column {
            sql.push(format!(", {} as {name}", made_of(name, "number")));
        }
        sql.push(format!(" from measures group by path_id, start, members{member}), kept as (select r.path_id, r.{start} as start, d.members{}, r.{count} as count", member.replace(", ", ", r.")));
        if let Some(name) = column {
            sql.push(format!(", r.{name}"));
        }
        sql.push(format!(
            " from {table} r join dimension_sets d on d.id = r.dimension_set_id where r.environment = "
        ));
        sql.push_bind(environment.code()).push(" and r.meter_id = ").push_bind(stored.id);
        sql.push("), compared as (select coalesce(c.path_id, k.path_id) as path_id, coalesce(c.start, k.start) as start, coalesce(c.members, k.members) as members, ");
        // a rollup of voided events only may exist or be missing
        sql.push("coalesce(c.count, 0) = coalesce(k.count, 0)");
        match column {
            None => {}
            Some("sum") => drop(sql.push(" and coalesce(c.sum, 0) = coalesce(k.sum, 0)")),
            Some(name) => drop(sql.push(format!(" and c.{name} is not distinct from k.{name}"))),
        }
        sql.push(" as same, coalesce(c.count, 0) as counted, coalesce(k.count, 0) as kept from counted c full join kept k on k.path_id = c.path_id and k.start = c.start and k.members = c.members");
        sql.push(if of_members { " and k.member = c.member)" } else { ")" });
    }

    /// Writes the number of differences in `compared`, outside of gaps.
    fn push_judged(&self, sql: &mut QueryBuilder<Postgres>) {
        let start = self.resolution.word();
        sql.push(", judged as (select * from compared c where not exists (select from rollup_gaps g where g.environment = ");
        sql.push_bind(self.environment.code()).push(" and g.meter_id = ").push_bind(self.stored.id);
        sql.push(format!(" and c.start < g.to_hour and c.start + interval '1 {start}' > g.from_hour)"));
        if self.resolution == RollupResolution::Day {
            sql.push(" and c.start < (select until from summed_days where meter_id = ");
            sql.push_bind(self.stored.id).push(")");
        }
        sql.push(format!(") select (select count(*) from judged) as compared, (select count(*) from judged where not same) as wrong, array(select format('path %s, {start} %s, %s: %s events, rollup has %s', path_id, start, members, counted, kept) from judged where not same order by start limit "));
        sql.push_bind(SHOWN).push(") as shown");
    }
}

/// A definition of limits for which counters exist.
#[derive(Debug)]
pub struct Definition<'a> {
    pub id: Uuid,
    pub stored: &'a StoredMeter,
    pub filter: &'a Filter,
    /// The plans with a limit of this definition.
    pub plans: Vec<String>,
}

/// Compares the counters of a definition with the events, and their holds with the open reservations.
/// Returns the number of compared counters.
pub async fn counters(
    scope: &mut Scope<'_>,
    definition: &Definition<'_>,
    now: Timestamp,
    differences: &mut Differences,
) -> Result<i64, StoreError> {
    let environment = scope.environment;
    let key = &definition.stored.meter.key;
    let (compared, wrong, shown) = used(scope, definition).await?;
    if wrong > 0 {
        differences.note(wrong, format!("{environment}: {wrong} counters of meter {key} differ: {shown}"));
    }
    let (wrong, shown) = held(scope, definition, now).await?;
    if wrong > 0 {
        let what = "hold lines";
        differences.note(wrong, format!("{environment}: {wrong} {what} on meter {key} differ: {shown}"));
    }
    let stray: i64 = sqlx::query_scalar(
        "select count(*) from counters c left join subscriptions s on s.subject_id = c.subject_id
         where c.environment = $1 and c.definition = $2 and (s.plan is null or s.plan <> all($3::text[]))",
    )
    .bind(environment.code())
    .bind(definition.id)
    .bind(&definition.plans)
    .fetch_one(&mut *scope.connection)
    .await?;
    if stray > 0 {
        let what = "counters of limits that are not assigned";
        differences.note(stray, format!("{environment}: {stray} {what}, on meter {key}"));
    }
    Ok(compared)
}

async fn used(scope: &mut Scope<'_>, definition: &Definition<'_>) -> Result<(i64, i64, String), StoreError> {
    let dimensions: Vec<String> = definition.filter.iter().map(|(name, _)| name.to_owned()).collect();
    let everything = [Span { from: Timestamp::MIN, to: Timestamp::MAX }];
    let mut sql = QueryBuilder::new("with measures as (");
    let (stored, events) = (definition.stored, MeasureScope::Spans(&everything));
    Measures {
        environment: scope.environment,
        stored,
        dimensions: &dimensions,
        usage: UsageScope::All,
        events,
    }
    .push(&mut sql);
    let sum = made_of("sum", "number");
    sql.push(format!(
        "), minded as materialized (select path_id, at, {sum} as number from measures where true"
    ));
    for (index, (_, allowed)) in definition.filter.iter().enumerate() {
        sql.push(format!(" and members[{}] = any(", index + 1)).push_bind(allowed.to_vec()).push(")");
    }
    sql.push(" group by path_id, at), spread as (select a.id as subject_id, m.at, m.number from minded m join paths p on p.id = m.path_id cross join unnest(p.ancestors) a (id)), wanted as (select * from counters where environment = ");
    sql.push_bind(scope.environment.code()).push(" and definition = ").push_bind(definition.id);
    sql.push("), counted as (select c.id, sum(s.number) as number from wanted c join spread s on s.subject_id = c.subject_id and s.at >= c.since and s.at < c.period_end group by c.id), compared as (select c.*, coalesce(n.number, 0) as counted from wanted c left join counted n on n.id = c.id)");
    sql.push(" select (select count(*) from compared) as compared, (select count(*) from compared where counted <> used) as wrong, array(select format('subject %s, period %s: %s by events, counter has %s', subject_id, period_start, counted, used) from compared where counted <> used limit ");
    sql.push_bind(SHOWN).push(") as shown");
    let row = sql.build().persistent(false).fetch_one(&mut *scope.connection).await?;
    let shown: Vec<String> = row.try_get("shown")?;
    Ok((row.try_get("compared")?, row.try_get("wrong")?, shown.join("; ")))
}

async fn held(
    scope: &mut Scope<'_>,
    definition: &Definition<'_>,
    now: Timestamp,
) -> Result<(i64, String), StoreError> {
    let mut sql = QueryBuilder::new("with wanted as (select * from counters where environment = ");
    sql.push_bind(scope.environment.code()).push(" and definition = ").push_bind(definition.id);
    sql.push("), holds as (select r.key, r.path_id, r.created_at, r.expires_at, r.on_expiry, (h ->> 'value')::numeric - (h ->> 'committed')::numeric as quantity from reservations r cross join jsonb_array_elements(r.holds) h where r.status = 0 and r.environment = ");
    sql.push_bind(scope.environment.code()).push(" and h ->> 'meter' = ");
    sql.push_bind(definition.stored.meter.key.to_string());
    for (name, allowed) in definition.filter.iter() {
        sql.push(" and dimension_value(h -> 'properties' -> ").push_bind(name.to_owned());
        sql.push(") = any(").push_bind(allowed.to_vec()).push(")");
    }
    sql.push("), expected as (select c.id as counter_id, h.key, h.expires_at, h.on_expiry, h.quantity from holds h join paths p on p.id = h.path_id cross join unnest(p.ancestors) a (id) join wanted c on c.subject_id = a.id and h.created_at >= c.since and h.created_at < c.period_end where h.quantity > 0), lines as (select l.* from hold_lines l join wanted c on c.id = l.counter_id), compared as (select coalesce(l.counter_id, e.counter_id) as counter_id, coalesce(l.reservation, e.key) as key, l.quantity as held, e.quantity as expected,");
    // expired holds may already be removed
    sql.push(" l.quantity is not distinct from e.quantity or l.quantity is null and e.on_expiry = 0 and e.expires_at <= ");
    sql.push_bind(now);
    sql.push(" as same from lines l full join expected e on e.counter_id = l.counter_id and e.key = l.reservation and e.expires_at = l.expires_at), sums as (select c.id as counter_id, null::uuid as key, c.held, coalesce(sum(l.quantity), 0) as expected, c.held = coalesce(sum(l.quantity), 0) and (c.next_expiry <= min(l.expires_at) or min(l.expires_at) is null) as same from wanted c left join lines l on l.counter_id = c.id group by c.id, c.held, c.next_expiry), judged as (select * from compared union all select * from sums)");
    sql.push(" select (select count(*) from judged where same is not true) as wrong, array(select format('counter %s, reservation %s: %s expected, %s held', counter_id, key, expected, held) from judged where same is not true limit ");
    sql.push_bind(SHOWN).push(") as shown");
    let row = sql.build().persistent(false).fetch_one(&mut *scope.connection).await?;
    let shown: Vec<String> = row.try_get("shown")?;
    Ok((row.try_get("wrong")?, shown.join("; ")))
}

/// Reports counters that belong to no definition.
pub async fn stray_counters(
    scope: &mut Scope<'_>,
    definitions: &[Uuid],
    differences: &mut Differences,
) -> Result<(), StoreError> {
    let environment = scope.environment;
    let stray: i64 = sqlx::query_scalar(
        "select count(*) from counters where environment = $1 and not of_price and definition <> all($2)",
    )
    .bind(environment.code())
    .bind(definitions)
    .fetch_one(&mut *scope.connection)
    .await?;
    if stray > 0 {
        differences.note(stray, format!("{environment}: {stray} counters of limits that no plan has"));
    }
    Ok(())
}
