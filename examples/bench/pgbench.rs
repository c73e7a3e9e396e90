//! `pgbench` on the same server: the rate of one statement or function per call, without a service.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use metergate::embedded::Cluster;
use tokio::process::Command;

/// The command's name in the table.
pub(crate) const NAME: &str = "`pgbench -c 64 -j 2 -M prepared`";

/// One transaction of a client, which is repeated.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Script {
    file: &'static str,
    text: &'static str,
}

/// A UUIDv7, as clients of the service create them. It is a macro, because scripts are concatenated
/// literals.
macro_rules! uuid_v7 {
    () => {
        "(lpad(to_hex((extract(epoch from clock_timestamp()) * 1000)::bigint), 12, '0') || '7'
               || right(replace(gen_random_uuid()::text, '-', ''), 19))::uuid"
    };
}

/// One statement and transaction per event: the key, the event, and the hour's count.
pub(crate) const INSERT_AND_COUNT: Script = Script {
    file: "insert_and_count.sql",
    text: concat!(
        r"\set path random(1, 10000)
\set value random(1, 5000)
\set model random(1, 5)
with fresh as (
    insert into event_keys (environment, key, content, occurred_at, timestamp_given, batch_id)
    values (0, ",
        uuid_v7!(),
        r", gen_random_uuid(), now(), true, 0)
    on conflict on constraint event_keys_pk do nothing returning key, occurred_at),
recorded as (
    insert into events (environment, batch_id, path_id, occurred_at, key, ordinal, event_name_id, sign, value, properties)
    select 0, 0, :path::bigint, occurred_at, key, 0, 1, 1, :value::numeric, jsonb_build_object('model', :model::int) from fresh)
insert into rollups (environment, meter_id, path_id, hour, dimension_set_id, count, sum)
select 0, (select min(id) from meters), :path::bigint, date_trunc('hour', occurred_at), :model::bigint, 1, :value::numeric from fresh
on conflict on constraint rollups_pk do update set count = rollups.count + 1, sum = rollups.sum + excluded.sum;
"
    ),
};

/// The function that the next two scripts call, in a schema of its own. `COUNTERS` is replaced by the
/// number of counters.
pub(crate) const RESERVE_SCHEMA: &str = r"
drop schema if exists gate cascade;
create schema gate;
create table gate.counters (
    subject_id bigint primary key,
    quota numeric not null,
    used numeric not null,
    held numeric not null
) with (fillfactor = 50);
create table gate.holds (
    id uuid primary key,
    subject_id bigint not null,
    value numeric not null,
    expires_at timestamptz not null
);
create function gate.reserve(hold uuid, subject bigint, asked numeric) returns boolean language plpgsql as $$
begin
    update gate.counters set held = held + asked where subject_id = subject and used + held + asked <= quota;
    if not found then
        return false;
    end if;
    insert into gate.holds values (hold, subject, asked, clock_timestamp() + interval '1 hour');
    return true;
end
$$;
insert into gate.counters select subject_id, 1e15, 0, 0 from generate_series(1, COUNTERS) subject_id;
analyze gate.counters;
";

/// One function call per reservation, over as many subjects as the service has.
pub(crate) const RESERVE_SPREAD: Script = Script {
    file: "reserve_spread.sql",
    text: concat!(
        r"\set subject random(1, 100000)
\set asked random(1, 5000)
select gate.reserve(",
        uuid_v7!(),
        ", :subject::bigint, :asked::numeric);\n"
    ),
};

/// One function call per reservation, all on one subject.
pub(crate) const RESERVE_HOT: Script = Script {
    file: "reserve_hot.sql",
    text: concat!(
        r"\set asked random(1, 5000)
select gate.reserve(",
        uuid_v7!(),
        ", 1, :asked::numeric);\n"
    ),
};

#[derive(Debug)]
pub(crate) struct Pgbench {
    program: PathBuf,
    /// The folder of the server's socket.
    socket: String,
    /// The folder for script files.
    folder: PathBuf,
}

impl Pgbench {
    /// Finds `pgbench`. Returns none if it is not installed.
    pub(crate) fn find(cluster: &Cluster, folder: &Path) -> anyhow::Result<Option<Self>> {
        let on_path = std::env::var_os("PATH").map(|path| std::env::split_paths(&path).collect::<Vec<_>>());
        let debian = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
        let mut folders =
            on_path.unwrap_or_default().into_iter().chain(debian.map(|entry| entry.path().join("bin")));
        let Some(program) =
            folders.find_map(|folder| Some(folder.join("pgbench")).filter(|program| program.is_file()))
        else {
            return Ok(None);
        };
        Ok(Some(Self { program, socket: socket(cluster)?, folder: folder.to_owned() }))
    }

    /// Returns the transactions per second of a script.
    pub(crate) async fn rate(
        &self,
        database: &str,
        script: Script,
        duration: Duration,
    ) -> anyhow::Result<f64> {
        let file = self.folder.join(script.file);
        std::fs::write(&file, script.text)?;
        let output = Command::new(&self.program)
            .args(["-n", "-M", "prepared", "-c", "64", "-j", "2", "-U", "metergate"])
            .args(["-h", &self.socket, "-T", &duration.as_secs().to_string(), "-f"])
            .arg(&file)
            .arg(database)
            .kill_on_drop(true)
            .output()
            .await?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success(), "pgbench: {text}{}", String::from_utf8_lossy(&output.stderr));
        let tps = text
            .lines()
            .find_map(|line| line.strip_prefix("tps = "))
            .context("pgbench must print `tps = `")?;
        Ok(tps.split_whitespace().next().context("pgbench must print a number after `tps = `")?.parse()?)
    }
}

fn socket(cluster: &Cluster) -> anyhow::Result<String> {
    let url = cluster.url("postgres");
    let Some((_, query)) = url.split_once('?') else { bail!("the server's URL must name a socket") };
    let host = form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == "host");
    Ok(host.context("the server's URL must name a socket")?.1.into_owned())
}
