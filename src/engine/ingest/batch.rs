//! One attempt at recording a batch as one transaction. Locks are taken in one order: configuration
//! (shared), subjects, event keys; each group ascending.

use std::collections::{HashMap, HashSet};
use std::sync::PoisonError;

use sqlx::PgConnection;
use uuid::Uuid;

use super::lane::Job;
use super::{Outcome, Prepared, Workplace};
use crate::domain::environment::Environment;
use crate::domain::event::refuse_time;
use crate::domain::fields::Violation;
use crate::domain::timestamp::Timestamp;
use crate::domain::window::Span;
use crate::engine::configuration::Configuration;
use crate::store::configuration::begin_recording;
use crate::store::events::{EventColumns, KeyColumns, KeyRow};
use crate::store::subjects::Position;
use crate::store::{self, StoreError};

/// How an attempt ended, where the database did not refuse it.
pub(super) enum Attempt {
    /// What became of each event, in the order of arrival.
    Committed(Vec<Outcome>),
    /// The commit was sent and not answered.
    Unanswered { batch_id: i64 },
    /// Nothing was done: these months need their partitions first.
    MissingMonths(Vec<Span>),
}

/// An event of the batch with what was found out about it.
struct Candidate<'a> {
    event: &'a Prepared,
    occurred_at: Timestamp,
    /// Why it cannot be recorded, unless it was before.
    objection: Option<Violation>,
}

pub(super) async fn attempt(
    connection: &mut PgConnection,
    environment: Environment,
    workplace: &Workplace,
    jobs: &[Job],
    uncertain: &[i64],
) -> Result<Attempt, StoreError> {
    let opening = begin_recording(connection, environment).await?;
    let now = workplace.clock.now(environment, opening.now);
    let configuration = workplace.configurations.at(connection, environment, opening.config_version).await?;

    let candidates = examine(jobs, now, workplace, &configuration);
    let missing = missing_months(&candidates, workplace);
    if !missing.is_empty() {
        sqlx::raw_sql("rollback").execute(connection).await?;
        return Ok(Attempt::MissingMonths(missing));
    }
    let winners = winners(&candidates);

    let mut fresh = Fresh::default();
    let positions =
        locate(connection, environment, &configuration, &candidates, &winners, &mut fresh).await?;
    let known = take_keys(connection, environment, opening.batch_id, &candidates, &winners).await?;
    let (outcomes, recorded) = judge(&candidates, &winners, &known, opening.batch_id, uncertain);

    let names = name_ids(connection, environment, &configuration, &candidates, &recorded, &mut fresh).await?;
    let columns = event_columns(&candidates, &recorded, &positions, &names);
    store::events::insert_batch(connection, environment, opening.batch_id, &columns).await?;

    if let Err(why) = sqlx::raw_sql("commit").execute(&mut *connection).await {
        tracing::debug!(%why, "commit");
        return Ok(Attempt::Unanswered { batch_id: opening.batch_id });
    }
    // only what is committed may be remembered
    fresh.remember(&configuration);
    workplace.tails.of(environment).grow(recorded.len());
    note_metrics(&outcomes);
    Ok(Attempt::Committed(outcomes))
}

/// What was made in this transaction, to be remembered once it is committed.
#[derive(Default)]
struct Fresh {
    positions: Vec<(String, Position)>,
    names: Vec<(String, i32)>,
}

impl Fresh {
    fn remember(self, configuration: &Configuration) {
        for (subject, position) in self.positions {
            configuration.positions.insert(subject, position);
        }
        for (name, id) in self.names {
            configuration.event_names.insert(name, id);
        }
    }
}

fn examine<'a>(
    jobs: &'a [Job],
    now: Timestamp,
    workplace: &Workplace,
    configuration: &Configuration,
) -> Vec<Candidate<'a>> {
    let candidate = |event: &'a Prepared, backfill: bool| {
        let age_max = (!backfill).then_some(workplace.age_max);
        let objection = event.timestamp.and_then(|at| refuse_time(at, now, age_max)).or_else(|| {
            configuration.meters(&event.event_name).iter().find_map(|meter| meter.refuses(&event.properties))
        });
        Candidate { event, occurred_at: event.timestamp.unwrap_or(now), objection }
    };
    jobs.iter().flat_map(|job| job.events.iter().map(|event| candidate(event, job.backfill))).collect()
}

fn missing_months(candidates: &[Candidate<'_>], workplace: &Workplace) -> Vec<Span> {
    let known = workplace.months.lock().unwrap_or_else(PoisonError::into_inner);
    let mut missing: Vec<Span> = Vec::new();
    // events come in runs of the same month: ask for each run once
    let mut last: Option<Span> = None;
    for candidate in candidates.iter().filter(|candidate| candidate.objection.is_none()) {
        let at = candidate.occurred_at;
        if last.is_some_and(|month| month.from <= at && at < month.to) {
            continue;
        }
        last = store::partitions::month_of(at);
        if let Some(month) = last
            && !known.contains(&month.from)
            && !missing.contains(&month)
        {
            missing.push(month);
        }
    }
    missing
}

/// The first event of each key that nothing speaks against: by arrival, before any sorting.
fn winners(candidates: &[Candidate<'_>]) -> HashMap<Uuid, usize> {
    let mut winners = HashMap::with_capacity(candidates.len());
    for (index, candidate) in candidates.iter().enumerate() {
        if candidate.objection.is_none() {
            winners.entry(candidate.event.key).or_insert(index);
        }
    }
    winners
}

/// Where the subjects of the winners stand; first contacts are made, but not for events whose id
/// turns out to be taken.
async fn locate(
    connection: &mut PgConnection,
    environment: Environment,
    configuration: &Configuration,
    candidates: &[Candidate<'_>],
    winners: &HashMap<Uuid, usize>,
    fresh: &mut Fresh,
) -> Result<HashMap<String, Position>, StoreError> {
    let mut positions = HashMap::new();
    let mut unknown: HashMap<&str, Vec<Uuid>> = HashMap::new();
    for (key, index) in winners {
        let subject = candidates[*index].event.subject.as_str();
        if positions.contains_key(subject) {
            continue;
        }
        match configuration.positions.get(subject) {
            Some(position) => {
                positions.insert(subject.to_owned(), position);
            }
            None => unknown.entry(subject).or_default().push(*key),
        }
    }
    if unknown.is_empty() {
        return Ok(positions);
    }
    let all: Vec<String> = unknown.keys().map(|name| (*name).to_owned()).collect();
    let mut found = store::subjects::positions(connection, environment, &all).await?;
    let existing: HashSet<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
    unknown.retain(|name, _| !existing.contains(name));
    if !unknown.is_empty() {
        let keys: Vec<Uuid> = unknown.values().flatten().copied().collect();
        let taken: HashSet<Uuid> = store::events::find_keys(connection, environment, &keys)
            .await?
            .iter()
            .map(|row| row.key)
            .collect();
        unknown.retain(|_, keys| keys.iter().any(|key| !taken.contains(key)));
        let mut names: Vec<String> = unknown.into_keys().map(str::to_owned).collect();
        names.sort_unstable();
        store::subjects::insert_missing(connection, environment, &names).await?;
        found.extend(store::subjects::positions(connection, environment, &names).await?);
    }
    fresh.positions.extend(found.iter().cloned());
    positions.extend(found);
    Ok(positions)
}

/// Takes the keys of the winners. What is found of keys that were taken before, or that a candidate
/// with an objection asks about; empty where every winner's key was free and there are no others.
async fn take_keys(
    connection: &mut PgConnection,
    environment: Environment,
    batch_id: i64,
    candidates: &[Candidate<'_>],
    winners: &HashMap<Uuid, usize>,
) -> Result<HashMap<Uuid, KeyRow>, StoreError> {
    let mut sorted: Vec<(Uuid, usize)> = winners.iter().map(|(key, index)| (*key, *index)).collect();
    sorted.sort_unstable();
    let mut columns = KeyColumns::default();
    for (key, index) in sorted {
        columns.keys.push(key);
        columns.contents.push(candidates[index].event.content);
        columns.occurred_at.push(candidates[index].occurred_at);
        columns.timestamp_given.push(candidates[index].event.timestamp.is_some());
    }
    let taken = if columns.keys.is_empty() {
        0
    } else {
        store::events::insert_keys(connection, environment, batch_id, &columns).await?
    };
    let mut asked: Vec<Uuid> =
        candidates.iter().filter(|c| c.objection.is_some()).map(|c| c.event.key).collect();
    if taken < columns.keys.len() as u64 {
        asked.extend(columns.keys);
    }
    if asked.is_empty() {
        return Ok(HashMap::new());
    }
    let rows = store::events::find_keys(connection, environment, &asked).await?;
    Ok(rows.into_iter().map(|row| (row.key, row)).collect())
}

/// Decides every event in the order of arrival; also which of them are to be inserted now.
fn judge(
    candidates: &[Candidate<'_>],
    winners: &HashMap<Uuid, usize>,
    known: &HashMap<Uuid, KeyRow>,
    batch_id: i64,
    uncertain: &[i64],
) -> (Vec<Outcome>, Vec<usize>) {
    let mut recorded = Vec::with_capacity(winners.len());
    let mut outcomes = Vec::with_capacity(candidates.len());
    for (index, candidate) in candidates.iter().enumerate() {
        let event = candidate.event;
        let winner = winners.get(&event.key).copied();
        // a key that was free is not looked up: then the winner's own row is the one that counts
        let first = known.get(&event.key).copied().or_else(|| {
            winner.map(|winner| KeyRow {
                key: event.key,
                content: candidates[winner].event.content,
                occurred_at: candidates[winner].occurred_at,
                timestamp_given: candidates[winner].event.timestamp.is_some(),
                batch_id,
            })
        });
        let outcome = match (first, &candidate.objection) {
            (None, Some(objection)) => Outcome::Rejected(objection.clone()),
            (None, None) => Outcome::Rejected(reused()),
            (Some(first), _) if winner == Some(index) && first.batch_id == batch_id => {
                recorded.push(index);
                Outcome::Accepted
            }
            // an attempt of ours, which was not known to be committed, was
            (Some(first), _) if winner == Some(index) && uncertain.contains(&first.batch_id) => {
                Outcome::Accepted
            }
            (Some(first), objection) => {
                let same_time =
                    !first.timestamp_given || event.timestamp.is_none_or(|at| at == first.occurred_at);
                match (first.content == event.content && same_time, objection) {
                    (true, _) => Outcome::Duplicate,
                    (false, Some(objection)) => Outcome::Rejected(objection.clone()),
                    (false, None) => Outcome::Rejected(reused()),
                }
            }
        };
        outcomes.push(outcome);
    }
    (outcomes, recorded)
}

fn reused() -> Violation {
    let detail = "was recorded before with other content; use a new id for another event";
    Violation::new("id_reused", detail).under("id")
}

async fn name_ids(
    connection: &mut PgConnection,
    environment: Environment,
    configuration: &Configuration,
    candidates: &[Candidate<'_>],
    recorded: &[usize],
    fresh: &mut Fresh,
) -> Result<HashMap<String, i32>, StoreError> {
    let mut ids = HashMap::new();
    let mut unknown: Vec<String> = Vec::new();
    for index in recorded {
        let name = &candidates[*index].event.event_name;
        if ids.contains_key(name) {
            continue;
        }
        match configuration.event_names.get(name) {
            Some(id) => {
                ids.insert(name.clone(), id);
            }
            None if !unknown.contains(name) => unknown.push(name.clone()),
            None => {}
        }
    }
    if !unknown.is_empty() {
        unknown.sort_unstable();
        let found = store::catalog::event_name_ids(connection, environment, &unknown).await?;
        fresh.names.extend(found.iter().cloned());
        ids.extend(found);
    }
    Ok(ids)
}

fn event_columns(
    candidates: &[Candidate<'_>],
    recorded: &[usize],
    positions: &HashMap<String, Position>,
    names: &HashMap<String, i32>,
) -> EventColumns {
    let mut columns = EventColumns::default();
    for (ordinal, index) in recorded.iter().enumerate() {
        let Candidate { event, occurred_at, .. } = &candidates[*index];
        // both were looked up for every winner
        let (Some(position), Some(name)) = (positions.get(&event.subject), names.get(&event.event_name))
        else {
            unreachable!("every recorded event has a position and a name")
        };
        columns.path_ids.push(position.path_id);
        columns.occurred_at.push(*occurred_at);
        columns.customer_ids.push(position.customer_id);
        columns.keys.push(event.key);
        columns.ordinals.push(i32::try_from(ordinal).unwrap_or(i32::MAX));
        columns.event_name_ids.push(*name);
        columns.signs.push(1);
        columns.values.push(event.value);
        columns.properties.push(event.properties_json.clone());
        columns.ids.push(event.id.clone());
        columns.sources.push(event.source.clone());
    }
    columns
}

fn note_metrics(outcomes: &[Outcome]) {
    let (mut accepted, mut duplicates, mut rejected) = (0, 0, 0);
    for outcome in outcomes {
        match outcome {
            Outcome::Accepted => accepted += 1,
            Outcome::Duplicate => duplicates += 1,
            Outcome::Rejected(_) => rejected += 1,
        }
    }
    for (outcome, count) in [("accepted", accepted), ("duplicate", duplicates), ("rejected", rejected)] {
        metrics::counter!("metergate_events_total", "outcome" => outcome).increment(count);
    }
    metrics::histogram!("metergate_ingest_batch_events")
        .record(f64::from(u32::try_from(outcomes.len()).unwrap_or(u32::MAX)));
}
