//! One attempt to record a batch in one transaction. All locks are taken in one order: configuration
//! (shared), subjects, event keys, counters, wallets; within each group in ascending order.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use sqlx::PgConnection;
use uuid::Uuid;

use super::prepared_event::{EventOutcome, PreparedEvent, RecordResult, Times};
use super::processor::{IngestProcessor, IngestRequest};
use crate::engine::credits::tracked::Tracked;
use crate::engine::credits::wallets::WalletLoader;
use crate::engine::environment_cache::CacheUpdates;
use crate::engine::gate::counters::{Additions, Sign};
use crate::engine::subjects::resolution::{Arrivals, SubjectPaths};
use crate::engine::writers::interrupt::Interrupt;
use crate::engine::writers::prerequisite::Prerequisite;
use crate::engine::writers::processor::Attempt;
use crate::engine::writers::transaction::BatchTransaction;
use crate::store::configuration::begin_recording;
use crate::store::gate::counters::CounterRow;
use crate::store::usage::events::{EventColumns, KeyColumns, KeyRow};
use crate::store::{self, Scope, StoreError};
use metergate_domain::base::{Timestamp, Violation};
use metergate_domain::gate::{CatalogIndex, LimitState, Path};
use metergate_domain::usage::event::validate_time;

/// An event of the batch with its checks.
struct Candidate<'a> {
    event: &'a PreparedEvent,
    occurred_at: Timestamp,
    /// True if the event is history, which is not exported to the biller.
    backfill: bool,
    /// The reason to reject the event, unless it is a repeat.
    objection: Option<Violation>,
}

pub(crate) async fn attempt(
    processor: &mut IngestProcessor,
    connection: &mut PgConnection,
    work: &[&IngestRequest],
    uncertain: &[i64],
) -> Result<Attempt<RecordResult>, Interrupt> {
    let IngestProcessor { environment, writer_context, reader } = processor;
    let environment = *environment;
    let mut scope = Scope::new(connection, environment);
    let opening = begin_recording(&mut scope).await?;
    let now = writer_context.clock.now(environment, opening.now);
    let cache = writer_context.caches.at(&mut scope, opening.versions).await?;
    let terms = &cache.terms;
    let fresh = CacheUpdates::default();
    let cache = &*cache;
    let mut transaction = BatchTransaction { scope, reader, cache, now, fresh };

    let candidates = examine(work, now, writer_context.age_max, terms);
    let good = candidates.iter().filter(|candidate| candidate.objection.is_none());
    let missing = writer_context.months.missing(good.map(|candidate| candidate.occurred_at));
    if !missing.is_empty() {
        return Err(Prerequisite::Partitions(missing).into());
    }
    let winners = winners(&candidates);

    let subject_paths = locate(&mut transaction, &candidates, &winners).await?;
    if subject_paths.values().any(|path| path.has_due_end(now, terms)) {
        return Err(Prerequisite::EndSubscriptions.into());
    }
    let known = take_keys(&mut transaction, opening.batch_id, &candidates, &winners).await?;
    let (outcomes, recorded) = judge(&candidates, &winners, &known, opening.batch_id, uncertain);

    let names = name_ids(&mut transaction, &candidates, &recorded).await?;
    let columns = event_columns(&candidates, &recorded, &subject_paths, &names);
    store::usage::events::insert_batch(&mut transaction.scope, opening.batch_id, &columns).await?;

    let tracked = tracked(terms, &candidates, &recorded, &subject_paths);
    let mut additions = Additions::default();
    tracked.clone().for_each(|used| additions.add(terms, &used, Sign::Recorded));
    let mut counters = additions.write(&mut transaction).await?;
    let BatchTransaction { scope, fresh, .. } = transaction;
    let wallet_loader = WalletLoader { environment, terms, clock: &writer_context.clock, began: now };
    wallet_loader.cover_recorded(scope.connection, &mut counters, &additions, tracked).await?;

    if let Err(why) = store::transaction::commit(scope.connection).await {
        tracing::debug!(%why, "commit");
        return Ok(Attempt::Unanswered { batch_id: opening.batch_id });
    }
    // only committed rows may be cached
    fresh.remember(cache);
    writer_context.tails.of(environment).grow(recorded.len());
    note_metrics(&outcomes);
    let limits = Limits { terms, subject_paths: &subject_paths, counters: by_key(&counters), now };
    let first_time = |index: usize| {
        let key = candidates[index].event.key;
        let known = known.get(&key).map(|row| row.occurred_at);
        known.or_else(|| winners.get(&key).map(|winner| candidates[*winner].occurred_at))
    };
    Ok(Attempt::Committed(answers(work, outcomes, &limits, first_time)))
}

fn examine<'a>(
    work: &[&'a IngestRequest],
    now: Timestamp,
    age_max: std::time::Duration,
    terms: &CatalogIndex,
) -> Vec<Candidate<'a>> {
    let candidate = |event: &'a PreparedEvent, backfill: bool| {
        let age_max = (!backfill).then_some(age_max);
        let objection = event.timestamp.and_then(|at| validate_time(at, now, age_max)).or_else(|| {
            terms.meters_of(&event.event_name).find_map(|stored| stored.meter.refuses(&event.properties))
        });
        Candidate { event, occurred_at: event.timestamp.unwrap_or(now), backfill, objection }
    };
    work.iter()
        .flat_map(|delivery| delivery.events.iter().map(|event| candidate(event, delivery.backfill)))
        .collect()
}

/// Returns the first acceptable event of each key, in order of arrival.
fn winners(candidates: &[Candidate<'_>]) -> HashMap<Uuid, usize> {
    let mut winners = HashMap::with_capacity(candidates.len());
    for (index, candidate) in candidates.iter().enumerate() {
        if candidate.objection.is_none() {
            winners.entry(candidate.event.key).or_insert(index);
        }
    }
    winners
}

/// Resolves the subjects of the winners. Creates unknown subjects, unless the ids of their events
/// turn out to be taken.
async fn locate(
    transaction: &mut BatchTransaction<'_>,
    candidates: &[Candidate<'_>],
    winners: &HashMap<Uuid, usize>,
) -> Result<SubjectPaths, Interrupt> {
    let subject = |index: &usize| candidates[*index].event.subject.as_str();
    let names: BTreeSet<&str> = winners.values().map(subject).collect();
    let mut arrivals = Arrivals::find(transaction, &names).await?;
    if arrivals.found.len() < names.len() {
        let mut unknown: HashMap<&str, Vec<Uuid>> = HashMap::new();
        for (key, index) in winners {
            if !arrivals.found.contains_key(subject(index)) {
                unknown.entry(subject(index)).or_default().push(*key);
            }
        }
        let keys: Vec<Uuid> = unknown.values().flatten().copied().collect();
        let rows = arrivals.find_keys(&keys).await?;
        let taken: HashSet<Uuid> = rows.iter().map(|row| row.key).collect();
        unknown.retain(|_, keys| keys.iter().any(|key| !taken.contains(key)));
        let mut names: Vec<String> = unknown.into_keys().map(str::to_owned).collect();
        names.sort_unstable();
        arrivals.make(&names).await?;
    }
    match arrivals.subscribe().await? {
        None => Ok(arrivals.found),
        Some(prerequisite) => Err(prerequisite.into()),
    }
}

/// Inserts the keys of the winners. Returns the stored rows of taken keys and of keys of rejected
/// candidates. Returns no rows if every key was free and no candidate is rejected.
async fn take_keys(
    transaction: &mut BatchTransaction<'_>,
    batch_id: i64,
    candidates: &[Candidate<'_>],
    winners: &HashMap<Uuid, usize>,
) -> Result<HashMap<Uuid, KeyRow>, StoreError> {
    let scope = &mut transaction.scope;
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
        store::usage::events::insert_keys(scope, batch_id, &columns).await?
    };
    let mut asked: Vec<Uuid> =
        candidates.iter().filter(|c| c.objection.is_some()).map(|c| c.event.key).collect();
    if taken < columns.keys.len() as u64 {
        asked.extend(columns.keys);
    }
    if asked.is_empty() {
        return Ok(HashMap::new());
    }
    let rows = store::usage::events::find_keys(scope, &asked).await?;
    Ok(rows.into_iter().map(|row| (row.key, row)).collect())
}

/// Decides every event in order of arrival, and returns the indices of those to insert.
fn judge(
    candidates: &[Candidate<'_>],
    winners: &HashMap<Uuid, usize>,
    known: &HashMap<Uuid, KeyRow>,
    batch_id: i64,
    uncertain: &[i64],
) -> (Vec<EventOutcome>, Vec<usize>) {
    let mut recorded = Vec::with_capacity(winners.len());
    let mut outcomes = Vec::with_capacity(candidates.len());
    for (index, candidate) in candidates.iter().enumerate() {
        let event = candidate.event;
        let winner = winners.get(&event.key).copied();
        // a free key is not looked up, because the winner's own row is the first
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
            (None, Some(objection)) => EventOutcome::Rejected(objection.clone()),
            (None, None) => EventOutcome::Rejected(reused()),
            (Some(first), _) if winner == Some(index) && first.batch_id == batch_id => {
                recorded.push(index);
                EventOutcome::Accepted
            }
            // an earlier attempt of this batch with an unknown result was committed
            (Some(first), _) if winner == Some(index) && uncertain.contains(&first.batch_id) => {
                EventOutcome::Accepted
            }
            (Some(first), objection) => {
                let same_time =
                    !first.timestamp_given || event.timestamp.is_none_or(|at| at == first.occurred_at);
                match (first.content == event.content && same_time, objection) {
                    (true, _) => EventOutcome::Duplicate,
                    (false, Some(objection)) => EventOutcome::Rejected(objection.clone()),
                    (false, None) => EventOutcome::Rejected(reused()),
                }
            }
        };
        outcomes.push(outcome);
    }
    (outcomes, recorded)
}

fn reused() -> Violation {
    let detail = "must be new: an event with this id was recorded with other content; use another id";
    Violation::new("id_reused", detail).under("id")
}

async fn name_ids(
    transaction: &mut BatchTransaction<'_>,
    candidates: &[Candidate<'_>],
    recorded: &[usize],
) -> Result<HashMap<String, i32>, StoreError> {
    let BatchTransaction { scope, cache, fresh, .. } = transaction;
    let mut ids = HashMap::new();
    let mut unknown: Vec<String> = Vec::new();
    for index in recorded {
        let name = &candidates[*index].event.event_name;
        if ids.contains_key(name) {
            continue;
        }
        match cache.event_names.get(name) {
            Some(id) => {
                ids.insert(name.clone(), id);
            }
            None if !unknown.contains(name) => unknown.push(name.clone()),
            None => {}
        }
    }
    if !unknown.is_empty() {
        unknown.sort_unstable();
        let found = store::catalog::event_name_ids(scope, &unknown).await?;
        fresh.event_names.extend(found.iter().cloned());
        ids.extend(found);
    }
    Ok(ids)
}

fn event_columns(
    candidates: &[Candidate<'_>],
    recorded: &[usize],
    subject_paths: &SubjectPaths,
    names: &HashMap<String, i32>,
) -> EventColumns {
    let mut columns = EventColumns::default();
    for (ordinal, index) in recorded.iter().enumerate() {
        let Candidate { event, occurred_at, backfill, .. } = &candidates[*index];
        // both were looked up for every winner
        let (Some(path), Some(name)) = (subject_paths.get(&event.subject), names.get(&event.event_name))
        else {
            unreachable!("every recorded event has a path and a name")
        };
        columns.path_ids.push(path.id);
        columns.occurred_at.push(*occurred_at);
        columns.customer_ids.push(path.customer_id.filter(|_| !backfill));
        columns.keys.push(event.key);
        columns.ordinals.push(i32::try_from(ordinal).unwrap_or(i32::MAX));
        columns.event_name_ids.push(*name);
        columns.signs.push(1);
        columns.values.push(event.value);
        columns.properties.push(event.properties_json.clone());
        columns.ids.push(event.id.clone());
        columns.sources.push(event.source.clone());
        columns.meter_ids.push(None);
    }
    columns
}

/// Returns the quantities that each meter counts from the recorded events.
fn tracked<'a>(
    terms: &'a CatalogIndex,
    candidates: &'a [Candidate<'a>],
    recorded: &'a [usize],
    subject_paths: &'a SubjectPaths,
) -> impl Iterator<Item = Tracked<'a>> + Clone {
    recorded.iter().flat_map(move |index| {
        let Candidate { event, occurred_at, .. } = &candidates[*index];
        let path = subject_paths.get(&event.subject).filter(|path| path.has_subscription());
        path.into_iter().flat_map(move |path| {
            terms.meters_of(&event.event_name).filter_map(move |stored| {
                let quantity = stored.meter.measure(event.value, &event.properties)?;
                let (properties, at, event) = (&event.properties, *occurred_at, event.key);
                Some(Tracked { path, stored, properties, quantity, at, event })
            })
        })
    })
}

fn by_key(rows: &[CounterRow]) -> HashMap<metergate_domain::gate::counter::CounterKey, &CounterRow> {
    rows.iter().map(|row| (row.key, row)).collect()
}

/// The limit states after the batch, from the counters that it wrote.
struct Limits<'a> {
    terms: &'a CatalogIndex,
    subject_paths: &'a SubjectPaths,
    counters: HashMap<metergate_domain::gate::counter::CounterKey, &'a CounterRow>,
    now: Timestamp,
}

impl Limits<'_> {
    /// Returns the limits that apply to an event, or none if the written counters do not cover all of
    /// them.
    fn met_by(&self, event: &PreparedEvent) -> Option<Vec<LimitState>> {
        let path: &Arc<Path> = self.subject_paths.get(&event.subject)?;
        let met: Vec<_> = self
            .terms
            .meters_of(&event.event_name)
            .filter(|stored| stored.meter.measure(event.value, &event.properties).is_some())
            .map(|stored| &stored.meter.key)
            .collect();
        let meets = |key| met.contains(&key);
        self.terms
            .of_path(path)
            .filter(|found| {
                meets(&found.terms.limit.meter) && found.terms.limit.filter.admits(&event.properties)
            })
            .map(|found| {
                let counter = found.terms.uses_counter().then(|| found.counter_at(self.now))??;
                let row = self.counters.get(&counter.key)?;
                // after the next expiry, the counter still contains expired holds
                let is_exact = row.next_expiry.is_none_or(|at| self.now < at);
                is_exact.then(|| LimitState::of(&found, row.level, self.now))
            })
            .collect()
    }
}

/// Assembles the results per call. `first_time` returns when an event of the batch first happened, by
/// its index.
fn answers(
    work: &[&IngestRequest],
    outcomes: Vec<EventOutcome>,
    limits: &Limits<'_>,
    first_time: impl Fn(usize) -> Option<Timestamp>,
) -> Vec<RecordResult> {
    let mut place = 0;
    let mut outcomes = outcomes.into_iter();
    work.iter()
        .map(|delivery| {
            let (mut met, mut times) = (None, None);
            if let [event] = delivery.events.as_slice() {
                met = if delivery.with_limits { limits.met_by(event) } else { None };
                times = first_time(place).map(|occurred_at| Times { occurred_at, answered_at: limits.now });
            }
            place += delivery.events.len();
            let outcomes = outcomes.by_ref().take(delivery.events.len()).collect();
            RecordResult { outcomes, limits: met, times }
        })
        .collect()
}

fn note_metrics(outcomes: &[EventOutcome]) {
    let (mut accepted, mut duplicates, mut rejected) = (0, 0, 0);
    for outcome in outcomes {
        match outcome {
            EventOutcome::Accepted => accepted += 1,
            EventOutcome::Duplicate => duplicates += 1,
            EventOutcome::Rejected(_) => rejected += 1,
        }
    }
    for (outcome, count) in [("accepted", accepted), ("duplicate", duplicates), ("rejected", rejected)] {
        metrics::counter!("metergate_events_total", "outcome" => outcome).increment(count);
    }
    metrics::histogram!("metergate_ingest_batch_events")
        .record(f64::from(u32::try_from(outcomes.len()).unwrap_or(u32::MAX)));
}
