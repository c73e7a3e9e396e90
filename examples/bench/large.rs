//! Much data: ten million events, folded, and a million counters.

#![expect(clippy::print_stderr, reason = "progress")]

use std::time::{Duration, Instant};

use metergate::store::partitions;
use sqlx::{Connection as _, PgConnection};

use crate::stage::Stage;
use crate::{copy, events};

/// The label of these rows in the table.
pub(crate) const WHAT: &str = "with 10 million events and a million counters more";
const EVENTS: usize = 10_000_000;
const COUNTERS: usize = 1_000_000;
const SPAN: Duration = Duration::from_hours(30 * 24);

/// The statement that creates subjects on a plan, each with a copy of another subject's counter.
const COUNT_ON: &str = "with
    like_it as (select id from subjects where environment = 0 and subject = $2),
    fresh as (
        insert into subjects (id, environment, subject, path_id)
        select id, 0, 'counted_' || n, id from (
            select n, nextval('subject_ids') as id from generate_series(1, $1) n) numbered
        returning id),
    on_path as (
        insert into paths (id, environment, subject_id, ancestors) select id, 0, id, array[id] from fresh),
    on_plan as (
        insert into subscriptions (subject_id, environment, plan, status, cycle_anchor, terms_since, pristine_version, created_at, updated_at)
        select fresh.id, environment, plan, status, cycle_anchor, terms_since, pristine_version, created_at, updated_at
        from fresh, subscriptions where subject_id = (select id from like_it))
 insert into counters (subject_id, definition, period_start, environment, meter_id, period_end, since, used, held)
 select fresh.id, definition, period_start, environment, meter_id, period_end, since, 0, 0
 from fresh, counters where subject_id = (select id from like_it)";

/// Adds ten million events of the last 30 days and a million counters to both databases.
pub(crate) async fn fill(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    let started = Instant::now();
    let url = stage.url();
    let to = events::now();
    let from = to - SPAN;
    let mut connection = PgConnection::connect(&url).await?;
    for at in [from, to] {
        let at = metergate_domain::base::timestamp::Timestamp::parse(&at.to_string())?;
        if let Some(month) = partitions::month_of(at) {
            partitions::ensure(&mut connection, month).await?;
        }
    }
    let counted = sqlx::query(COUNT_ON).bind(i64::try_from(COUNTERS)?).bind(events::subject(0));
    counted.execute(&mut connection).await?;
    eprintln!("a million counters added after {} s", started.elapsed().as_secs());
    copy::fill(&url, "user_%", EVENTS, (from, to)).await?;
    eprintln!("10 million events added after {} s", started.elapsed().as_secs());
    stage.wait_until_folded().await?;
    eprintln!("folded after {} s", started.elapsed().as_secs());
    sqlx::raw_sql("vacuum (analyze)").execute(&mut connection).await?;
    connection.close().await?;
    stage.copy_database(COUNTERS).await?;
    eprintln!("vacuumed and copied for comparison after {} s", started.elapsed().as_secs());
    Ok(())
}
