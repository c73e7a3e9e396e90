//! Cap headroom: upper bounds per counter that keep the total cost below a cap.
//!
//! The bounds start from the last seen counter states and add a margin if the cap allows one. Counters may
//! have changed since. Usage that stays within every bound still fits the cap.

use std::sync::{Arc, Mutex, PoisonError};

use quick_cache::sync::Cache;

use metergate_domain::base::{Timestamp, Total};
use metergate_domain::gate::{ApplicableCap, CatalogIndex, CounterKey, CounterSource, CounterState, Path};

/// The most counters of caps that a writer remembers.
const COUNTERS_MAX: usize = 100_000;
/// The most paths with caps that a writer remembers.
const PATHS_MAX: usize = 50_000;
/// Growth factors to try, in percent of the last value.
const SCALES_PERCENT: [i128; 6] = [10_000, 1_000, 300, 150, 110, 100];

/// The last seen sums of `used` and `held`, by counter.
#[derive(Debug)]
pub(super) struct LastSeenCounters(Cache<CounterKey, Total>);

impl Default for LastSeenCounters {
    fn default() -> Self {
        Self(Cache::new(COUNTERS_MAX))
    }
}

impl LastSeenCounters {
    pub(super) fn note(&self, key: CounterKey, level: CounterState, added: Total) {
        self.0.insert(key, level.used + level.held + added);
    }
}

/// The counters of the caps on a path.
///
/// Naming a counter takes longer than deciding by it. The names stay valid until a period ends or another
/// price or rate takes effect.
#[derive(Debug)]
pub(super) struct CapsOnPath {
    pub(super) from: Timestamp,
    pub(super) until: Timestamp,
    /// The caps of the path, in the order of its applicable caps.
    caps: Vec<KnownCap>,
}

#[derive(Debug)]
struct KnownCap {
    /// The counters of the cap, in the order of its priced usages.
    counters: Vec<CounterKey>,
    /// False if the cap counts gauges, which are read under locks.
    uses_counter: bool,
    /// The last computed bounds; empty at first.
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

/// The caps that a writer has tested under one version of the catalog.
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
    /// Forgets the caps of any other version.
    pub(super) fn under(&mut self, version: i64) -> &Self {
        if self.version != version {
            self.by_path.clear();
            self.version = version;
        }
        self
    }

    /// Returns the caps of all subjects on a path, with their counters at a time.
    pub(super) fn on<'p>(&self, path: &'p Path, terms: &'p CatalogIndex, now: Timestamp) -> Vec<MetCap<'p>> {
        let applicable_caps = terms.applicable_caps(path, now);
        if applicable_caps.is_empty() {
            return Vec::new();
        }
        let known = self.by_path.get(&path.id).filter(|known| known.from <= now && now < known.until);
        let on_path = known.unwrap_or_else(|| {
            let made = Arc::new(CapsOnPath::of(&applicable_caps, now));
            self.by_path.insert(path.id, Arc::clone(&made));
            made
        });
        let met = |(place, applicable_cap)| MetCap { applicable_cap, on_path: Arc::clone(&on_path), place };
        applicable_caps.into_iter().enumerate().map(met).collect()
    }
}

/// A cap that counts a use of a batch.
#[derive(Debug)]
pub(super) struct MetCap<'p> {
    pub(super) applicable_cap: ApplicableCap<'p>,
    pub(super) on_path: Arc<CapsOnPath>,
    place: usize,
}

impl MetCap<'_> {
    /// Returns the counters of the cap. Returns none if the cap counts gauges, which are read under
    /// locks.
    pub(super) fn counters(&self) -> Option<&[CounterKey]> {
        let cap = self.on_path.caps.get(self.place).filter(|cap| cap.uses_counter)?;
        Some(&cap.counters)
    }

    pub(super) fn is(&self, other: &Self) -> bool {
        self.place == other.place && Arc::ptr_eq(&self.on_path, &other.on_path)
    }

    /// Returns the upper bound of each counter. Returns none if the cap has to be decided under locks.
    pub(super) fn headroom(
        &self,
        seen: &LastSeenCounters,
        added: impl Fn(&CounterKey) -> Total,
        now: Timestamp,
    ) -> Option<Vec<Total>> {
        let cap = self.on_path.caps.get(self.place)?;
        let comes_to = |key: &CounterKey| Some(seen.0.get(key)? + added(key));
        let levels: Vec<Total> = cap.counters.iter().map(comes_to).collect::<Option<_>>()?;
        let mut known = cap.rooms.lock().unwrap_or_else(PoisonError::into_inner);
        let fit =
            known.len() == levels.len() && levels.iter().zip(&*known).all(|(level, room)| level <= room);
        if !fit {
            *known = compute_headroom(&self.applicable_cap, &cap.counters, &levels, now)?;
        }
        Some(known.clone())
    }
}

/// Returns the largest tried bounds that fit the cap.
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
