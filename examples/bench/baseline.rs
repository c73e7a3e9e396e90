//! What the service is compared with: `COPY` and `pgbench`, on the same server, into the same tables
//! and indexes.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use jiff::Timestamp;
use sqlx::{Connection as _, PgConnection, Row};
use tokio::process::Command;

use super::events::{self, Chunk, Ids, When};
use super::report::float;

/// Rows in one transaction of a stream.
pub(crate) const CHUNK_ROWS: usize = 4_000;
/// Streams of `COPY` at the same time.
pub(crate) const STREAMS: usize = 2;
const PGBENCH_CLIENTS: &str = "64";
const PGBENCH_THREADS: &str = "2";

/// One statement per event, which is a transaction: the key, the event, the hour's count.
const INSERT_AND_COUNT: &str = r"\set path random(1, 10000)
\set value random(1, 5000)
\set model random(1, 5)
with fresh as (
    insert into event_keys (environment, key, content, occurred_at, timestamp_given, batch_id)
    values (0, (lpad(to_hex((extract(epoch from clock_timestamp()) * 1000)::bigint), 12, '0') || '7'
               || right(replace(gen_random_uuid()::text, '-', ''), 19))::uuid, gen_random_uuid(), now(), true, 0)
    on conflict on constraint event_keys_pk do nothing returning key, occurred_at),
recorded as (
    insert into events (environment, batch_id, path_id, occurred_at, key, ordinal, event_name_id, sign, value, properties)
    select 0, 0, :path::bigint, occurred_at, key, 0, 1, 1, :value::numeric, jsonb_build_object('model', :model::int) from fresh)
insert into rollups (environment, meter_id, path_id, hour, dimension_set_id, count, sum)
select 0, (select min(id) from meters), :path::bigint, date_trunc('hour', occurred_at), :model::bigint, 1, :value::numeric from fresh
on conflict on constraint rollups_pk do update set count = rollups.count + 1, sum = rollups.sum + excluded.sum;
";

/// Numbers for batches that nobody else has.
async fn batch_ids(connection: &mut PgConnection, count: usize) -> anyhow::Result<Vec<i64>> {
    let count = i64::try_from(count)?;
    let ids = sqlx::query_scalar("select nextval('batch_ids') from generate_series(1, $1)").bind(count);
    Ok(ids.fetch_all(connection).await?)
}

/// What the rows of a database refer to.
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
    ensure!(!paths.is_empty(), "no subjects {like}");
    Ok(Ids { event_name, paths })
}

/// One transaction of a stream.
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
    // made of numbers and times
    let unfolded = format!(
        "insert into unfolded (batch_id, environment, first_at, last_at, event_count, event_name_ids)
         values ({batch_id}, 0, '{first}', '{last}', {count}, '{{{event_name_id}}}');
         commit"
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(unfolded)).execute(connection).await?;
    Ok(())
}

/// Rows per second of parallel streams, whose rows were made beforehand.
pub(crate) async fn copy_rate(url: &str, rows: usize) -> anyhow::Result<f64> {
    let mut connection = PgConnection::connect(url).await?;
    let ids = ids(&mut connection, "user_%").await?;
    let batches = batch_ids(&mut connection, rows.div_ceil(CHUNK_ROWS)).await?;
    let count = batches.len() * CHUNK_ROWS;
    let mut streams: Vec<Vec<Chunk>> = (0..STREAMS).map(|_| Vec::new()).collect();
    for (index, batch_id) in batches.into_iter().enumerate() {
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

/// Fills a database with events of a range of time, in its order; the sum of their values.
pub(crate) async fn fill(
    url: &str,
    like: &str,
    rows: usize,
    (from, to): (Timestamp, Timestamp),
) -> anyhow::Result<u64> {
    let mut connection = PgConnection::connect(url).await?;
    let ids = Arc::new(ids(&mut connection, like).await?);
    let batches = Arc::new(batch_ids(&mut connection, rows.div_ceil(CHUNK_ROWS)).await?);
    let (next, sum) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicU64::new(0)));
    let mut tasks = Vec::new();
    for _ in 0..=STREAMS {
        let (ids, batches, next, sum) =
            (Arc::clone(&ids), Arc::clone(&batches), Arc::clone(&next), Arc::clone(&sum));
        let mut connection = PgConnection::connect(url).await?;
        tasks.push(tokio::spawn(async move {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(batch_id) = batches.get(index) else { return anyhow::Ok(()) };
                let when = events::piece(from, to, index, batches.len());
                let chunk = events::chunk(&ids, *batch_id, CHUNK_ROWS, when);
                copy(&mut connection, &chunk).await?;
                sum.fetch_add(chunk.sum, Ordering::Relaxed);
            }
        }));
    }
    for task in tasks {
        task.await??;
    }
    Ok(sum.load(Ordering::Relaxed))
}

/// Where `pgbench` is; none where it is not installed.
pub(crate) fn find_pgbench() -> Option<PathBuf> {
    let on_path = std::env::var_os("PATH").map(|path| std::env::split_paths(&path).collect::<Vec<_>>());
    let debian = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let folders = on_path.unwrap_or_default().into_iter().chain(debian.map(|entry| entry.path().join("bin")));
    folders.map(|folder| folder.join("pgbench")).find(|program| program.is_file())
}

/// Transactions per second.
pub(crate) async fn pgbench_rate(
    program: &Path,
    socket: &str,
    database: &str,
    script_folder: &Path,
    duration: Duration,
) -> anyhow::Result<f64> {
    let script = script_folder.join("insert_and_count.sql");
    std::fs::write(&script, INSERT_AND_COUNT)?;
    let output = Command::new(program)
        .args([
            "-n",
            "-M",
            "prepared",
            "-c",
            PGBENCH_CLIENTS,
            "-j",
            PGBENCH_THREADS,
            "-U",
            "metergate",
            "-h",
            socket,
        ])
        .args(["-T", &duration.as_secs().to_string(), "-f"])
        .arg(&script)
        .arg(database)
        .kill_on_drop(true)
        .output()
        .await?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "pgbench: {text}{}", String::from_utf8_lossy(&output.stderr));
    let tps = text.lines().find_map(|line| line.strip_prefix("tps = ")).context("pgbench said no tps")?;
    Ok(tps.split_whitespace().next().context("pgbench said no tps")?.parse()?)
}
