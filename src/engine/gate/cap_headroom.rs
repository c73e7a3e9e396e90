//! What the counters of a cap may come to, each for itself, so that together they cost no more than the
//! cap: worked out from what they came to when they were seen last, with more for each where there is
//! room for more. However far they have gone since, what fits under every one of them fits under the cap.

use std::sync::{Arc, Mutex, PoisonError};

use quick_cache::sync::Cache;

use metergate_domain::base::quantity::Total;
use metergate_domain::base::timestamp::Timestamp;
use metergate_domain::gate::applicable_cap::{ApplicableCap, CounterSource};
use metergate_domain::gate::catalog_index::CatalogIndex;
use metergate_domain::gate::counter::CounterKey;
use metergate_domain::gate::counter::CounterState;
use metergate_domain::gate::path::Path;

/// Counters of caps that a writer remembers.
const SEEN_MAX: usize = 100_000;
/// Paths whose caps a writer remembers.
const PATHS_MAX: usize = 50_000;
/// How many times what it comes to each counter may have, in percent; what is tried first comes first.
const SCALES_PERCENT: [i128; 6] = [10_000, 1_000, 300, 150, 110, 100];

/// What counters came to, used and held together, when they were seen last.
#[derive(Debug)]
pub(super) struct LastSeenCounters(Cache<CounterKey, Total>);

impl Default for LastSeenCounters {
    fn default() -> Self {
        Self(Cache::new(SEEN_MAX))
    }
}

impl LastSeenCounters {
    pub(super) fn note(&self, key: CounterKey, level: CounterState, added: Total) {
        self.0.insert(key, level.used + level.held + added);
    }
}

/// The counters of the caps on a path, which are named by all that they depend on: that takes longer than
/// deciding by them, and they stay the same until a period ends or another price or rate comes into force.
#[derive(Debug)]
pub(super) struct CapsOnPath {
    pub(super) from: Timestamp,
    pub(super) until: Timestamp,
    /// In the order of the path's budgets.
    pub(super) caps: Vec<KnownCap>,
}

#[derive(Debug)]
pub(super) struct KnownCap {
    /// In the order of the budget's portions.
    pub(super) counters: Vec<CounterKey>,
    /// Whether all it counts has counters; levels are read by the long way.
    pub(super) uses_counter: bool,
    /// What each of them may come to, as it was worked out last; empty before.
    rooms: Mutex<Vec<Total>>,
}

impl CapsOnPath {
    fn of(applicable_caps: &[ApplicableCap<'_>], now: Timestamp) -> Self {
        let (mut from, mut until) = (Timestamp::MIN, Timestamp::MAX);
        let mut caps = Vec::with_capacity(applicable_caps.len());
        for applicable_cap in applicable_caps {
            let period = applicable_cap.period_at(now);
            from = from.max(period.from).max(applicable_cap.last_change(now).unwrap_or(Timestamp::MIN));
            until = until.min(period.to).min(applicable_cap.next_change(now).unwrap_or(Timestamp::MAX));
            caps.push(KnownCap {
                counters: applicable_cap
                    .priced_usages()
                    .map(|priced_usage| priced_usage.counter_at(now).key)
                    .collect(),
                uses_counter: applicable_cap
                    .priced_usages()
                    .all(|priced_usage| CounterSource::PricedUsage(priced_usage).uses_counter()),
                rooms: Mutex::default(),
            });
        }
        Self { from, until, caps }
    }
}

/// The caps that a writer met, under one version of the configuration.
#[derive(Debug)]
pub(super) struct KnownCaps {
    version: i64,
    by_path: Cache<i64, Arc<CapsOnPath>>,
}

impl Default for KnownCaps {
    fn default() -> Self {
        Self { version: 0, by_path: Cache::new(PATHS_MAX) }
    }
}

impl KnownCaps {
    /// What is said of another version is forgotten.
    pub(super) fn under(&mut self, version: i64) -> &Self {
        if self.version != version {
            self.by_path.clear();
            self.version = version;
        }
        self
    }

    /// The caps of everybody on a path, and their counters at a time.
    pub(super) fn on<'p>(
        &self,
        path: &'p Path,
        terms: &'p CatalogIndex,
        now: Timestamp,
    ) -> Option<(Vec<ApplicableCap<'p>>, Arc<CapsOnPath>)> {
        let applicable_caps = terms.applicable_caps(path, now);
        if applicable_caps.is_empty() {
            return None;
        }
        let known = self.by_path.get(&path.id).filter(|known| known.from <= now && now < known.until);
        let known = known.unwrap_or_else(|| {
            let made = Arc::new(CapsOnPath::of(&applicable_caps, now));
            self.by_path.insert(path.id, Arc::clone(&made));
            made
        });
        Some((applicable_caps, known))
    }
}

/// The caps that a batch meets, each once.
#[derive(Debug, Default)]
pub(super) struct ApplicableCaps<'p>(Vec<(ApplicableCap<'p>, Arc<CapsOnPath>, usize)>);

impl<'p> ApplicableCaps<'p> {
    /// The cap at a place among those of its path.
    pub(super) fn add(&mut self, applicable_cap: ApplicableCap<'p>, known: &Arc<CapsOnPath>, place: usize) {
        let is_there =
            |(_, other, at): &(_, Arc<CapsOnPath>, usize)| *at == place && Arc::ptr_eq(other, known);
        if !self.0.iter().any(is_there) {
            self.0.push((applicable_cap, Arc::clone(known), place));
        }
    }

    /// What each counter may come to; none where it has to be looked at which of it fits.
    pub(super) fn cap_headrooms(
        &self,
        seen: &LastSeenCounters,
        added: impl Fn(&CounterKey) -> Total,
        now: Timestamp,
    ) -> Option<Vec<(CounterKey, Total)>> {
        let mut rooms = Vec::new();
        for (applicable_cap, known, place) in &self.0 {
            let cap = known.caps.get(*place)?;
            let comes_to = |key: &CounterKey| Some(seen.0.get(key)? + added(key));
            let levels: Vec<Total> = cap.counters.iter().map(comes_to).collect::<Option<_>>()?;
            let mut known = cap.rooms.lock().unwrap_or_else(PoisonError::into_inner);
            let fit =
                known.len() == levels.len() && levels.iter().zip(&*known).all(|(level, room)| level <= room);
            if !fit {
                *known = compute_headroom(applicable_cap, &cap.counters, &levels, now)?;
            }
            rooms.extend(cap.counters.iter().copied().zip(known.iter().copied()));
        }
        Some(rooms)
    }
}

/// The most for each that fits.
fn compute_headroom(
    applicable_cap: &ApplicableCap<'_>,
    counters: &[CounterKey],
    levels: &[Total],
    now: Timestamp,
) -> Option<Vec<Total>> {
    let scaled = |scale: i128| -> Vec<Total> {
        let more = |level: &Total| level.nanos().saturating_abs().saturating_mul(scale - 100) / 100;
        levels.iter().map(|level| Total::from_nanos(level.nanos().saturating_add(more(level)))).collect()
    };
    let fits = |rooms: &Vec<Total>| {
        let all_of_it = |key: &CounterKey| {
            let place = counters.iter().position(|counter| counter == key);
            let held = place.and_then(|place| rooms.get(place)).copied().unwrap_or_default();
            CounterState { held, ..CounterState::default() }
        };
        let cost = applicable_cap.highest(now, all_of_it, |_, _| Total::default());
        cost.is_some_and(|cost| cost <= applicable_cap.cap.amount)
    };
    SCALES_PERCENT.into_iter().map(scaled).find(fits)
}
