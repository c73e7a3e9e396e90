//! Counters that calls need. A missing counter is created with the usage recorded before it.
//!
//! While a limit is assigned, every writer updates its counter. The first writer that needs the counter of
//! an open period creates it. That writer inserts the row first and then reads the recorded usage in a
//! separate snapshot. Other writers wait for the row and add their own usage to it. The snapshot shows the
//! usage that they committed before.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::PgConnection;
use uuid::Uuid;

use crate::engine::credits::tracked::Tracked;
use crate::engine::pricing::priced_usage;
use crate::engine::usage::reader;
use crate::engine::writers::transaction::BatchTransaction;
use crate::store::gate::counters::{CounterColumns, CounterRow, WantedCounter};
use crate::store::gate::hold_lines::LineColumns;
use crate::store::usage::{MeterQuery, UsageScope};
use crate::store::{self, Scope, StoreError, transaction};
use metergate_domain::base::limits::USAGE_ROWS_MAX;
use metergate_domain::base::{Span, Timestamp, Total};
use metergate_domain::catalog::StoredMeter;
use metergate_domain::credits::coverage::covered;
use metergate_domain::gate::{
    ApplicableLimit, CatalogIndex, Counter, CounterKey, CounterPeriod, CounterSource, CounterState, HoldLine,
    HoldLineKey, Reservation,
};
use metergate_domain::usage::{GroupBySubject, Subjects, UsageQuery};

/// A needed counter and its source.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CounterRequest<'a> {
    pub(crate) counter_source: CounterSource<'a>,
    pub(crate) counter: CounterPeriod,
}

impl CounterRequest<'_> {
    pub(crate) fn wanted(&self) -> WantedCounter {
        WantedCounter {
            counter: self.counter,
            meter_id: self.counter_source.meter_id(),
            of_price: matches!(self.counter_source, CounterSource::PricedUsage(_)),
        }
    }
}

/// The needed counters, in the order of locking.
pub(crate) type CounterRequests<'a> = BTreeMap<CounterKey, CounterRequest<'a>>;

/// Adds the counter of the period around an instant. Returns none if the source has no counter then.
pub(crate) fn request_counter<'a>(
    counter_requests: &mut CounterRequests<'a>,
    counter_source: CounterSource<'a>,
    at: Timestamp,
) -> Option<CounterKey> {
    let counter = counter_source.uses_counter().then(|| counter_source.counter_at(at))??;
    counter_requests.entry(counter.key).or_insert(CounterRequest { counter_source, counter });
    Some(counter.key)
}

/// Creates the needed counters that are missing, except in closed periods.
pub(crate) async fn make_missing(
    transaction: &mut BatchTransaction<'_>,
    counter_requests: &CounterRequests<'_>,
) -> Result<(), StoreError> {
    let BatchTransaction { scope, reader, cache, now, fresh } = transaction;
    let now = *now;
    let unknown = |need: &&CounterRequest<'_>| {
        !need.counter.is_forgotten(now) && !cache.counters.contains_key(&need.counter.key)
    };
    let wanted: Vec<WantedCounter> =
        counter_requests.values().filter(unknown).map(CounterRequest::wanted).collect();
    if wanted.is_empty() {
        return Ok(());
    }
    let mut made = store::gate::counters::insert_missing(scope, &wanted).await?;
    // When this period closed, an older transaction may have been about to create its counter.
    let closed: Vec<CounterKey> = made
        .extract_if(.., |key| counter_requests.get(key).is_some_and(|need| need.counter.is_closed(now)))
        .collect();
    store::gate::counters::delete(scope.connection, closed.into_iter()).await?;
    let open = wanted.iter().filter(|wanted| !wanted.counter.is_closed(now));
    fresh.counters.extend(open.map(|wanted| wanted.counter.key));
    let mut uncounted: Vec<&CounterRequest<'_>> =
        made.iter().filter_map(|key| counter_requests.get(key)).collect();
    // While a period closes, a writer may have recorded usage in it without creating its counter.
    uncounted.retain(|need| !need.counter.starts_at_zero || need.counter.period.to <= now);
    if uncounted.is_empty() {
        return Ok(());
    }
    // This may take long; each statement of the reader has its own timeout.
    transaction::allow_idle(scope.connection).await?;
    let mut idle = reader.connected().await?;
    let mut snapshot = transaction::begin_snapshot(&mut idle).await?;
    let counted =
        count_all(&mut Scope::new(&mut snapshot, scope.environment), &cache.terms, &uncounted).await?;
    snapshot.commit().await?;
    reader.connection = Some(idle);
    write(scope, &counted).await
}

/// The value of a counter, computed from recorded usage and open reservations.
#[derive(Debug, Default)]
pub(crate) struct Count {
    used: Total,
    /// The part that credits have paid for.
    paid: Total,
    lines: Vec<(HoldLineKey, HoldLine)>,
}

impl Count {
    /// Returns the counter without expired hold lines.
    pub(crate) fn counter(&self, now: Timestamp) -> Counter {
        self.with_lines(|key| now < key.expires_at)
    }

    fn with_lines(&self, included: impl Fn(&HoldLineKey) -> bool) -> Counter {
        let mut level = CounterState { used: self.used, held: Total::default(), covered: self.paid };
        let mut next_expiry: Option<Timestamp> = None;
        for (key, line) in self.lines.iter().filter(|(key, _)| included(key)) {
            level.held = level.held + line.quantity.into();
            level.covered = level.covered + line.covered;
            next_expiry = Some(next_expiry.map_or(key.expires_at, |at| at.min(key.expires_at)));
        }
        Counter { level, next_expiry, becomes: None }
    }
}

async fn write(scope: &mut Scope<'_>, counted: &[(&CounterRequest<'_>, Count)]) -> Result<(), StoreError> {
    let rows =
        store::gate::counters::find(scope.connection, counted.iter().map(|(need, _)| need.counter.key))
            .await?;
    let ids: BTreeMap<CounterKey, i64> = rows.iter().map(|row| (row.key, row.id)).collect();
    let (mut columns, mut lines) = (CounterColumns::default(), LineColumns::default());
    for (need, count) in counted {
        let Counter { level, next_expiry, .. } = count.with_lines(|_| true);
        columns.push(need.counter.key, level, next_expiry);
        for (key, line) in &count.lines {
            lines.push(store::gate::counters::id_of(&ids, &key.counter)?, *key, *line);
        }
    }
    store::gate::counters::set(scope.connection, &columns).await?;
    if !lines.is_empty() {
        store::gate::hold_lines::write(scope, &lines).await?;
    }
    Ok(())
}

/// The most counters that one query counts.
const COUNTED_TOGETHER_MAX: usize = 1_000;

/// Counts recorded usage in a snapshot. Counters that differ only in their subject share a query.
async fn count_all<'n, 'a>(
    scope: &mut Scope<'_>,
    terms: &CatalogIndex,
    counter_requests: &[&'n CounterRequest<'a>],
) -> Result<Vec<(&'n CounterRequest<'a>, Count)>, StoreError> {
    let mut alike: BTreeMap<(Uuid, Timestamp, Timestamp), Vec<&'n CounterRequest<'a>>> = BTreeMap::new();
    for need in counter_requests {
        let Span { from, to } = need.counter.counted_span();
        alike.entry((need.counter.key.definition, from, to)).or_default().push(need);
    }
    let mut counted = Vec::with_capacity(counter_requests.len());
    for together in alike.values().flat_map(|counter_requests| counter_requests.chunks(COUNTED_TOGETHER_MAX))
    {
        match count_together(scope, terms, together).await? {
            Some(counts) => counted.extend(together.iter().copied().zip(counts)),
            None => {
                for need in together {
                    counted.push((*need, count(scope, terms, need).await?));
                }
            }
        }
    }
    Ok(counted)
}

/// Counts recorded usage for counters that differ only in their subject. Returns none if separate queries
/// are better.
async fn count_together(
    scope: &mut Scope<'_>,
    terms: &CatalogIndex,
    counter_requests: &[&CounterRequest<'_>],
) -> Result<Option<Vec<Count>>, StoreError> {
    let [first, _, ..] = counter_requests else { return Ok(None) };
    let CounterSource::Limit(found) = first.counter_source else { return Ok(None) };
    let Some(stored) = terms.meter(&found.terms.limit.meter) else { return Ok(None) };
    let ids: Vec<i64> = counter_requests.iter().map(|need| need.counter.key.subject_id).collect();
    let through = store::subjects::subject::paths_through(scope.connection, &ids).await?;
    let paths: Vec<i64> = through.keys().copied().collect();
    let query =
        UsageQuery { whose: GroupBySubject::EachPath, ..usage_query_for(&found, &first.counter, stored) };
    let bounds = [query.span.from, query.span.to];
    let asked = MeterQuery::new(scope.environment, stored, &query, UsageScope::Paths(&paths), &bounds);
    let rows = reader::read(scope.connection, &asked).await?;
    if rows.len() > USAGE_ROWS_MAX {
        // The subtrees have more paths than a query returns rows.
        return Ok(None);
    }
    let mut used: BTreeMap<i64, Total> = BTreeMap::new();
    for ((_, group), found) in rows {
        let path = group.subject.and_then(|path| path.parse::<i64>().ok());
        for subject in path.and_then(|path| through.get(&path)).into_iter().flatten() {
            let sum = used.entry(*subject).or_default();
            *sum = *sum + found.value(stored.meter.aggregation).unwrap_or_default();
        }
    }
    let counted = first.counter.counted_span();
    let open =
        store::gate::reservations::open_on_paths(scope.connection, &paths, counted.from, counted.to).await?;
    let mut held: BTreeMap<i64, Vec<&Reservation>> = BTreeMap::new();
    for reservation in &open {
        for subject in through.get(&reservation.path_id).into_iter().flatten() {
            held.entry(*subject).or_default().push(reservation);
        }
    }
    let count = |need: &&CounterRequest<'_>| {
        let subject = need.counter.key.subject_id;
        let open = held.get(&subject).into_iter().flatten().copied();
        let used = used.get(&subject).copied().unwrap_or_default();
        Count { used, paid: Total::default(), lines: lines(need, open) }
    };
    let mut counts: Vec<Count> = counter_requests.iter().map(count).collect();
    for (count, paid) in counts.iter_mut().zip(paid(scope.connection, counter_requests).await?) {
        count.paid = paid;
    }
    Ok(Some(counts))
}

/// Returns the part of each counter that credits have paid for.
async fn paid(
    snapshot: &mut PgConnection,
    counter_requests: &[&CounterRequest<'_>],
) -> Result<Vec<Total>, StoreError> {
    let wanted = |need: &&CounterRequest<'_>| {
        let Span { from, to } = need.counter.counted_span();
        (need.counter.key.subject_id, need.counter.key.definition, from, to)
    };
    store::credits::ledger::covered(snapshot, &counter_requests.iter().map(wanted).collect::<Vec<_>>()).await
}

/// Counts the recorded usage of one counter in a snapshot.
pub(crate) async fn count(
    scope: &mut Scope<'_>,
    terms: &CatalogIndex,
    need: &CounterRequest<'_>,
) -> Result<Count, StoreError> {
    let Some(stored) = terms.meter(need.counter_source.meter()) else { return Ok(Count::default()) };
    let used = match need.counter_source {
        CounterSource::Limit(found) => {
            let query = usage_query_for(&found, &need.counter, stored);
            reader::value(scope, stored, &query).await?
        }
        CounterSource::PricedUsage(priced_usage) => {
            priced_usage::used(scope, stored, &priced_usage, need.counter.period).await?
        }
    };
    let counted = need.counter.counted_span();
    let names = [need.counter_source.member().subject.to_string()];
    let paths = store::subjects::subject::path_ids(scope, &names, true).await?;
    let open =
        store::gate::reservations::open_on_paths(scope.connection, &paths, counted.from, counted.to).await?;
    let paid = paid(scope.connection, &[need]).await?.first().copied().unwrap_or_default();
    Ok(Count { used, paid, lines: lines(need, open.iter()) })
}

/// Returns the hold lines of open reservations on a counter. Expired lines are included; the next batch
/// that locks the counter removes them.
fn lines<'r>(
    need: &CounterRequest<'_>,
    open: impl Iterator<Item = &'r Reservation>,
) -> Vec<(HoldLineKey, HoldLine)> {
    let counter_source = need.counter_source;
    let mut lines = Vec::new();
    for reservation in open {
        let before_expiry = reservation.created_at;
        for hold in reservation.holds.iter().filter(|hold| hold.meter == *counter_source.meter()) {
            let open = reservation.open(hold, before_expiry);
            if counter_source.admits(&hold.properties, reservation.created_at)
                && let Some(quantity) =
                    counter_source.measure_held(open).quantity().filter(|_| !open.is_zero())
            {
                let (expires_at, on_expiry) = (reservation.expires_at, reservation.on_expiry);
                let key = HoldLineKey { counter: need.counter.key, expires_at, reservation: reservation.key };
                let covered = covered(&hold.covers, key.counter.subject_id, key.counter.definition);
                lines.push((key, HoldLine { quantity, covered, on_expiry }));
            }
        }
    }
    lines
}

/// Returns the usage query that computes the counter of a limit.
pub(crate) fn usage_query_for(
    found: &ApplicableLimit<'_>,
    counter: &CounterPeriod,
    stored: &StoredMeter,
) -> UsageQuery {
    let filter = found.terms.limit.filter.iter();
    UsageQuery {
        subjects: Subjects::one(found.member.subject.as_str()),
        descendants: true,
        filter: filter.map(|(name, values)| (name.to_owned(), values.to_vec())).collect(),
        ..UsageQuery::internal(&stored.meter.key, counter.counted_span())
    }
}

/// The direction in which an event changes counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sign {
    Recorded,
    TakenBack,
}

/// The additions of recorded quantities to counters.
#[derive(Debug, Default)]
pub(crate) struct Additions<'a> {
    pub(crate) counter_requests: CounterRequests<'a>,
    amounts: BTreeMap<CounterKey, Total>,
}

impl<'a> Additions<'a> {
    /// Adds an event as counted by one meter, or its void, to the counters of all subjects on its path.
    pub(crate) fn add(&mut self, terms: &'a CatalogIndex, used: &Tracked<'a>, sign: Sign) {
        let Tracked { path, stored, properties, quantity, at, .. } = *used;
        if !stored.meter.aggregation.is_reservable() {
            return;
        }
        // A soft and a hard limit of one definition share a counter, which counts an event once.
        let mut counted = BTreeSet::new();
        for counter_source in terms.counter_sources(path, &stored.meter.key, properties, at) {
            let Some(key) = request_counter(&mut self.counter_requests, counter_source, at)
                .filter(|key| counted.insert(*key))
            else {
                continue;
            };
            let (sum, amount) = (self.amounts.entry(key).or_default(), counter_source.measure(quantity));
            *sum = match sign {
                Sign::Recorded => *sum + amount,
                Sign::TakenBack => *sum - amount,
            };
        }
    }

    /// Returns the addition to a counter.
    pub(crate) fn amount(&self, key: CounterKey) -> Total {
        self.amounts.get(&key).copied().unwrap_or_default()
    }

    /// Writes the additions in the order of the counters. Returns the counters after the additions.
    pub(crate) async fn write(
        &self,
        transaction: &mut BatchTransaction<'_>,
    ) -> Result<Vec<CounterRow>, StoreError> {
        if self.counter_requests.is_empty() {
            return Ok(Vec::new());
        }
        make_missing(transaction, &self.counter_requests).await?;
        let BatchTransaction { scope, now, .. } = transaction;
        let now = *now;
        let closed: BTreeSet<CounterKey> = self
            .counter_requests
            .values()
            .filter(|need| need.counter.is_closed(now))
            .map(|need| need.counter.key)
            .collect();
        // A closed counter that does not exist is not created.
        let there: BTreeSet<CounterKey> = if closed.is_empty() {
            closed.clone()
        } else {
            let rows = store::gate::counters::find(scope.connection, closed.iter().copied()).await?;
            rows.into_iter().map(|row| row.key).collect()
        };
        let given: Vec<(WantedCounter, Total)> = self
            .counter_requests
            .values()
            .filter(|need| !closed.contains(&need.counter.key) || there.contains(&need.counter.key))
            .map(|need| (need.wanted(), self.amounts.get(&need.counter.key).copied().unwrap_or_default()))
            .collect();
        if given.is_empty() {
            return Ok(Vec::new());
        }
        store::gate::counters::add_used(scope, &given).await
    }
}
