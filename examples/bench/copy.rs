//! `COPY` on the same server into the same tables and indexes: the baseline for recording, and the fast
//! way to create many events.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::ensure;
use jiff::Timestamp;
use sqlx::{Connection as _, PgConnection, Row};

use crate::events::{self, Chunk, Ids, When};
use crate::report::float;

/// The rows in one transaction of a stream.
pub(crate) const CHUNK_ROWS: usize = 4_000;
/// The number of parallel `COPY` streams.
pub(crate) const STREAMS: usize = 2;

/// Reserves unused batch numbers.
async fn batch_ids(connection: &mut PgConnection, count: usize) -> anyhow::Result<Vec<i64>> {
    let count = i64::try_from(count)?;
    let ids = sqlx::query_scalar("select nextval('batch_ids') from generate_series(1, $1)").bind(count);
    Ok(ids.fetch_all(connection).await?)
}

/// Reads the numbers that the rows of a database refer to.
pub(crate) async fn ids(connection: &mut PgConnection, like: &str) -> anyhow::Result<Ids> {
    let event_name = sqlx::query_scalar("select id from event_names where environment = 0 and name = $1")
        .bind(events::EVENT_NAME)
        .fetch_one(&mut *connection)
        .await?;
    let rows = sqlx::query("select path_id from subjects where environment = 0 and subject like $1")
        .bind(like)
        .fetch_all(connection)
        .await?;
    let paths = rows.iter().map(|row| row.try_get("path_id")).collect::<Result<Vec<i64>, _>>()?;
    ensure!(!paths.is_empty(), "the database must have subjects like {like}");
    Ok(Ids { event_name, paths })
}

/// Runs one transaction of a stream.
async fn copy(connection: &mut PgConnection, chunk: &Chunk) -> anyhow::Result<()> {
    sqlx::raw_sql("begin").execute(&mut *connection).await?;
    let keys =
        "copy event_keys (environment, key, content, occurred_at, timestamp_given, batch_id) from stdin";
    let mut stream = connection.copy_in_raw(keys).await?;
    stream.send(chunk.keys.as_bytes()).await?;
    stream.finish().await?;
    let rows =
        "copy events (path_id, occurred_at, batch_id, customer_id, key, ordinal, event_name_id, environment,
                             sign, value, properties, id, source) from stdin";
    let mut stream = connection.copy_in_raw(rows).await?;
    stream.send(chunk.events.as_bytes()).await?;
    stream.finish().await?;
    let Chunk { batch_id, event_name_id, first, last, count, .. } = chunk;
    // built from numbers and times only
    let unfolded = format!(
        "insert into unfolded (batch_id, environment, first_at, last_at, event_count, event_name_ids)
         values ({batch_id}, 0, '{first}', '{last}', {count}, '{{{event_name_id}}}');
         commit"
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(unfolded)).execute(connection).await?;
    Ok(())
}

/// Returns the rows per second of parallel streams. The rows are built before the clock runs.
pub(crate) async fn rate(url: &str, rows: usize) -> anyhow::Result<f64> {
    let mut connection = PgConnection::connect(url).await?;
    let ids = ids(&mut connection, "user_%").await?;
    let invalid_batches_are_rejected = batch_ids(&mut connection, rows.div_ceil(CHUNK_ROWS)).await?;
    let count = invalid_batches_are_rejected.len() * CHUNK_ROWS;
    let mut streams: Vec<Vec<Chunk>> = (0..STREAMS).map(|_| Vec::new()).collect();
    for (index, batch_id) in invalid_batches_are_rejected.into_iter().enumerate() {
        streams[index % STREAMS].push(events::chunk(&ids, batch_id, CHUNK_ROWS, When::Now));
    }
    let mut connections = Vec::new();
    for _ in 0..STREAMS {
        connections.push(PgConnection::connect(url).await?);
    }
    let started = Instant::now();
    let tasks: Vec<_> = streams
        .into_iter()
        .zip(connections)
        .map(|(chunks, mut connection)| {
            tokio::spawn(async move {
                for chunk in &chunks {
                    copy(&mut connection, chunk).await?;
                }
                anyhow::Ok(())
            })
        })
        .collect();
    for task in tasks {
        task.await??;
    }
    Ok(float(count) / started.elapsed().as_secs_f64())
}

/// The statement that sets the counters of subjects with copied events.
const RECOUNT: &str = "update counters set used = counted.used from (
    select c.id, sum(e.sign * e.value) as used
    from subjects s
    join counters c on c.subject_id = s.id
    join events e on e.path_id = s.path_id
        and e.occurred_at >= greatest(c.period_start, c.since) and e.occurred_at < c.period_end
    where s.environment = 0 and s.subject like $1
    group by c.id) counted
 where counted.id = counters.id";

/// Fills a database with events of a time range, in order of time, and updates the counters.
pub(crate) async fn fill(
    url: &str,
    like: &str,
    rows: usize,
    (from, to): (Timestamp, Timestamp),
) -> anyhow::Result<()> {
    let mut connection = PgConnection::connect(url).await?;
    let ids = Arc::new(ids(&mut connection, like).await?);
    let invalid_batches_are_rejected = Arc::new(batch_ids(&mut connection, rows.div_ceil(CHUNK_ROWS)).await?);
    let next = Arc::new(AtomicUsize::new(0));
    let mut tasks = Vec::new();
    for _ in 0..=STREAMS {
        let (ids, invalid_batches_are_rejected, next) =
            (Arc::clone(&ids), Arc::clone(&invalid_batches_are_rejected), Arc::clone(&next));
        let mut connection = PgConnection::connect(url).await?;
        tasks.push(tokio::spawn(async move {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(batch_id) = invalid_batches_are_rejected.get(index) else { return anyhow::Ok(()) };
                let when = events::piece(from, to, index, invalid_batches_are_rejected.len());
                let chunk = events::chunk(&ids, *batch_id, CHUNK_ROWS, when);
                copy(&mut connection, &chunk).await?;
            }
        }));
    }
    for task in tasks {
        task.await??;
    }
    sqlx::query(RECOUNT).bind(like).execute(&mut connection).await?;
    Ok(())
}
